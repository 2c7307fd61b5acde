"""Exported files: torchvision's layout, safetensors, ONNX against PyTorch, the model card, and refusals."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from skimage import data

from benchmarks.bench_score import brisque
from qpt import cli
from qpt.errors import BackendError
from qpt.evaluate.metrics import decimals
from qpt.evaluate.protocol import split_record
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import Split
from qpt.export.formats import compare_onnx, crop_inputs, export_onnx, export_safetensors, export_state_dict
from qpt.models import build_encoder, load_encoder
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread


def torchvision_layout(blocks, bottleneck):
    """Return names and shapes of torchvision's ResNet without ``fc``, from He et al. table 1 and its naming."""
    layout = {}

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            layout[f"{name}.{part}"] = (channels,)
        layout[f"{name}.num_batches_tracked"] = ()

    layout["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        planes = 64 * 2 ** (stage - 1)
        outputs = planes * (4 if bottleneck else 1)
        for block in range(count):
            name = f"layer{stage}.{block}"
            if bottleneck:
                shapes = [(planes, inputs, 1, 1), (planes, planes, 3, 3), (outputs, planes, 1, 1)]
            else:
                shapes = [(planes, inputs, 3, 3), (planes, planes, 3, 3)]
            for number, shape in enumerate(shapes, start=1):
                layout[f"{name}.conv{number}.weight"] = shape
                norm(f"{name}.bn{number}", shape[0])
            if block == 0 and inputs != outputs:
                layout[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return layout


@pytest.mark.parametrize(
    ("arch", "blocks", "bottleneck", "parameters"),
    [("resnet50", (3, 4, 6, 3), True, 25_557_032 - 2_049_000), ("resnet18", (2, 2, 2, 2), False, 11_689_512 - 513_000)],
)
def test_state_dict_has_torchvisions_layout(tmp_path, arch, blocks, bottleneck, parameters):
    """Published parameter counts are those of torchvision's weights pages, minus the classifier of 1,000 classes."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    encoder = build_encoder(arch, 64)
    export_state_dict(encoder, tmp_path / "e.pth")
    export_safetensors(encoder, tmp_path / "e.safetensors")
    state, tensors = torch.load(tmp_path / "e.pth", weights_only=True), load_file(tmp_path / "e.safetensors")
    layout = torchvision_layout(blocks, bottleneck)
    assert {name: tuple(value.shape) for name, value in state.items()} == layout and list(state) == list(layout)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(value.numel() for name, value in state.items() if not name.endswith(buffers)) == parameters
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], state[name]) for name in state)
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "arch": arch, "width": "64"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return (folder of exported files, scorer, run), made by the commands; the scorer is calibrated."""
    folder = tmp_path_factory.mktemp("export")
    csv, run = write_set(folder / "set"), write_run(folder / "run")
    scorer, result = str(folder / "s.pt"), str(folder / "result.json")
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", scorer, "--calibrate"]) == 0
    assert cli.main(["evaluate", str(run), "--csv", str(csv), "--out", result]) == 0
    assert cli.main(["export", scorer, "--out", str(folder / "out"), "--evaluation", result]) == 0
    return folder / "out", Scorer.load(scorer), run


def test_onnx_scores_are_pytorchs_on_fifty_images(exported):
    """Images of all shapes and both parities are seen whole or through a grid; the features agree too."""
    import onnxruntime

    out, scorer, _ = exported
    rng, sources = np.random.default_rng(0), [*image_regions().values(), data.coffee()]
    crops = []
    for index in range(49):
        source = sources[index % len(sources)]
        height, width = rng.integers(20, 96), rng.integers(20, 128)
        crops.append(source[:height, :width])
    crops.append(np.tile(data.rocket(), (2, 3, 1)))  # 854 x 1920: a grid at full scale, whole at half scale
    assert compare_onnx(scorer, out / "scorer.onnx", crops) <= 1e-4
    session = onnxruntime.InferenceSession(str(out / "scorer.onnx"), providers=["CPUExecutionProvider"])
    inputs = crop_inputs(crops[-1], scorer.protocol, scorer.read_out.scales)
    assert inputs["full"].shape == (9, 384, 384, 3) and inputs["half"].shape == (1, 427, 960, 3)
    score, features = session.run(["score", "features"], inputs)
    assert score.shape == (1,) and features.shape == (scorer.read_out.scales, 2, sum(scorer.encoder.stage_dims))
    assert scorer.head(features) == pytest.approx(scorer(crops[-1]), abs=1e-4 * (scorer.mos_max - scorer.mos_min))


def test_head_and_encoder_files_are_enough_to_score(exported):
    from safetensors import safe_open
    from safetensors.torch import load_file

    out, scorer, _ = exported
    head = load_file(out / "head.safetensors")
    assert head["weight"].dtype == torch.float64 and head["bias"].item() == scorer.intercept
    np.testing.assert_array_equal(head["weight"].numpy(), scorer.weights)
    with safe_open(out / "head.safetensors", "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert about["protocol"] == {"crop_px": 384, "crops": 9} and about["mos_max"] == scorer.mos_max
    assert about["calibration"].keys() == {"low", "high", "centre", "width"}
    state = torch.load(out / "encoder.pth", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in scorer.encoder.state_dict().items())


def test_card_is_written_from_the_records(exported):
    out, scorer, run = exported
    card = (out / "README.md").read_text(encoding="utf-8")
    for text in (
        "# QPT scorer: resnet18, width 4",
        "not torchvision's: that has width 64",
        scorer.pretraining["checkpoint_sha256"],
        scorer.fitted_on["sha256"],
        "fitted on 24 photographs of set",
        "33.0 (worst) to 96.0 (best)",
        "| run (this encoder) | pretrained | all | 10 |",
        "| contrast | classical | few | 20 |",
        "The ONNX file's scores differ from PyTorch's by at most",
        "| `scorer.onnx` |",
    ):
        assert text in card, card
    assert str(run.parent) not in card


def test_a_run_has_no_score_to_export(exported, tmp_path, capsys):
    _, _, run = exported
    assert cli.main(["export", str(run), "--out", str(tmp_path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "encoder.pth", "encoder.safetensors"]
    loaded = torch.load(tmp_path / "encoder.pth", weights_only=True)
    assert torch.equal(loaded["conv1.weight"], load_encoder(run).conv1.weight)
    assert "None: an encoder gives features, not scores" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert cli.main(["export", str(run), "--out", str(tmp_path), "--formats", "onnx"]) == 2
    assert "onnx needs a scorer" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("[1]")
    assert cli.main(["export", str(run), "--out", str(tmp_path), "--evaluation", str(tmp_path / "x.json")]) == 2
    assert "must be a result of `qpt evaluate --out`" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("hello")
    assert cli.main(["export", str(tmp_path / "text.pt"), "--out", str(tmp_path)]) == 2


def test_a_missing_package_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(BackendError, match=r"needs the package safetensors.*pip install 'qpt\[export\]'"):
        export_safetensors(build_encoder("resnet18", 2), tmp_path / "e.safetensors")


def test_the_benchmarks_brisque_is_lower_for_better_images():
    """Blur and noise raise BRISQUE with the benchmark's adapter."""
    from scipy import ndimage

    metric, pixels = brisque(), data.astronaut()
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 40, pixels.shape), 0, 255).astype(np.uint8)
    blurred = ndimage.gaussian_filter(pixels, (3, 3, 0))
    assert metric.score(pixels) < min(metric.score(noisy), metric.score(blurred))


def test_labels_in_a_narrow_range_are_exported(exported, tmp_path):
    """A float32 score near 50 has steps of 4e-6, which is more than the tolerance for labels that span 0.0006."""
    _, scorer, _ = exported
    narrow = dataclasses.replace(
        scorer, weights=scorer.weights / 1e5, intercept=50 + scorer.intercept / 1e5, calibration=None,
        mos_min=50 + scorer.mos_min / 1e5, mos_max=50 + scorer.mos_max / 1e5,
    )  # fmt: skip
    assert 1e-4 < export_onnx(narrow, tmp_path / "narrow.onnx") < 1e-2
    assert decimals(narrow.mos_min, narrow.mos_max) == 7 and decimals(30, 95) == 3
    mos = narrow.mos_min + np.linspace(0, narrow.mos_max - narrow.mos_min, 1000)
    split = Split(np.arange(10), np.arange(1000))
    kept = split_record(split, mos, mos, {})["predictions"]
    assert len(set(kept)) == 1000  # rounded to 7 digits in all, most would be ties
