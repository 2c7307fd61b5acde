"""A stand-in for CUDA devices and for CuPy, on the CPU: the code around the kernels runs where there is no GPU.

Used by the dry run of ``gpu_day`` and by the tests of qpt/ops/degrade/cuda.py. The fake refuses what a driver refuses:
a kernel called on another device than it was prepared on, more shared memory than its device has, another stream's
device. The kernel itself is the C++ engine's, with the launch's own arguments. Nothing here is ever timed as a result.
"""

import contextlib
import ctypes
import functools
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from qpt.ops import extension
from qpt.ops.degrade import api, cuda

STATIC_SHARED = 16  # bytes that the fake kernel has of its own
_DEFAULT_SHARED = 48 << 10  # bytes that a block may have before more is allowed


class CUDADriverError(RuntimeError):
    """An error of the driver."""


class CUDARuntimeError(RuntimeError):
    """An error of the runtime."""


class OnGpu(Tensor):
    """A tensor on the CPU that says it is on cuda:1."""

    device = property(lambda _: torch.device("cuda", 1))  # type: ignore[assignment]


class FakeGpu:
    """The devices of a machine and what was done with them.

    shared_limits: bytes that a block may have, by device.  launches: (device, blocks, teams, shared bytes, scratch
    bytes).
    free_bytes: what one allocation on a device may take.
    """

    def __init__(self, shared_limits: tuple[int, ...] = (232_448, 166_912), multiprocessors: int = 132) -> None:
        self.shared_limits, self.multiprocessors = shared_limits, multiprocessors
        self.total_memory, self.free_bytes = 141 << 30, 141 << 30
        self.current = 0
        self.streams: list[int] = []
        self.launches: list[tuple[int, tuple[int, int], int, int]] = []
        self.cooperative = True  # whether blocks of a launch may wait for each other
        self.loaded: list[tuple[int, str]] = []

    def cupy(self) -> Any:
        """Return a module like CuPy."""
        fake, gpu = ModuleType("cupy"), self

        class Device:
            def __init__(self, index: int | None = None) -> None:
                self.index = index or 0
                self.attributes = {
                    "MaxSharedMemoryPerBlockOptin": gpu.shared_limits[self.index],
                    "CooperativeLaunch": int(gpu.cooperative),
                }

            def __enter__(self) -> "Device":
                self.before, gpu.current = gpu.current, self.index
                return self

            def __exit__(self, *_: object) -> None:
                gpu.current = self.before

        class Stream:
            def __init__(self, device: int) -> None:
                self.device = device

            @classmethod
            def from_external(cls, stream: Any) -> "Stream":
                _, device = stream.__cuda_stream__()
                return cls(device)

            def __enter__(self) -> None:
                gpu.streams.append(self.device)

            def __exit__(self, *_: object) -> None:
                gpu.streams.pop()

        fake.__version__ = "fake"  # type: ignore[attr-defined]
        fake.RawModule = functools.partial(_RawModule, gpu)  # type: ignore[attr-defined]
        fake.cuda = SimpleNamespace(  # type: ignore[attr-defined]
            Device=Device,
            Stream=Stream,
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: len(gpu.shared_limits), driverGetVersion=int
            ),
        )
        return fake

    def torch_cuda(self) -> dict[str, Any]:
        """Return the functions of torch.cuda that the code around the kernels calls."""

        def number(device: Any = None) -> int:
            device = torch.device(device) if isinstance(device, str) else device
            return (device.index if isinstance(device, torch.device) else device) or 0

        return {
            "is_available": lambda: True,
            "device_count": lambda: len(self.shared_limits),
            "synchronize": lambda _=None: None,
            "empty_cache": lambda: None,
            "Event": _Event,
            "current_stream": lambda device=None: SimpleNamespace(
                cuda_stream=0, device_index=number(device), __cuda_stream__=lambda: (0, number(device))
            ),
            "get_device_name": lambda _=None: "a fake GPU",
            "get_device_capability": lambda _=None: (9, 0),
            "get_device_properties": lambda device=None: SimpleNamespace(
                name="a fake GPU",
                multi_processor_count=self.multiprocessors,
                total_memory=self.total_memory,
                shared_memory_per_block_optin=self.shared_limits[number(device)],
                L2_cache_size=50 << 20,
                major=9,
                minor=0,
            ),
            "mem_get_info": lambda _=None: (self.free_bytes, self.total_memory),
            "memory_allocated": lambda _=None: 0,
            "max_memory_allocated": lambda _=None: 0,
            "reset_peak_memory_stats": lambda _=None: None,
            "set_sync_debug_mode": lambda _: None,
        }


class _Event:
    """torch.cuda.Event, on the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, _: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: everything has run."""

    def elapsed_time(self, end: "_Event") -> float:
        return 1000 * max(end.at - self.at, 1e-6)


class _RawModule:
    def __init__(self, gpu: FakeGpu, path: str, enable_cooperative_groups: bool = False) -> None:
        self.gpu, self.path, self.cooperative = gpu, path, enable_cooperative_groups

    def get_function(self, name: str) -> "_RawKernel":
        if name != "qpt_degrade":
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        return _RawKernel(self.gpu, self.path, self.cooperative)


