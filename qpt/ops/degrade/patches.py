"""What degrade_patches asks of an engine: which patches to cut from the degraded rows, and in what form.

Made by ``qpt.ops.degrade.api``, which has checked every argument; read by its CPU route and by
``qpt.ops.degrade.cuda``. A pixel enters an encoder as one of 256 values a channel, so normalisation is a table, made
here once: an engine looks values up and never computes them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qpt.data.normalise import normalise
from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS
from qpt.degradations.program import Program


@dataclass(frozen=True)
class Patches:
    """P square patches of every row of a program; tensors on the CPU, contiguous.

    boxes: (r, P, 2) int32 (top, left).  windows: (r, 5) int32, as plan_windows gives them.
    table: (3, 256) of the patches' dtype, ``table[c, v]`` for value v of channel c.
    """

    boxes: Tensor
    windows: Tensor
    table: Tensor
    size: int
    memory_format: torch.memory_format

    @staticmethod
    def of(
        program: Program,
        boxes: Tensor,
        size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> Patches:
        """The patches of a program on height x width images."""
        boxes = boxes.cpu().contiguous()
        windows = plan_windows(program, boxes, size, height, width)
        return Patches(boxes, windows, values_of(dtype), size, memory_format)

    @property
    def channels_last(self) -> bool:
        return self.memory_format == torch.channels_last

    def empty(self, device: torch.device) -> Tensor:
        """Room for the patches: (r * P, 3, size, size) in the memory format."""
        shape = (self.boxes.shape[0] * self.boxes.shape[1], 3, self.size, self.size)
        return torch.empty(shape, dtype=self.table.dtype, device=device, memory_format=self.memory_format)


@functools.cache
def values_of(dtype: torch.dtype) -> Tensor:
    """(3, 256): ``normalise`` of every value of every channel; for uint8 the value itself."""
    values = torch.arange(256, dtype=torch.uint8).expand(3, 256)
    return values.contiguous() if dtype == torch.uint8 else normalise(values[None, :, :, None], dtype)[0, :, :, 0]


def plan_windows(program: Program, boxes: Tensor, size: int, height: int, width: int) -> Tensor:
    """(r, 5) int32: the slot from which a row works on a window (S: never), and the window's top, left, height, width.

    boxes: (r, P, 2) int32 on the CPU, P >= 1, (top, left) of patches of ``size`` px inside height x width.
    """
    slots = program.ops.shape[1]
    resize = op_table.op_id("resize_to")
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
