"""The lossy part of a baseline JPEG round trip (ITU-T T.81, JFIF) with an exact float64 cosine transform.

Imports nothing of qpt. A codec differs from it only where its integer transform rounds a coefficient to the other side,
so the two are compared by mean absolute difference; bytes are compared with Pillow's own codec.
"""

import numpy as np

# T.81 tables K.1 and K.2.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def quantisation(table: np.ndarray, quality: int) -> np.ndarray:
    """Scale a table by quality 1..100 as the Independent JPEG Group does."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * percent + 50) // 100, 1, 255)


def code_plane(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Code and decode (h, w) integers, padded by replication to whole blocks; return (h, w), rounded."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge") - 128.0
    u, x = np.mgrid[0:8, 0:8]
    basis = np.where(u == 0, np.sqrt(1 / 8), 0.5) * np.cos((2 * x + 1) * u * np.pi / 16)
    blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8).swapaxes(1, 2)
    coefficients = basis @ blocks @ basis.T
    restored = basis.T @ (np.round(coefficients / table) * table) @ basis
    whole = restored.swapaxes(1, 2).reshape(padded.shape) + 128
    return np.clip(np.round(whole), 0, 255)[:height, :width]


def halve(plane: np.ndarray) -> np.ndarray:
    """Return means of 2 x 2, rounded down and up alternately along a row.

    Rows are first padded to whole 16-px units with their last sample; an odd last row counts twice.
    """
    height, width = plane.shape
    padded = np.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    sums = padded[0::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 0::2] + padded[1::2, 1::2]
    return np.floor((sums + 1 + np.arange(sums.shape[1]) % 2) / 4)


def double(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate 3:1 towards the nearer sample on each axis; repeat the samples of a plane up to 2 wide."""
    if plane.shape[1] <= 2:
        return plane.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    padded = np.pad(plane, 1, mode="edge")
    tall = np.empty((2 * plane.shape[0], padded.shape[1]))
    tall[0::2] = 3 * padded[1:-1] + padded[:-2]
    tall[1::2] = 3 * padded[1:-1] + padded[2:]
    wide = np.empty((tall.shape[0], 2 * plane.shape[1]))
    wide[:, 0::2] = np.floor((3 * tall[:, 1:-1] + tall[:, :-2] + 8) / 16)
    wide[:, 1::2] = np.floor((3 * tall[:, 1:-1] + tall[:, 2:] + 7) / 16)
    return wide[:height, :width]


def jpeg_round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode (H, W, 3) uint8 at ``quality`` with 4:2:0 chroma and decode; return (H, W, 3) integers as float64."""
    height, width, _ = image.shape
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    luma = np.round(0.299 * red + 0.587 * green + 0.114 * blue)
    cb = np.round(128 + (blue - 0.299 * red - 0.587 * green - 0.114 * blue) / 1.772)
    cr = np.round(128 + (red - 0.299 * red - 0.587 * green - 0.114 * blue) / 1.402)
    table = quantisation(CHROMA, quality)
    luma = code_plane(luma, quantisation(LUMA, quality))
    halved = (code_plane(halve(plane), table)[:, : (width + 1) // 2] for plane in (cb, cr))
    cb, cr = (double(plane, height, width) - 128 for plane in halved)
    rgb = np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=-1)
    return np.clip(np.round(rgb), 0, 255)
