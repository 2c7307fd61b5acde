"""The contrastive loss's two passes over pairs on a GPU; the N x K logits exist only in registers, tile by tile.

Called by qpt/ops/contrastive/backend_triton.py for validated CUDA tensors; what ``lse_forward`` and ``key_gradient``
compute is written in qpt/ops/contrastive/backend_torch.py. One kernel does both: rows own their results, a stream is
walked past them.

    lse_forward:   rows are queries, the stream is keys;  p = exp(z - row_max);  row_sum = sum p,  acc = sum p k_j
    key_gradient:  rows are keys, the stream is queries;  p = exp(z - lse_i);                      acc = sum p q_i

Deterministic: no atomics; the stream is divided into parts whose results are merged in order. Exponentials are base 2,
with log2(e) folded into the temperature's factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl

from .contrastive_launch import launch_for, parts_for

LOG2_E = 1.4426950408889634
# p is at most 2, and of a million keys most are below float16's smallest number, 6e-8: moved up while it is a float16.
FLOAT16_SCALE = 16384.0
MERGE_ROWS, MERGE_WARPS = 16, 4  # of one program of the merge

# (vectors [R, D], groups int64 [R], images int64 [R] or None).
Side: TypeAlias = Sequence[Any]
# The same of the keys, followed by self_offset (int or None) and negatives (bool).
KeySet: TypeAlias = Sequence[Any]


@triton.jit
def _terms(x, SPLIT: tl.constexpr, WIDEN: tl.constexpr):
    """Return x as one factor, or as the sum of two of bfloat16: its first eight bits, and eight of what is left."""
    if SPLIT:
        x = x.to(tl.float32)
        high = x.to(tl.bfloat16)
        low = (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        if WIDEN:
            x = x.to(tl.float32)
        high = x
        low = x
    return high, low


@triton.jit
def _multiply(
    left, left_low, right, right_low, acc,
    SPLIT_LEFT: tl.constexpr, SPLIT_RIGHT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return acc + left x right. Of two terms each the product of the low ones, 2^-16 of it, is left out."""
    if SPLIT_RIGHT:
        acc = tl.dot(left, right_low, acc)
    if SPLIT_LEFT:
        acc = tl.dot(left_low, right, acc)
    return tl.dot(left, right, acc, input_precision=PRECISION)


