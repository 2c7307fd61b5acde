"""The contrastive loss put together from its passes over pairs: what is common to all backends and to all processes.

Called by the custom op (``op.py``) and by the distributed form (``distributed.py``). A backend
(``backends.py``) gives log-sum-exps, softmax-weighted key sums and softmax key gradients; here are the
positives, the mean over rows and the gradients. The formulas are derived in docs/loss.md. No array exceeds N x D.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qpt.ops.contrastive.backends import Backend, KeySet, LossTerms, Queries
from qpt.ops.contrastive.ids import Ids

# Rows whose ids are looked up at a time; bounds the gather of positive keys to this many rows of D. A look-up waits for
# an accelerator, hence few of them there.
_LOOKUP = 2048
_LOOKUP_ACCELERATOR = 1 << 18


@dataclass(frozen=True)
class Setting:
    """What all parts of one loss share. temperature: 0-d, in the accumulation dtype, on the embeddings' device."""

    backend: Backend
    temperature: Tensor
    same_image_weight: float

    @property
    def dtype(self) -> torch.dtype:
        return self.temperature.dtype

    @property
    def log_weight(self) -> float:
        return math.log(self.same_image_weight) if self.same_image_weight > 0 else -math.inf


def loss_terms(
    queries: Queries, key_sets: list[KeySet], setting: Setting, *, need_gradient: bool, same: bool
) -> LossTerms:
    """The loss of one process against all its key sets, by the backend's own form of it where it has one.

    The first set is the batch's. same: queries and keys are the same rows; the batch's softmax then waits for the
    backward, which gives it to both roles.
    """
    if setting.backend.forward is not None and not same:
        return setting.backend.forward(queries, key_sets, setting.temperature, setting.log_weight, need_gradient)
    terms = Terms(queries, setting, need_gradient)
    for place, key_set in enumerate(key_sets):
        terms.add(queries, key_set, setting, weighted=not same or place > 0)
    rows = terms.finish(queries, setting)
    valid_rows = (rows.positives > 0).sum()
    counted = valid_rows.clamp(min=1).to(setting.dtype)
    gradient = setting.temperature.new_empty((0, queries.vectors.shape[1]))
    if need_gradient:
        gradient = terms.query_gradient(rows, setting, valid_rows)
    similarity = setting.temperature.new_zeros(2)
    similarity[0] = rows.positive_z.sum() * setting.temperature / counted
    return LossTerms(rows.loss_sum() / counted, valid_rows, rows.lse, rows.positives, gradient, similarity)


