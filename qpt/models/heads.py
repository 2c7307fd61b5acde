"""The projection head between encoder and loss: two linear layers, as in SimCLR and MoCo v2 (arXiv 2003.04297)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Of every layer that is built: torch's defaults, which belong to the caller, decide neither weights nor their device.
FLOAT32_ON_CPU: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


def projection_head(inputs: int, outputs: int, hidden: int | None = None, *, layer_norm: bool = False) -> nn.Sequential:
    """Return a head from (N, inputs) to (N, outputs) with one hidden layer of ``hidden`` (default ``inputs``) units.

    layer_norm: normalise each row of the inputs first, for inputs whose parts differ in scale.
    """
    hidden = inputs if hidden is None else hidden
    first, last = nn.Linear(inputs, hidden, **FLOAT32_ON_CPU), nn.Linear(hidden, outputs, **FLOAT32_ON_CPU)
    norm = [nn.LayerNorm(inputs, **FLOAT32_ON_CPU)] if layer_norm else []
    return nn.Sequential(*norm, first, nn.ReLU(inplace=True), last)


def stage_means(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean over positions of every channel of all stages, (N, sum of channels) float32.

    maps: the stages of an encoder, (N, C_i, H_i, W_i) each, of any floating-point dtype.
    """
    return torch.cat([stage.float().mean((2, 3)) for stage in maps], dim=1)


def stage_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Return mean and standard deviation over positions of every channel, (N, 2 x sum of channels) float32.

    maps: as for ``stage_means``. Each stage contributes its means, then its standard deviations.
    """
    parts = []
    for stage in maps:
        variance, mean = torch.var_mean(stage.float(), (2, 3), correction=0)
        parts += [mean, (variance + 1e-6).sqrt()]  # the gradient of a root at 0, of a constant channel, is infinite
    return torch.cat(parts, dim=1)
