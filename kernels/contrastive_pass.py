"""The contrastive loss's kernels: the pass over pairs, and the merge of what the parts of its stream found.

Launched by contrastive.py beside it, which says what the pass computes. Relies on Triton alone.
"""

import triton
import triton.language as tl


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
