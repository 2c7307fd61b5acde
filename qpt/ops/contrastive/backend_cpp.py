"""The contrastive loss's passes over pairs in C++ (csrc/cpu/contrastive.cpp): validated tensors in, pointers out.

Called through ``backends.py``; what the functions compute is written in ``backend_torch.py``. float32,
float16 and bfloat16 on the CPU; half-precision rows are widened a slab at a time. ``queries is keys`` with every other
argument to match uses the symmetry of the similarities.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpt.ops import extension
from qpt.ops.contrastive.backends import KeySet, LossTerms, Queries
from qpt.ops.contrastive.pool import check_rows_finite

_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # DType of csrc/cpu/contrastive.h
_STRIP, _BLOCK = 64, 256  # kStrip and kGroupRows there
# Within this |z|, exp(z) and its sums are float32 numbers of full precision: no running maximum is needed.
_SAFE_LOGIT = 40.0
# Name of the instruction set (see ``qpt._C.contrastive_isas``); "" is the best one. For tests.
isa = ""


def forward(
    queries: Queries, key_sets: Sequence[KeySet], temperature: Tensor, log_weight: float, need_gradient: bool
) -> LossTerms:
    """The whole loss in one call; the same as ``Terms`` of loss.py gives with the passes below.

    The batch's keys, the first set, have been looked at for nan and infinity; those of the others are looked at on the
    way, and one InputError names the row.
    """
    n, dim = queries.vectors.shape
    real = temperature.new_empty
    terms = LossTerms(
        loss=real(()),
        valid_rows=queries.groups.new_empty(()),
        lse=real(n),
        positives=queries.groups.new_empty(n),
        gradient=real((n if need_gradient else 0, dim)),
        similarity=temperature.new_zeros(2),
    )
    rows = _side(_readable(queries.vectors), queries.groups, queries.images)
    sides = [_side(_readable(keys.vectors), keys.groups, keys.images) for keys in key_sets]
    sets = [
        (side[0], keys.self_offset, not keys.negatives, place > 0)
        for place, (side, keys) in enumerate(zip(sides, key_sets, strict=True))
    ]
    addresses = [tensor.data_ptr() for tensor in terms]
    addresses[4] = addresses[4] if need_gradient else 0
    problem = (rows[0], sets, dim, temperature.item(), log_weight / math.log(2), addresses)
    if extension.load().contrastive_forward(*problem, isa, torch.get_num_threads()) >= 0:
        for keys in key_sets[1:]:
            check_rows_finite("contrastive_loss", "pool", keys.vectors)
    return terms


def attend(
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    temperature: Tensor,
    log_weight: float,
    *,
    self_offset: int | None,
    negatives: bool,
    weighted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See ``contrastive_torch.attend``."""
    tau = temperature.item()
    same = queries is keys and query_groups is key_groups and query_images is key_images
    if same and self_offset == 0 and negatives and not weighted and _bounded(queries, tau, log_weight):
        total = _same_rows(queries, query_groups, query_images, tau, log_weight, None)
        return torch.where(total > 0, 0.0, -math.inf), total, None
    queries, keys = _readable(queries), _readable(keys)
    return _pass(
        _side(queries, query_groups, query_images),
        _side(keys, key_groups, key_images),
        queries.shape[1],
        tau,
        log_weight,
        self_offset,
        None,
        same_group=not negatives,
        weighted=weighted,
    )


def softmax_key_gradient(
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    temperature: Tensor,
    log_weight: float,
    lse: Tensor,
    *,
    self_offset: int | None,
    negatives: bool,
    both_roles: bool = False,
) -> Tensor:
    """See ``contrastive_torch.softmax_key_gradient``."""
    tau = temperature.item()
    if both_roles and negatives and self_offset == 0 and _bounded(queries, tau, log_weight):
        return _same_rows(queries, query_groups, query_images, tau, log_weight, torch.exp(-lse)).div_(tau)
    wide_queries, wide_keys = _readable(queries), _readable(keys)
    rows, stream = _side(wide_keys, key_groups, key_images), _side(wide_queries, query_groups, query_images)
    # The keys own their rows now: the logits' log-sum-exps come with the stream of queries.
    _, _, gradient = _pass(
        rows,
        stream,
        keys.shape[1],
        tau,
        log_weight,
        None if self_offset is None else -self_offset,
        lse * (-1 / math.log(2)),
        same_group=not negatives,
        weighted=True,
    )
    assert gradient is not None
    gradient.masked_fill_((key_groups < 0)[:, None], 0)
    if both_roles:
        # What a row is due as a query: its softmax-weighted key mean, with the log-sum-exp it has.
        reference, _, mean_sum = _pass(
            stream, rows, keys.shape[1], tau, log_weight, self_offset, None, same_group=not negatives, weighted=True
        )
        assert mean_sum is not None
        softmax = torch.exp(reference - lse).nan_to_num_(0.0)  # -inf - inf where a row has no eligible key
        gradient.addcmul_(mean_sum, softmax[:, None])
    return gradient.div_(tau)


