"""The interface of an encoder: a network that gives the maps of its stages.

Everything that takes an encoder (pre-training, evaluation, scorers, export) relies on this interface alone.
``qpt.models.resnet`` and ``qpt.models.backbones`` implement it, and ``qpt.models.encoder`` builds encoders by name.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """A network from images to the maps of its stages, and to one vector of features.

    Input (N, 3, H, W) float, normalised with ``qpt.data.normalise``.  arch: the name that ``build_encoder`` takes.
    width: channels of the first stage of our own networks; 64 for any other network.  stage_dims: channels of each
    stage, in the order of ``stages``.  min_side: smallest side of an image that the network takes, px:
    the stride of its last stage, or 1 if its convolutions pad.
    """

    #: How the names of a classifier's entries in a state dict begin.
    classifier: tuple[str, ...] = ("fc.",)

    def __init__(self, arch: str, width: int = 64) -> None:
        super().__init__()
        self.arch = arch
        self.width = width
        self.stage_dims: tuple[int, ...] = ()
        self.min_side = 1
        #: In training keep only each block's input, and recompute the rest in the backward pass.
        self.activation_checkpointing = False

    @property
    def feature_dim(self) -> int:
        """Length of the vector that ``forward`` returns: the channels of the last stage."""
        return self.stage_dims[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and of the input that they take."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def own_name(self, name: str, own: Container[str]) -> str:
        """Return this network's name of an entry of a state dict that may have another package's names."""
        return name

    def is_classifier(self, name: str) -> bool:
        """Return True for the name of an entry of a state dict that belongs to a classifier, not to an encoder."""
        return name.startswith(self.classifier)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Return the maps of the stages, (N, stage_dims[i], h_i, w_i) each, the coarsest last."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the last stage averaged over positions, (N, feature_dim), for x (N, 3, H, W)."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.stages(x)[-1], 1), 1)
