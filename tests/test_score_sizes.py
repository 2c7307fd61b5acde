"""Scores of images of every size, in every precision, as a metric, as a map, and from the command line."""

import csv as csv_module
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from benchmarks import memory
from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol, ReadOut
from qpt.evaluate.quality_map import quality_map
from qpt.evaluate.scorer import Scorer
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return (scorer, its file, the folder of its images)."""
    from qpt.evaluate.table import read_table
    from qpt.models import load_encoder

    folder = tmp_path_factory.mktemp("sizes")
    table = read_table(write_set(folder / "set"))
    scorer = Scorer.fit(load_encoder(write_run(folder / "run")), table, quiet=True)
    scorer.save(folder / "scorer.pt")
    return scorer, folder / "scorer.pt", folder / "set" / "images"


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (31, 2), (33, 47)])
def test_any_size_has_a_score(fitted, tmp_path, shape):
    scorer, _, _ = fitted
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.isfinite(scorer(pixels)) and scorer(tmp_path / "x.png") == scorer(pixels)


def test_larger_than_the_limit_is_one_clear_error(fitted, tmp_path):
    _, file, _ = fitted
    scorer = Scorer.load(file, max_pixels=96 * 128)
    assert np.isfinite(scorer(image_regions()["cat"]))
    Image.new("RGB", (97, 128)).save(tmp_path / "x.png")
    for photograph in (np.zeros((128, 97, 3), np.uint8), tmp_path / "x.png"):
        with pytest.raises(InputError, match=r"97x128 px.* is more than"):
            scorer(photograph)
    with pytest.raises(InputError, match="is more than max_pixels = 12,288"):
        scorer(np.zeros((1, 400, 3), np.uint8))  # 32 x 400 after it is extended
    with pytest.raises(InputError, match="max_pixels must be an integer of at least 1"):
        Scorer.load(file, max_pixels=0)


@pytest.mark.skipif(not memory.AVAILABLE, reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_100_megapixels_take_less_than_a_gibibyte(tmp_path, suffix):
    """The memory is measured in a fresh process, beyond the loaded model; the size is above Pillow's own limit."""
    encoder = untrained_encoder("resnet18", 32, seed=0)
    dims = 2 * encoder.stage_dims[-1]
    weights, protocol = np.full(dims, 1 / dims), FeatureProtocol()
    Scorer(encoder, ReadOut("last", "mean"), protocol, weights, 0.0, 0.0, 1.0, {"name": "none"}).save(tmp_path / "s.pt")
    blocks = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    picture = Image.fromarray(blocks).resize((10_000, 10_000), Image.Resampling.NEAREST)
    picture.save(tmp_path / f"x.{suffix}", **({"compress_level": 1} if suffix == "png" else {}))
    command = [sys.executable, "-m", "tests.memory_score", str(tmp_path / "s.pt"), str(tmp_path / f"x.{suffix}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert np.isfinite(answer["score"])
    assert 400 < answer["peak_mib"] <= 1024, answer  # the decoded image alone is 381 MiB: less was not measured right


@pytest.fixture(scope="module")
def steady(fitted):
    """Return a scorer whose penalty is 1 per feature: smaller ones, as two dozen images choose, magnify rounding."""
    from qpt.evaluate.features import image_features
    from qpt.evaluate.ridge import fit_ridge

    _, _, folder = fitted
    encoder, protocol = untrained_encoder("resnet18", 16, seed=0), FeatureProtocol()
    read_out = ReadOut("all", "mean+std")
    files = sorted(folder.glob("*.png"))
    stack = np.stack([image_features(encoder, np.asarray(Image.open(file)), protocol) for file in files])
    mos = np.array([80.0 - 20 * int(file.stem[-1]) for file in files])
    ridge = fit_ridge(read_out.select(stack, encoder.stage_dims), mos, (1.0,))
    weights = ridge.weights[0] / ridge.scale
    intercept = float(ridge.intercept - ridge.mean @ weights)
    return Scorer(encoder, read_out, protocol, weights, intercept, 20.0, 80.0, {"name": "steady"})


@pytest.mark.parametrize(("dtype", "allowed"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_half_precision_moves_scores_by_little_of_the_range(steady, tmp_path, dtype, allowed):
    steady.save(tmp_path / "s.pt")
    half = Scorer.load(tmp_path / "s.pt", dtype=dtype)
    assert half.dtype == dtype and half.encoder.layer1[0].conv1.weight.dtype == getattr(torch, dtype)
    pictures = [*image_regions().values(), data.chelsea()[::2, ::2], data.rocket()[:200, :300]]
    differences = [abs(half(picture) - steady(picture)) for picture in pictures]
    assert 0 < max(differences) <= allowed * (steady.mos_max - steady.mos_min), differences
    with pytest.raises(InputError, match="only a float32 scorer is saved"):
        half.save(tmp_path / "never.pt")
    with pytest.raises(InputError, match="dtype must be one of float32, float16, bfloat16"):
        steady.in_dtype("int8")


def test_threads_do_not_change_a_score(fitted):
    scorer, _, _ = fitted
    picture = data.astronaut()[:200, :300]
    alone = scorer(picture)
    torch.set_num_threads(2)
    try:
        assert abs(scorer(picture) - alone) <= 1e-5 * (scorer.mos_max - scorer.mos_min)
    finally:
        torch.set_num_threads(1)


def test_metric_has_the_calling_convention_of_pyiqa(fitted):
    scorer, _, folder = fitted
    metric, pictures = scorer.as_metric(), list(image_regions().values())[:3]
    assert metric.lower_better is False and isinstance(metric, torch.nn.Module)
    batch = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures]) / 255.0
    scores = metric(batch)
    assert scores.shape == (3, 1) and scores.dtype == torch.float32
    expected = torch.tensor([[scorer(p)] for p in pictures], dtype=torch.float32)
    assert torch.equal(scores, expected)
    assert torch.equal(metric(batch.flip(0)), expected.flip(0)) and torch.equal(metric(batch[1:2]), expected[1:2])
    assert torch.equal(metric(str(folder / "cat0.png")), torch.tensor([[scorer(folder / "cat0.png")]]).float())
    assert metric(batch[:0]).shape == (0, 1)
    for wrong in (batch[0], batch[:, :2], batch.to(torch.uint8), None):
        with pytest.raises(InputError, match="target must be a path or"):
            metric(wrong)
    for wrong in (batch * 2, batch - 1, batch * float("nan")):
        with pytest.raises(InputError, match="values from 0 to 1"):
            metric(wrong)


def test_quality_map_is_the_mean_of_the_tiles_over_a_pixel():
    """The scorer's stand-in gives a tile its mean grey level; the definition is computed pixel by pixel."""

    def grey(pixels):
        return float(pixels.mean())

    grey.max_pixels = 10**6
    pixels = np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)
    local = quality_map(grey, pixels, tile_px=32)
    assert local.tops.tolist() == [0, 16, 32, 38] and local.lefts.tolist() == [0, 16, 32, 48, 64, 78]
    total, count = np.zeros((70, 110)), np.zeros((70, 110))
    for top in local.tops:
        for left in local.lefts:
            total[top : top + 32, left : left + 32] += pixels[top : top + 32, left : left + 32].mean()
            count[top : top + 32, left : left + 32] += 1
    np.testing.assert_allclose(local.at(np.arange(70), np.arange(110)), total / count, rtol=1e-12)
    small = quality_map(grey, pixels[:20, :25])
    assert small.scores.shape == (1, 1) and small.tile == (20, 25)
    with pytest.raises(InputError, match="tile_px must be an integer of at least 32"):
        quality_map(grey, pixels, tile_px=31)


def test_command_takes_folders_patterns_and_lists(fitted, tmp_path, capsys, monkeypatch):
    scorer, file, folder = fitted
    (tmp_path / "bad.jpg").write_text("no image")
    listing = tmp_path / "list.txt"
    listing.write_text(f"{folder}/cup0.png\n\n{folder}/cup1.png\n")
    stdin = io.TextIOWrapper(io.BytesIO(f"{folder}/suit0.png\0{folder}/suit1.png\0".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    names = [str(folder / "cat?.png"), str(tmp_path), "-", "--from-file", str(listing)]
    assert cli.main(["score", *names, "--scorer", str(file), "--format", "csv"]) == 1
    captured = capsys.readouterr()
    rows = list(csv_module.DictReader(io.StringIO(captured.out)))
    good = [f"{folder}/{name}.png" for name in ("cat0", "cat1", "cat2", "cat3", "suit0", "suit1", "cup0", "cup1")]
    assert [row["image"] for row in rows if row["score"]] == good
    assert {row["image"]: float(row["score"]) for row in rows if row["score"]} == {g: scorer(g) for g in good}
    (bad,) = [row for row in rows if row["error"]]
    assert bad["image"] == str(tmp_path / "bad.jpg") and bad["error"] == "not an image"
    assert "1 photograph(s) cannot be used" in captured.err and "bad.jpg: not an image" in captured.err


@pytest.mark.parametrize("names", [[], ["--from-file", "none.txt"], ["x.png", "--max-pixels", "0"]])
def test_command_without_work_to_do(fitted, capsys, names):
    assert cli.main(["score", *names, "--scorer", str(fitted[1])]) == 2
    assert "score: error: " in capsys.readouterr().err


def test_command_writes_heat_maps(fitted, tmp_path, capsys):
    """Names that repeat get a number; a name may hold what matplotlib would take for mathematics."""
    _, file, folder = fitted
    (tmp_path / "other").mkdir()
    for target in ("a$x_1$.png", "other/a$x_1$.png"):
        (tmp_path / target).write_bytes((folder / "cat0.png").read_bytes())
    paths = [str(tmp_path / "a$x_1$.png"), str(tmp_path / "other")]
    options = ["--scorer", str(file), "--heatmap", str(tmp_path / "maps"), "--tile-px", "64", "--json"]
    assert cli.main(["score", *paths, *options]) == 0
    found = [item["heatmap"] for item in json.loads(capsys.readouterr().out)["scores"]]
    assert found == [str(tmp_path / "maps" / name) for name in ("a$x_1$.png", "a$x_1$-2.png")]
    for name in found:
        with Image.open(name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