def add_positives(
    query_groups: Tensor,
    keys: Tensor,
    key_groups: Tensor,
    positive_sum: Tensor,
    positives: Tensor,
    *,
    self_offset: int | None,
) -> None:
    """Adds to positive_sum [N, D] float32 and positives [N] int64 the keys of each row's group; both contiguous."""
    keys = _readable(keys)
    rows, stream = _side(positive_sum, query_groups, None), _side(keys, key_groups, None)
    arguments = (positive_sum.data_ptr(), positives.data_ptr(), torch.get_num_threads())
    extension.load().contrastive_positives(rows[0], stream[0], keys.shape[1], self_offset, *arguments)


def _readable(vectors: Tensor) -> Tensor:
    """[R, D] with unit stride along D, which C++ reads in place."""
    return vectors if vectors.stride(1) == 1 or vectors.shape[1] == 1 else vectors.contiguous()


def _side(vectors: Tensor, groups: Tensor, images: Tensor | None) -> tuple[Any, ...]:
    """A Side of csrc/cpu/contrastive.h, followed by the tensors that keep its pointers alive."""
    groups = groups.contiguous()
    images = None if images is None else images.contiguous()
    fields = (
        vectors.data_ptr(),
        vectors.stride(0),
        vectors.shape[0],
        _DTYPE[vectors.dtype],
        groups.data_ptr(),
        0 if images is None else images.data_ptr(),
    )
    return fields, vectors, groups, images


def _pass(
    rows: tuple[Any, ...],
    stream: tuple[Any, ...],
    dim: int,
    tau: float,
    log_weight: float,
    self_offset: int | None,
    bias: Tensor | None,
    *,
    same_group: bool,
    weighted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(reference, total, sum or None) of the rows over the stream; bias [stream], in units of log 2, fixes the
    reference at 0."""
    native = extension.load()
    count = rows[0][2]
    plan = (1, 1) if same_group else native.contrastive_plan(count, stream[0][2], dim)

    def empty(parts: int) -> tuple[Tensor, Tensor, Tensor | None]:
        return (
            torch.empty(parts * count),
            torch.empty(parts * count),
            torch.empty(parts * count, dim) if weighted else None,
        )

    out = empty(1)
    partial = empty(plan[1]) if plan[1] > 1 else out
    native.contrastive_pass(
        rows[0],
        stream[0],
        dim,
        1 / (tau * math.log(2)),
        log_weight / math.log(2),
        self_offset,
        bias is None,
        same_group,
        0 if bias is None else bias.data_ptr(),
        plan,
        [_address(part) for part in partial],
        [_address(part) for part in out],
        isa,
        torch.get_num_threads(),
    )
    return out


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bounded(vectors: Tensor, tau: float, log_weight: float) -> bool:
    """Whether no logit of these rows among themselves exceeds _SAFE_LOGIT (Cauchy-Schwarz)."""
    largest = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).max().item()
    return largest * largest / tau + max(log_weight, 0.0) <= _SAFE_LOGIT


def _same_rows(
    vectors: Tensor, groups: Tensor, images: Tensor | None, tau: float, log_weight: float, inverse: Tensor | None
) -> Tensor:
    """sum_j exp(z_ij) [N] without ``inverse``; with it (exp(-lse), [N]) sum_j exp(z_ij) (inverse_i + inverse_j) x_j."""
    n, dim = vectors.shape
    wide = _readable(vectors.to(torch.float32))
    if dim % _STRIP:
        wide = F.pad(wide, (0, -dim % _STRIP))
    rows = _side(wide, groups, images)
    padded = wide.shape[1]
    out = torch.zeros(n) if inverse is None else torch.zeros(n, padded)
    packed = torch.empty((n + _STRIP) * padded)
    extension.load().contrastive_self(
        rows[0],
        padded,
        1 / (tau * math.log(2)),
        log_weight / math.log(2),
        0 if inverse is None else inverse.data_ptr(),
        out.data_ptr() if inverse is None else 0,
        0 if inverse is None else out.data_ptr(),
        packed.data_ptr(),
        _BLOCK,
        isa,
        torch.get_num_threads(),
    )
    return out if inverse is None or dim == padded else out[:, :dim].contiguous()
