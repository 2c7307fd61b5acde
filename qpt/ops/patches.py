"""Cut square patches from degraded images and normalise them for the encoder.

Called by ``qpt.ops.degrade``, which has checked every argument. CUDA tensors go to the Triton kernel
(``kernels/patches.py``) in one pass; anything else, and CUDA without Triton, to the loop below. Both give the same
values.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD


def crop_normalise(
    rows: Tensor, boxes: Tensor, size: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    """(value / 255 - mean) / std of every patch, in float32 (float64 for float64), then cast to ``dtype``.

    rows: (r, H, W, 3) uint8, contiguous.  boxes: (r, P, 2) int32 (top, left), inside H x W for ``size``.
    Returns (r, P, 3, size, size) on the rows' device; ``result.flatten(0, 1)`` is a view in ``memory_format``.
    """
    r, patches = boxes.shape[:2]
    out = torch.empty((r * patches, 3, size, size), dtype=dtype, device=rows.device, memory_format=memory_format)
    kernel = _kernel() if rows.is_cuda and dtype != torch.float64 else None
    if kernel is not None:
        kernel.crop_normalise(rows, boxes.to(rows.device).contiguous(), out, IMAGENET_MEAN, IMAGENET_STD)
    else:
        _crop_normalise_loop(rows, boxes, out)
    return out.unflatten(0, (r, patches)) if r * patches else out.view(r, patches, 3, size, size)


def _crop_normalise_loop(rows: Tensor, boxes: Tensor, out: Tensor) -> None:
    _, height, width, _ = rows.shape
    size, patches = out.shape[-1], boxes.shape[1]
    work = torch.float64 if out.dtype == torch.float64 else torch.float32
    # Lines of 3 * size values, so that the arithmetic runs along memory. A band of lines stays in cache and below the
    # 32768 elements from which torch starts threads, which cost more here than they bring.
    band = max(1, 32767 // (3 * size))
    mean, std = (torch.tensor(v, dtype=work, device=rows.device).repeat(size) for v in (IMAGENET_MEAN, IMAGENET_STD))
    buffer = torch.empty((band, 3 * size), dtype=work, device=rows.device)
    lines = rows.view(-1, height, 3 * width)
    for i, (top, left) in enumerate(boxes.reshape(-1, 2).tolist()):
        crop = lines[i // patches, top : top + size, 3 * left : 3 * (left + size)]
        target = out[i].permute(1, 2, 0)  # (size, size, 3)
        for first in range(0, size, band):
            part = crop[first : first + band]
            values = buffer[: len(part)]
            values.copy_(part).div_(255.0).sub_(mean).div_(std)
            target[first : first + band].copy_(values.view(-1, size, 3))


@functools.cache
def _kernel() -> ModuleType | None:
    """The Triton kernel's module, or None where Triton is not installed."""
    try:
        return importlib.import_module("qpt.kernels.patches")
    except ImportError:
        return None
