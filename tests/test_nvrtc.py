"""Which NVRTC is taken: that of torch's CUDA, wherever it lies."""

from pathlib import Path

import pytest
import torch

from qpt.ops.degrade import nvrtc


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three libraries: packages of CUDA 12 and 13, and a toolkit of 11; no others."""
    for name in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cuda_nvrtc/lib/libnvrtc.alt.so.12"):
        path = tmp_path / "site" / "nvidia" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folder = tmp_path / "toolkit" / "lib64"
    folder.mkdir(parents=True)
    (folder / "libnvrtc.so.11.8.89").touch()
    (folder / "libnvrtc.so").symlink_to("libnvrtc.so.11.8.89")
    monkeypatch.setattr(nvrtc.sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(nvrtc.sysconfig, "get_path", lambda _: str(tmp_path / "none"))
    monkeypatch.setattr(nvrtc.site, "getusersitepackages", lambda: str(tmp_path / "none"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("11.8", "toolkit/lib64/libnvrtc.so"),
        ("12.9", "site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
        ("13.0", "site/nvidia/cu13/lib/libnvrtc.so.13"),
        (None, "site/nvidia/cu13/lib/libnvrtc.so.13"),  # torch without CUDA: the first one
        ("14.1", "site/nvidia/cu13/lib/libnvrtc.so.13"),  # none of that version
    ],
)
def test_the_library_of_torch_s_cuda_comes_first(
    found: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert nvrtc.find_library() == found / expected


@pytest.mark.parametrize(("cuda", "name"), [("12.6", "nvidia-cuda-nvrtc-cu12"), ("13.0", "nvidia-cuda-nvrtc")])
def test_the_package_that_brings_it(monkeypatch: pytest.MonkeyPatch, cuda: str, name: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert nvrtc.package() == name
