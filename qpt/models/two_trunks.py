"""An encoder of two trunks: one as it was before quality-aware pre-training, which knows content, one tuned by it.

Scores of authentic photographs mix quality with content, which pre-training alone makes an encoder forget. The two side
by side keep both, as in Re-IQA (Saha et al., CVPR 2023, arXiv 2304.00451). Made by ``qpt.models.encoder`` from the
checkpoint of a run with ``two_trunks``, and read out like any other encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpt.models.base import Encoder


class TwoTrunks(Encoder):
    """Two encoders of one architecture whose stages are concatenated channel by channel, the frozen one's first.

    arch and width are those of each trunk; stage_dims and feature_dim are twice theirs.
    """

    frozen: Encoder
    tuned: Encoder

    def __init__(self, frozen: Encoder, tuned: Encoder) -> None:
        super().__init__(tuned.arch, tuned.width)
        self.frozen = frozen
        self.tuned = tuned
        self.stage_dims = tuple(a + b for a, b in zip(frozen.stage_dims, tuned.stage_dims, strict=True))
        self.min_side = max(frozen.min_side, tuned.min_side)

    @property
    def feature_dim(self) -> int:
        """Length of the vector that ``forward`` returns: the features of both trunks."""
        return self.frozen.feature_dim + self.tuned.feature_dim

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the stages, (N, stage_dims[i], h_i, w_i) each."""
        pairs = zip(self.frozen.stages(x), self.tuned.stages(x), strict=True)
        return tuple(torch.cat(pair, dim=1) for pair in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of both trunks, (N, feature_dim), for x (N, 3, H, W)."""
        return torch.cat([self.frozen(x), self.tuned(x)], dim=1)


def joined_state(frozen: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of ``TwoTrunks`` from those of its trunks. No tensor is copied."""
    trunks = (("frozen", frozen), ("tuned", tuned))
    return {f"{trunk}.{name}": value for trunk, state in trunks for name, value in state.items()}