class _RawKernel:
    """CuPy's RawKernel: each device that is current when it is used loads it, with attributes of its own."""

    def __init__(self, gpu: FakeGpu, path: str, cooperative: bool) -> None:
        self.gpu, self.path, self.cooperative = gpu, path, cooperative
        self.dynamic: dict[int, int] = {}

    def _load(self) -> int:
        device = self.gpu.current
        if device not in self.dynamic:
            self.gpu.loaded.append((device, self.path))
            self.dynamic[device] = _DEFAULT_SHARED
        return device

    num_regs, local_size_bytes, max_threads_per_block, binary_version = 128, 0, 512, 90

    @property
    def shared_size_bytes(self) -> int:
        self._load()
        return STATIC_SHARED

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.dynamic[self._load()]

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        device = self._load()
        if size + STATIC_SHARED > self.gpu.shared_limits[device]:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.dynamic[device] = size

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], *, shared_mem: int) -> None:
        device = self._load()
        if not self.gpu.streams or self.gpu.streams[-1] != device:
            raise CUDADriverError("CUDA_ERROR_INVALID_HANDLE: the stream is of another device")
        if shared_mem > self.dynamic[device] or not 0 < block[0] <= self.max_threads_per_block or min(grid) < 1:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        if self.cooperative and grid[0] > self.gpu.multiprocessors:  # a block has all registers of one
            raise CUDADriverError("CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: too many blocks in cooperative launch")
        teams = int(arguments[13])
        assert grid[0] >= teams > 0, "a team has a block"
        assert grid[0] == teams or self.cooperative, "blocks that wait for each other need a cooperative launch"
        states = np.ctypeslib.as_array(ctypes.cast(int(arguments[10]), ctypes.POINTER(ctypes.c_int32)), (1 + teams, 32))
        assert not states.any(), "the states of teams are not zero"
        self.gpu.launches.append((device, grid[0], teams, shared_mem, int(arguments[12])))
        _run(arguments)


def _run(arguments: tuple[Any, ...]) -> None:
    """Run the C++ engine with the arguments of qpt_degrade."""
    images, out, ops, params, seeds, source, order, windows, boxes, lut, *_ = map(int, arguments[:12])
    rows, slots, height, width, patches, size, item_bytes, channels_last = map(int, arguments[15:])
    used = np.ctypeslib.as_array(ctypes.cast(source, ctypes.POINTER(ctypes.c_int32)), (rows,))
    whole = patches == 0
    scratch = torch.empty(extension.load().scratch_bytes(height, width, True, True), dtype=torch.uint8, device="cpu")
    extension.load().degrade(
        images=(images, (int(used.max()) + 1) * height * width * 3),
        height=height,
        width=width,
        out=(out, rows * (height * width * 3 if whole else patches * size * size * 3 * item_bytes)),
        rows=rows,
        slots=slots,
        ops=(ops, rows * slots * 2),
        params=(params, rows * slots * 16),
        seeds=(seeds, rows * 8),
        source=(source, rows * 4),
        order=(order, rows * 4),
        windows=(0, 0) if whole else (windows, rows * 20),
        boxes=(0, 0) if whole else (boxes, rows * patches * 8),
        lut=(0, 0) if whole else (lut, 768 * item_bytes),
        patches=patches,
        size=size,
        item_bytes=item_bytes,
        channels_last=bool(channels_last),
        scratch=extension.buffer(scratch, torch.uint8),
        scratch_bytes=scratch.numel(),
        threads=1,
    )


def _allocator(gpu: FakeGpu, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return torch.empty for fake devices: their memory is the CPU's, and ends."""

    def empty(*size: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> Tensor:
        on_gpu = device is not None and torch.device(device).type == "cuda"
        made = plain(*size, device="meta" if on_gpu else device, **options)
        if not on_gpu:
            return made
        if made.nbytes > gpu.free_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {made.nbytes} bytes.\nmore")
        return plain(*size, device="cpu", **options)

    return empty


@contextlib.contextmanager
def fake_gpu(gpu: FakeGpu | None = None) -> Iterator[FakeGpu]:
    """Let torch.cuda, CuPy and ``qpt.degrade`` believe in the devices of ``gpu`` while the context lasts.

    ``qpt.degrade`` takes the way of the CUDA engine with tensors on the CPU, unless it is given ``backend="cpu"``.
    """
    gpu = gpu or FakeGpu()

    def forget() -> None:
        cuda.available.cache_clear()
        cuda._kernel.cache_clear()

    forget()
    try:
        with (
            mock.patch.multiple(torch.cuda, **gpu.torch_cuda()),
            mock.patch.object(torch, "empty", _allocator(gpu, torch.empty)),
            mock.patch.dict(sys.modules, {"cupy": gpu.cupy()}),
            mock.patch.object(
                api, "choose_backend", lambda _caller, _device, given: "cpu" if given == "cpu" else "cuda"
            ),
            mock.patch.object(
                cuda,
                "_load_from_nvrtc",
                lambda cupy, _, cooperative: cupy.RawModule("NVRTC", cooperative).get_function("qpt_degrade"),
            ),
        ):
            yield gpu
    finally:
        forget()
