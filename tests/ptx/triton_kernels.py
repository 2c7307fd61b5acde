"""Triton kernels written for the tests of the executor, in the manner of Triton's tutorials."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def softmax(x, out, columns, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.load(x + tl.program_id(0) * stride + i, mask=i < columns, other=-float("inf"))
    top = tl.exp(row - tl.max(row, 0))
    tl.store(out + tl.program_id(0) * columns + i, top / tl.sum(top, 0), mask=i < columns)


@triton.jit
def layer_norm(x, weight, bias, out, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        i = start + tl.arange(0, BLOCK)
        part = tl.load(x + row * columns + i, mask=i < columns, other=0.0).to(tl.float32)
        total += part
        square += part * part
    mean = tl.sum(total, 0) / columns
    scale = tl.rsqrt(tl.sum(square, 0) / columns - mean * mean + eps)
    for start in range(0, columns, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < columns
        part = tl.load(x + row * columns + i, mask=inside, other=0.0).to(tl.float32)
        y = (part - mean) * scale * tl.load(weight + i, mask=inside) + tl.load(bias + i, mask=inside)
        tl.store(out + row * columns + i, y, mask=inside)


@triton.jit
def dropout(x, out, keep, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.rand(seed, i)
    kept = number > p
    tl.store(out + i, tl.where(kept, tl.load(x + i, mask=i < n) / (1 - p), 0.0), mask=i < n)
    tl.store(keep + i, number, mask=i < n)


@triton.jit
def matmul(
    a, b, out, m, n, k, a_row, a_column, b_row, b_column,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr,
    ACC: tl.constexpr = tl.float32,
):  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    part = tl.program_id(2)
    acc = tl.zeros((M, N), ACC)
    for start in range(part * K, k, K * SPLIT):
        inner = start + tl.arange(0, K)
        left = tl.load(
            a + row[:, None] * a_row + inner[None, :] * a_column,
            mask=(row < m)[:, None] & (inner < k)[None, :],
            other=0,
        )
        right = tl.load(
            b + inner[:, None] * b_row + column[None, :] * b_column,
            mask=(inner < k)[:, None] & (column < n)[None, :],
            other=0,
        )
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=ACC)
    place = out + row[:, None] * n + column[None, :]
    inside = (row < m)[:, None] & (column < n)[None, :]
    if SPLIT == 1:
        tl.store(place, acc, mask=inside)
    else:
        tl.atomic_add(place, acc, mask=inside)


@triton.jit
def attention(q, k, v, out, length, scale, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """One head: softmax(q k^T scale) v, keys in tiles of N."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    d = tl.arange(0, D)
    queries = tl.load(q + row[:, None] * D + d[None, :], mask=(row < length)[:, None], other=0.0)
    top = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    for start in range(0, length, N):
        column = start + tl.arange(0, N)
        keys = tl.load(k + column[:, None] * D + d[None, :], mask=(column < length)[:, None], other=0.0)
        values = tl.load(v + column[:, None] * D + d[None, :], mask=(column < length)[:, None], other=0.0)
        z = tl.dot(queries, tl.trans(keys)) * scale
        z = tl.where((column < length)[None, :], z, -float("inf"))
        higher = tl.maximum(top, tl.max(z, 1))
        p = tl.exp2((z - higher[:, None]) * 1.4426950408889634)
        shrink = tl.exp2((top - higher) * 1.4426950408889634)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None])
        top = higher
    tl.store(out + row[:, None] * D + d[None, :], acc / total[:, None], mask=(row < length)[:, None])


@triton.jit
def sort_and_scan(x, sorted_out, sums, histogram, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i)
    tl.store(sorted_out + i, tl.sort(values))
    tl.store(sums + i, tl.cumsum(values, 0))
    tl.store(histogram + tl.arange(0, 64), tl.histogram(values & 63, 64))
