"""``Patches``: the patches that an engine cuts from the degraded rows, and the windows that suffice to compute them.

Made by ``api.py``, which has checked every argument; read by ``cpu.py`` and ``cuda.py``.
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
    """P square patches of every row of a program; the tensors are on the CPU and contiguous.

    boxes: (r, P, 2) int32 (top, left).  windows: (r, 5) int32, as ``row_windows`` gives them.
    lut: (3, 256) lookup table in the patches' dtype: ``lut[c, v]`` is the normalised value v of channel c.
    """

    boxes: Tensor
    windows: Tensor
    lut: Tensor
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
        """Make the description of a program's patches on height x width images."""
        boxes = boxes.cpu().contiguous()
        windows = row_windows(program, boxes, size, height, width)
        return Patches(boxes, windows, normalisation_lut(dtype), size, memory_format)

    @property
    def channels_last(self) -> bool:
        return self.memory_format == torch.channels_last

    def empty(self, device: torch.device) -> Tensor:
        """Allocate the patches: (r * P, 3, size, size) in the memory format."""
        shape = (self.boxes.shape[0] * self.boxes.shape[1], 3, self.size, self.size)
        return torch.empty(shape, dtype=self.lut.dtype, device=device, memory_format=self.memory_format)


# A value of a channel is one of 256, so the engines look normalised values up instead of computing them, and give the
# same bits as ``normalise`` in every dtype.
@functools.cache
def normalisation_lut(dtype: torch.dtype) -> Tensor:
    """Return (3, 256), ``normalise`` of every value of every channel; for uint8 the value itself."""
    values = torch.arange(256, dtype=torch.uint8, device="cpu").expand(3, 256)
    return values.contiguous() if dtype == torch.uint8 else normalise(values[None, :, :, None], dtype)[0, :, :, 0]


def row_windows(program: Program, boxes: Tensor, size: int, height: int, width: int) -> Tensor:
    """Return the window of every row: (r, 5) int32, (first slot, top, left, height, width).

    From its first slot on, a row is computed on the window only; S means never, with the whole image as the window.
    boxes: (r, P, 2) int32 on the CPU, P >= 1, (top, left) of patches of ``size`` px inside height x width.
    """
    slots = program.ops.shape[1]
    resize = op_table.op_id("resize_to")
    first = boxes.amin(dim=1).tolist()
    last = (boxes.amax(dim=1) + size).tolist()
    rows = []
    for ops, params, low, high in zip(program.ops.tolist(), program.params.tolist(), first, last, strict=True):
        # Backwards from the last op: the patches need the union of their boxes, and each op before them that takes
        # windows widens it by its halo. The first op that does not take windows ends the loop.
        slot, halo, grid = slots, 0, 1
        for op, values in zip(reversed(ops), reversed(params), strict=True):
            if op >= 0:
                entry = DEGRADATIONS[op]
                if entry.grid_px is None:
                    break
                halo += entry.halo_px(values) or 0
                grid = math.lcm(grid, entry.grid_px)
            slot -= 1
        top, h = _grow(low[0], high[0], halo, grid, height)
        left, w = _grow(low[1], high[1], halo, grid, width)
        # A window saves nothing if no op is left for it or if it is the image. A row with resize_to has none: its last
        # ops may act at another size than that of the boxes.
        if resize in ops or all(op < 0 for op in ops[slot:]) or (h, w) == (height, width):
            slot, top, left, h, w = slots, 0, 0, height, width
        rows.append((slot, top, left, h, w))
    return torch.tensor(rows, dtype=torch.int32, device="cpu").view(-1, 5)


def _grow(low: int, high: int, halo: int, grid: int, size: int) -> tuple[int, int]:
    """Grow [low, high) by halo, then to the grid, inside [0, size); return (start, length)."""
    start = max(low - halo, 0) // grid * grid
    return start, min(-(-(high + halo) // grid) * grid, size) - start
