"""The resize of the op ``resize_to`` as a call of its own, on any device: its filters, and its roundings to the bit.

Called by ``pairs.py``. The definition is that of ``csrc/ops/resize.h``: OpenCV's filters (the weights of
``cv2.resize``), fixed point, and 8 bits after each of two passes. Everything is computed in integers, so that every
device gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Names of the filters; the place of a name is the value of the parameter ``filter`` of ``resize_to``.
FILTERS = ("area", "bilinear", "bicubic")
_WEIGHT_BITS = 22


def resize(images: Tensor, height: int, width: int, filter: str) -> Tensor:
    """Resize (n, H, W, 3) uint8 images to (n, height, width, 3), along x, then along y.

    filter: a name of ``FILTERS``. Bicubic has a = -3/4; bilinear and bicubic are not antialiased.
    """
    for dim, size in ((2, width), (1, height)):
        images = _resize_side(images, dim, size, filter)
    return images


def _resize_side(images: Tensor, dim: int, size: int, filter: str) -> Tensor:
    first, weights = _weights(images.shape[dim], size, filter)
    # The sum of the absolute weights is at most 1.375, so that sums of products with 0..255 fit 32 bits.
    shape = (images.shape[0], *(size if axis == dim else images.shape[axis] for axis in (1, 2)), 3)
    total = torch.full(shape, 1 << (_WEIGHT_BITS - 1), dtype=torch.int32, device=images.device)
    column = [1, 1, 1, 1]
    column[dim] = size
    for tap in range(weights.shape[1]):
        # A tap beyond the border has weight 0, and any pixel does for it.
        index = torch.from_numpy(np.minimum(first + tap, images.shape[dim] - 1)).to(images.device)
        weight = torch.from_numpy(np.ascontiguousarray(weights[:, tap])).to(images.device).view(column)
        total += images.index_select(dim, index).to(torch.int32) * weight
    return (total >> _WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


def _weights(before: int, after: int, filter: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the first pixel (after,) and the weights (after, taps) in units of 2^-22 of each new pixel of a side."""
    scale = before / after
    new = np.arange(after)
    support = FILTERS.index(filter)  # of bilinear and bicubic, px
    taps = 2 * support if support else -(-before // after) + 1
    start = np.trunc((new + 0.5) * scale + 0.5 if support else new * scale).astype(np.int64) - support
    first = np.clip(start, 0, before - 1)
    weights = np.zeros((after, taps))
    for tap in range(taps):
        if support:
            pixels = start + tap
            distance = np.abs((new + 0.5) * scale + 0.5 - (pixels + 1))
            weight = _cubic(distance) if support == 2 else 1 - distance
            # Taps beyond the border read the border's pixel, whose weights add up.
            np.add.at(weights, (new, np.clip(pixels, 0, before - 1) - first), weight)
        else:
            pixels = first + tap
            covered = np.minimum((new + 1) * scale, pixels + 1) - np.maximum(new * scale, pixels)
            weights[:, tap] = np.where(pixels < before, np.maximum(covered, 0) / scale, 0)
    scaled = weights * (1 << _WEIGHT_BITS)
    return first, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic convolution (IEEE TASSP 1981) with a = -3/4 at distances of at most 2."""
    inner = (1.25 * distance - 2.25) * distance * distance + 1.0
    outer = ((-0.75 * distance + 3.75) * distance - 6.0) * distance + 3.0
    return np.where(distance < 1, inner, outer)
