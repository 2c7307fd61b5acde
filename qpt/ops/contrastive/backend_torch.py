"""The contrastive loss's two passes over pairs in plain torch, tile by tile: the readable definition and the fallback.

Called by ``loss.py`` through ``backends.py``; ``backend_cpp.py`` (C++) and
``qpt.kernels.contrastive`` (Triton) have the same two functions. Everything was validated before. Any device, any
floating dtype, float64 too. No array is larger than one tile, or than N x D.

Of row i and key j: z_ij = q_i.k_j / temperature, plus log_weight where the image ids match (both >= 0) and the groups
differ. Key j is eligible for row i iff key_groups[j] >= 0, and (negatives or the groups are equal), and not (with a
self_offset) j == i + self_offset.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qpt.ops.contrastive.ids import Ids

# Rows and keys of one tile. On a CPU the logits of a tile (2 MiB in float32) stay in a core's L2; on an accelerator a
# tile must be large enough to hide its launches.
_TILE = {"cpu": (512, 1024)}
_TILE_ACCELERATOR = (4096, 8192)


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
    """Log-sum-exp of each row over its eligible keys and, when wanted, the softmax-weighted sum of those keys.

    queries [N, D], keys [M, D]; groups and images int64; temperature 0-d in the accumulation dtype, which is that of
    the results. Returns reference [N], total [N] and mean_sum [N, D] or None: log-sum-exp = reference + log(total),
    mean_sum = sum_j exp(z_ij - reference_i) k_j. A row without an eligible key: reference -inf, total and mean_sum 0.
    """
    scaled = queries.to(temperature.dtype) / temperature
    pairs = _Pairs(query_groups, key_groups, query_images, key_images, log_weight, self_offset, negatives)
    n, dim = scaled.shape
    reference = scaled.new_full((n,), -math.inf)
    total = scaled.new_zeros(n)
    mean_sum = scaled.new_zeros((n, dim)) if weighted else None
    tile = _Logits(scaled, keys, pairs)
    row_step, key_step = _tile(queries.device)
    for rows in _slices(n, row_step):
        images = pairs.row_images(rows)
        for columns in _slices(keys.shape[0], key_step):
            part = keys[columns].to(scaled.dtype)
            z = tile(rows, images, columns, part)
            raised = torch.maximum(reference[rows], z.amax(1))
            # While nothing was eligible the maximum is -inf: subtract 0, every exponential is then 0 and not nan.
            shift = raised.masked_fill(raised == -math.inf, 0)
            z.sub_(shift[:, None]).exp_()
            shrink = torch.exp(reference[rows] - shift)
            total[rows] = total[rows] * shrink + z.sum(1)
            if mean_sum is not None:
                mean_sum[rows] = mean_sum[rows].mul_(shrink[:, None]).addmm_(z, part)
            reference[rows] = raised
    return reference, total, mean_sum


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
    """sum_i exp(z_ij - lse_i) q_i / temperature, [M, D]: what the log-sum-exps give the keys.

    lse [N], +inf for rows left out. both_roles (queries and keys are the same rows): each row gets what it is due as a
    query as well, sum_i exp(z_ji - lse_j) k_i / temperature. The logits are computed again, tile by tile.
    """
    scaled = queries.to(lse.dtype) / temperature
    pairs = _Pairs(query_groups, key_groups, query_images, key_images, log_weight, self_offset, negatives)
    gradient = scaled.new_zeros((keys.shape[0], scaled.shape[1]))
    tile = _Logits(scaled, keys, pairs)
    row_step, key_step = _tile(queries.device)
    for rows in _slices(scaled.shape[0], row_step):
        images = pairs.row_images(rows)
        for columns in _slices(keys.shape[0], key_step):
            z = tile(rows, images, columns, keys[columns].to(lse.dtype))
            z.sub_(lse[rows, None]).exp_()
            gradient[columns].addmm_(z.T, scaled[rows])
            if both_roles:
                gradient[rows].addmm_(z, scaled[columns])
    return gradient


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _tile(device: torch.device) -> tuple[int, int]:
    return _TILE.get(device.type, _TILE_ACCELERATOR)


@dataclass(frozen=True)
class _Pairs:
    """Which pairs are eligible, and which get ``log_weight``; the arguments of the functions above."""

    query_groups: Tensor
    key_groups: Tensor
    query_images: Tensor | None
    key_images: Tensor | None
    log_weight: float
    self_offset: int | None
    negatives: bool

    def row_images(self, rows: slice) -> Ids | None:
        return None if self.query_images is None or self.key_images is None else Ids(self.query_images[rows])


class _Logits:
    """Tiles of z_ij, -inf where key j is not eligible for row i, in one reused buffer."""

    def __init__(self, scaled: Tensor, keys: Tensor, pairs: _Pairs):
        self.scaled, self.pairs = scaled, pairs
        self.any_ignored = bool((pairs.key_groups < 0).any())
        row_step, key_step = _tile(scaled.device)
        self.buffer = scaled.new_empty(min(row_step, scaled.shape[0]) * min(key_step, keys.shape[0]))

    def __call__(self, rows: slice, images: Ids | None, columns: slice, vectors: Tensor) -> Tensor:
        """The tile of ``rows`` x ``columns``. ``vectors``: the keys of ``columns``; ``images``: the rows' image ids."""
        pairs = self.pairs
        height, width = rows.stop - rows.start, columns.stop - columns.start
        z = self.buffer[: height * width].view(height, width)
        torch.mm(self.scaled[rows], vectors.T, out=z)
        row_groups, key_groups = pairs.query_groups[rows, None], pairs.key_groups[None, columns]
        if not pairs.negatives:
            z.masked_fill_(row_groups != key_groups, -math.inf)
        if self.any_ignored:
            z.masked_fill_(key_groups < 0, -math.inf)
        if images is not None and pairs.query_images is not None and pairs.key_images is not None:
            # Few keys share an image with these rows: compare only those columns, not the whole tile.
            near, _ = images.match(pairs.key_images[columns])
            if near.numel():
                same = pairs.query_images[rows, None] == pairs.key_images[columns][None, near]
                same &= row_groups != key_groups[:, near]
                z[:, near] = torch.where(same, z[:, near] + pairs.log_weight, z[:, near])
        if pairs.self_offset is not None:
            # Pair (i, i + self_offset): the diagonal that starts where both sides of the tile contain it.
            first = max(rows.start, columns.start - pairs.self_offset)
            stop = min(rows.stop, columns.stop - pairs.self_offset)
            if first < stop:
                left = first + pairs.self_offset - columns.start
                z[first - rows.start : stop - rows.start, left : left + stop - first].fill_diagonal_(-math.inf)
        return z
