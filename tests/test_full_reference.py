"""reference_distance: equal to its definition, 0 for equal images, larger for stronger degradations; the command."""

import csv as csv_module
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import qpt
from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol, prepare
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions, write_run
from tests.labelled import one_thread as one_thread
from tests.test_score_loss import make_scorer

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def encoder():
    return prepare(untrained_encoder("resnet18", 4, seed=1))


def blurred(pixels, sigma):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def definition(encoder, x, y):
    """Return DISTS's formula on the image and the stages of one crop, in NumPy float64, with equal weights."""
    maps = []
    for pixels in (x, y):
        values = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
        with torch.no_grad():
            stages = encoder.stages(torch.from_numpy(values).float())
        maps.append([(pixels / 255).transpose(2, 0, 1), *(stage[0].double().numpy() for stage in stages)])
    terms = []
    for a, b in zip(*maps, strict=True):
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        texture = (2 * a.mean(1) * b.mean(1) + 1e-6) / (a.mean(1) ** 2 + b.mean(1) ** 2 + 1e-6)
        covariance = (a * b).mean(1) - a.mean(1) * b.mean(1)
        structure = (2 * covariance + 1e-6) / (a.var(1) + b.var(1) + 1e-6)
        terms.append((texture.mean() + structure.mean()) / 2)
    return 1 - np.mean(terms)


def test_the_distance_is_its_definition(encoder):
    pictures = image_regions()
    for x, y in ((pictures["cat"], blurred(pictures["cat"], 2)), (pictures["cup"], pictures["rocket"])):
        assert qpt.reference_distance(encoder, x, y) == pytest.approx(definition(encoder, x, y), rel=1e-4)


def test_crops_are_seen_as_one_image():
    """Moments of one layer over all crops are those of the crops side by side."""

    class Layer(qpt.models.Encoder):
        def __init__(self):
            super().__init__("layer")
            self.mix = torch.nn.Conv2d(3, 5, 1)
            self.stage_dims = (5,)

        def stages(self, x):
            return (self.mix(x).relu(),)

    torch.manual_seed(0)
    layer, x = Layer().eval(), image_regions()["face"]
    y = blurred(x, 1.5)
    seen = qpt.reference_distance(layer, x, y, protocol=FeatureProtocol(32, 4))
    places = [(top, left) for top in (0, 64) for left in (0, 96)]  # 96 x 128 px through 2 x 2 crops of 32
    beside = [np.concatenate([p[t : t + 32, le : le + 32] for t, le in places]) for p in (x, y)]
    assert seen == pytest.approx(definition(layer, *beside), rel=1e-4)
    assert seen != pytest.approx(definition(layer, x, y), rel=1e-4)


def test_equal_images_have_distance_0_and_the_distance_is_symmetric(encoder, tmp_path):
    x = image_regions()["suit"]
    Image.fromarray(x).save(tmp_path / "x.png")
    for same in (x, x.copy(), Image.fromarray(x), tmp_path / "x.png", str(tmp_path / "x.png")):
        assert qpt.reference_distance(encoder, same, x) == 0
    black, white = np.zeros((40, 50, 3), np.uint8), np.full((40, 50, 3), 255, np.uint8)
    assert qpt.reference_distance(encoder, black, black) == 0
    assert 0 < qpt.reference_distance(encoder, black, white) <= 2
    assert qpt.reference_distance(encoder, x, blurred(x, 3)) == qpt.reference_distance(encoder, blurred(x, 3), x)


def test_it_grows_with_the_level_of_a_degradation(encoder):
    for x in (image_regions()["cat"], image_regions()["table"]):
        noise = np.random.default_rng(0).normal(0, 1, x.shape)
        blurs = [blurred(x, sigma) for sigma in (0.5, 1, 2, 4)]
        noisy = [np.clip(x + sigma * noise, 0, 255).astype(np.uint8) for sigma in (4, 10, 25, 60)]
        for levels in (blurs, noisy):
            distances = [qpt.reference_distance(encoder, degraded, x) for degraded in levels]
            assert distances == sorted(distances) and distances[0] > 0


def test_a_scorer_gives_its_encoder_and_its_protocol():
    scorer = make_scorer(protocol=FeatureProtocol(48, 4))
    x, y = image_regions()["cat"], blurred(image_regions()["cat"], 2)
    found = qpt.reference_distance(scorer, x, y)
    assert found == qpt.reference_distance(scorer.encoder, x, y, protocol=FeatureProtocol(48, 4))
    assert found != qpt.reference_distance(scorer.encoder, x, y)
    half = qpt.reference_distance(scorer.in_dtype("bfloat16"), x, y)
    assert half == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (33, 47)])
def test_any_size_is_taken(encoder, shape):
    x, y = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    assert 0 < qpt.reference_distance(encoder, x, y) <= 2


