"""Calls whose form differs between versions of the dependencies give the same, whichever version is installed."""

import ctypes
import gc
import io
import locale
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from qpt import compat
from qpt.commands import doctor
from qpt.ops.contrastive import loss


def test_the_version_of_torch_is_two_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, version in (("2.6.0+cu124", (2, 6)), ("2.13.0", (2, 13)), ("3.0.0a0+git1", (3, 0))):
        monkeypatch.setattr(torch, "__version__", text)
        assert compat.torch_version() == version


def test_default_device_of_torch() -> None:
    try:
        torch.set_default_device("meta")
        assert compat.default_device().type == "meta"
        torch.set_default_device(None)
        assert compat.default_device().type == "cpu"
    finally:
        torch.set_default_device(None)


class Graph(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(left).mean((2, 3)).sum(0), right.mean(0)


@pytest.mark.parametrize("version", [(2, 6), None])
def test_both_exporters_write_a_graph_of_any_extents(
    version: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if version is not None:
        monkeypatch.setattr(compat, "torch_version", lambda: version)
    graph, path = Graph().eval(), tmp_path / "graph.onnx"
    example = {"left": torch.rand(2, 3, 8, 9), "right": torch.rand(4, 5)}
    dynamic = {"left": {0: ("n", 1), 2: ("height", 2), 3: ("width", 2)}, "right": {0: ("m", 1)}}
    compat.write_onnx(graph, example, path, outputs=["total", "average"], dynamic=dynamic)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {"left": torch.rand(5, 3, 11, 6), "right": torch.rand(7, 5)}
    found = session.run(["total", "average"], {name: value.numpy() for name, value in inputs.items()})
    for array, tensor in zip(found, graph(**inputs), strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_stream_of_torch_is_one_of_cupy() -> None:
    """CuPy from 14 on takes the stream itself, if torch's has the protocol; before, its address and its device."""
    kinds = SimpleNamespace(from_external=lambda stream: ("protocol", stream))
    new = SimpleNamespace(cuda=SimpleNamespace(Stream=kinds, ExternalStream=lambda *where: where))
    old = SimpleNamespace(cuda=SimpleNamespace(Stream=SimpleNamespace(), ExternalStream=lambda *where: where))
    bare = SimpleNamespace(cuda_stream=7, device_index=1)
    able = SimpleNamespace(cuda_stream=7, device_index=1, __cuda_stream__=lambda: (0, 7))
    assert compat.cupy_stream(new, able) == ("protocol", able)
    assert compat.cupy_stream(new, bare) == compat.cupy_stream(old, able) == (7, 1)


@pytest.mark.parametrize("version", [(2, 6), None])
def test_a_process_group_is_left(
    version: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if version is not None:
        monkeypatch.setattr(compat, "torch_version", lambda: version)
    for number in range(3):
        store = dist.FileStore(str(tmp_path / str(number)), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        dist.all_reduce(torch.ones(1000, requires_grad=True).detach())
        compat.destroy_process_group()
        assert not dist.is_initialized()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no NVRTC")
def test_the_locale_of_a_thread_comes_back() -> None:
    """From C, in which NVRTC 12.4 leaves it."""
    libc = ctypes.CDLL(None)
    libc.newlocale.restype = libc.uselocale.restype = ctypes.c_void_p
    libc.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    libc.uselocale.argtypes = [ctypes.c_void_p]
    before = libc.uselocale(None)
    with compat.locale_kept():
        libc.uselocale(libc.newlocale(1 << locale.LC_CTYPE, b"C", None))
        assert libc.uselocale(None) != before
        assert locale.nl_langinfo(locale.CODESET) == "ANSI_X3.4-1968"
    assert libc.uselocale(None) == before


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in Linux's /proc")
def test_fonts_of_threads_that_drew_are_closed() -> None:
    from matplotlib.figure import Figure

    def draw() -> None:
        figure = Figure()
        figure.text(0.5, 0.5, "a")
        figure.savefig(io.BytesIO())

    def fonts() -> int:
        gc.collect()
        links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).endswith(".ttf") for link in links if link.is_symlink())

    with compat.fonts_closed():
        pass
    before = fonts()  # of figures that other tests have left
    with compat.fonts_closed():
        threads = [threading.Thread(target=draw) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fonts() > before
    assert fonts() == before
    draw()  # what follows opens them again


def test_an_old_triton_gives_way_to_the_torch_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA device, of which none is needed here: the choice comes before any work."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    fault = compat.triton_fault()
    assert fault == "Triton must be 3.3 or newer on CUDA, got 3.2.0; run: pip install --upgrade 'torch>=2.7'"
    assert loss._reason_unusable("triton") == fault
    check = doctor._triton()
    assert (check.ok, check.fix) == (False, "pip install --upgrade 'torch>=2.7'")
    monkeypatch.setattr(triton, "__version__", "3.3.0+git1")
    assert compat.triton_fault() is None


def test_a_resize_is_two_passes_in_the_order_of_pillow() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((200, 20), (20, 200), (64, 64)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        wanted = height // 2, width // 2
        sizes = [(height, width // 2), (height // 2, width)]
        first = sizes[compat.resizes_height_first((height, width), wanted)]
        passes = image.resize(first[::-1], Image.Resampling.BICUBIC).resize(wanted[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(passes, image.resize(wanted[::-1], Image.Resampling.BICUBIC))
