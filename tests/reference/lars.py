"""LARS from the paper: You, Gitman and Ginsburg, 2017, arXiv 1708.03888, algorithm 1, in NumPy float64."""

from __future__ import annotations

import numpy as np


def lars_step(
    weight: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray,
    *,
    lr: float,
    momentum: float,
    decay: float,
    trust: float,
    adapt: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """(new weight, new velocity) of one layer. A zero weight or gradient has the local rate 1."""
    weight_norm, gradient_norm = float(np.sqrt((weight**2).sum())), float(np.sqrt((gradient**2).sum()))
    local = 1.0
    if adapt and weight_norm > 0 and gradient_norm > 0:
        local = trust * weight_norm / (gradient_norm + decay * weight_norm)
    velocity = momentum * velocity + lr * local * (gradient + decay * weight)
    return weight - velocity, velocity
