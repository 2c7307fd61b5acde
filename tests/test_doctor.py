"""`qpt doctor` lists what is missing and the fix, and fails only when the CPU path is broken."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from qpt import build
from qpt.commands.doctor import Check, Diagnosis, diagnose
from qpt.errors import BackendError


def test_every_backend_is_reported_and_every_missing_one_has_a_reason() -> None:
    diagnosis = diagnose()
    names = [check.name for check in diagnosis.checks]
    for name in ("PyTorch", "C++ extension", "OpenMP", "Triton", "CUDA in PyTorch", "CuPy", "CUDA fat binary", "nvcc"):
        assert names.count(name) == 1
    assert all(check.detail for check in diagnosis.checks)
    assert diagnosis.cpu_works
    assert diagnosis.versions["qpt"] == "0.1.0"


def test_command_line_prints_json() -> None:
    command = [sys.executable, "-m", "qpt", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["cpu_works"] is True
    assert {"name", "ok", "detail", "fix"} == set(report["checks"][0])


def test_broken_extension_gives_its_reason_a_fix_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qpt import cli
    from qpt.ops import extension

    def broken() -> None:
        raise BackendError("compiled for a processor with wings")

    monkeypatch.setattr(extension, "load", broken)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "missing C++ extension" in printed
    assert "compiled for a processor with wings" in printed
    assert "fix: pip install" in printed
    assert "the CPU path is broken" in printed


def test_missing_gpu_parts_do_not_change_the_status() -> None:
    parts = [Check("PyTorch", True, ""), Check("C++ extension", True, ""), Check("CuPy", False, "absent", "install it")]
    assert Diagnosis({}, {}, parts).cpu_works


def test_missing_nvcc_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    check = next(check for check in diagnose().checks if check.name == "nvcc")
    assert not check.ok
    assert "CUDA_HOME" in check.detail
    assert check.fix


def test_the_cupy_of_torch_s_cuda_is_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from qpt.commands import doctor

    monkeypatch.setitem(sys.modules, "cupy", None)
    for version, extra in (("12.6", "cuda12"), ("13.0", "cuda13")):
        monkeypatch.setattr(torch.version, "cuda", version)
        check = doctor._cupy()
        assert not check.ok and check.fix == f"pip install 'qpt[{extra}]'"
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.2.0"))
    monkeypatch.setattr(doctor, "_version", lambda name: "14.2.0")
    assert not doctor._cupy().ok and "cupy-cuda12x and cupy-cuda13x are both installed" in doctor._cupy().detail
    monkeypatch.setattr(doctor, "_version", lambda name: "14.2.0" if name == "cupy-cuda12x" else "not installed")
    assert doctor._cupy().ok and doctor._cupy().detail == "14.2.0 (cupy-cuda12x)"
