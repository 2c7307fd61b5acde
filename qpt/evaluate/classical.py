"""Classical features, which need no learning: the baselines every encoder is compared with.

Called by ``qpt.evaluate.run``, which sends them through the same splits and regressor as the encoders' features. They
are computed with NumPy and SciPy on the upright image at its own size, from luminance Y = 0.299 R + 0.587 G + 0.114 B
(ITU-R BT.601), 0 to 255. It reads image files and writes the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpt.evaluate.brisque import BRISQUE_NAMES, brisque_features
from qpt.evaluate.features import compute_rows, fill_or_read, hash_of
from qpt.evaluate.statistics_68 import STATISTICS_COUNT, image_statistics

#: The number of features of each method.
CLASSICAL = {"contrast": 1, "laplacian": 1, "brisque": len(BRISQUE_NAMES), "statistics": STATISTICS_COUNT}
#: Changes whenever the numbers computed here change, so that no cache outlives its definition.
DEFINITION = "qpt-classical-1"
#: Width and height of the part of a larger image that "brisque" and "statistics" measure: seconds a 4K image otherwise.
CENTRE_PX = (1600, 1200)


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


def centre(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the central part, at most CENTRE_PX, of an image of more pixels than that; another one as it is."""
    (height, width), (most_wide, most_high) = pixels.shape[:2], CENTRE_PX
    if height * width <= most_wide * most_high:
        return pixels
    top, left = max(0, (height - most_high) // 2), max(0, (width - most_wide) // 2)
    return pixels[top : top + most_high, left : left + most_wide]


def image_classical(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute all classical features of one (H, W, 3) uint8 image, side by side in the order of ``CLASSICAL``."""
    grey, middle = luminance(pixels), centre(pixels)
    grey_middle = grey if middle is pixels else luminance(middle)
    one_number = [contrast(grey), log_laplacian_variance(grey)]
    statistics = image_statistics(middle, grey_middle)
    return np.concatenate([one_number, brisque_features(grey_middle), list(statistics.values())])


def classical_features(
    paths: Sequence[Path], *, cache: Path | None = None, images_key: str = "", quiet: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Compute or read the classical features of many images: name -> (n, d), by one decode of each.

    cache: a folder for ``NAME.npz`` keyed by ``images_key`` (names, order, contents) and definition; None keeps
    nothing.  quiet: no progress bar. Raises InputError listing every image that cannot be decoded.
    """
    values = np.empty((len(paths), sum(CLASSICAL.values())))

    def compute() -> None:
        compute_rows(values, image_classical, paths, "classical features", quiet)

    file = cache / f"{hash_of(images_key, DEFINITION)[:32]}.npz" if cache is not None else None
    parts = np.split(fill_or_read(values, compute, file), np.cumsum(list(CLASSICAL.values()))[:-1], axis=1)
    return dict(zip(CLASSICAL, parts, strict=True))
