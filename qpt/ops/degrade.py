"""degrade and degrade_patches: arguments checked, outputs allocated, one call of the compiled engine for a whole batch.

Public as ``qpt.degrade`` and ``qpt.degrade_patches``. The engine (``csrc/cpu/degrade.cpp``, ``qpt/ops/cuda.py``) gets
pointers and extents and refuses nothing, so everything that could be wrong is refused here or in ``Program.check``.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from qpt.errors import BackendError, InputError
from qpt.ops import backend as compiled
from qpt.ops import cuda, degrade_op
from qpt.ops.order import costly_first
from qpt.ops.patches import Patches
from qpt.ops.watched import watched
from qpt.program import Program

_BACKENDS = ("auto", "cpu", "cuda")
_PATCH_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)
_LAYOUTS = (torch.channels_last, torch.contiguous_format)


def degrade(images: Tensor, program: Program, *, threads: int | None = None, backend: str = "auto") -> Tensor:
    """Degrade a batch: row i of the result is ``images[program.source[i]]`` through chain i of the program.

    images: (B, H, W, 3) uint8 RGB on the CPU or a CUDA device; a non-contiguous one is copied; B = 0 is allowed.
    threads: CPU threads, None for torch's number; it does not change the result.  backend: "cpu", "cuda", or "auto"
    for the images' own device, falling back to the CPU with one warning where CUDA kernels are unavailable.
    Returns a new (r, H, W, 3) uint8 tensor on the images' device. A row's bytes depend on its own chain, seed and image
    only: not on the batch, the order of rows or the number of threads.
    Raises InputError naming the wrong argument; BackendError without a usable backend, or in a forked worker process.
    Under ``torch.compile`` it is one op, ``qpt::degrade``, without a graph break; there is no gradient.
    """
    if isinstance(program, Program) and watched(images):
        return degrade_op.degrade(images, *degrade_op.fields(program), threads, backend)
    _check_images("degrade", images)
    _check_program("degrade", program, images)
    threads = _check_threads("degrade", threads)
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
    patch in pixels, on the CPU or the images' device.  size: side in pixels, all patches inside the image.
    Returns (r, P, 3, size, size) in ``dtype``, (value / 255 - mean) / std with ImageNet's mean and std, computed in
    float32 (float64 for float64); with torch.uint8 the values themselves, for ``qpt.data.normalise`` to take later.
    ``memory_format`` is that of ``result.flatten(0, 1)``, a view.
    The values are those of ``degrade`` cut at the boxes. Raises as ``degrade`` does. Under ``torch.compile`` it is one
    op, ``qpt::degrade_patches``.
    """
    if isinstance(program, Program) and memory_format in _LAYOUTS and watched(images):
        options = (size, dtype, memory_format == torch.channels_last, threads, backend)
        return degrade_op.degrade_patches(images, *degrade_op.fields(program), boxes, *options)
    _check_images("degrade_patches", images)
    _check_program("degrade_patches", program, images)
    threads = _check_threads("degrade_patches", threads)
    _check_patches(images, program, boxes, size, dtype, memory_format)
    r, count = boxes.shape[:2]
    if r * count == 0:
        return torch.empty((r, count, 3, size, size), dtype=dtype, device=images.device)
    height, width = images.shape[1:3]
    patches = Patches.of(program, boxes, size, height, width, dtype, memory_format)
    return _run("degrade_patches", images, program, patches, threads, backend).unflatten(0, (r, count))


def _run(caller: str, images: Tensor, program: Program, patches: Patches | None, threads: int, backend: str) -> Tensor:
    if choose_backend(caller, images.device.type, backend) == "cuda":
        try:
            return cuda.degrade(images.contiguous(), program, patches)
        except BackendError as error:  # no kernel for this device
            if backend == "cuda":
                raise
            _warn_fallback(caller, str(error))
    return _run_cpu(caller, images.to("cpu").contiguous(), program, patches, threads).to(images.device)


def choose_backend(caller: str, device: str, backend: str) -> str:
    """Where to run images that are on ``device`` (a torch device type): "cpu" or "cuda". Raises as ``degrade`` does."""
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


@functools.cache  # one warning a process and reason
def _warn_fallback(caller: str, reason: str) -> None:
    warnings.warn(f"{caller}: running on the CPU, since the CUDA kernels are unavailable: {reason}", stacklevel=5)


