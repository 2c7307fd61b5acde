"""The contrastive loss's work over pairs in plain torch, tile by tile: the readable definition and the fallback.

``loss.py`` calls a backend's methods with a validated problem; ``CppBackend`` and ``TritonBackend`` replace the methods
that they do faster. Any device, any floating dtype, float64 too; no array is larger than one tile, or than N x D.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qpt.ops.contrastive.problem import GradedPairs, KeySet, Queries

# Rows and keys of one tile. On a CPU the logits of a tile (2 MiB in float32) stay in a core's L2; on an accelerator a
# tile must be large enough to hide its launches.
_TILE = {"cpu": (512, 1024)}
_TILE_ACCELERATOR = (4096, 8192)
# Rows whose ids are looked up at a time; bounds the gather of positive keys to this many rows of D. A look-up waits for
# an accelerator, hence few of them there.
LOOKUP_ROWS = 2048
LOOKUP_ROWS_ACCELERATOR = 1 << 18


class SoftmaxSums(NamedTuple):
    """Sums of each row over its eligible keys, relative to the row's maximum.

    row_max [N] (-inf where no key is eligible); row_sum [N] = sum_j exp(z_ij - row_max_i), so that the log-sum-exp is
    row_max + log(row_sum); acc [N, D] = sum_j exp(z_ij - row_max_i) k_j, or None where it was not wanted.
    """

    row_max: Tensor
    row_sum: Tensor
    acc: Tensor | None


class LossTerms(NamedTuple):
    """Results of the whole loss. loss, valid_rows (int64): 0-d. lse [N]: +inf for rows left out. positives [N]: 0
    there, the number of positives in int64 elsewhere; with severities the sum of their weights, a float. gradient:
    d loss / d queries [N, D], or [0, D] when it was not wanted. similarity [2]: of the positives, and a place for that
    of the negatives."""

    loss: Tensor
    valid_rows: Tensor
    lse: Tensor
    positives: Tensor
    gradient: Tensor
    similarity: Tensor


class TorchBackend:
    """The two passes over pairs, and what other backends may replace.

    For row i and key j: z_ij = q_i.k_j / temperature, plus log_weight where the image ids match (both >= 0) and the
    groups differ. Key j is eligible for row i iff key_groups[j] >= 0, and (negatives or the groups are equal), and not
    (with a self_offset) j == i + self_offset. ``temperature`` is 0-d in the accumulation dtype, that of the results.
    """

    name = "torch"

    def precisions_on(self, device: torch.device) -> tuple[str, ...]:
        """Return the precisions of ``contrastive_loss`` that it has on a device; "auto" and "ieee" everywhere."""
        return ("auto", "ieee")

    def with_precision(self, precision: str) -> "TorchBackend":
        """Return the backend that multiplies in one of its precisions."""
        return self

    def lse_forward(
        self, queries: Queries, keys: KeySet, temperature: Tensor, log_weight: float, *, weighted: bool
    ) -> SoftmaxSums:
        """Return each row's log-sum-exp over its eligible keys and, if ``weighted``, the softmax-weighted key sum."""
        scaled = queries.vectors.to(temperature.dtype) / temperature
        n, dim = scaled.shape
        row_max = scaled.new_full((n,), -math.inf)
        row_sum = scaled.new_zeros(n)
        acc = scaled.new_zeros((n, dim)) if weighted else None
        logits = _Logits(scaled, queries, keys, log_weight)
        row_step, key_step = _tile(scaled.device)
        for rows in _slices(n, row_step):
            images = logits.image_index(rows)
            for columns in _slices(keys.groups.numel(), key_step):
                part = keys.vectors[columns].to(scaled.dtype)
                z = logits.tile(rows, images, columns, part)
                new_max = torch.maximum(row_max[rows], z.amax(1))
                # While nothing was eligible the maximum is -inf: subtract 0, every exponential is then 0 and not nan.
                shift = new_max.masked_fill(new_max == -math.inf, 0)
                z.sub_(shift[:, None]).exp_()
                rescale = torch.exp(row_max[rows] - shift)
                row_sum[rows] = row_sum[rows] * rescale + z.sum(1)
                if acc is not None:
                    acc[rows] = acc[rows].mul_(rescale[:, None]).addmm_(z, part)
                row_max[rows] = new_max
        return SoftmaxSums(row_max, row_sum, acc)

    def key_gradient(
        self,
        queries: Queries,
        keys: KeySet,
        temperature: Tensor,
        log_weight: float,
        lse: Tensor,
        *,
        both_roles: bool = False,
    ) -> Tensor:
        """Return sum_i exp(z_ij - lse_i) q_i / temperature, [M, D]: the log-sum-exps' share of the keys' gradient.

        lse [N], +inf for rows left out. both_roles (queries and keys are the same rows): add to each row its share as a
        query, sum_i exp(z_ji - lse_j) k_i / temperature. The logits are computed again, tile by tile.
        """
        scaled = queries.vectors.to(lse.dtype) / temperature
        gradient = scaled.new_zeros((keys.groups.numel(), scaled.shape[1]))
        logits = _Logits(scaled, queries, keys, log_weight)
        row_step, key_step = _tile(scaled.device)
        for rows in _slices(scaled.shape[0], row_step):
            images = logits.image_index(rows)
            for columns in _slices(keys.groups.numel(), key_step):
                z = logits.tile(rows, images, columns, keys.vectors[columns].to(lse.dtype))
                z.sub_(lse[rows, None]).exp_()
                gradient[columns].addmm_(z.T, scaled[rows])
                if both_roles:
                    gradient[rows].addmm_(z, scaled[columns])
        return gradient

    def add_positives(self, queries: Queries, keys: KeySet, positive_sum: Tensor, positives: Tensor) -> None:
        """Add to positive_sum [N, D] and positives int64 [N] the sum and number of the keys of each row's group."""
        groups = IdIndex(queries.groups)
        sums, counts = group_sums(groups, keys, positive_sum.dtype)
        if counts is not None and sums is not None:
            positive_sum += sums[groups.slots]
            positives += counts[groups.slots]
        if keys.self_offset is not None:
            rows, columns = keys.self_pairs(positives.numel())
            excluded = excluded_positives(queries, keys)
            positive_sum[rows] -= keys.vectors[columns].to(positive_sum.dtype) * excluded[:, None]
            positives[rows] -= excluded.long()

    def add_graded(self, pairs: GradedPairs, vectors: Tensor, total: Tensor) -> Tensor:
        """Add sum_j w_ij vectors_j to row i of ``total`` [N, D]; return sum_j w_ij, [N], in the dtype of ``total``.

        w_ij as in ``GradedPairs``; i is a row of pairs.queries, j one of pairs.keys and of ``vectors`` [M, D].
        """
        rows, columns, width, offset = pairs
        left, right = (side.severities.to(total.dtype) for side in (rows, columns))
        weights = total.new_zeros(total.shape[0])
        row_step, column_step = _tile(total.device)
        for i in _slices(total.shape[0], row_step):
            for j in _slices(vectors.shape[0], column_step):
                # By differences: |a|^2 + |b|^2 - 2 a.b would lose small distances to rounding.
                tile = torch.cdist(left[i], right[j], compute_mode="donot_use_mm_for_euclid_dist")
                tile.square_().mul_(-0.5 / width**2).exp_()
                groups, other_groups = rows.groups[i, None], columns.groups[None, j]
                tile.masked_fill_((groups == other_groups) | (groups < 0) | (other_groups < 0), 0)
                if rows.images is not None and columns.images is not None:
                    images = rows.images[i, None]
                    tile.masked_fill_((images == columns.images[None, j]) & (images >= 0), 0)
                if offset is not None:
                    _diagonal(tile, i, j, offset).zero_()
                weights[i] += tile.sum(1)
                total[i].addmm_(tile, vectors[j].to(total.dtype))
        return weights

    def loss_forward(
        self,
        queries: Queries,
        key_sets: Sequence[KeySet],
        temperature: Tensor,
        log_weight: float,
        need_gradient: bool,
    ) -> LossTerms | None:
        """Return the whole loss; None where a backend has no such form, and ``loss.py`` builds it from the passes.

        The batch's keys, the first set, were looked at for nan and infinity; a backend looks at the others itself.
        """
        return None


