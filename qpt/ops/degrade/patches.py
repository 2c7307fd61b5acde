"""``Patches``: the patches that an engine cuts from the degraded rows, and the windows that suffice to compute them.

Made by ``api.py``, which has checked every argument; read by ``cpu.py`` and ``cuda.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpt.data.normalise import normalise
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
    ops, slots = program.ops.numpy(), program.ops.shape[1]
    used = ops >= 0
    grids = np.array([row.grid_px or 0 for row in DEGRADATIONS])  # 0: an op that takes no windows
    grid = np.where(used, grids[np.maximum(ops, 0)], 1)
    # Backwards from the last op: the patches need the union of their boxes, and each op before them that takes windows
    # widens it by its halo. The last op that takes none ends that.
    after = np.arange(1, slots + 1)
    first = np.max(after * (grid == 0), axis=1, initial=0)
    windowed = after > first[:, None]
    halo = np.zeros(len(ops), np.int64)
    found = np.nonzero(windowed & used)
    values = program.params.numpy()[found].tolist()
    halos = [DEGRADATIONS[op].halo_px(v) or 0 for op, v in zip(ops[found].tolist(), values, strict=True)]
    np.add.at(halo, found[0], np.array(halos, np.int64))
    unit = np.lcm.reduce(np.where(windowed, grid, 1), axis=1, initial=1)[:, None]
    low, high = boxes.amin(dim=1).numpy() - halo[:, None], boxes.amax(dim=1).numpy() + size + halo[:, None]
    extents = np.array([height, width])
    start = np.maximum(low, 0) // unit * unit
    length = np.minimum(-(-high // unit) * unit, extents) - start
    # A window saves nothing if no op is left for it or if it is the image. A row with resize_to has none: its last ops
    # may act at another size than that of the boxes.
    whole = program.resized_rows() | ~(windowed & used).any(axis=1) | (length == extents).all(axis=1)
    windows = np.where(whole[:, None], [slots, 0, 0, height, width], np.column_stack([first, start, length]))
    return torch.from_numpy(windows.astype(np.int32))
