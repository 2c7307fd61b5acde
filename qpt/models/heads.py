"""The projection head between encoder and loss: two linear layers, as in SimCLR and MoCo v2 (arXiv 2003.04297)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Of every layer that is built: torch's defaults, which belong to the caller, decide neither weights nor their device.
FLOAT32_ON_CPU: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


def projection_head(inputs: int, outputs: int, hidden: int | None = None) -> nn.Sequential:
    """Return a head from (N, inputs) to (N, outputs) with one hidden layer of ``hidden`` (default ``inputs``) units."""
    hidden = inputs if hidden is None else hidden
    first, last = nn.Linear(inputs, hidden, **FLOAT32_ON_CPU), nn.Linear(hidden, outputs, **FLOAT32_ON_CPU)
    return nn.Sequential(first, nn.ReLU(inplace=True), last)