@triton.jit
def _logits(
    rows, stream, own, own_low, row, column, n_rows, n_stream, dim, row_stride, row_step, stream_stride, stream_step,
    ROWS: tl.constexpr, STREAM: tl.constexpr, STEP: tl.constexpr, ONE_STEP: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, SPLIT_STREAM: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return rows x stream^T, [ROWS, STREAM] float32, and, where one step covers D, the terms of the stream's tile.

    own, own_low: [ROWS, STEP], the terms of the rows' tile, where one step covers D.
    """
    d = tl.arange(0, STEP)
    z = tl.zeros((ROWS, STREAM), tl.float32)
    if ONE_STEP:
        tile = tl.load(
            stream + column[:, None].to(tl.int64) * stream_stride + d[None, :] * stream_step,
            mask=(column < n_stream)[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        tile, tile_low = _terms(tile, SPLIT_STREAM, WIDEN)
        z = _multiply(own, own_low, tl.trans(tile), tl.trans(tile_low), z, SPLIT_ROWS, SPLIT_STREAM, PRECISION)
    else:
        tile = own
        tile_low = own
        for start in range(0, dim, STEP):
            inside = (start + d) < dim
            left = tl.load(
                rows + row[:, None].to(tl.int64) * row_stride + (start + d)[None, :] * row_step,
                mask=(row < n_rows)[:, None] & inside[None, :],
                other=0.0,
            )
            right = tl.load(
                stream + column[:, None].to(tl.int64) * stream_stride + (start + d)[None, :] * stream_step,
                mask=(column < n_stream)[:, None] & inside[None, :],
                other=0.0,
            )
            left, left_low = _terms(left, SPLIT_ROWS, WIDEN)
            right, right_low = _terms(right, SPLIT_STREAM, WIDEN)
            z = _multiply(left, left_low, tl.trans(right), tl.trans(right_low), z, SPLIT_ROWS, SPLIT_STREAM, PRECISION)
    return z, tile, tile_low


@triton.jit
def _pass_kernel(
    rows,  # [n_rows, dim]
    stream,  # [n_stream, dim]
    row_groups,  # int64 [n_rows]
    stream_groups,
    row_images,  # int64 [n_rows]; read when HAS_IMAGES
    stream_images,
    temperature,  # float32, one element
    row_lse,  # float32 [n_rows]; read when BOTH_ROLES
    stream_lse,  # float32 [n_stream]; read unless RUNNING
    row_max_out,  # out, float32 [parts, n_rows], units of log 2; when RUNNING
    row_sum_out,  # out, float32 [parts, n_rows]; when RUNNING
    acc_out,  # out, float32 [parts, n_rows, dim]; when WEIGHTED
    n_rows,
    n_stream,
    dim,
    row_stride,
    row_step,
    stream_stride,
    stream_step,
    image_bias,  # log2 of the weight of same-image pairs
    self_offset,
    part_length,  # stream rows of one part, a multiple of STREAM
    ROWS: tl.constexpr,
    STREAM: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONE_STEP: tl.constexpr,  # STEP and COLUMNS cover dim
    RUNNING: tl.constexpr,  # rows are queries; else rows are keys
    WEIGHTED: tl.constexpr,
    BOTH_ROLES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    HAS_IMAGES: tl.constexpr,
    HAS_SELF: tl.constexpr,
    SPLIT_ROWS: tl.constexpr,  # factors of two terms of bfloat16, see _terms
    SPLIT_STREAM: tl.constexpr,
    SPLIT_P: tl.constexpr,
    WIDEN: tl.constexpr,  # factors of float32
    P_SCALE: tl.constexpr,  # a power of two that p is multiplied by where it is rounded
    PRECISION: tl.constexpr,
    LOG2E: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    out_column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside = row < n_rows
    scale = LOG2E / tl.load(temperature)

    # 1. Ids, log-sum-exps and vectors of the rows. Rows beyond the last have group -2: equal to none, eligible nowhere.
    groups = tl.load(row_groups + row, mask=row_inside, other=-2)
    if HAS_IMAGES:
        images = tl.load(row_images + row, mask=row_inside, other=-1)
    if BOTH_ROLES:
        own_lse = tl.load(row_lse + row, mask=row_inside, other=float("inf")) * LOG2E
    d = tl.arange(0, STEP)
    own = tl.load(
        rows + row[:, None].to(tl.int64) * row_stride + d[None, :] * row_step,
        mask=row_inside[:, None] & (d < dim)[None, :],
        other=0.0,
    )
    own, own_low = _terms(own, SPLIT_ROWS, WIDEN)
    row_max = tl.full((ROWS,), float("-inf"), tl.float32)
    row_sum = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)

    # 2. The part of the stream, a tile at a time.
    begin = part * part_length
    end = tl.minimum(begin + part_length, n_stream)
    for start in range(begin, end, STREAM):
        column = start + tl.arange(0, STREAM)
        column_inside = column < n_stream
        z, values, values_low = _logits(
            rows, stream, own, own_low, row, column, n_rows, n_stream, dim,
            row_stride, row_step, stream_stride, stream_step,
            ROWS, STREAM, STEP, ONE_STEP, SPLIT_ROWS, SPLIT_STREAM, WIDEN, PRECISION,
        )  # fmt: skip
        z = z * scale

        # 3. Which pairs count, by their ids.
        other = tl.load(stream_groups + column, mask=column_inside, other=-2)
        if RUNNING:
            eligible = (column_inside & (other >= 0))[None, :]
        else:
            eligible = column_inside[None, :] & (groups >= 0)[:, None]
            if BOTH_ROLES:
                eligible = eligible & (other >= 0)[None, :]
        if not NEGATIVES:
            eligible = eligible & (groups[:, None] == other[None, :])
        if HAS_IMAGES:
            other_images = tl.load(stream_images + column, mask=column_inside, other=-1)
            same = (images[:, None] == other_images[None, :]) & (images >= 0)[:, None]
            z = tl.where(same & (groups[:, None] != other[None, :]), z + image_bias, z)
        if HAS_SELF:
            eligible = eligible & (column[None, :] != row[:, None] + self_offset)
        z = tl.where(eligible, z, float("-inf"))

        # 4. Exponentials: against the running maximum, or against the log-sum-exps that are known.
        if RUNNING:
            new_max = tl.maximum(row_max, tl.max(z, 1))
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)
            rescale = tl.exp2(row_max - shift)
            p = tl.exp2(z - shift[:, None])
            row_sum = row_sum * rescale + tl.sum(p, 1)
            row_max = new_max
            if WEIGHTED:
                acc = acc * rescale[:, None]
        else:
            # z - lse is never above 0 but for rounding, which counts when logits are huge.
            lse = tl.load(stream_lse + column, mask=column_inside, other=float("inf")) * LOG2E
            p = tl.exp2(tl.minimum(z - lse[None, :], 0.0))
            if BOTH_ROLES:
                p += tl.exp2(tl.minimum(z - own_lse[:, None], 0.0))

        # 5. The second product.
        if WEIGHTED:
            if not ONE_STEP:
                values = tl.load(
                    stream + column[:, None].to(tl.int64) * stream_stride + out_column[None, :] * stream_step,
                    mask=column_inside[:, None] & (out_column < dim)[None, :],
                    other=0.0,
                )
                values, values_low = _terms(values, SPLIT_STREAM, WIDEN)
            p = p * P_SCALE
            if SPLIT_P:
                p, p_low = _terms(p, True, False)
            else:
                p = p.to(values.dtype)
                p_low = p
            acc = _multiply(p, p_low, values, values_low, acc, SPLIT_P, SPLIT_STREAM, PRECISION)

    # 6. Every program owns its place in the results.
    place = part.to(tl.int64) * n_rows + row
    if RUNNING:  # noqa: SIM102 (a constant, then a value of the device)
        if tl.program_id(2) == 0:
            tl.store(row_max_out + place, row_max, mask=row_inside)
            tl.store(row_sum_out + place, row_sum, mask=row_inside)
    if WEIGHTED:
        tl.store(
            acc_out + place[:, None] * dim + out_column[None, :],
            acc / P_SCALE,
            mask=row_inside[:, None] & (out_column < dim)[None, :],
        )


@triton.jit
def _merge_kernel(
    part_max,  # float32 [parts, n], units of log 2
    part_sum,  # float32 [parts, n]
    part_acc,  # float32 [parts, n, dim]; when WEIGHTED
    row_max_out,  # float32 [n], natural units; when RUNNING
    row_sum_out,
    acc_out,  # float32 [n, dim]; when WEIGHTED
    n,
    dim,
    parts,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RUNNING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    LOG2E: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < n
    within = inside[:, None] & (column < dim)[None, :]
    shift = tl.zeros((ROWS,), tl.float32)
    if RUNNING:
        row_max = tl.full((ROWS,), float("-inf"), tl.float32)
        for part in range(parts):
            row_max = tl.maximum(row_max, tl.load(part_max + part * n + row, mask=inside, other=float("-inf")))
        shift = tl.where(row_max == float("-inf"), 0.0, row_max)
    row_sum = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in range(parts):
        place = tl.cast(part, tl.int64) * n + row
        rescale = tl.full((ROWS,), 1.0, tl.float32)
        if RUNNING:
            rescale = tl.exp2(tl.load(part_max + place, mask=inside, other=float("-inf")) - shift)
            row_sum += tl.load(part_sum + place, mask=inside, other=0.0) * rescale
        if WEIGHTED:
            piece = tl.load(part_acc + place[:, None] * dim + column[None, :], mask=within, other=0.0)
            acc += piece * rescale[:, None]
    if RUNNING:  # noqa: SIM102
        if tl.program_id(1) == 0:
            tl.store(row_max_out + row, row_max / LOG2E, mask=inside)
            tl.store(row_sum_out + row, row_sum, mask=inside)
    if WEIGHTED:
        tl.store(acc_out + row.to(tl.int64)[:, None] * dim + column[None, :], acc, mask=within)


def lse_forward(
    queries: Side,
    keys: KeySet,
    temperature: torch.Tensor,
    log_weight: float,
    *,
    weighted: bool,
    precision: str = "ieee",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return row_max, row_sum [N] and, if ``weighted``, acc [N, D] of the queries; see backend_torch.py.

    precision: "ieee" or "tf32x3" (three TF32 products on tensor cores), for float32 products: embeddings of float32, or
    of two dtypes. Those of one half-precision dtype are multiplied in it.
    """
    *stream, self_offset, negatives = keys
    options = (log_weight, self_offset, negatives, precision)
    row_max, row_sum, acc = _run(queries, stream, temperature, None, None, *options, running=True, weighted=weighted)
    assert row_max is not None
    assert row_sum is not None
    return row_max, row_sum, acc


def key_gradient(
    queries: Side,
    keys: KeySet,
    temperature: torch.Tensor,
    log_weight: float,
    lse: torch.Tensor,
    *,
    both_roles: bool = False,
    precision: str = "ieee",
) -> torch.Tensor:
    """Return the keys' gradient [M, D] by the log-sum-exps [N]; see backend_torch.py. precision as in ``lse_forward``.

    both_roles: with self_offset None or 0.
    """
    *rows, self_offset, negatives = keys
    options = (log_weight, None if self_offset is None else -self_offset, negatives, precision)
    row_lse = lse if both_roles else None
    gradient = _run(rows, queries, temperature, row_lse, lse, *options, running=False, weighted=True)[2]
    assert gradient is not None
    return gradient.div_(temperature)


def _device(tensor: torch.Tensor) -> tuple[int, int]:
    """Return (compute capability, multiprocessors); the smallest supported where the kernels are interpreted."""
    if not tensor.is_cuda:
        return 80, 2
    properties = torch.cuda.get_device_properties(tensor.device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


def _run(
    rows: Side,
    stream: Side,
    temperature: torch.Tensor,
    row_lse: torch.Tensor | None,
    stream_lse: torch.Tensor | None,
    log_weight: float,
    self_offset: int | None,
    negatives: bool,
    precision: str,
    *,
    running: bool,
    weighted: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Return (row_max, row_sum, acc) of every row over the stream; None for what was not asked for."""
    (vectors, groups, images), (others, other_groups, other_images) = rows, stream
    # Neighbours in memory are loaded in vectors; a copy of another layout costs little beside the products.
    vectors, others = (x if x.stride(1) == 1 else x.contiguous() for x in (vectors, others))
    n, dim = vectors.shape
    like = temperature  # gives dtype and device
    if n == 0 or others.shape[0] == 0:  # nothing to launch, nothing eligible
        nothing = (like.new_full((n,), float("-inf")), like.new_zeros((n,))) if running else (None, None)
        return *nothing, like.new_zeros((n, dim)) if weighted else None
    half = vectors.dtype == others.dtype and vectors.dtype in (torch.float16, torch.bfloat16)
    capability, multiprocessors = _device(vectors)
    launch = launch_for(capability, half, dim)
    parts = parts_for(n, others.shape[0], dim, launch, multiprocessors)
    out = (
        like.new_empty((n,)) if running else None,
        like.new_empty((n,)) if running else None,
        like.new_empty((n, dim)) if weighted else None,
    )
    partial = tuple(None if x is None else x.new_empty((parts, *x.shape)) for x in out)
    tiles = triton.cdiv(triton.cdiv(others.shape[0], parts), launch.stream)
    has_images = images is not None and other_images is not None and log_weight != 0
    slices = triton.cdiv(dim, launch.columns) if weighted else 1
    _pass_kernel[(triton.cdiv(n, launch.rows), parts, slices)](
        vectors,
        others,
        groups.contiguous(),
        other_groups.contiguous(),
        None if images is None or not has_images else images.contiguous(),
        None if other_images is None or not has_images else other_images.contiguous(),
        temperature,
        row_lse,
        stream_lse,
        *partial,
        n,
        others.shape[0],
        dim,
        *vectors.stride(),
        *others.stride(),
        log_weight * LOG2_E,
        0 if self_offset is None else self_offset,
        tiles * launch.stream,
        ROWS=launch.rows,
        STREAM=launch.stream,
        STEP=launch.step,
        COLUMNS=launch.columns,
        ONE_STEP=launch.step >= dim and launch.columns >= dim,
        RUNNING=running,
        WEIGHTED=weighted,
        BOTH_ROLES=row_lse is not None,
        NEGATIVES=negatives,
        HAS_IMAGES=has_images,
        HAS_SELF=self_offset is not None,
        WIDEN=not half,
        P_SCALE=FLOAT16_SCALE if half and vectors.dtype == torch.float16 else 1.0,
        PRECISION=precision,
        LOG2E=LOG2_E,
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,
    )
    columns = min(128, triton.next_power_of_2(dim))
    _merge_kernel[(triton.cdiv(n, MERGE_ROWS), triton.cdiv(dim, columns) if weighted else 1)](
        *partial, *out, n, dim, parts,
        ROWS=MERGE_ROWS, COLUMNS=columns, RUNNING=running, WEIGHTED=weighted, LOG2E=LOG2_E,
        num_warps=MERGE_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return out
