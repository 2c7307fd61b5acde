"""The contrastive loss's two passes over pairs on a GPU; the N x K logits exist only in registers, tile by tile.

Called by qpt/ops/contrastive/backend_triton.py for validated CUDA tensors; what ``lse_forward`` and ``key_gradient``
compute is written in qpt/ops/contrastive/backend_torch.py. One kernel (contrastive_pass.py) does both: rows own their
results, a stream is walked past them.

    lse_forward:   rows are queries, the stream is keys;  p = exp(z - row_max);  row_sum = sum p,  acc = sum p k_j
    key_gradient:  rows are keys, the stream is queries;  p = exp(z - lse_i);                      acc = sum p q_i

Deterministic: no atomics; the stream is divided into parts whose results are merged in order. Exponentials are base 2,
with log2(e) folded into the temperature's factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import triton

from .contrastive_launch import (
    FLOAT32,
    HALF,
    HALF_OF_PAIRS,
    TERMS,
    TERMS_OF_PAIRS,
    TF32,
    device_of,
    launch_for,
    parts_for,
)
from .contrastive_pass import _merge_kernel, _pass_kernel

LOG2_E = 1.4426950408889634
# p is at most 2, and of a million keys most are below float16's smallest number, 6e-8: moved up while it is a float16.
FLOAT16_SCALE = 16384.0
MERGE_ROWS, MERGE_WARPS = 16, 4  # of one program of the merge
TENSOR_CORES = 80  # compute capability of the first GPUs that multiply bfloat16 and TF32

# (vectors [R, D], groups int64 [R], images int64 [R] or None).
Side: TypeAlias = Sequence[Any]
# The same of the keys, followed by self_offset (int or None) and negatives (bool).
KeySet: TypeAlias = Sequence[Any]


class Products(NamedTuple):
    """How both products are computed: a kind of the launch table, and the constants of the kernel."""

    kind: str
    split_rows: bool
    split_stream: bool
    split_p: bool
    widen: bool
    p_scale: float
    precision: str

    @classmethod
    def of(cls, rows: torch.dtype, stream: torch.dtype, precision: str, capability: int, *, by_pairs: bool) -> Products:
        """Return those of vectors of two dtypes; precision as in ``lse_forward``.

        by_pairs: for a pass that compares ids of pairs, or the key gradient's."""
        half = rows == stream and rows in (torch.float16, torch.bfloat16)
        if precision == "auto" and half:
            scale = FLOAT16_SCALE if rows == torch.float16 else 1.0
            return cls(HALF_OF_PAIRS if by_pairs else HALF, False, False, False, False, scale, "ieee")
        if precision == "bf16x3" or (precision == "auto" and capability >= TENSOR_CORES):
            # A float16 takes as many registers more where it is split as the ids of pairs do.
            kind = TERMS_OF_PAIRS if by_pairs or torch.float16 in (rows, stream) else TERMS
            return cls(kind, rows != torch.bfloat16, stream != torch.bfloat16, True, False, 1.0, "ieee")
        kind = FLOAT32 if precision in ("auto", "ieee") else TF32
        return cls(kind, False, False, False, True, 1.0, "ieee" if precision == "auto" else precision)


def lse_forward(
    queries: Side,
    keys: KeySet,
    temperature: torch.Tensor,
    log_weight: float,
    *,
    weighted: bool,
    precision: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return row_max, row_sum [N] and, if ``weighted``, acc [N, D] of the queries; see backend_torch.py.

    precision: "auto", "ieee", "tf32", "tf32x3" or "bf16x3", as ``qpt.contrastive_loss`` has them. "auto" on GPUs
    without tensor cores for bfloat16 is "ieee" for float32.
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
    precision: str = "auto",
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
    capability, multiprocessors = _device(vectors)
    has_images = images is not None and other_images is not None and log_weight != 0
    by_pairs = not running or not negatives or has_images or self_offset is not None
    products = Products.of(vectors.dtype, others.dtype, precision, capability, by_pairs=by_pairs)
    launch = launch_for(capability, products.kind, dim)
    parts = parts_for(n, others.shape[0], dim, launch, multiprocessors)
    out = (
        like.new_empty((n,)) if running else None,
        like.new_empty((n,)) if running else None,
        like.new_empty((n, dim)) if weighted else None,
    )
    partial = tuple(None if x is None else x.new_empty((parts, *x.shape)) for x in out)
    tiles = triton.cdiv(triton.cdiv(others.shape[0], parts), launch.stream)
    slices = triton.cdiv(dim, launch.columns) if weighted else 1
    columns = min(128, triton.next_power_of_2(dim))
    with device_of(vectors):  # a launch goes to the current device
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
            SPLIT_ROWS=products.split_rows,
            SPLIT_STREAM=products.split_stream,
            SPLIT_P=products.split_p,
            WIDEN=products.widen,
            P_SCALE=products.p_scale,
            PRECISION=products.precision,
            LOG2E=LOG2_E,
            num_warps=launch.warps,
            num_stages=launch.stages,
            enable_fp_fusion=True,
        )
        _merge_kernel[(triton.cdiv(n, MERGE_ROWS), triton.cdiv(dim, columns) if weighted else 1)](
            *partial, *out, n, dim, parts,
            ROWS=MERGE_ROWS, COLUMNS=columns, RUNNING=running, WEIGHTED=weighted, LOG2E=LOG2_E,
            num_warps=MERGE_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return out
