"""Overlapping square patches, drawn from the exact list of offsets that satisfy the overlap rule.

Two crops of side ``s`` whose corners differ by (dy, dx) share (s − |dy|)(s − |dx|) pixels, so their intersection over
union is I / (2 s² − I). All integer offsets with IoU in [low, high] are listed once; a draw then picks one of the list,
cannot fail and never returns the same crop twice (high < 1). Overlap range 0.1–0.3: Re-IQA (arXiv 2304.00451), as used
with QPT. Each patch after the second overlaps the first by the same rule; no crop occurs twice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qpt.errors import InputError


class RandomSource(Protocol):
    """A source of uniform random numbers, such as ``random.Random`` and ``numpy.random.Generator``."""

    def random(self) -> float:
        """Return a number in [0, 1), a multiple of 2^-53."""


def random_below(rng: RandomSource, bound: int) -> int:
    """Draw an integer from 0 to bound - 1."""
    # numpy.random.Generator.integers costs some per cent of decoding a small image.
    return int(rng.random() * bound)


@lru_cache(maxsize=8)
def overlap_offsets(patch: int, region: int, iou_min: float, iou_max: float) -> NDArray[np.int32]:
    """List all (|dy|, |dx|) with IoU in [iou_min, iou_max] that fit two ``patch``-pixel squares in a ``region``-pixel
    square.

    Returns (n, 2) int32, n >= 1. Raises InputError when the rule leaves none.
    """
    if not 1 <= patch <= region:
        raise InputError(f"boxes: patch_size must be between 1 and region_size={region} pixels, got {patch}")
    if not 0.0 <= iou_min <= iou_max < 1.0:
        raise InputError(f"boxes: iou_min <= iou_max must lie in [0, 1), got {iou_min} and {iou_max}")
    offset = np.arange(min(region - patch, patch) + 1)
    shared = (patch - offset)[:, None] * (patch - offset)[None, :]
    iou = shared / (2.0 * patch * patch - shared)
    found = np.argwhere((iou >= iou_min) & (iou <= iou_max)).astype(np.int32)
    if len(found) == 0:
        raise InputError(
            f"boxes: region_size must leave room for two {patch}-pixel patches with IoU in [{iou_min}, {iou_max}], "
            f"got {region}"
        )
    return found


def draw_pair(rng: RandomSource, patch: int, region: int, iou_min: float, iou_max: float) -> list[list[int]]:
    """Draw [[top, left], [top, left]] of two patches within [0, region − patch], with IoU in [iou_min, iou_max]."""
    offsets = overlap_offsets(patch, region, iou_min, iou_max)
    first, second = [], []
    for offset in offsets[random_below(rng, len(offsets))].tolist():
        # The corner that is nearer the origin on this axis; a second draw decides whose it is.
        nearer = random_below(rng, region - patch - offset + 1)
        corners = (nearer, nearer + offset) if random_below(rng, 2) else (nearer + offset, nearer)
        first.append(corners[0])
        second.append(corners[1])
    return [first, second]


def draw_boxes(
    rng: RandomSource, patches: int, patch: int, region: int, iou_min: float, iou_max: float
) -> list[list[int]]:
    """Draw [top, left] of different patches within [0, region − patch]; every one after the first has an IoU with the
    first in [iou_min, iou_max].

    patches: >= 2.  The first two are drawn by ``draw_pair``, again if too few others fit around the first; the others
    uniformly from those that fit. Raises InputError when no place in the region has room for all.
    """
    check_boxes(patches, patch, region, iou_min, iou_max)
    pair = draw_pair(rng, patch, region, iou_min, iou_max)
    if patches == 2:
        return pair
    offsets = _signed_offsets(patch, region, iou_min, iou_max)
    while True:  # ends: check_boxes found a place with room enough, and any pair may be drawn
        corners = pair[0] + offsets
        fits = ((corners >= 0) & (corners <= region - patch)).all(1) & (corners != pair[1]).any(1)
        room = corners[fits].tolist()
        if len(room) >= patches - 2:
            return pair + [room.pop(random_below(rng, len(room))) for _ in range(patches - 2)]
        pair = draw_pair(rng, patch, region, iou_min, iou_max)


def check_boxes(patches: int, patch: int, region: int, iou_min: float, iou_max: float) -> None:
    """Raise InputError unless some first patch of the region has room for patches - 1 others around it."""
    # From a corner of the region every offset fits in exactly one direction: no place has more room.
    room = len(overlap_offsets(patch, region, iou_min, iou_max))
    if patches < 2 or patches - 1 > room:
        raise InputError(
            f"boxes: patches must be between 2 and {room + 1} with {patch}-pixel patches of a {region}-pixel region "
            f"and IoU in [{iou_min}, {iou_max}], got {patches}"
        )


@lru_cache(maxsize=8)
def _signed_offsets(patch: int, region: int, iou_min: float, iou_max: float) -> NDArray[np.int32]:
    """List the offsets of ``overlap_offsets`` in every direction, each once: (m, 2) int32."""
    offsets = overlap_offsets(patch, region, iou_min, iou_max)
    signed = np.concatenate([offsets * (dy, dx) for dy in (1, -1) for dx in (1, -1)])
    return np.unique(signed, axis=0).astype(np.int32)
