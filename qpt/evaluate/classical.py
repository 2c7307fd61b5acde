"""Two classical features that need no learning: the baselines every encoder is compared with.

Called by ``qpt.evaluate.run``, which sends them through the same splits and ridge as the encoders' features. They are
computed with NumPy on the upright image at its own size, from luminance Y = 0.299 R + 0.587 G + 0.114 B (ITU-R
BT.601), 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpt.evaluate.image_crops import load_images

CLASSICAL = ("contrast", "laplacian")


def luminance(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the (H, W) float32 luminance, 0 to 255, of (H, W, 3) uint8 pixels."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def contrast(grey: NDArray[np.float32]) -> float:
    """Return the standard deviation of luminance over the image, in grey levels."""
    return float(np.std(grey, dtype=np.float64))


def log_laplacian_variance(grey: NDArray[np.float32]) -> float:
    """Return ln(1 + variance of the 4-neighbour Laplacian) over the pixels that have four neighbours.

    Source: variance of the Laplacian as a focus measure, Pech-Pacheco et al., ICPR 2000.
    """
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    # The 1 is about what rounding to 8 bits adds to the variance; it keeps a flat image finite.
    return float(np.log1p(np.var(laplacian, dtype=np.float64)))


def classical_features(paths: Sequence[Path], *, quiet: bool = False) -> dict[str, NDArray[np.float64]]:
    """Compute both features of many images: name -> (n, 1). Raises InputError listing all that cannot be decoded."""
    values = np.empty((len(paths), len(CLASSICAL)))
    for index, pixels in enumerate(load_images(paths, label="contrast and Laplacian", quiet=quiet)):
        grey = luminance(pixels)
        values[index] = contrast(grey), log_laplacian_variance(grey)
    return {name: values[:, [column]] for column, name in enumerate(CLASSICAL)}
