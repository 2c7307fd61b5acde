"""The contrastive loss put together from its passes over pairs: what is common to all backends and to all processes.

Called by the custom op (``contrastive_op.py``) and by the distributed form (``contrastive_distributed.py``). A backend
(``contrastive_backends.py``) gives log-sum-exps, softmax-weighted key sums and softmax key gradients; here are the
positives, the mean over rows and the gradients. The formulas are derived in docs/loss.md. No array exceeds N x D.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qpt.ops.contrastive_backends import Backend
from qpt.ops.contrastive_ids import Ids

# Keys whose ids are looked up at a time; bounds the gather of positive keys to this many rows of D.
_LOOKUP = 8192


@dataclass(frozen=True)
class Queries:
    """vectors [N, D]; groups int64 [N] (-1: left out of the mean); images int64 [N] or None (no same-image pairs)."""

    vectors: Tensor
    groups: Tensor
    images: Tensor | None


@dataclass(frozen=True)
class KeySet:
    """Keys of one origin (the batch, another process, the pool) and which pairs with them count.

    vectors [M, D]; groups int64 [M] (-1: ignored); images int64 [M] or None. Pair (i, i + self_offset) is taken out;
    ``negatives=False`` keeps only the keys of the row's own group.
    """

    vectors: Tensor
    groups: Tensor
    images: Tensor | None
    self_offset: int | None = None
    negatives: bool = True


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
        self.mean_sum = real.new_zeros((n, dim)) if weighted else None
        self.positive_sum = real.new_zeros((n, dim))
        self.positives = queries.groups.new_zeros(n)
        self.empty = True  # of keys

    def add(self, queries: Queries, key_set: KeySet, setting: Setting, *, weighted: bool = True) -> None:
        """Adds the keys of one origin. weighted=False leaves them out of mean_sum (where there is one)."""
        if not queries.groups.numel() or not key_set.groups.numel():
            return
        self._add_positives(queries, key_set, setting)
        reference, total, mean_sum = setting.backend.attend(
            queries.vectors,
            key_set.vectors,
            queries.groups,
            key_set.groups,
            queries.images,
            key_set.images,
            setting.temperature,
            setting.log_weight,
            self_offset=key_set.self_offset,
            negatives=key_set.negatives,
            weighted=weighted and self.mean_sum is not None,
        )
        self.merge(reference, total, mean_sum)

    def merge(self, reference: Tensor, total: Tensor, mean_sum: Tensor | None) -> None:
        """Adds sums over other keys, relative to another reference. Takes the tensors over."""
        if self.empty and (self.mean_sum is None or mean_sum is not None):
            self.empty, self.reference, self.total, self.mean_sum = False, reference, total, mean_sum
            return
        self.empty = False
        highest = torch.maximum(self.reference, reference)
        # -inf where nothing was eligible on either side: 0 then, so that no exponential is nan.
        shift = highest.masked_fill(highest == -math.inf, 0)
        ours, theirs = torch.exp(self.reference - shift), torch.exp(reference - shift)
        self.total = torch.addcmul(self.total * ours, total, theirs)
        if self.mean_sum is not None:
            self.mean_sum.mul_(ours[:, None])
            if mean_sum is not None:
                self.mean_sum.addcmul_(mean_sum, theirs[:, None])
        self.reference = highest

    def _add_positives(self, queries: Queries, key_set: KeySet, setting: Setting) -> None:
        if setting.backend.add_positives is not None:
            sums = (self.positive_sum, self.positives)
            keys = (key_set.vectors, key_set.groups)
            setting.backend.add_positives(queries.groups, *keys, *sums, self_offset=key_set.self_offset)
            return
        groups = Ids(queries.groups)
        sums, counts = _group_sums(groups, key_set, self.total.dtype)
        if counts is not None and sums is not None:
            self.positive_sum += sums[groups.slots]
            self.positives += counts[groups.slots]
        if key_set.self_offset is not None:
            rows, columns = _own_pairs(queries, key_set)
            own = (queries.groups[rows] == key_set.groups[columns]) & (queries.groups[rows] >= 0)
            self.positive_sum[rows] -= key_set.vectors[columns].to(self.total.dtype) * own[:, None]
            self.positives[rows] -= own.long()

    def finish(self, queries: Queries, setting: Setting) -> "RowTerms":
        """Per row what the mean is taken of."""
        positives = self.positives.masked_fill(queries.groups < 0, 0)
        valid = positives > 0
        positive_mean = self.positive_sum / positives.clamp(min=1)[:, None]
        positive_z = (queries.vectors.to(setting.dtype) * positive_mean).sum(1) / setting.temperature
        lse = self.reference + self.total.log()
        return RowTerms(torch.where(valid, lse, math.inf), torch.where(valid, positive_z, 0), positives, positive_mean)

    def query_gradient(self, rows: "RowTerms", setting: Setting, valid_rows: Tensor) -> Tensor:
        """d loss / d queries [N, D] for a mean over ``valid_rows``: (softmax-weighted key mean - positive mean) / tau,
        the former of the keys that were added with weights."""
        assert self.mean_sum is not None
        # exp(reference - lse) / valid rows / tau; lse is +inf where a row is left out: exactly 0.
        scale = 1 / (valid_rows.clamp(min=1) * setting.temperature)
        softmax = torch.exp(self.reference - rows.lse) * scale
        gradient = self.mean_sum * torch.where(rows.positives > 0, softmax, 0)[:, None]
        return gradient.addcmul_(rows.positive_mean, torch.where(rows.positives > 0, scale, 0)[:, None], value=-1)


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


def key_gradient(
    queries: Queries, key_set: KeySet, setting: Setting, lse: Tensor, positives: Tensor, *, both_roles: bool = False
) -> tuple[Tensor, Tensor]:
    """Of one key set: (softmax part, positives' part), both [M, D]; their sum / valid rows is d loss / d keys.

    lse, positives [N] as in RowTerms. both_roles: queries and keys are the same rows, and the softmax part also has
    what a row is due as a query (the positives' part has not: ``Terms.query_gradient`` gives it).
    """
    n, keys, dim = queries.groups.numel(), key_set.groups.numel(), queries.vectors.shape[1]
    pull = lse.new_zeros((keys, dim))
    if not n or not keys:
        return lse.new_zeros((keys, dim)), pull
    softmax = setting.backend.softmax_key_gradient(
        queries.vectors,
        key_set.vectors,
        queries.groups,
        key_set.groups,
        queries.images,
        key_set.images,
        setting.temperature,
        setting.log_weight,
        lse,
        self_offset=key_set.self_offset,
        negatives=key_set.negatives,
        both_roles=both_roles,
    )
    # Each key takes off its group's sum of q_i / (tau |P(i)|); rows left out have positives = 0.
    scale = (positives > 0).to(lse.dtype) / positives.clamp(min=1) / setting.temperature
    pulls = queries.vectors.to(lse.dtype) * scale[:, None]
    groups = Ids(queries.groups)
    group_pulls = torch.zeros_like(pulls).index_add_(0, groups.slots, pulls)
    for start in range(0, keys, _LOOKUP):
        found, slots = groups.match(key_set.groups[start : start + _LOOKUP])
        pull[start : start + _LOOKUP].index_add_(0, found, group_pulls[slots], alpha=-1)
    if key_set.self_offset is not None:
        rows, columns = _own_pairs(queries, key_set)
        own = (queries.groups[rows] == key_set.groups[columns]) & (queries.groups[rows] >= 0)
        pull[columns] += pulls[rows] * own[:, None]
    return softmax, pull


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
        for start in range(0, eligible.numel(), _LOOKUP):
            part = slice(start, start + _LOOKUP)
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
    for start in range(0, key_set.groups.numel(), _LOOKUP):
        part = slice(start, start + _LOOKUP)
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
