"""Reports: values against SciPy and scikit-learn, and pages of tiny runs, read back as a browser would."""

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from qpt import PretrainConfig, cli, degrade, pretrain
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.logistic import logistic
from qpt.evaluate.metrics import measure_and_fit
from qpt.evaluate.probe_set import pooled_features, pristine_features, probe_set
from qpt.evaluate.table import ScoreTable, read_table
from qpt.models.encoder import untrained_encoder
from qpt.report.build import write_report
from qpt.report.measurements import (
    MAP_MOST,
    distance_severity,
    embedding_map,
    out_of_fold,
    score_severity,
    srcc_by_kind,
)
from qpt.runs.log import read_log
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread
from tests.pages import Page

SECTIONS = (
    *("Summary", "Predictions and MOS", "By distortion", "Best and worst predictions", "Training"),
    *("Similarities of pairs", "Throughput", "What the run saw", "Nearest neighbours by quality"),
    *("Score and severity", "Map of the images, by MOS", "Map of degraded patches", "Evaluation over splits"),
    *("Record", "Settings"),
)


@pytest.fixture(scope="module", autouse=True)
def two_images() -> Iterator[None]:
    """Draw severity curves of two images instead of eight: the same page, sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qpt.report.severity.IMAGES", 2)
        patch.setattr("qpt.report.neighbours.IMAGES", 2)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (run, csv, evaluation): a real run on six images, a labelled set, and its evaluation."""
    folder = tmp_path_factory.mktemp("report")
    pictures = folder / "photographs"
    pictures.mkdir()
    for name, pixels in image_regions().items():
        Image.fromarray(pixels).save(pictures / f"{name}.png")
    settings = {"width": 8, "projection_dim": 8, "patch_size": 32, "batch_images": 4, "steps": 6, "log_every": 1}
    config = PretrainConfig(
        *(str(pictures), str(folder / "first")),
        **{"arch": "resnet18", "mode": "in_batch", "threads": 1, "tensorboard": False, "page": False, **settings},
    )
    assert pretrain(config).finished
    csv, result = write_set(folder / "set"), folder / "result.json"
    assert cli.main(["evaluate", str(folder / "first"), "--csv", str(csv), "--out", str(result)]) == 0
    return folder / "first", csv, result


def with_kinds(table: ScoreTable) -> ScoreTable:
    """Return the table with a distortion type for each image: of every six images, half each."""
    return dataclasses.replace(table, kinds=tuple("fog" if i % 2 else "rain" for i in range(len(table))))