def test_what_is_refused(encoder, tmp_path):
    x = image_regions()["cat"]
    with pytest.raises(
        InputError, match=r"^reference_distance: reference must have the size of the image, 128x96, got 127"
    ):
        qpt.reference_distance(encoder, x, x[:, :127])
    # Files under 32 px are padded for the encoder: their own sizes are compared.
    for name, pixels in (("a.png", x[:20]), ("b.png", x[:24])):
        Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(InputError, match="size of the image, 128x20, got 128x24 px"):
        qpt.reference_distance(encoder, tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(InputError, match=r"^reference_distance: model must be an encoder or a scorer, got str"):
        qpt.reference_distance("resnet18", x, x)
    with pytest.raises(InputError, match="no such file"):
        qpt.reference_distance(encoder, x, tmp_path / "none.png")
    with pytest.raises(InputError, match="is more than max_pixels"):
        qpt.reference_distance(encoder, x, x, max_pixels=100)
    broken = untrained_encoder("resnet18", 2, seed=1)
    with torch.no_grad():
        broken.conv1.weight.fill_(torch.inf)
    with pytest.raises(InputError, match="encoder must give finite features"):
        qpt.reference_distance(broken, x, x)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return (folder, run): originals/NAME.png, degraded/NAME.png and a run of a narrow encoder."""
    folder = tmp_path_factory.mktemp("pairs")
    for part in ("originals", "degraded"):
        (folder / part).mkdir()
    for name in ("cat", "cup"):
        pixels = image_regions()[name]
        Image.fromarray(pixels).save(folder / "originals" / f"{name}.png")
        Image.fromarray(blurred(pixels, 2)).save(folder / "degraded" / f"{name}.png")
    return folder, write_run(folder / "run")


def answer(capsys, *words, code=0):
    assert cli.main(["score", *map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_command_takes_a_file_a_folder_or_a_table(files, capsys):
    folder, run = files
    degraded, originals = folder / "degraded", folder / "originals"
    loaded = qpt.load_encoder(run)
    expected = {
        str(degraded / name): qpt.reference_distance(loaded, degraded / name, originals / name)
        for name in ("cat.png", "cup.png")
    }
    table = folder / "pairs.csv"
    table.write_text("image,ref_image\n" + "".join(f"degraded/{n}.png,originals/{n}.png\n" for n in ("cup", "cat")))
    for reference in (originals, table):
        found = answer(capsys, degraded, "--reference", reference, "--run", run)
        assert {row["image"]: row["distance"] for row in found["distances"]} == expected and found["errors"] == {}
        assert [row["reference"] for row in found["distances"]] == [str(originals / n) for n in ("cat.png", "cup.png")]
    assert found["scale"] == {"min": 0, "max": 2, "higher_is_better": False}
    one = answer(
        capsys, degraded / "cat.png", originals / "cat.png", "--reference", originals / "cat.png", "--run", run
    )
    assert [row["distance"] for row in one["distances"]] == [expected[str(degraded / "cat.png")], 0]
    make_scorer().save(folder / "scorer.pt")
    by_scorer = answer(capsys, degraded, "--reference", originals, "--scorer", folder / "scorer.pt")["distances"]
    assert [row["distance"] for row in by_scorer] == [
        qpt.reference_distance(make_scorer(), degraded / name, originals / name) for name in ("cat.png", "cup.png")
    ]


def test_a_reference_of_another_extension_is_matched_by_its_name(files, tmp_path, capsys):
    folder, run = files
    Image.fromarray(image_regions()["cat"]).save(tmp_path / "cat.jpg")
    found = answer(capsys, folder / "degraded" / "cat.png", "--reference", tmp_path, "--run", run)["distances"]
    assert [row["reference"] for row in found] == [str(tmp_path / "cat.jpg")]


def test_the_command_prints_a_table_or_csv(files, capsys):
    folder, run = files
    words = ["score", str(folder / "degraded"), "--reference", str(folder / "originals"), "--run", str(run)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "distance: 0 is the reference itself; lower is better" in printed and "originals/cup.png" in printed
    assert cli.main([*words, "--format", "csv"]) == 0
    rows = list(csv_module.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["image", "distance", "reference", "error"]
    assert [f"{float(row['distance']):.4f}" for row in rows] == [line.split()[0] for line in printed.splitlines()[3:5]]


def test_pairs_that_cannot_be_compared_are_named_beside_those_that_can(files, tmp_path, capsys):
    folder, run = files
    for name in ("cat", "other", "cup"):
        Image.fromarray(image_regions()["cat"][: 90 if name == "cup" else 96]).save(tmp_path / f"{name}.png")
    words = ["score", str(tmp_path), "none.png", "--reference", str(folder / "originals"), "--run", str(run)]
    assert cli.main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [row["distance"] for row in found["distances"]] == [0]
    assert found["errors"] == {
        "none.png": "no such file",
        str(tmp_path / "cup.png"): "reference must have the size of the image, 128x90, got 128x96 px; "
        "resize or crop one of them",
        str(
            tmp_path / "other.png"
        ): f"reference must be one image in {folder / 'originals'} of the same name, got none",
    }
    assert "3 photograph(s) cannot be used" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "nowhere"], "--reference must be an image, a folder of images or a CSV, got nowhere"),
        (["--reference", "x.png", "--scorer", "s.pt"], "one of --scorer FILE and --run RUN for its encoder, got both"),
        (["--reference", "x.png", "--csv", "scores.csv"], "--csv must be left out with --reference"),
        (["--reference", "x.png", "--heatmap", "maps"], "--heatmap must be left out with --reference"),
        (["--reference", "x.png", "--max-pixels", "0"], "--max-pixels must be an integer of at least 1"),
    ],
)
def test_options_refused(files, capsys, words, message):
    folder, run = files
    assert cli.main(["score", str(folder / "degraded"), "--run", str(run), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,mos\na.png,1\n", "lacks column(s) ref_image"),
        ("image,ref_image\na.png\n", "name an image and its reference in each row, got line 2"),
        ("image,ref_image\na.png,b.png\na.png,c.png\n", "give an image one reference, got two for a.png"),
    ],
)
def test_tables_refused(files, tmp_path, capsys, content, message):
    folder, run = files
    (tmp_path / "pairs.csv").write_text(content)
    words = ["--reference", str(tmp_path / "pairs.csv"), "--run", str(run)]
    assert cli.main(["score", str(folder / "degraded"), *words]) == 2
    assert message in capsys.readouterr().err