class Terms:
    """Running sums of N queries over the key sets added so far; the order of the additions is the order of the sums.

    reference, total [N]: log-sum-exp = reference + log(total), -inf and 0 before any eligible key. mean_sum [N, D] or
    None: the softmax-weighted key sum relative to the same reference. positive_sum [N, D], positives int64 [N]: sum and
    number of the keys of the row's group.
    """

    def __init__(self, queries: Queries, setting: Setting, weighted: bool):
        n, dim = queries.vectors.shape
        real = setting.temperature
        self.reference = real.new_full((n,), -math.inf)
        self.total = real.new_zeros(n)
        self.mean_sum: Tensor | None = None  # until keys with weights are added
        self.weighted = weighted
        self.positive_sum = real.new_zeros((n, dim))
        self.positives = queries.groups.new_zeros(n)
        self.empty = True  # of keys

    def add(self, queries: Queries, key_set: KeySet, setting: Setting, *, weighted: bool = True) -> None:
        """Adds the keys of one origin. weighted=False leaves them out of mean_sum (where there is one)."""
        if not queries.groups.numel() or not key_set.groups.numel():
            return
        self._add_positives(queries, key_set, setting)
        reference, total, mean_sum = setting.backend.attend(
            *_pairs(queries, key_set, setting),
            self_offset=key_set.self_offset,
            negatives=key_set.negatives,
            weighted=weighted and self.weighted,
        )
        self.merge(reference, total, mean_sum)

    def merge(self, reference: Tensor, total: Tensor, mean_sum: Tensor | None) -> None:
        """Adds sums over other keys, relative to another reference. Takes the tensors over."""
        if self.empty:
            self.empty, self.reference, self.total, self.mean_sum = False, reference, total, mean_sum
            return
        highest = torch.maximum(self.reference, reference)
        # -inf where nothing was eligible on either side: 0 then, so that no exponential is nan.
        shift = highest.masked_fill(highest == -math.inf, 0)
        ours, theirs = torch.exp(self.reference - shift), torch.exp(reference - shift)
        self.total = torch.addcmul(self.total * ours, total, theirs)
        if self.mean_sum is not None:
            self.mean_sum.mul_(ours[:, None])
            if mean_sum is not None:
                self.mean_sum.addcmul_(mean_sum, theirs[:, None])
        elif mean_sum is not None:
            self.mean_sum = mean_sum.mul_(theirs[:, None])
        self.reference = highest

    def _add_positives(self, queries: Queries, key_set: KeySet, setting: Setting) -> None:
        if setting.backend.add_positives is not None:
            sums = (self.positive_sum, self.positives)
            added = (queries.groups, key_set.vectors, key_set.groups, *sums)
            setting.backend.add_positives(*added, self_offset=key_set.self_offset)
            return
        groups = Ids(queries.groups)
        group_sums, counts = _group_sums(groups, key_set, self.total.dtype)
        if counts is not None and group_sums is not None:
            self.positive_sum += group_sums[groups.slots]
            self.positives += counts[groups.slots]
        if key_set.self_offset is not None:
            rows, columns = _own_pairs(queries, key_set)
            own = _own_positives(queries, key_set)
            self.positive_sum[rows] -= key_set.vectors[columns].to(self.total.dtype) * own[:, None]
            self.positives[rows] -= own.long()

    def finish(self, queries: Queries, setting: Setting) -> "RowTerms":
        """Per row what the mean is taken of. Takes the positives' sums over."""
        positives = self.positives.masked_fill(queries.groups < 0, 0)
        valid = positives > 0
        positive_mean = self.positive_sum.div_(positives.clamp(min=1)[:, None])
        positive_z = row_products(queries.vectors.to(setting.dtype), positive_mean) / setting.temperature
        lse = self.reference + self.total.log()
        return RowTerms(torch.where(valid, lse, math.inf), torch.where(valid, positive_z, 0), positives, positive_mean)

    def query_gradient(self, rows: "RowTerms", setting: Setting, valid_rows: Tensor) -> Tensor:
        """d loss / d queries [N, D] for a mean over ``valid_rows``: (softmax-weighted key mean - positive mean) / tau,
        the former of the keys that were added with weights."""
        scale = torch.where(rows.positives > 0, 1 / (valid_rows.clamp(min=1) * setting.temperature), 0)[:, None]
        gradient = rows.positive_mean * -scale
        if self.mean_sum is not None:
            softmax = torch.where(rows.positives > 0, torch.exp(self.reference - rows.lse), 0)
            gradient.addcmul_(self.mean_sum, softmax[:, None] * scale)
        return gradient


@dataclass(frozen=True)
class RowTerms:
    """Of every row: lse [N] (+inf where it is left out of the mean, so that its softmax is exactly 0), mean z of its
    positives [N] (0 there), positives int64 [N] (0 there), mean of its positive keys [N, D]."""

    lse: Tensor
    positive_z: Tensor
    positives: Tensor
    positive_mean: Tensor

    def loss_sum(self) -> Tensor:
        """Sum over the rows with a positive; 0-d."""
        return torch.where(self.positives > 0, self.lse - self.positive_z, 0).sum()


def softmax_gradient(
    queries: Queries, key_set: KeySet, setting: Setting, lse: Tensor, *, both_roles: bool = False
) -> Tensor:
    """valid rows x what the log-sum-exps give the keys, [M, D]; ``subtract_positives`` does the rest.

    lse [N] as in RowTerms. both_roles: queries and keys are the same rows, and a row gets what it is due as a query too
    (but for its positives, which ``Terms.query_gradient`` has).
    """
    if not queries.groups.numel() or not key_set.groups.numel():
        return lse.new_zeros(key_set.vectors.shape)
    return setting.backend.softmax_key_gradient(
        *_pairs(queries, key_set, setting),
        lse,
        self_offset=key_set.self_offset,
        negatives=key_set.negatives,
        both_roles=both_roles,
    )