def test_every_section_of_a_run_has_its_content(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, csv, result = tiny
    table, out = with_kinds(read_table(csv)), tmp_path / "page.html"
    write_report([run], out, table=table, evaluation=result, quiet=True)
    page = Page(out)
    page.assert_self_contained()
    assert str(tmp_path.parent) not in page.source and str(run.parent) not in page.source
    assert tuple(page.text)[1:] == SECTIONS
    assert {name: len(found) for name, found in page.pictures.items() if found} == {
        "Predictions and MOS": 2,
        "By distortion": 1,
        "Best and worst predictions": 12,
        "Score and severity": len(DegradationSpace.preset("qpt").ops),
        "Map of the images, by MOS": 1,
        "Map of degraded patches": 2,
        "Training": 5,
        "Similarities of pairs": 2,
        "Throughput": 2,
        "What the run saw": 8,
        "Nearest neighbours by quality": 36,
    }
    for name, found in page.pictures.items():
        if name not in ("What the run saw", "Nearest neighbours by quality"):  # a degradation may leave a patch flat
            assert all(np.asarray(picture.convert("L")).std() > 3 for picture in found)  # something is drawn
    assert "Not shown" not in page.source
    assert "out of fold" in page.text[""] and "24 images in 6 groups" in page.text[""]
    assert "GroupKFold(5) by ref" in page.text["Predictions and MOS"]
    assert "mos" not in page.text["Settings"] and "patch_size: 32" in page.text["Settings"]
    median = json.loads(result.read_text())["methods"][0]["regimes"]["all"]["summary"]["srcc"]["median"]
    assert (
        f"{median:.3f} (" in page.text["Evaluation over splits"] and "laplacian" in page.text["Evaluation over splits"]
    )
    assert f"{read_log(run)['loss'][-1]:.3f}" in page.text["Summary"]
    first = Image.open(io.BytesIO(base64.b64decode(page.links[3].partition("base64,")[2])))  # the closest prediction
    assert first.size == (128, 96) and first.format == "JPEG"


def test_sections_without_data_say_why(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A checkpoint alone, of images that are gone: one table lists the sections not shown and what they need."""
    (tmp_path / "elsewhere").mkdir()
    checkpoint = tmp_path / "elsewhere" / "checkpoint.pt"
    state = torch.load(tiny[0] / "checkpoint.pt", weights_only=True)
    state["config"]["data"] = str(tmp_path / "gone")
    torch.save(state, checkpoint)
    out = tmp_path / "page.html"
    assert cli.main(["report", str(checkpoint), "--out", str(out)]) == 0
    page = Page(out)
    page.assert_self_contained()
    assert tuple(page.text)[1:] == ("Summary", "Record", "Settings", "Not shown") and not any(page.pictures.values())
    for name in set(SECTIONS) - {"Summary", "Record", "Settings"}:
        assert page.text["Not shown"].count(f"\n{name}\n") == 1, name
    assert "--photographs" in page.text["Not shown"] and "log.csv" in page.text["Not shown"]
    assert str(tmp_path) not in page.source


def test_two_runs_are_compared(tiny: tuple[Path, Path, Path], tmp_path: Path, capsys) -> None:
    run, csv, _ = tiny
    other = write_run(tmp_path / "other", width=5)  # without a log
    out = tmp_path / "page.html"
    arguments = ["report", str(run), str(other), "--csv", str(csv), "--out", str(out)]
    assert cli.main([*arguments, "--photographs", str(csv.parent / "images"), "--cache", str(tmp_path / "cache")]) == 0
    assert "self-contained" in capsys.readouterr().out
    page = Page(out)
    page.assert_self_contained()
    assert len(page.pictures["Predictions and MOS"]) == 4
    assert len(page.pictures["Best and worst predictions"]) == 24
    assert len(page.pictures["Score and severity"]) == len(DegradationSpace.preset("qpt").ops)  # both runs in each
    assert "Without a log: other" in page.text["Training"]
    assert "first" in page.text["Summary"] and "other" in page.text["Summary"]
    assert "width\n8\n5" in page.text["What the runs differ in"]
    assert len(page.pictures["Nearest neighbours by quality"]) == 2 * 36
    assert "does not say which distortion" in page.text["Not shown"]


def test_a_scorer_alone_gives_score_curves(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, csv, _ = tiny
    scorer = tmp_path / "scorer.pt"
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", str(scorer)]) == 0
    for options, words in (({"scorer": scorer}, "the score, minus"), ({}, "Euclidean distance")):
        write_report([run], tmp_path / "page.html", photographs=csv.parent / "images", quiet=True, **options)
        page = Page(tmp_path / "page.html")
        assert words in page.text["Score and severity"]
        assert len(page.pictures["Score and severity"]) == len(DegradationSpace.preset("qpt").ops)
        assert len(page.pictures["Map of degraded patches"]) == 2 and "Predictions and MOS" not in page.pictures
    with pytest.raises(InputError, match="scorer must be made from other"):
        write_report([write_run(tmp_path / "other")], tmp_path / "page.html", scorer=scorer, quiet=True)


def test_a_prediction_is_made_without_the_scores_of_its_group() -> None:
    generator = np.random.default_rng(0)
    features, groups = generator.normal(size=(60, 4)), np.repeat(np.arange(20), 3)
    mos = 50 + features @ [9.0, 4.0, 1.0, 0.0]
    before = out_of_fold({"all": features}, mos, groups, 0)
    assert before.folds == "GroupKFold(5)"
    assert spearmanr(before.predictions, mos).statistic > 0.99
    for group in (0, 7, 19):
        changed = np.where(groups == group, generator.normal(50, 500, 60), mos)
        after = out_of_fold({"all": features}, changed, groups, 0).predictions
        np.testing.assert_array_equal(after[groups == group], before.predictions[groups == group])
        assert (after != before.predictions).any()


def test_logistic_fit_finds_the_curve_it_was_given() -> None:
    x = np.random.default_rng(1).normal(40, 9, 200)
    for ends in ((80.0, 20.0), (20.0, 80.0)):
        y = logistic(x, *ends, 42.0, 4.0)
        fitted = measure_and_fit(x, y)[1]["plcc_logistic"]
        np.testing.assert_allclose(logistic(x, *fitted), y, atol=1e-4)  # of a range of 60
    assert not measure_and_fit(np.ones(9), np.arange(9.0))[1]
    assert not measure_and_fit(np.arange(4.0), np.arange(4.0))[1]


def test_srcc_within_types_equals_scipy_and_small_types_are_left_out() -> None:
    generator = np.random.default_rng(2)
    kinds = tuple(generator.choice(["a", "b"], 40)) + ("rare",) * 4
    predictions, mos = generator.normal(size=44), generator.integers(0, 5, 44).astype(float)
    srcc, counts = srcc_by_kind(predictions, mos, kinds)
    assert set(srcc) == {"a", "b"} and sum(counts.values()) == 40
    for kind, value in srcc.items():
        of_kind = np.array(kinds) == kind
        assert counts[kind] == of_kind.sum()
        assert value == pytest.approx(spearmanr(predictions[of_kind], mos[of_kind]).statistic)


def test_severity_of_a_known_score_and_of_distances() -> None:
    """Contrast reduction lowers a score that is the deviation of the pixels; noise is farther at every level."""
    pixels = torch.from_numpy(np.stack([p[:64, :64] for p in list(image_regions().values())[:3]]))
    data = probe_set(pixels, np.arange(3), DegradationSpace(ops=("gaussian_noise", "gaussian_blur"), max_ops=1), 0)
    rows = degrade(pixels, data.program).numpy()
    found = score_severity(lambda image: float(image.std()), rows, data)
    for number, op in enumerate(("gaussian_noise", "gaussian_blur")):
        for image in range(3):
            start = image * 10 + number * 5
            expected = [rows[start + level].std() - pixels[image].numpy().std() for level in range(5)]
            np.testing.assert_allclose(found.changes[op][image], [0.0, *expected], atol=1e-9)
    assert found.monotone("gaussian_blur") and found.correlation("gaussian_blur") == pytest.approx(-1)
    assert not found.monotone("gaussian_noise")

    encoder = untrained_encoder("resnet18", 8, 0)
    features, pristine = pooled_features(encoder, data), pristine_features(encoder, data)
    far = distance_severity(features.astype(float), pristine.astype(float), data)
    assert far.changes["gaussian_noise"][1, 3] == pytest.approx(np.linalg.norm(features[12] - pristine[1]), rel=1e-5)
    assert far.monotone("gaussian_noise") and far.correlation("gaussian_noise") == pytest.approx(1)


def test_maps_are_pca_of_few_and_tsne_of_many_and_bounded() -> None:
    generator = np.random.default_rng(3)
    few = generator.normal(size=(20, 6)) * [1, 10, 100, 1, 1, 0]
    cloud = embedding_map(few, 0)
    expected = PCA(2).fit_transform((few - few.mean(0)) / np.where(few.std(0) == 0, 1, few.std(0)))
    np.testing.assert_allclose(np.abs(cloud.points), np.abs(expected), atol=1e-8)
    assert cloud.method == "PCA" and cloud.kept.tolist() == list(range(20))

    centres = np.repeat(np.eye(3) * 50, 30, axis=0)
    many = embedding_map(centres + generator.normal(size=(90, 3)), 0)
    assert many.method == "t-SNE" and many.points.shape == (90, 2)
    middles = many.points.reshape(3, 30, 2).mean(1)
    nearest = np.linalg.norm(many.points[:, None] - middles, axis=2).argmin(1)
    assert (nearest == np.repeat(np.arange(3), 30)).all()  # three clusters stay three
    assert MAP_MOST == 3000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": "nowhere"}, "checkpoint"),
        ({"--csv": "nowhere.csv"}, "csv must be a file"),
        ({"--photographs": "nowhere"}, "folder must be an existing folder"),
        ({"--evaluation": "nowhere.json"}, "evaluation must be a JSON file of"),
        ({"--scorer": "nowhere.pt"}, "path must be a scorer file"),
        ({"--seed": "-1"}, "seed must be an integer of at least 0"),
        ({"--out": "/proc/nothing/page.html"}, "out must be a writable file"),
    ],
)
def test_bad_arguments_exit_2(tiny: tuple[Path, Path, Path], tmp_path: Path, capsys, change, words: str) -> None:
    given = {"run": str(tiny[0]), "--out": str(tmp_path / "page.html"), **change}
    options = [word for name, value in given.items() if name.startswith("-") for word in (name, value)]
    assert cli.main(["report", given["run"], *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qpt report: error: ") and words in error and "Traceback" not in error
    assert not (tmp_path / "page.html").exists()


def test_other_files_and_too_many_runs_are_refused(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, out, other = tiny[0], tmp_path / "page.html", tmp_path / "other.json"
    for content, words in (("{}", "result of `qpt evaluate"), ("[", "a JSON file"), ("[1]", "result of `qpt evaluate")):
        other.write_text(content)
        with pytest.raises(InputError, match=words):
            write_report([run], out, evaluation=other, quiet=True)
    other.write_text('{"format": "qpt-evaluation-1", "data": {"name": "x", "images": 3}}')
    with pytest.raises(InputError, match="evaluation lacks what a result holds"):
        write_report([run], out, evaluation=other, quiet=True)
    with pytest.raises(InputError, match="1 to 6 runs, got 7"):
        write_report([run] * 7, out)
    with pytest.raises(InputError, match="1 to 6 runs, got 0"):
        write_report([], out)
    with pytest.raises(InputError, match="scorer goes with one run, got 2"):
        write_report([run, run], out, scorer="any.pt")
    assert not out.exists()
