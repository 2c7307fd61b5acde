"""The ordinary tests on a machine with a GPU: they see none, and what is on the CPU is measured there."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from benchmarks import harness
from qpt.pretraining.process_group import join_process_group
from tests import conftest


@pytest.fixture
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that there is a device, and fail where one is used."""

    def used(*_: object) -> None:
        pytest.fail("a CUDA device was used")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, used)


def test_tests_without_the_mark_see_no_device() -> None:
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    with join_process_group("auto") as (_, device):
        assert device.type == "cpu"
    command = [sys.executable, "-c", "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "''\n"


@pytest.mark.parametrize("visible", [None, "1,0"])
def test_marked_tests_see_what_the_machine_has(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    shown, hidden = (lambda: True, lambda: 2), (torch.cuda.is_available, torch.cuda.device_count)
    monkeypatch.setattr(conftest, "HAS_CUDA", True)
    monkeypatch.setattr(conftest, "_SHOWN", shown)
    monkeypatch.setattr(conftest, "_visible_devices", visible)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, function in zip(("is_available", "device_count"), hidden, strict=True):
        monkeypatch.setattr(torch.cuda, name, function)  # put back at the end
    for mark, functions, variable in ((object(), shown, visible), (None, None, "")):
        item = SimpleNamespace(get_closest_marker=lambda _, mark=mark: mark)
        conftest.pytest_runtest_setup(item)  # type: ignore[arg-type]
        assert torch.cuda.is_available() is (functions is not None)
        assert torch.cuda.device_count() == (2 if functions else 0)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == variable


@pytest.mark.usefixtures("beside_a_gpu")
def test_calls_on_the_cpu_are_measured_there() -> None:
    case = harness.Case("op", "1", 1, [harness.Contender("a", lambda: torch.ones(2**20))], lambda _: {}, peak=True)
    (row,) = harness.measure([case], rounds=1)
    assert row.peak_mib == pytest.approx(4, rel=0.1)


def test_calls_on_a_gpu_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name, value in (
        ("synchronize", None),
        ("memory_allocated", 5),
        ("max_memory_allocated", 9),
        ("reset_peak_memory_stats", None),
    ):
        record = lambda device, name=name, value=value: (calls.append(f"{name} {device}"), value)[1]  # noqa: E731
        monkeypatch.setattr(torch.cuda, name, record)
    case = harness.Case("op", "1", 1, [harness.Contender("a", lambda: calls.append("call"))], lambda _: {})
    harness.measure([case], rounds=1, warmup=0, device="cuda:1")
    assert calls == ["call", "synchronize cuda:1", "call", "synchronize cuda:1"]
    assert harness.tensor_peak(lambda: None, "cuda:1") == 4


def test_the_device_of_a_run_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device: with ``--device cuda:1`` that must be the tensors'."""
    events: list[str] = []

    @contextlib.contextmanager
    def current(device: torch.device) -> Iterator[None]:
        events.append(f"to {device}")
        yield
        events.append("back")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", current)
    with join_process_group("cuda:1") as (_, device):
        events.append(f"run on {device}")
    assert events == ["to cuda:1", "run on cuda:1", "back"]
