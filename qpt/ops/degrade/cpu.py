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
from qpt.process import is_forked


def degrade(caller: str, images: Tensor, program: Program, patches: Patches | None, threads: int) -> Tensor:
    """Run every row of a program on contiguous images on the CPU; return the output images or the patches."""
    module, buffer = extension.load(), extension.buffer
    _, height, width, _ = images.shape
    rows, slots = program.ops.shape
    out = (
        patches.empty(images.device)
        if patches
        else torch.empty((rows, height, width, 3), dtype=torch.uint8, device="cpu")
    )
    if rows == 0:
        return out
    # In a forked process torch has one thread, and more would wait for ever.
    threads = min(threads, rows, torch.get_num_threads() if is_forked() else threads)
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
        images=buffer(images, torch.uint8),
        height=height,
        width=width,
        out=buffer(out, patches.lut.dtype if patches else torch.uint8),
        rows=rows,
        slots=slots,
        ops=buffer(ops, torch.int16),
        params=buffer(params, torch.float32),
        seeds=buffer(seeds, torch.int64),
        source=buffer(source, torch.int32),
        order=buffer(order, torch.int32),
        windows=buffer(patches.windows if patches else None, torch.int32),
        boxes=buffer(patches.boxes if patches else None, torch.int32),
        lut=buffer(patches.lut, patches.lut.dtype) if patches else (0, 0),
        patches=patches.boxes.shape[1] if patches else 0,
        size=patches.size if patches else 0,
        item_bytes=patches.lut.itemsize if patches else 0,
        channels_last=patches is not None and patches.channels_last,
        scratch=buffer(scratch, torch.uint8),
        scratch_bytes=scratch_bytes,
        threads=threads,
    )
    return out
