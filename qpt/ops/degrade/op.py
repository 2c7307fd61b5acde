"""The torch ops ``qpt::degrade`` and ``qpt::degrade_patches``: their schemas and their fake kernels (shapes only).

Called by ``api.py`` under a compiler or a dispatch mode. The ops run the functions of that file, so values, which a
compiled graph may not read, are checked when an op runs. A program is passed as its fields. Images are integers: there
is no gradient, and nothing is registered for autograd.
"""

from typing import Any

import torch
from torch import Tensor

from qpt.degradations.program import Program
from qpt.ops.degrade import api


@torch.library.custom_op("qpt::degrade", mutates_args=())
def degrade(
    images: Tensor,
    ops: Tensor,
    levels: Tensor,
    params: Tensor,
    seeds: Tensor,
    source: Tensor,
    table: str,
    threads: int | None,
    backend: str,
) -> Tensor:
    """``qpt.degrade`` of Program(ops, levels, params, seeds, source, table)."""
    program = Program(ops, levels, params, seeds, source, table)
    return api.degrade(images.as_subclass(Tensor), program, threads=threads, backend=backend)


@degrade.register_fake
def _(images: Tensor, ops: Tensor, *_: object) -> Tensor:
    return images.new_empty((ops.shape[0], *images.shape[1:]))


@torch.library.custom_op("qpt::degrade_patches", mutates_args=())
def degrade_patches(
    images: Tensor,
    ops: Tensor,
    levels: Tensor,
    params: Tensor,
    seeds: Tensor,
    source: Tensor,
    table: str,
    boxes: Tensor,
    size: int,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int | None,
    backend: str,
) -> Tensor:
    """``qpt.degrade_patches`` of Program(ops, levels, params, seeds, source, table)."""
    program = Program(ops, levels, params, seeds, source, table)
    return api.degrade_patches(
        images.as_subclass(Tensor),
        program,
        boxes,
        size,
        dtype=dtype,
        memory_format=_layout(channels_last),
        threads=threads,
        backend=backend,
    )


@degrade_patches.register_fake
def _(images: Tensor, *rest: Any) -> Tensor:
    boxes, size, dtype, channels_last = rest[6:10]  # after the program's six fields
    rows, patches = boxes.shape[:2]
    shape = (rows * patches, 3, size, size)
    out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=_layout(channels_last))
    return out.view(rows, patches, 3, size, size)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
