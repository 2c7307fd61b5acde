"""``qpt.degrade`` and ``qpt.degrade_patches``: check the arguments, then run the whole batch on one engine.

The engine is ``cpu.py`` or ``cuda.py``. Under a compiler or a dispatch mode the call goes through the torch ops of
``op.py``, which call these functions when they run.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from qpt.degradations.program import Program
from qpt.errors import BackendError, InputError
from qpt.ops.degrade import cpu, cuda
from qpt.ops.degrade.checks import LAYOUTS, check_images, check_patches, check_program, check_threads
from qpt.ops.degrade.patches import Patches
from qpt.ops.dispatch import needs_dispatcher

_BACKENDS = ("auto", "cpu", "cuda")


def degrade(images: Tensor, program: Program, *, threads: int | None = None, backend: str = "auto") -> Tensor:
    """Degrade a batch: row i of the result is ``images[program.source[i]]`` through chain i of the program.

    images: (B, H, W, 3) uint8 RGB on the CPU or a CUDA device; B may be 0, and a non-contiguous tensor is copied.
    threads: number of CPU threads, None for torch's; it does not change the result. A forked process (a worker of
    DataLoader, say) has one: the thread pool does not survive the fork.  backend: "cpu", "cuda", or "auto" for the
    images' own device, which falls back to the CPU with one warning if CUDA kernels are unavailable.
    Returns a new (r, H, W, 3) uint8 tensor on the images' device. A row's bytes depend on its own chain, seed and image
    only: not on the batch, the order of rows or the number of threads.
    Raises InputError that names the wrong argument; BackendError without a usable backend. Under ``torch.compile`` it
    is one op, ``qpt::degrade``, without a graph break; there is no gradient.
    """
    if isinstance(program, Program) and needs_dispatcher(images):
        result: Tensor = torch.ops.qpt.degrade(images, *_fields(program), threads, backend)
        return result
    check_images("degrade", images)
    check_program("degrade", program, images)
    threads = check_threads("degrade", threads)
    return _run("degrade", images, program, None, threads, backend)


def degrade_patches(
    images: Tensor,
    program: Program,
    boxes: Tensor,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    threads: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Degrade a batch and cut P square patches from every row, normalised for an encoder.

    images, program, threads, backend: as for ``degrade``.  boxes: (r, P, 2) int32, the (top, left) corner of each
    patch in pixels, on the CPU or the images' device.  size: side of a patch in pixels; all patches lie inside the
    image.
    Returns (r, P, 3, size, size) in ``dtype``: (value / 255 - mean) / std with ImageNet's mean and std, computed in
    float32 (float64 for float64); for torch.uint8 the values themselves, which ``qpt.data.normalise`` takes later.
    ``memory_format`` is that of ``result.flatten(0, 1)``, a view. The values are those of ``degrade``, then cropped.
    Raises as ``degrade`` does. Under ``torch.compile`` it is one op, ``qpt::degrade_patches``.
    """
    if isinstance(program, Program) and memory_format in LAYOUTS and needs_dispatcher(images):
        options = (size, dtype, memory_format == torch.channels_last, threads, backend)
        cut: Tensor = torch.ops.qpt.degrade_patches(images, *_fields(program), boxes, *options)
        return cut
    check_images("degrade_patches", images)
    check_program("degrade_patches", program, images)
    threads = check_threads("degrade_patches", threads)
    size = check_patches(images, program, boxes, size, dtype, memory_format)
    r, count = boxes.shape[:2]
    if r * count == 0:
        return torch.empty((r, count, 3, size, size), dtype=dtype, device=images.device)
    height, width = images.shape[1:3]
    patches = Patches.of(program, boxes, size, height, width, dtype, memory_format)
    return _run("degrade_patches", images, program, patches, threads, backend).unflatten(0, (r, count))


def _fields(program: Program) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
    """Return a program's fields, since the torch ops take tensors and no objects."""
    return program.ops, program.levels, program.params, program.seeds, program.source, program.table


def _run(caller: str, images: Tensor, program: Program, patches: Patches | None, threads: int, backend: str) -> Tensor:
    """Run a checked batch on the engine that the arguments choose."""
    if choose_backend(caller, images.device.type, backend) == "cuda":
        try:
            return cuda.degrade(images.contiguous(), program, patches)
        except BackendError as error:  # there is no kernel for this device
            if backend == "cuda":
                raise
            _warn_fallback(caller, str(error))
    return cpu.degrade(caller, images.to("cpu").contiguous(), program, patches, threads).to(images.device)


def choose_backend(caller: str, device: str, backend: str) -> str:
    """Return the engine for images on ``device``, a torch device type: "cpu" or "cuda". Raises as ``degrade`` does."""
    if backend not in _BACKENDS:
        raise InputError(f"{caller}: backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    if backend == "cuda" and device != "cuda":
        raise InputError(f'{caller}: images must be on a CUDA device under backend="cuda", got {device}')
    if device == "cpu" or backend == "cpu":
        return "cpu"
    reason = cuda.available()
    if reason is None:
        return "cuda"
    if backend == "cuda":
        raise BackendError(f"{caller}: the CUDA kernels are unavailable: {reason}")
    _warn_fallback(caller, reason)
    return "cpu"


@functools.cache  # warns once per process and reason
def _warn_fallback(caller: str, reason: str) -> None:
    warnings.warn(f"{caller}: running on the CPU, since the CUDA kernels are unavailable: {reason}", stacklevel=5)
