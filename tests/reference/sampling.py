"""Interpolation between pixels. Imports nothing of qpt."""

import numpy as np


def bilinear(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return float64 values of an (H, W, 3) image at (h, w) positions; those outside read the nearest one inside."""
    height, width, _ = image.shape
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    below, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    pixels = image.astype(np.float64)
    upper = (1 - right) * pixels[top, left] + right * pixels[top, beside]
    lower = (1 - right) * pixels[below, left] + right * pixels[below, beside]
    return (1 - down) * upper + down * lower
