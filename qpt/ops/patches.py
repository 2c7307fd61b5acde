"""What degrade_patches asks of an engine: which patches to cut from the degraded rows, and in what form.

Made by ``qpt.ops.degrade``, which has checked every argument; read by its CPU route and by ``qpt.ops.cuda``. A pixel
enters an encoder as one of 256 values a channel, so normalisation is a table, made here once: an engine looks values up
and never computes them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from qpt.data.normalise import normalise
from qpt.ops.windows import plan_windows
from qpt.program import Program


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
