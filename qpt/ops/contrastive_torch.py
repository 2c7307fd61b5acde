"""The quality-aware contrastive loss in plain torch, tile by tile: the readable definition and the fallback.

Called by ``qpt.ops.contrastive`` (the custom op), which has validated everything. ``forward`` walks tiles of
(queries x keys) once, keeping for every query a running maximum m, the sum s = sum_j exp(z_ij - m) and, when the query
gradient is wanted, a = sum_j exp(z_ij - m) k_j; then lse = m + log s and the softmax-weighted key mean is a / s.
``key_gradient`` walks the in-batch keys a second time. The formulas are in docs/design.md, "The loss". No array is
larger than one tile, or than N x D.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows and keys of one tile. On a CPU the logits of a tile (2 MiB in float32) stay in a core's L2; on an accelerator a
# tile must be large enough to hide its launches.
_TILE = {"cpu": (512, 1024)}
_TILE_ACCELERATOR = (4096, 8192)
# Keys whose ids are looked up at a time; bounds the gather of positive keys to this many rows of D.
_LOOKUP = 8192


@dataclass(frozen=True)
class Queries:
    """Query ids: groups int64 [N] (-1: left out of the mean), images int64 [N] or None (no same-image pairs)."""

    groups: Tensor
    images: Tensor | None


@dataclass(frozen=True)
class KeySet:
    """Keys of one origin (the batch or the pool) and which pairs with them count.

    vectors [M, D]; groups int64 [M] (-1: ignored); images int64 [M] or None. ``diagonal=False`` takes pair (i, i) out,
    ``negatives=False`` keeps only the keys of the row's own group.
    """

    vectors: Tensor
    groups: Tensor
    images: Tensor | None = None
    diagonal: bool = True
    negatives: bool = True


@dataclass(frozen=True)
class Result:
    """What the forward pass gives. Everything is in the accumulation dtype, on the inputs' device.

    ``lse`` is +inf for rows without a positive, so that their softmax is exactly 0 in the second pass.
    ``query_gradient`` is d loss / d queries, None when it was not wanted; ``similarity`` is [mean q.k of the positives,
    mean q.k of eligible keys of other groups], each first averaged inside its row (the second 0 when not wanted).
    """

    loss: Tensor  # []
    valid_rows: Tensor  # [] int64
    lse: Tensor  # [N]
    positives: Tensor  # [N] int64, |P(i)|, 0 where the row is left out
    query_gradient: Tensor | None  # [N, D]
    similarity: Tensor  # [2]


class _Ids:
    """Sorted ids of some rows. Equal ids share one slot in [0, N): the place of the first of them."""

    def __init__(self, ids: Tensor):
        ids = ids.contiguous()
        self.sorted = ids.sort().values
        self.slots = torch.searchsorted(self.sorted, ids)

    def match(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in ``ids`` whose (non-negative) id is among the rows', and their slots."""
        slots = torch.searchsorted(self.sorted, ids.contiguous()).clamp_(max=self.sorted.numel() - 1)
        found = ((self.sorted[slots] == ids) & (ids >= 0)).nonzero().squeeze(1)
        return found, slots[found]


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _tile(device: torch.device) -> tuple[int, int]:
    return _TILE.get(device.type, _TILE_ACCELERATOR)


