"""Ids of rows looked up among the ids of keys, without an array of pairs.

Used by ``loss.py`` (which keys are of a row's group) and ``backend_torch.py`` (which share an image).
"""

import torch
from torch import Tensor


class Ids:
    """Sorted int64 ids of N rows. Equal ids share one slot in [0, N): the place of the first of them."""

    def __init__(self, ids: Tensor):
        ids = ids.contiguous()
        self.sorted = ids.sort().values
        self.slots = torch.searchsorted(self.sorted, ids)

    def match(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in ``ids`` whose (non-negative) id is among the rows', and their slots."""
        slots = torch.searchsorted(self.sorted, ids.contiguous()).clamp_(max=self.sorted.numel() - 1)
        found = ((self.sorted[slots] == ids) & (ids >= 0)).nonzero().squeeze(1)
        return found, slots[found]
