"""``qpt.degrade_pairs``: degraded images of a smaller size with their originals, as super-resolution trains on them.

A public entry beside ``api.py``, which degrades; the size is then changed by ``resize.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from qpt.degradations.program import Program
from qpt.errors import InputError, as_integer, check_int, describe
from qpt.ops.degrade.api import choose_backend, degrade
from qpt.ops.degrade.checks import PATCH_DTYPES, check_images, check_program, check_threads
from qpt.ops.degrade.resize import FILTERS, resize

MAX_SCALE = 16


@overload
def degrade_pairs(
    images: Tensor,
    program: Program,
    scale: int,
    *,
    filter: str = ...,
    dtype: torch.dtype = ...,
    threads: int | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def degrade_pairs(
    images: Tensor,
    program: Program,
    scale: Sequence[int] | Tensor,
    *,
    filter: str = ...,
    dtype: torch.dtype = ...,
    threads: int | None = ...,
    backend: str = ...,
) -> tuple[list[Tensor], list[Tensor]]: ...
def degrade_pairs(
    images: Tensor,
    program: Program,
    scale: int | Sequence[int] | Tensor,
    *,
    filter: str = "bicubic",
    dtype: torch.dtype = torch.uint8,
    threads: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor | list[Tensor], Tensor | list[Tensor]]:
    """Degrade a batch and resize the result to 1 / scale of the size; return it beside the images it was made from.

    images, program, threads, backend: as for ``degrade``.  scale: an integer in 1..16, such as 2 or 4, for all rows, or
    r of them, one per row.  filter: of the resize: "area", "bilinear" or "bicubic" (a = -3/4), those of the op
    ``resize_to``; only area is antialiased.  dtype: torch.uint8, or a floating-point one for values / 255, 0 to 1.
    Returns (low, high): with h = H // s and w = W // s, row i of ``low`` is (h, w, 3), row i of ``high``, the ground
    truth, is ``images[program.source[i]]`` cut to its top left (h s, w s, 3). For one scale both are tensors,
    (r, h, w, 3) and (r, h s, w s, 3), for a scale per row lists of r tensors. ``low`` holds the bytes of ``degrade``,
    then the same cut, then the resize: for every batch, order of rows, number of threads and device.
    Raises as ``degrade`` does, and InputError for another filter or dtype, or a scale that is out of range or above H
    or W.
    """
    caller = "degrade_pairs"
    check_images(caller, images)
    check_program(caller, program, images)
    threads = check_threads(caller, threads)
    choose_backend(caller, images.device.type, backend)
    scales = _check_scales(scale, len(program), min(images.shape[1:3]))
    if filter not in FILTERS:
        raise InputError(f"{caller}: filter must be one of {', '.join(FILTERS)}, got {filter!r}")
    if dtype not in PATCH_DTYPES:
        raise InputError(f"{caller}: dtype must be a floating-point torch dtype or torch.uint8, got {dtype}")
    degraded = degrade(images, program, threads=threads, backend=backend)
    originals = images[program.source.to(device=images.device, dtype=torch.int64)]

    def pairs(rows: slice, scale: int) -> tuple[Tensor, Tensor]:
        height, width = (side // scale for side in images.shape[1:3])
        cut = (rows, slice(height * scale), slice(width * scale))
        low = resize(degraded[cut], height, width, filter)
        return _in_dtype(low, dtype), _in_dtype(originals[cut], dtype)

    if not isinstance(scales, list):
        return pairs(slice(None), scales)
    found = [pairs(slice(row, row + 1), scale) for row, scale in enumerate(scales)]
    return [low[0] for low, _ in found], [high[0] for _, high in found]


def _check_scales(scale: int | Sequence[int] | Tensor, rows: int, side: int) -> int | list[int]:
    """Return one scale, or one per row. side: the shorter one of the images, px."""
    highest = max(min(MAX_SCALE, side), 1)
    # An array of one number is an integer too, by its ``__index__``; here it is one scale per row, for one row.
    single = None if getattr(scale, "ndim", 0) else as_integer(scale)
    if single is not None:
        return check_int("degrade_pairs", "scale", single, 1, highest)
    try:
        values = [*scale]  # type: ignore[misc]
    except TypeError:
        values = []
    if isinstance(scale, str) or len(values) != rows:
        got = describe(scale) if isinstance(scale, Tensor) else repr(scale)
        raise InputError(f"degrade_pairs: scale must be an integer, or {rows} of them, one per program row, got {got}")
    return [check_int("degrade_pairs", "scale", value, 1, highest) for value in values]


def _in_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 pixels as they are, contiguous, or as values of 0 to 1, computed in float32 or better."""
    if dtype == torch.uint8:
        return pixels.contiguous()
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return pixels.to(work).div_(255).to(dtype).contiguous()
