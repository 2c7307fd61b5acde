"""A step with a nan or an infinity ends the run before a weight has changed, and can be run again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qpt import InputError, load_encoder, pretrain
from qpt.cli import main
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining import failure
from qpt.pretraining.learner import Learner, StepResult, learning_rate
from qpt.pretraining.replay import Replay, replay
from tests.test_pretrain import assert_same_bytes, image_folder, log_rows, tiny

LAYERS = ("layer1", "layer2", "layer3", "layer4")
__all__ = ["image_folder"]  # a fixture


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Learner], object]], None]:
    """``poison(action)``: apply ``action`` to the learner before its fourth step."""

    def spoil(action: Callable[[Learner], object]) -> None:
        step = Learner.step

        def spoilt(self: Learner, *args: Any, **options: Any) -> StepResult:
            if self.updates == 3:
                with torch.no_grad():
                    action(self)
            return step(self, *args, **options)

        monkeypatch.setattr(Learner, "step", spoilt)

    return spoil


def nan_weight(learner: Learner) -> None:
    learner.query["encoder"].layer2[0].conv1.weight[0, 0, 0, 0] = torch.nan


def overflowing_activation(learner: Learner) -> None:
    learner.query["encoder"].layer3[1].bn2.weight.mul_(3e38)


def overflowing_gradient(learner: Learner) -> None:
    """A hidden layer scaled down and the next one up: the embedding stays, the layer's gradient leaves float32."""
    first, second = (layer for layer in learner.query["head"] if isinstance(layer, torch.nn.Linear))
    first.weight.mul_(1e-40)
    first.bias.mul_(1e-40)
    second.weight.mul_(1e35)
    second.bias.mul_(1e-5)


def fail(image_folder: Path, out: Path, **options: object) -> Path:
    with pytest.raises(InputError, match="the step is kept: qpt pretrain --replay") as caught:
        pretrain(tiny(image_folder, out, checkpoint_every=1, log_every=1, **options))
    folder = out / "failed_step_4"
    assert str(folder) in str(caught.value)
    return folder


@pytest.mark.parametrize("options", [{}, {"mode": "in_batch"}, {"chunk_images": 2, "symmetric": True}], ids=str)
def test_a_poisoned_weight_is_found(
    image_folder: Path, tmp_path: Path, poison: Any, capsys: pytest.CaptureFixture[str], options: dict[str, object]
) -> None:
    poison(nan_weight)
    folder = fail(image_folder, tmp_path / "run", **options)
    result = replay(folder)
    assert result.reproduced and result.step == 4
    assert result.lr == learning_rate(tiny(image_folder, tmp_path), 3, 8)
    assert result.before == ["encoder.layer2.0.conv1.weight (1 of 288 values)"]
    assert result.forward is not None and result.forward.startswith("output of query.encoder.layer2.0.conv1, ")
    assert result.loss is None and result.backward is None and not result.norms  # stopped before
    assert result.failure == result.error.removeprefix("pretrain: ")
    assert main(["pretrain", "--replay", str(folder / "batch-0.pt")]) == 0
    said = capsys.readouterr().out
    assert "not finite before the step: encoder.layer2.0.conv1.weight" in said and "loss: not reached" in said
    load_encoder(folder)


def test_an_activation_that_overflows_is_found(image_folder: Path, tmp_path: Path, poison: Any) -> None:
    poison(overflowing_activation)
    result = replay(fail(image_folder, tmp_path / "run"))
    assert result.reproduced and not result.before
    assert result.forward is not None and result.forward.startswith("output of query.encoder.layer3.1")


def test_a_gradient_that_is_not_finite_is_found(image_folder: Path, tmp_path: Path, poison: Any) -> None:
    poison(overflowing_gradient)
    folder = fail(image_folder, tmp_path / "run")
    assert "gradients must be finite, got nan or inf in" in json.loads((folder / "step-0.json").read_text())["error"]
    result = replay(folder)
    assert result.reproduced and not result.before and result.forward is None
    assert result.loss is not None and result.loss > 0
    assert result.backward is not None and result.backward.startswith("gradient of the output of query.head")
    assert list(result.norms) == [*(f"encoder.{part}" for part in ("conv1", "bn1", *LAYERS)), "head"]


def test_a_failed_step_changes_nothing(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state kept is that before the step, byte for byte, though the forward pass moved running statistics."""
    monkeypatch.setattr(failure, "check_gradients", fail_at_fourth())
    folder = fail(image_folder, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 3
    assert_same_bytes(tmp_path / "run", folder)


def fail_at_fourth() -> Callable[[object], None]:
    steps = iter(range(1, 9))

    def check(network: object) -> None:
        if next(steps) == 4:
            raise InputError("pretrain: a trial")

    return check


@pytest.mark.parametrize("options", [{}, {"chunk_images": 2, "accumulate": 2}, {"precision": "bfloat16"}], ids=str)
def test_a_step_that_goes_through_is_the_one_of_the_run(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, object]
) -> None:
    """The loss of a kept step is that of the uninterrupted run, to the last digit of its log."""
    pretrain(tiny(image_folder, tmp_path / "whole", log_every=1, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failure, "check_gradients", fail_at_fourth())
        folder = fail(image_folder, tmp_path / "run", **options)
    result: Replay = replay(folder)
    assert not result.reproduced and result.forward is None and result.backward is None
    assert f"{result.loss:.6g}" == log_rows(tmp_path / "whole")[3]["loss"]
    assert all(0 < norm < 1e3 for norm in result.norms.values())
    assert main(["pretrain", "--replay", str(folder)]) == 1
    assert "not reproduced: the step went through" in capsys.readouterr().out


def test_the_run_can_be_resumed_and_fails_again(image_folder: Path, tmp_path: Path, poison: Any) -> None:
    poison(nan_weight)
    folder = fail(image_folder, tmp_path / "run")
    (folder / "checkpoint.pt").rename(folder / "checkpoint.pt.part")  # as a kill would have left it
    with pytest.raises(InputError, match="--replay"):
        pretrain(tiny(image_folder, tmp_path / "run", checkpoint_every=1, log_every=1), resume=True)
    assert replay(folder).reproduced


def test_bad_arguments(tmp_path: Path, image_folder: Path, poison: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="path must be a folder that a failed step left"):
        replay(tmp_path)
    assert main(["pretrain", "--replay", str(tmp_path / "absent")]) == 2
    assert main(["pretrain", "--out", str(tmp_path / "run")]) == 2
    assert "data must be given" in capsys.readouterr().err
    poison(nan_weight)
    folder = fail(image_folder, tmp_path / "run")
    with pytest.raises(InputError, match="device must be"):
        replay(folder, "gpu?")
