"""The embeddings of a batch in pairs, and their mean similarities, which the log of a run shows.

Used by ``qpt.pretraining.learner``; nothing is read back from the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qpt.ops.contrastive.pool import NegativePool


class EmbeddedPairs(NamedTuple):
    """The embeddings of a batch, or a part of it, in pairs of one composition: queries and keys [N, D], detached; their
    ids [N]. A query with several keys has a row for each, adjacent."""

    queries: Tensor
    keys: Tensor
    groups: Tensor
    images: Tensor


@torch.no_grad()
def mean_similarities(
    parts: list[EmbeddedPairs], views: int, each: int, in_batch: bool, pool: NegativePool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean similarity of patches of one composition, of queries and all other keys, and of compositions of
    one image, of this process.

    views: compositions of an image.  each: keys, and rows, of a query.  in_batch: the other keys of the batch count
    among all other keys.
    """
    # The sum of q . k over all pairs is (sum of q) . (sum of k), so only the first kind is computed pair by pair.
    pairs = sum(len(part.queries) for part in parts)
    positive = torch.stack([(part.queries * part.keys).sum() for part in parts]).sum()
    shape = (-1, views * each)
    blocks = [(part.queries.unflatten(0, shape), part.keys.unflatten(0, shape)) for part in parts]
    images = torch.stack([(q.sum(1) * k.sum(1)).sum() for q, k in blocks]).sum() / each
    same = (images - positive) / (pairs * (views - 1)) if views > 1 else positive * math.nan
    total, count = positive * 0, 0
    if in_batch:
        for part in parts:
            total = total + (part.queries.sum(0) * part.keys.sum(0)).sum() / each
            count += len(part.queries) ** 2 // each
        total, count = total - positive, count - pairs
    if pool is not None and len(pool):
        queries = torch.stack([part.queries.sum(0) for part in parts]).sum(0) / each
        total = total + (queries * pool.keys.sum(0, dtype=torch.float32)).sum()
        count += pairs // each * len(pool)
    return positive / pairs, total / count if count else positive * math.nan, same