def _run_cpu(caller: str, images: Tensor, program: Program, patches: Patches | None, threads: int) -> Tensor:
    compiled.refuse_forked_worker(caller)
    module = compiled.extension()
    _, height, width, _ = images.shape
    rows, slots = program.ops.shape
    out = patches.empty(images.device) if patches else torch.empty((rows, height, width, 3), dtype=torch.uint8)
    if rows == 0:
        return out
    threads = min(threads, rows)
    scratch_bytes = module.scratch_bytes(height, width, program.resizes(), patches is not None)
    scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8)
    # The names keep the tensors alive while the engine reads their memory.
    ops, params = program.ops.contiguous(), program.params.contiguous()
    seeds, source = program.seeds.contiguous(), program.source.contiguous()
    if threads > 1:
        order = costly_first(program, patches.windows if patches else None, height, width)
    else:  # a single thread ends when it ends
        order = torch.arange(rows, dtype=torch.int32)
    module.degrade(
        images=images.data_ptr(),
        height=height,
        width=width,
        out=out.data_ptr(),
        rows=rows,
        slots=slots,
        ops=ops.data_ptr(),
        params=params.data_ptr(),
        seeds=seeds.data_ptr(),
        source=source.data_ptr(),
        order=order.data_ptr(),
        windows=patches.windows.data_ptr() if patches else 0,
        boxes=patches.boxes.data_ptr() if patches else 0,
        table=patches.table.data_ptr() if patches else 0,
        patches=patches.boxes.shape[1] if patches else 0,
        size=patches.size if patches else 0,
        item_bytes=patches.table.itemsize if patches else 0,
        channels_last=patches is not None and patches.channels_last,
        scratch=scratch.data_ptr(),
        scratch_bytes=scratch_bytes,
        threads=threads,
    )
    return out


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _check_images(caller: str, images: Tensor) -> None:
    good = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and images.shape[3] == 3
    if not good:
        raise InputError(f"{caller}: images must be (B, H, W, 3) uint8, got {_describe(images)}")
    if images.device.type not in ("cpu", "cuda"):
        raise InputError(f"{caller}: images must be on the CPU or a CUDA device, got {images.device}")
    height, width = images.shape[1:3]
    if not (height and width and height * width * 3 < 2**31):
        raise InputError(f"{caller}: images must have H, W of at least 1 and H * W * 3 < 2^31, got {height} x {width}")


def _check_program(caller: str, program: Program, images: Tensor) -> None:
    if not isinstance(program, Program):
        raise InputError(f"{caller}: program must be a qpt.Program, got {type(program).__name__}")
    program.check(caller)
    height, width = images.shape[1:3]
    if program.resizes() and (height + height // 2) * (width + width // 2) * 3 >= 2**31:
        raise InputError(
            f"{caller}: images must have 1.5 H * 1.5 W * 3 < 2^31 where a row holds resize_to, got {height} x {width}"
        )
    if len(program) and (highest := int(program.source.max())) >= len(images):
        raise InputError(f"{caller}: program.source must be below the number of images, {len(images)}, got {highest}")


def _check_threads(caller: str, threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"{caller}: threads must be None or an integer of at least 1, got {threads!r}")
    return threads


def _check_patches(
    images: Tensor, program: Program, boxes: Tensor, size: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    height, width = images.shape[1:3]
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= min(height, width):
        raise InputError(
            f"degrade_patches: size must be an integer in 1..{min(height, width)} for {height} x {width} images, "
            f"got {size!r}"
        )
    r = len(program)
    good = isinstance(boxes, Tensor) and boxes.dtype == torch.int32 and boxes.ndim == 3
    if not good or boxes.shape[0] != r or boxes.shape[2] != 2:
        raise InputError(
            f"degrade_patches: boxes must be ({r}, P, 2) int32, one row per program row, got {_describe(boxes)}"
        )
    if boxes.device.type != "cpu" and boxes.device != images.device:
        raise InputError(f"degrade_patches: boxes must be on the CPU or on {images.device}, got {boxes.device}")
    if boxes.numel():
        limit = torch.tensor([height - size, width - size], device=boxes.device)
        outside = ((boxes < 0) | (boxes > limit)).any(-1)
        if bool(outside.any()):
            row, patch = outside.nonzero()[0].tolist()
            raise InputError(
                f"degrade_patches: boxes must keep a {size} x {size} patch inside {height} x {width}, "
                f"got (top, left) = {tuple(boxes[row, patch].tolist())} for row {row}, patch {patch}"
            )
    if dtype not in _PATCH_DTYPES:
        raise InputError(f"degrade_patches: dtype must be a floating-point torch dtype or torch.uint8, got {dtype}")
    if memory_format not in _LAYOUTS:
        raise InputError(
            "degrade_patches: memory_format must be torch.channels_last or torch.contiguous_format, "
            f"got {memory_format}"
        )
