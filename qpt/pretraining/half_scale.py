"""Patches at half scale: degraded pixels as evaluation sees them after it has halved an image.

``qpt.pretraining.engine`` draws which patches these are, ``StepInput`` of ``qpt.pretraining.failure`` makes them, and
``qpt.planning`` counts their memory. It touches tensors alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qpt.degradations import random_bits

#: Rows whose patches of twice the size are in memory at once.
ROWS_AT_ONCE = 64
_HALVED_AT_ONCE = 8
_HALF_SCALE = 2**31 + 1  # the first number in the path of a key; those of qpt.degradations.space are smaller


def draw_half_scale(program_seeds: Tensor, compositions: int, patches: int, share: float) -> Tensor:
    """Return the place of the patch of each composition that is seen at half scale, -1 for none: (r,) int64.

    program_seeds: (B,) int64 on the CPU, one for each image; the rows of an image depend on its seed alone.  share: of
    the compositions that have such a patch, which is any of their ``patches``.
    """
    # Any of the patches, not always the same: one of them is the query, and both networks must see both scales.
    keys = random_bits.subkey(program_seeds.numpy(), _HALF_SCALE)
    u = random_bits.uniform(keys, 2 * compositions).reshape(len(program_seeds) * compositions, 2)
    places = torch.from_numpy((u[:, 1] * patches).astype("int64"))
    return torch.where(torch.from_numpy(u[:, 0] < share), places, -1)


def wide_boxes(boxes: Tensor, size: int, region: int) -> Tensor:
    """Return the (top, left) of squares of 2 ``size`` px around patches of ``size`` px: (n, 2), in the region.

    boxes: (n, 2) (top, left).  region: its side in px, at least 2 ``size``.
    """
    return (boxes - size // 2).clamp(0, region - 2 * size)


def halve(patches: Tensor) -> Tensor:
    """Return (N, 3, s, s) uint8, the half scale of (N, 3, 2 s, 2 s) uint8 patches, antialiased.

    The filter is Pillow's bicubic one, which halves the images of an evaluation, rounded once.
    """
    # A few at a time: torch holds a float32 copy, and on the CPU another one between its two passes.
    return torch.cat([_halve(part) for part in patches.split(_HALVED_AT_ONCE)])


def _halve(patches: Tensor) -> Tensor:
    halved = F.interpolate(patches.float(), scale_factor=0.5, mode="bicubic", antialias=True)
    return halved.round_().clamp_(0, 255).to(torch.uint8)
