"""Which window of the image each row of a program must compute for its patches.

Used by ``qpt.ops.patches``. The ops up to a row's last one that needs the whole image run on all of it; the ones after
it on the union of the row's boxes, grown by their summed halo, since what a window's own edges spoil reaches no
further. A row with ``resize_to`` ends with a resize of the whole image. Relies on halo and grid_px of the op table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpt import degradations
from qpt.degradations import DEGRADATIONS
from qpt.program import Program


def plan_windows(program: Program, boxes: Tensor, size: int, height: int, width: int) -> Tensor:
    """(r, 5) int32: the slot from which a row works on a window (S: never), and the window's top, left, height, width.

    boxes: (r, P, 2) int32 on the CPU, P >= 1, (top, left) of patches of ``size`` px inside height x width.
    """
    slots = program.ops.shape[1]
    resize = degradations.op_id("resize_to")
    first = boxes.amin(dim=1).tolist()
    last = (boxes.amax(dim=1) + size).tolist()
    rows = []
    for ops, params, low, high in zip(program.ops.tolist(), program.params.tolist(), first, last, strict=True):
        slot, halo, grid = slots, 0, 1
        for op, values in zip(reversed(ops), reversed(params), strict=True):
            if op >= 0:
                entry = DEGRADATIONS[op]
                if entry.grid_px is None:
                    break
                halo += entry.halo_px(values) or 0
                grid = math.lcm(grid, entry.grid_px)
            slot -= 1
        top, h = _side(low[0], high[0], halo, grid, height)
        left, w = _side(low[1], high[1], halo, grid, width)
        # Nothing is saved where no op is left or the window is the image.
        if resize in ops or all(op < 0 for op in ops[slot:]) or (h, w) == (height, width):
            slot, top, left, h, w = slots, 0, 0, height, width
        rows.append((slot, top, left, h, w))
    return torch.tensor(rows, dtype=torch.int32).view(-1, 5)


def _side(low: int, high: int, halo: int, grid: int, size: int) -> tuple[int, int]:
    """[low, high) grown by halo, then to the grid, inside [0, size): (start, length)."""
    start = max(low - halo, 0) // grid * grid
    return start, min(-(-(high + halo) // grid) * grid, size) - start
