"""The projection head between encoder and loss: two linear layers, as in SimCLR and MoCo v2 (arXiv 2003.04297)."""

from __future__ import annotations

from torch import nn


def projection_head(inputs: int, outputs: int, hidden: int | None = None) -> nn.Sequential:
    """Return a head from (N, inputs) to (N, outputs) with one hidden layer of ``hidden`` (default ``inputs``) units."""
    hidden = inputs if hidden is None else hidden
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))
