"""The CPU engine of ``degrade``: allocate the output and scratch, and pass pointers to ``csrc/cpu/degrade.cpp``.

Called by ``api.py``, which has checked every argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpt.degradations.program import Program
from qpt.ops import extension
from qpt.ops.degrade.order import costly_first
from qpt.ops.degrade.patches import Patches


def degrade(caller: str, images: Tensor, program: Program, patches: Patches | None, threads: int) -> Tensor:
    """Run every row of a program on contiguous images on the CPU; return the output images or the patches."""
    extension.refuse_forked_worker(caller)
    module = extension.load()
    _, height, width, _ = images.shape
    rows, slots = program.ops.shape
    out = (
        patches.empty(images.device)
        if patches
        else torch.empty((rows, height, width, 3), dtype=torch.uint8, device="cpu")
    )
    if rows == 0:
        return out
    threads = min(threads, rows)
    scratch_bytes = module.scratch_bytes(height, width, program.resizes(), patches is not None)
    scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8, device="cpu")
    # Named, so that the tensors live as long as the engine reads their memory.
    ops, params = program.ops.contiguous(), program.params.contiguous()
    seeds, source = program.seeds.contiguous(), program.source.contiguous()
    if threads > 1:
        order = costly_first(program, patches.windows if patches else None, height, width)
    else:  # the order cannot help a single thread
        order = torch.arange(rows, dtype=torch.int32, device="cpu")
    module.degrade(
        images=images.data_ptr(),
        height=height,
        width=width,
        out=out.data_ptr(),
        rows=rows,
        slots=slots,
        ops=ops.data_ptr(),
        params=params.data_ptr(),
        seeds=seeds.data_ptr(),
        source=source.data_ptr(),
        order=order.data_ptr(),
        windows=patches.windows.data_ptr() if patches else 0,
        boxes=patches.boxes.data_ptr() if patches else 0,
        lut=patches.lut.data_ptr() if patches else 0,
        patches=patches.boxes.shape[1] if patches else 0,
        size=patches.size if patches else 0,
        item_bytes=patches.lut.itemsize if patches else 0,
        channels_last=patches is not None and patches.channels_last,
        scratch=scratch.data_ptr(),
        scratch_bytes=scratch_bytes,
        threads=threads,
    )
    return out