def _group_sums(groups: _Ids, key_set: KeySet, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Per slot of ``groups``: the sum [N, D] and the number [N] of the keys of that group, pair (i, i) included."""
    rows, dim = groups.sorted.numel(), key_set.vectors.shape[1]
    sums = key_set.vectors.new_zeros((rows, dim), dtype=dtype)
    counts = key_set.groups.new_zeros(rows)
    for part in _slices(key_set.groups.numel() if rows else 0, _LOOKUP):
        found, slots = groups.match(key_set.groups[part])
        if found.numel():
            sums.index_add_(0, slots, key_set.vectors[part][found].to(dtype))
            counts.index_add_(0, slots, torch.ones_like(slots))
    return sums, counts


def _own_pairs(queries: Queries, key_set: KeySet) -> Tensor:
    """bool [N]: pair (i, i) has equal groups although it is taken out. Only for ``diagonal=False``."""
    return (queries.groups == key_set.groups) & (queries.groups >= 0)


class _Logits:
    """Tiles of z_ij = q_i.k_j / tau + b_ij, -inf where key j is not eligible for row i, in one reused buffer."""

    def __init__(self, scaled: Tensor, queries: Queries, key_set: KeySet, log_weight: float):
        self.scaled, self.queries, self.key_set, self.log_weight = scaled, queries, key_set, log_weight
        self.any_ignored = bool((key_set.groups < 0).any())
        rows, keys = _tile(scaled.device)
        shape = (min(rows, scaled.shape[0]), min(keys, key_set.groups.numel()))
        self.buffer = scaled.new_empty(shape[0] * shape[1])

    def __call__(self, rows: slice, images: _Ids | None, columns: slice, vectors: Tensor) -> Tensor:
        """The tile of ``rows`` x ``columns``. ``vectors``: the keys of ``columns``; ``images``: the rows' image ids."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        z = self.buffer[: height * width].view(height, width)
        torch.mm(self.scaled[rows], vectors.T, out=z)
        row_groups, key_groups = self.queries.groups[rows, None], self.key_set.groups[None, columns]
        if not self.key_set.negatives:
            z.masked_fill_(row_groups != key_groups, -math.inf)
        if self.any_ignored:
            z.masked_fill_(key_groups < 0, -math.inf)
        if images is not None and self.queries.images is not None and self.key_set.images is not None:
            # Few keys share an image with these rows: compare only those columns, not the whole tile.
            near, _ = images.match(self.key_set.images[columns])
            if near.numel():
                same = self.queries.images[rows, None] == self.key_set.images[columns][None, near]
                same &= row_groups != key_groups[:, near]
                z[:, near] = torch.where(same, z[:, near] + self.log_weight, z[:, near])
        if not self.key_set.diagonal:
            start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
            if start < stop:
                part = z[start - rows.start : stop - rows.start, start - columns.start : stop - columns.start]
                part.fill_diagonal_(-math.inf)
        return z


def _row_images(queries: Queries, rows: slice) -> _Ids | None:
    return None if queries.images is None else _Ids(queries.images[rows])


def forward(
    vectors: Tensor,
    queries: Queries,
    key_sets: list[KeySet],
    temperature: Tensor,
    same_image_weight: float,
    dtype: torch.dtype,
    need_query_gradient: bool,
    need_similarity: bool,
) -> Result:
    """The loss over all ``key_sets``. ``vectors`` are the queries [N, D]; ``temperature`` is 0-d and positive."""
    n, dim = vectors.shape
    scaled = vectors.to(dtype) / temperature.to(dtype)
    log_weight = math.log(same_image_weight) if same_image_weight > 0 else -math.inf

    # 1. Positives, without a pass over pairs: sum_p z_ip = q_i . (sum of the keys of the row's group) / tau.
    groups = _Ids(queries.groups)
    positive_mean = scaled.new_zeros((n, dim))
    positives = queries.groups.new_zeros(n)
    for key_set in key_sets:
        sums, counts = _group_sums(groups, key_set, dtype)
        positive_mean += sums[groups.slots]
        positives += counts[groups.slots]
        if not key_set.diagonal:
            own = _own_pairs(queries, key_set)
            positive_mean -= key_set.vectors.to(dtype) * own[:, None]
            positives -= own.long()
    positives = positives.masked_fill(queries.groups < 0, 0)
    valid = positives > 0
    valid_rows = valid.sum()
    positive_mean /= positives.clamp(min=1)[:, None]
    positive_z = (scaled * positive_mean).sum(1)

    # 2. Log-sum-exp over every eligible key, and in the same pass the softmax-weighted key mean.
    lse = scaled.new_empty(n)
    key_mean = scaled.new_empty((n, dim)) if need_query_gradient else None
    logits = [_Logits(scaled, queries, key_set, log_weight) for key_set in key_sets]
    row_step, key_step = _tile(vectors.device)
    for rows in _slices(n, row_step):
        images = _row_images(queries, rows)
        highest = scaled.new_full((rows.stop - rows.start,), -math.inf)
        total = torch.zeros_like(highest)
        weighted = None if key_mean is None else key_mean[rows].zero_()
        for key_set, tile in zip(key_sets, logits, strict=True):
            for columns in _slices(key_set.groups.numel(), key_step):
                part = key_set.vectors[columns].to(dtype)
                z = tile(rows, images, columns, part)
                raised = torch.maximum(highest, z.amax(1))
                # While nothing was eligible the maximum is -inf: subtract 0, every exponential is then 0 and not nan.
                shift = raised.masked_fill(raised == -math.inf, 0)
                z.sub_(shift[:, None]).exp_()
                shrink = torch.exp(highest - shift)
                total = total * shrink + z.sum(1)
                if weighted is not None:
                    weighted.mul_(shrink[:, None]).addmm_(z, part)
                highest = raised
        lse[rows] = highest + total.log()
        if weighted is not None:
            weighted.div_(total.clamp(min=torch.finfo(dtype).tiny)[:, None])

    # 3. The mean over rows that have a positive, and d loss / d q_i = (key mean - positive mean) / (tau * valid rows).
    per_row = valid.to(dtype) / valid_rows.clamp(min=1)
    loss = torch.where(valid, (lse - positive_z) * per_row, 0).sum()
    similarity = scaled.new_zeros(2)
    similarity[0] = torch.where(valid, positive_z * per_row, 0).sum() * temperature
    if need_similarity:
        similarity[1] = _negative_similarity(scaled, queries, key_sets, groups, valid, dtype) * temperature
    if key_mean is not None:
        key_mean.sub_(positive_mean).mul_((per_row / temperature.to(dtype))[:, None])
        key_mean.masked_fill_(~valid[:, None], 0)
    lse = torch.where(valid, lse, math.inf)
    return Result(loss, valid_rows, lse, positives.masked_fill(~valid, 0), key_mean, similarity)


def _negative_similarity(
    scaled: Tensor, queries: Queries, key_sets: list[KeySet], groups: _Ids, valid: Tensor, dtype: torch.dtype
) -> Tensor:
    """Mean over valid rows of the mean q.k / tau to eligible keys of other groups (whatever their weight)."""
    sums = torch.zeros_like(scaled)
    counts = scaled.new_zeros(scaled.shape[0])
    for key_set in key_sets:
        if not key_set.negatives:
            continue
        same_sum, same_count = _group_sums(groups, key_set, dtype)
        eligible = (key_set.groups >= 0).to(dtype)
        everything = scaled.new_zeros(scaled.shape[1])
        for part in _slices(eligible.numel(), _LOOKUP):
            everything.addmv_(key_set.vectors[part].to(dtype).T, eligible[part])
        sums += everything - same_sum[groups.slots]
        counts += eligible.sum() - same_count[groups.slots]
        if not key_set.diagonal:
            # The own pair is no pair: where its groups are equal it went with same_sum, elsewhere it goes here.
            other = eligible * (queries.groups != key_set.groups)
            sums -= key_set.vectors.to(dtype) * other[:, None]
            counts -= other
    row = (scaled * sums).sum(1) / counts.clamp(min=1)
    counted = valid & (counts > 0)
    return torch.where(counted, row, 0).sum() / counted.sum()


def key_gradient(
    vectors: Tensor,
    queries: Queries,
    key_set: KeySet,
    temperature: Tensor,
    same_image_weight: float,
    lse: Tensor,
    positives: Tensor,
) -> Tensor:
    """d loss / d keys [M, D] in the dtype of ``lse``: sum_i (softmax_ij - [j in P(i)] / |P(i)|) q_i / (tau * valid)."""
    dtype = lse.dtype
    scaled = vectors.to(dtype) / temperature.to(dtype)
    log_weight = math.log(same_image_weight) if same_image_weight > 0 else -math.inf
    keys = key_set.groups.numel()
    gradient = scaled.new_zeros((keys, vectors.shape[1]))
    if not scaled.numel() or not keys:
        return gradient

    # 1. The softmax: the logits again, now with their log-sum-exp known.
    tile = _Logits(scaled, queries, key_set, log_weight)
    row_step, key_step = _tile(vectors.device)
    for rows in _slices(scaled.shape[0], row_step):
        images = _row_images(queries, rows)
        for columns in _slices(keys, key_step):
            z = tile(rows, images, columns, key_set.vectors[columns].to(dtype))
            z.sub_(lse[rows, None]).exp_()
            gradient[columns].addmm_(z.T, scaled[rows])

    # 2. The positives: each key takes off its group's sum of q_i / (tau |P(i)|); rows left out have positives = 0.
    pulls = scaled * ((positives > 0).to(dtype) / positives.clamp(min=1))[:, None]
    groups = _Ids(queries.groups)
    group_pulls = torch.zeros_like(scaled).index_add_(0, groups.slots, pulls)
    for part in _slices(keys, _LOOKUP):
        found, slots = groups.match(key_set.groups[part])
        gradient[part].index_add_(0, found, group_pulls[slots], alpha=-1)
    if not key_set.diagonal:
        gradient += pulls * _own_pairs(queries, key_set)[:, None]
    return gradient.div_((positives > 0).sum().clamp(min=1))