class IdIndex:
    """Sorted int64 ids of N rows, in which ids of keys are looked up without an array of pairs.

    Equal ids share one slot in [0, N): the place of the first of them.
    """

    def __init__(self, ids: Tensor):
        ids = ids.contiguous()
        self.sorted = ids.sort().values
        self.slots = torch.searchsorted(self.sorted, ids)

    def match(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions in ``ids`` whose (non-negative) id is among the rows', and their slots."""
        slots = torch.searchsorted(self.sorted, ids.contiguous()).clamp_(max=self.sorted.numel() - 1)
        found = ((self.sorted[slots] == ids) & (ids >= 0)).nonzero().squeeze(1)
        return found, slots[found]


def lookup_parts(rows: Tensor) -> Iterator[slice]:
    return _slices(rows.shape[0], LOOKUP_ROWS if rows.device.type == "cpu" else LOOKUP_ROWS_ACCELERATOR)


def group_sums(groups: IdIndex, keys: KeySet, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return, per slot of ``groups``, the sum [N, D] and the number [N] of the keys of that group, pair (i, i)
    included; or (None, None) when no key is of any of the groups."""
    rows, dim = groups.sorted.numel(), keys.vectors.shape[1]
    sums = counts = None
    for part in lookup_parts(keys.groups):
        found, slots = groups.match(keys.groups[part])
        if not found.numel():
            continue
        if sums is None or counts is None:
            sums = keys.vectors.new_zeros((rows, dim), dtype=dtype)
            counts = keys.groups.new_zeros(rows)
        sums.index_add_(0, slots, keys.vectors[part][found].to(dtype))
        counts.index_add_(0, slots, torch.ones_like(slots))
    return sums, counts


def excluded_positives(queries: Queries, keys: KeySet) -> Tensor:
    """Return which of ``keys.self_pairs`` would be positives if they were not taken out, bool."""
    rows, columns = keys.self_pairs(queries.groups.numel())
    return (queries.groups[rows] == keys.groups[columns]) & (queries.groups[rows] >= 0)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _tile(device: torch.device) -> tuple[int, int]:
    return _TILE.get(device.type, _TILE_ACCELERATOR)


def _diagonal(tile: Tensor, rows: slice, columns: slice, offset: int) -> Tensor:
    """Return the pairs (i, i + offset) of a tile, as a view; it is empty where the tile holds none."""
    first = max(rows.start, columns.start - offset)
    stop = max(first, min(rows.stop, columns.stop - offset))
    left = min(first + offset - columns.start, tile.shape[1])
    return tile[first - rows.start : stop - rows.start, left : left + stop - first].diagonal()


class _Logits:
    """Tiles of z_ij, -inf where key j is not eligible for row i, in one reused buffer."""

    def __init__(self, scaled: Tensor, queries: Queries, keys: KeySet, log_weight: float):
        self.scaled, self.queries, self.keys, self.log_weight = scaled, queries, keys, log_weight
        self.any_ignored = bool((keys.groups < 0).any())
        row_step, key_step = _tile(scaled.device)
        self.buffer = scaled.new_empty(min(row_step, scaled.shape[0]) * min(key_step, keys.groups.numel()))

    def image_index(self, rows: slice) -> IdIndex | None:
        queries, keys = self.queries, self.keys
        return None if queries.images is None or keys.images is None else IdIndex(queries.images[rows])

    def tile(self, rows: slice, images: IdIndex | None, columns: slice, vectors: Tensor) -> Tensor:
        """Return the tile of ``rows`` x ``columns``. ``vectors``: the keys of ``columns``; ``images``: of ``rows``."""
        queries, keys = self.queries, self.keys
        height, width = rows.stop - rows.start, columns.stop - columns.start
        z = self.buffer[: height * width].view(height, width)
        torch.mm(self.scaled[rows], vectors.T, out=z)
        row_groups, key_groups = queries.groups[rows, None], keys.groups[None, columns]
        if not keys.negatives:
            z.masked_fill_(row_groups != key_groups, -math.inf)
        if self.any_ignored:
            z.masked_fill_(key_groups < 0, -math.inf)
        if images is not None and queries.images is not None and keys.images is not None:
            # Few keys share an image with these rows: compare only those columns, not the whole tile.
            near, _ = images.match(keys.images[columns])
            if near.numel():
                same = queries.images[rows, None] == keys.images[columns][None, near]
                same &= row_groups != key_groups[:, near]
                z[:, near] = torch.where(same, z[:, near] + self.log_weight, z[:, near])
        if keys.self_offset is not None:
            _diagonal(z, rows, columns, keys.self_offset).fill_(-math.inf)
        return z