def subtract_positives(
    gradient: Tensor, queries: Queries, key_set: KeySet, setting: Setting, positives: Tensor
) -> Tensor:
    """Takes sum_{i: j in P(i)} q_i / (tau |P(i)|) off row j of ``gradient`` [M, D], in place; returns it.

    positives int64 [N]: |P(i)|, 0 for rows left out.
    """
    if not queries.groups.numel() or not key_set.groups.numel():
        return gradient
    scale = (positives > 0).to(gradient.dtype) / positives.clamp(min=1) / setting.temperature
    groups = Ids(queries.groups)
    # What the queries of one group pull their keys with, in the slot of the group.
    pulls = gradient.new_zeros(queries.vectors.shape)
    for part in _parts(queries.groups):
        pulls.index_add_(0, groups.slots[part], queries.vectors[part].to(gradient.dtype) * scale[part, None])
    for part in _parts(key_set.groups):
        found, slots = groups.match(key_set.groups[part])
        gradient[part].index_add_(0, found, pulls[slots], alpha=-1)
    if key_set.self_offset is not None:
        rows, columns = _own_pairs(queries, key_set)
        own = _own_positives(queries, key_set)
        gradient[columns].addcmul_(queries.vectors[rows].to(gradient.dtype), (scale[rows] * own)[:, None])
    return gradient


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """sum_d left[i, d] right[i, d], [N], without an N x D array of products."""
    return torch.einsum("nd,nd->n", left, right)


def _parts(rows: Tensor) -> Iterator[slice]:
    step = _LOOKUP if rows.device.type == "cpu" else _LOOKUP_ACCELERATOR
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))


def negative_similarity(
    queries: Queries, key_sets: list[KeySet], valid: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(sum, number) over the rows ``valid`` [N] of the mean q.k to eligible keys of other groups, whatever their
    weight; rows without such a key are not counted."""
    vectors = queries.vectors.to(dtype)
    groups = Ids(queries.groups)
    sums, counts = torch.zeros_like(vectors), vectors.new_zeros(vectors.shape[0])
    for key_set in key_sets:
        if not key_set.negatives or not queries.groups.numel():
            continue
        same_sum, same_count = _group_sums(groups, key_set, dtype)
        eligible = (key_set.groups >= 0).to(dtype)
        everything = vectors.new_zeros(vectors.shape[1])
        for part in _parts(eligible):
            everything.addmv_(key_set.vectors[part].to(dtype).T, eligible[part])
        sums += everything
        counts += eligible.sum()
        if same_sum is not None and same_count is not None:
            sums -= same_sum[groups.slots]
            counts -= same_count[groups.slots]
        if key_set.self_offset is not None:
            # The own pair is no pair: where its groups are equal it went with same_sum, elsewhere it goes here.
            rows, columns = _own_pairs(queries, key_set)
            other = eligible[columns] * (queries.groups[rows] != key_set.groups[columns])
            sums[rows] -= key_set.vectors[columns].to(dtype) * other[:, None]
            counts[rows] -= other
    row = (vectors * sums).sum(1) / counts.clamp(min=1)
    counted = valid & (counts > 0)
    return torch.where(counted, row, 0).sum(), counted.sum()


def _group_sums(groups: Ids, key_set: KeySet, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Per slot of ``groups``: the sum [N, D] and the number [N] of the keys of that group, pair (i, i) included; or
    (None, None) when no key is of any of the groups."""
    rows, dim = groups.sorted.numel(), key_set.vectors.shape[1]
    sums = counts = None
    for part in _parts(key_set.groups):
        found, slots = groups.match(key_set.groups[part])
        if not found.numel():
            continue
        if sums is None or counts is None:
            sums = key_set.vectors.new_zeros((rows, dim), dtype=dtype)
            counts = key_set.groups.new_zeros(rows)
        sums.index_add_(0, slots, key_set.vectors[part][found].to(dtype))
        counts.index_add_(0, slots, torch.ones_like(slots))
    return sums, counts


def _own_pairs(queries: Queries, key_set: KeySet) -> tuple[slice, slice]:
    """The rows i, and the keys i + self_offset, for which both exist."""
    offset = key_set.self_offset
    assert offset is not None
    first = max(0, -offset)
    stop = max(first, min(queries.groups.numel(), key_set.groups.numel() - offset))
    return slice(first, stop), slice(first + offset, stop + offset)


def _own_positives(queries: Queries, key_set: KeySet) -> Tensor:
    """bool, of the pairs of ``_own_pairs``: their groups are equal, although the pair is taken out."""
    rows, columns = _own_pairs(queries, key_set)
    return (queries.groups[rows] == key_set.groups[columns]) & (queries.groups[rows] >= 0)


def _pairs(queries: Queries, key_set: KeySet, setting: Setting) -> tuple[Any, ...]:
    """What both passes of a backend take first; see ``backend_torch.py``."""
    return (
        queries.vectors,
        key_set.vectors,
        queries.groups,
        key_set.groups,
        queries.images,
        key_set.images,
        setting.temperature,
        setting.log_weight,
    )
