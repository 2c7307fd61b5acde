"""The encoder and the scorer that come with the package: offline, whole or refused, and right about degradations."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from experiments import model_tables
from qpt.cli import main
from qpt.data.sample_images import sample_images
from qpt.degradations.program import Program
from qpt.errors import InputError
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.scorer import Scorer
from qpt.models import build_encoder, load_encoder
from qpt.models import shipped as module
from qpt.models.encoder import load_weights
from qpt.models.names import SHIPPED
from qpt.models.two_trunks import TwoTrunks
from qpt.ops.degrade.api import degrade


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture
def photograph() -> np.ndarray:
    return load_image(sample_images()[1])[40:296, 100:356]


def test_it_is_small_and_made_of_tensors_and_plain_data() -> None:
    assert module.FILE.stat().st_size < 12_000_000
    tensors, plain = module.read_shipped()
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert plain["fitted_on"]["opinions"] is False
    assert plain["pretraining"]["config"]["init"] == "efficientnet_lite0-imagenet"
    assert not any("/" in str(value) for value in plain["pretraining"]["config"].values())


def test_the_score_falls_with_each_kind_of_level(scorer, photograph) -> None:
    for op in ("gaussian_blur", "gaussian_noise", "jpeg", "rescale_bilinear", "impulse_noise"):
        program = Program.from_chains([[(op, level)] for level in (1, 3, 5)], seeds=[1, 1, 1])
        degraded = degrade(torch.from_numpy(photograph.copy())[None], program).numpy()
        scores = [scorer(pixels) for pixels in (photograph, *degraded)]
        assert scores[0] > scores[2] > scores[3], (op, scores)
        assert scores[0] - scores[3] > 8, (op, scores)


def test_scores_do_not_depend_on_what_else_is_scored(scorer, photograph) -> None:
    metric = scorer.as_metric()
    pair = torch.from_numpy(np.stack([photograph, photograph[::-1]]).transpose(0, 3, 1, 2) / 255.0).float()
    together = metric(pair)
    np.testing.assert_array_equal(together[:1], metric(pair[:1]))
    np.testing.assert_array_equal(together[1:], metric(pair[1:]))


def test_gradient_steps_raise_the_score(scorer, photograph) -> None:
    blurred = np.asarray(Image.fromarray(photograph[:128, :128]).filter(ImageFilter.GaussianBlur(1.5)))
    image = (torch.from_numpy(blurred.transpose(2, 0, 1)[None] / 255.0).float()).requires_grad_()
    loss = scorer.as_metric(as_loss=True)
    before = loss(image).item()
    optimiser = torch.optim.Adam([image], lr=0.01)
    for _ in range(6):
        optimiser.zero_grad()
        (-loss(image)).backward()
        assert torch.isfinite(image.grad).all()
        optimiser.step()
        with torch.no_grad():
            image.clamp_(0, 1)
    assert loss(image).item() > before + 1


def test_the_command_needs_no_flag_and_no_network(photograph, tmp_path, monkeypatch, capsys) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    Image.fromarray(photograph).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "grey.png")
    assert (
        main(["score", str(tmp_path / "a.png"), str(tmp_path / "grey.png"), "--heatmap", str(tmp_path / "maps")]) == 0
    )
    said = capsys.readouterr().out
    assert "not from opinions" in said and "one colour" in said
    assert (tmp_path / "maps" / "a.png").is_file()


def test_the_encoder_has_a_name(scorer) -> None:
    encoder = load_encoder(SHIPPED)
    assert isinstance(encoder, TwoTrunks)
    own = scorer.encoder.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in encoder.state_dict().items())
    single = build_encoder("efficientnet_lite0")
    load_weights(single, SHIPPED)  # pre-training goes on with the trunk that was pre-trained
    assert torch.equal(
        single.state_dict()["network._conv_stem.weight"], encoder.tuned.state_dict()["network._conv_stem.weight"]
    )


@pytest.mark.parametrize("fault", ["cut", "altered", "missing", "no sum"])
def test_a_damaged_file_is_refused(fault, tmp_path, monkeypatch) -> None:
    copy = tmp_path / module.FILE.name
    content = bytearray(module.FILE.read_bytes())
    if fault == "cut":
        content = content[:-1000]
    if fault == "altered":
        content[len(content) // 2] ^= 1
    if fault != "missing":
        copy.write_bytes(content)
    if fault != "no sum":
        copy.with_suffix(".sha256").write_text(module.FILE.with_suffix(".sha256").read_text(encoding="utf-8"))
    monkeypatch.setattr(module, "FILE", copy)
    with pytest.raises(InputError, match="install qpt again"):
        Scorer.load()


def test_another_file_of_the_same_kind_is_read(tmp_path) -> None:
    copy = tmp_path / "mine.safetensors"
    tensors, plain = module.read_shipped()
    tensors["scorer.weights"] = -tensors["scorer.weights"]
    module.write_shipped(copy, tensors, plain)
    own, other = Scorer.load(), Scorer.load(copy)
    np.testing.assert_array_equal(other.weights, -own.weights)
    copy.with_suffix(".sha256").write_text("0\n")
    with pytest.raises(InputError, match=r"mine\.safetensors must have sha256 0"):
        Scorer.load(copy)


def test_the_table_of_the_model_names_the_spread_of_seeds() -> None:
    tables = [{"name": "a", "without_labels": dict.fromkeys(model_tables.ROWS, 0.5)}]
    again = [{"seed": seed, "without_labels": {"a": 0.6 - 0.1 * seed}} for seed in (1, 2)]
    last = model_tables.without_labels({"tables": tables, "again": again}).splitlines()[3]
    assert last == "| the same, made again from seeds 1, 2 | 0.400 to 0.500 |"


def test_weights_are_rounded_as_stated() -> None:
    torch.manual_seed(0)
    state = {
        "large.weight": torch.randn(96, 64, 1, 1),
        "depthwise.weight": torch.randn(32, 1, 3, 3),
        "bn.running_var": torch.tensor([1e-7, 3e5]),
        "bn.num_batches_tracked": torch.tensor(3),
        "zero.weight": torch.zeros(64, 64, 1, 1),
        "scorer.weights": torch.randn(5, dtype=torch.float64),
    }
    read = module.rounded(state)
    assert read.keys() == state.keys()
    step = state["large.weight"].abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((read["large.weight"] - state["large.weight"]).abs() <= step / 2 * 1.0001).all()
    assert torch.equal(read["depthwise.weight"], state["depthwise.weight"].half().float())
    for exact in ("bn.running_var", "bn.num_batches_tracked", "zero.weight", "scorer.weights"):
        assert torch.equal(read[exact], state[exact]), exact
    again = module.rounded(read)
    assert all(torch.equal(again[name], read[name]) for name in state)


def test_scoring_imports_no_engine_of_degradations(tmp_path: Path) -> None:
    """The extension that degrades is not needed to score."""
    code = (
        "import sys; from qpt import Scorer; s = Scorer.load(); import numpy as np; "
        "s(np.zeros((40, 40, 3), np.uint8)); assert 'qpt._C' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
