"""The probe: its measures against SciPy and scikit-learn on independently computed features, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qpt import cli
from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from qpt.data.sources import data_fingerprint
from qpt.degradations.op_table import DEGRADATIONS
from qpt.degradations.space import DegradationSpace
from qpt.evaluate.image_crops import read_images
from qpt.evaluate.metrics import rank_correlation
from qpt.evaluate.probe import probe, probe_run
from qpt.evaluate.probe_set import probe_set
from qpt.models import load_encoder
from qpt.models.encoder import untrained_encoder
from qpt.ops.degrade.api import degrade
from tests.labelled import image_regions, write_run
from tests.labelled import one_thread as one_thread

SPACE = DegradationSpace.preset("qpt")  # whose ops are probed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six small images."""
    place = tmp_path_factory.mktemp("held-out")
    for name, pixels in image_regions().items():
        Image.fromarray(pixels).save(place / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "narrow")


def by_hand(encoder: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Return (n, d) mean and deviation of each stage, one image at a time."""
    rows = []
    for image in pixels:
        x = (image.double() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        with torch.no_grad():
            maps = encoder.eval().stages(x.permute(2, 0, 1)[None].float())
        values = [m[0].flatten(1).double().numpy() for m in maps]
        rows.append(np.concatenate([part for v in values for part in (v.mean(1), v.std(1))]))
    return np.stack(rows)


def test_measures_equal_an_independent_computation() -> None:
    space = DegradationSpace(ops=("gaussian_blur", "contrast", "hue"), max_ops=1)
    pixels = torch.from_numpy(np.stack([p[:96, :96] for p in image_regions().values()]))
    known = probe_set(pixels[:4], np.arange(4), space, seed=1)
    asked = probe_set(pixels[4:], np.arange(2), space, seed=1)
    encoder = untrained_encoder("resnet18", 4, 3)
    found = probe(encoder, known, asked)

    fitted, measured = (by_hand(encoder, degrade(s.crops, s.program)) for s in (known, asked))
    scale = StandardScaler().fit(fitted)
    moved = scale.transform(measured) - scale.transform(by_hand(encoder, pixels[4:])).repeat(3 * 5, axis=0)
    distance = np.sqrt((moved**2).sum(1))
    for op, name in enumerate(space.ops):
        rows = np.array([i for i in range(30) if i // 5 % 3 == op])
        assert [DEGRADATIONS[o].name for o in asked.ops[rows]] == [name] * 10
        expected = spearmanr(distance[rows], np.tile(np.arange(1, 6), 2)).statistic
        assert found.distance_srcc_per_op[name] == pytest.approx(expected, abs=1e-6)
    assert found.distance_srcc == pytest.approx(np.mean([*found.distance_srcc_per_op.values()]))
    blurred = distance.reshape(2, 3, 5)[:, 0]
    assert (np.diff(blurred, axis=1) > 0).all()  # of one crop, more blur is farther from the sharp one
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(fitted, known.ops)
    assert found.op_accuracy == pytest.approx(classifier.score(measured, asked.ops), abs=1.01 / 30)


def test_a_constant_orders_nothing() -> None:
    assert rank_correlation(np.ones(5), np.arange(5)) == 0
    assert rank_correlation(np.arange(5), -np.arange(5)) == pytest.approx(-1)


def test_images_are_chosen_evenly_and_small_or_damaged_ones_reported(tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGB", (40 + index, 50), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_bytes(b"not a picture")
    files = sorted(tmp_path.glob("*.png"))
    found, left_out = read_images(files, 42, most=6, quiet=True)
    assert [p[0, 0, 0] for p in found.values()] == [2, 3, 4]
    assert set(left_out) == {"0.png", "1.png", "5.png"} and "got 40x50" in left_out["0.png"]
    found, _ = read_images(files, 1, most=3, quiet=True)
    assert [p[0, 0, 0] for p in found.values()] == [0, 2, 4]


def test_both_encoders_get_the_same_images_and_results_repeat(run: Path, folder: Path) -> None:
    first, second = (probe_run(run, folder, crop_px=64, crops=1, quiet=True) for _ in range(2))
    assert first == second
    assert first["photographs"] == {"fit": 4, "measure": 2} and first["held_out_images"] == 2 * 5 * first["ops"]
    assert first["chance"] == 1 / len(SPACE.ops) and not first["trained_on_this_folder"]
    for encoder in ("trained", "untrained"):
        assert set(first[encoder]["distance_srcc_per_op"]) == set(SPACE.ops)
    assert first["trained"] != first["untrained"]
    assert first["trained"]["distance_srcc_per_op"]["gaussian_blur"] > 0.4


def test_command_prints_a_table_or_json(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["probe", str(run), str(folder), "--crop-px", "48", "--crops", "1"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for words in ("gaussian_blur", "untrained", "mean over ops", "op accuracy", "fitted on 4 photographs"):
        assert words in text, text
    assert cli.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["format"] == "qpt-probe-1" and str(folder) not in json.dumps(result)
    assert f"{result['trained']['distance_srcc']:.3f}" in text
    assert f"{result['untrained']['op_accuracy']:.1%}" in text


def test_probing_the_training_images_is_reported(tmp_path: Path, run: Path, folder: Path, capsys) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["data_fingerprint"] = data_fingerprint(folder, sorted(folder.glob("*.png")))
    torch.save(state, tmp_path / "checkpoint.pt")
    assert load_encoder(tmp_path).width == 4
    assert cli.main(["probe", str(tmp_path), str(folder), "--crop-px", "48", "--crops", "1"]) == 0
    assert "trained on these photographs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": "nowhere"}, "checkpoint"),
        ({"data": "nowhere"}, "folder must be an existing folder"),
        ({"--crop-px": "128"}, "at least 3 readable photographs of 128 px or more, got 0\n  cat.png: both sides"),
        ({"--crop-px": "8"}, "crop_px must be an integer of at least 32, got 8"),
        ({"--crops": "0"}, "crops must be an integer of at least 1, got 0"),
        ({"--photograph-count": "2"}, "photograph_count must be an integer of at least 3, got 2"),
        ({"--space": "none"}, "space must be one of qpt"),
    ],
)
def test_bad_arguments_exit_2(run: Path, folder: Path, capsys, change: dict[str, str], words: str) -> None:
    given = {"run": str(run), "data": str(folder), **change}
    options = [word for name, value in given.items() if name.startswith("-") for word in (name, value)]
    assert cli.main(["probe", given["run"], given["data"], *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qpt probe: error: ") and words in error and "Traceback" not in error
