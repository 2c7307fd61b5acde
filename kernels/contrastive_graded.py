"""Graded positives on a GPU: weights of pairs by the distance of their severities, and weighted sums of vectors.

Called by qpt/ops/contrastive/backend_triton.py for validated CUDA tensors; what ``add_graded`` computes is written in
qpt/ops/contrastive/backend_torch.py. Weights exist only in registers, tile by tile. Deterministic: a program owns its
rows and walks all columns in order. Products are float32 in IEEE arithmetic, whatever the vectors' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl

from .contrastive_launch import device_of

LOG2_E = 1.4426950408889634
# Rows and columns of a tile, vector elements of a program, warps, pipeline stages. Few rows, because the in-batch
# pairs alone must keep many multiprocessors busy; chosen by what compiles without spills (benchmarks/resources.py).
ROWS, STREAM, ELEMENTS, WARPS, STAGES = 32, 32, 64, 4, 2

# (severities float32 [R, S], groups int64 [R], images int64 [R] or None).
GradedRows: TypeAlias = Sequence[Any]


@triton.jit
def _graded_kernel(
    row_severities,  # float32 [n_rows, KINDS], contiguous
    stream_severities,
    row_groups,  # int64 [n_rows]
    stream_groups,
    row_images,  # int64 [n_rows]; read when HAS_IMAGES
    stream_images,
    vectors,  # float32 [n_stream, dim], contiguous
    total,  # float32 [n_rows, dim], contiguous, added to
    weight_out,  # out, float32 [n_rows]
    n_rows,
    n_stream,
    dim,
    scale,  # log2(e) / (2 width^2)
    self_offset,
    KINDS: tl.constexpr,
    HAS_IMAGES: tl.constexpr,
    HAS_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    STREAM: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    element = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    row_inside = row < n_rows
    groups = tl.load(row_groups + row, mask=row_inside, other=-2)
    if HAS_IMAGES:
        images = tl.load(row_images + row, mask=row_inside, other=-1)
    weight = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, ELEMENTS), tl.float32)
    for start in range(0, n_stream, STREAM):
        column = start + tl.arange(0, STREAM)
        column_inside = column < n_stream
        # 1. Squared distances, one kind at a time.
        distance = tl.zeros((ROWS, STREAM), tl.float32)
        for kind in tl.static_range(KINDS):
            own = tl.load(row_severities + row * KINDS + kind, mask=row_inside, other=0.0)
            other = tl.load(stream_severities + column * KINDS + kind, mask=column_inside, other=0.0)
            difference = own[:, None] - other[None, :]
            distance += difference * difference
        # 2. Weights of the pairs that count.
        other_groups = tl.load(stream_groups + column, mask=column_inside, other=-2)
        counts = (groups[:, None] != other_groups[None, :]) & (groups >= 0)[:, None] & (other_groups >= 0)[None, :]
        if HAS_IMAGES:
            other_images = tl.load(stream_images + column, mask=column_inside, other=-1)
            counts = counts & ((images[:, None] != other_images[None, :]) | (images < 0)[:, None])
        if HAS_SELF:
            counts = counts & (column[None, :] != row[:, None] + self_offset)
        p = tl.where(counts, tl.exp2(-distance * scale), 0.0)
        weight += tl.sum(p, 1)
        # 3. The product with the vectors.
        values = tl.load(
            vectors + column[:, None].to(tl.int64) * dim + element[None, :],
            mask=column_inside[:, None] & (element < dim)[None, :],
            other=0.0,
        )
        acc = tl.dot(p, values, acc, input_precision="ieee")
    place = total + row[:, None].to(tl.int64) * dim + element[None, :]
    inside = row_inside[:, None] & (element < dim)[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + acc, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(weight_out + row, weight, mask=row_inside)


def add_graded(
    rows: GradedRows,
    columns: GradedRows,
    width: float,
    self_offset: int | None,
    vectors: torch.Tensor,
    total: torch.Tensor,
) -> torch.Tensor:
    """Add sum_j w_ij vectors_j to ``total`` [N, D]; return sum_j w_ij, [N]; see backend_torch.py.

    total: contiguous float32. vectors: [M, D], copied to float32.
    """
    (severities, groups, images), (others, other_groups, other_images) = rows, columns
    (n, dim), kinds = total.shape, severities.shape[1]
    if n == 0 or vectors.shape[0] == 0:
        return total.new_zeros((n,))
    weights = total.new_empty((n,))
    has_images = images is not None and other_images is not None
    with device_of(total):  # a launch goes to the current device
        _graded_kernel[(triton.cdiv(n, ROWS), triton.cdiv(dim, ELEMENTS))](
            severities.contiguous(),
            others.contiguous(),
            groups.contiguous(),
            other_groups.contiguous(),
            None if images is None or not has_images else images.contiguous(),
            None if other_images is None or not has_images else other_images.contiguous(),
            vectors.float().contiguous(),
            total,
            weights,
            n,
            vectors.shape[0],
            dim,
            LOG2_E / (2 * width**2),
            0 if self_offset is None else self_offset,
            KINDS=kinds,
            HAS_IMAGES=has_images,
            HAS_SELF=self_offset is not None,
            ROWS=ROWS,
            STREAM=STREAM,
            ELEMENTS=ELEMENTS,
            num_warps=WARPS,
            num_stages=STAGES,
            enable_fp_fusion=True,
        )
    return weights
