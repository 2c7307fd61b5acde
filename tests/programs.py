"""Images and programs that several tests degrade; there is no test in this file."""

import numpy as np
import torch

from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace

SPACE = DegradationSpace.preset("qpt")


def smooth_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return smooth colour gradients with some noise: every op changes them, and no channel is constant."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase = rng.uniform(0, 6, (count, 1, 1, 3))
    waves = np.sin(9 * x[None, ..., None] * rng.uniform(0.5, 2, (count, 1, 1, 3)) + 7 * y[None, ..., None] + phase)
    pixels = 128 + 90 * waves + rng.normal(0, 8, (count, height, width, 3))
    return torch.from_numpy(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def sample(n: int, views: int = 2, seed: int = 0) -> Program:
    """Draw a program of the preset qpt."""
    return SPACE.sample(n, views=views, generator=torch.Generator().manual_seed(seed))
