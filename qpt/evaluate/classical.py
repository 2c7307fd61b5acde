"""Two classical features that need no learning; the floors every encoder is compared with.

Called by ``qpt.evaluate.run``, which sends them through the same splits and ridge as the encoders' features. Relies
on NumPy. Definitions, on the upright photograph at its own size: luminance Y = 0.299 R + 0.587 G + 0.114 B (ITU-R
BT.601), 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpt.evaluate.features import photographs

CLASSICAL = ("contrast", "laplacian")


def luminance(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (H, W) float32 luminance, 0 to 255."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def contrast(grey: NDArray[np.float32]) -> float:
    """Standard deviation of luminance over the photograph, in grey levels."""
    return float(np.std(grey, dtype=np.float64))


def log_laplacian_variance(grey: NDArray[np.float32]) -> float:
    """ln(1 + variance of the 4-neighbour Laplacian), over the pixels that have four neighbours, in grey levels squared.

    Source: variance of the Laplacian as a focus measure, Pech-Pacheco et al., ICPR 2000; the 1 (about what rounding to
    8 bits adds to the variance) keeps a flat photograph finite.
    """
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(np.log1p(np.var(laplacian, dtype=np.float64)))


def classical_features(paths: Sequence[Path], *, quiet: bool = False) -> dict[str, NDArray[np.float64]]:
    """Both features of many photographs: name -> (n, 1). Raises InputError listing all that cannot be decoded."""
    values = np.empty((len(paths), len(CLASSICAL)))
    for index, pixels in enumerate(photographs(paths, label="contrast and Laplacian", quiet=quiet)):
        grey = luminance(pixels)
        values[index] = contrast(grey), log_laplacian_variance(grey)
    return {name: values[:, [column]] for column, name in enumerate(CLASSICAL)}
