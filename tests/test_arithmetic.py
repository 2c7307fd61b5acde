"""The arithmetic that ``precision: auto`` stands for, and that a run keeps it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qpt.pretraining import arithmetic
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.engine import pretrain
from qpt.pretraining.learner import Learner
from qpt.pretraining.process_group import ProcessGroup
from tests.test_pretrain import image_folder, tiny

__all__ = ["image_folder"]
CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
AUTO = PretrainConfig("photos", "run", width=4, arch="resnet18", patch_size=24)


def test_auto_is_the_default() -> None:
    assert AUTO.precision == "auto"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_has_bfloat16_or_not(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device == GPU else (0, 0))
    assert arithmetic.fastest(AUTO, GPU) == expected


@pytest.mark.parametrize(
    ("flags", "speedup", "expected"),
    [
        ("fpu avx512_bf16", 1.9, "bfloat16"),
        ("fpu avx512_bf16", 1.2, "float32"),
        ("fp asimd bf16", 1.3, "bfloat16"),
        ("fpu avx2", 9.0, "float32"),
    ],
)
def test_a_cpu_must_have_units_and_gain_a_quarter(
    monkeypatch: pytest.MonkeyPatch, flags: str, speedup: float, expected: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : {flags}\n")
    monkeypatch.setattr(arithmetic, "trial", lambda config: {"float32": speedup, "bfloat16": 1.0})
    assert arithmetic.fastest(AUTO, CPU) == expected


def test_a_network_too_small_to_be_measured_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "cpu_has", lambda units: True)
    monkeypatch.setattr(arithmetic, "trial", lambda config: {"float32": 0.019, "bfloat16": 0.001})
    assert arithmetic.fastest(AUTO, CPU) == "float32"


def test_a_trial_measures_both_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    seconds = arithmetic.trial(AUTO)
    assert list(seconds) == ["float32", "bfloat16"] and min(seconds.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_follow_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(ProcessGroup):
        def gather(self, value: object) -> list[object]:
            assert value is None  # it makes no trial of its own
            return ["bfloat16", value]

    monkeypatch.setattr(arithmetic, "fastest", lambda *_: "float32")
    assert arithmetic.with_precision(AUTO, CPU, Second(1, 2, 1, 2)).precision == "bfloat16"
    assert arithmetic.with_precision(AUTO, CPU, ProcessGroup()).precision == "float32"


def test_an_asked_for_precision_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(arithmetic, "fastest")
    for name in ("float32", "bfloat16", "float16"):
        assert Learner(replace(AUTO, precision=name), CPU).config.precision == name


def test_a_run_says_what_it_took_and_keeps_it(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(image_folder, tmp_path / "run", precision="auto", steps=4, checkpoint_every=2)
    monkeypatch.setattr(arithmetic, "fastest", lambda *_: "bfloat16")
    pretrain(config)
    written = PretrainConfig.load(tmp_path / "run" / "config.yaml", data=config.data, out=config.out)
    assert written == replace(config, precision="bfloat16")
    monkeypatch.setattr(arithmetic, "fastest", lambda *_: "float32")
    assert pretrain(config, resume=True).finished
