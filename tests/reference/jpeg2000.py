"""NumPy definition of JPEG 2000's lossy part (ITU-T T.800) at a compression ratio. Imports nothing of qpt.

The quantisation step is the smallest of at least 1, with seven bits after the leading one, that leaves no more
coefficients at or above it than a file of the ratio can code.
"""

import numpy as np

from tests.reference.definition import define

LEVELS = 5
# T.800 table F.4; with this gain the low half of a level is nearly orthonormal.
LIFTING = ((1, -1.586134342059924), (0, -0.052980118572961), (1, 0.882911075530934), (0, 0.443506852043971))
LOW_GAIN = 1.149604398860241
# T.800 annex G.3, and the norms of the columns of its inverse
TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
FROM_YCBCR = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
NORMS = np.sqrt((FROM_YCBCR**2).sum(axis=0))
# Bits of a file, of a non-zero coefficient, of its position; fitted by benchmarks/fit_jpeg2000.py.
HEADER_BITS, VALUE_BITS, PLACE_BITS = 1879.0, 4.85, 0.278
LEAST_PIXELS = 400


def lifted(signal: np.ndarray, steps) -> np.ndarray:
    """Apply lifting steps (parity, factor) along axis 0, mirrored about the centres of the end samples."""
    signal = signal.copy()
    for parity, factor in steps:
        padded = np.pad(signal, [(1, 1)] + [(0, 0)] * (signal.ndim - 1), mode="reflect")
        signal[parity::2] += factor * (padded[:-2] + padded[2:])[parity::2]
    return signal


def analysis(signal: np.ndarray) -> np.ndarray:
    """Transform by one level along axis 0; return the low half, then the high one."""
    if len(signal) == 1:
        return signal
    signal = lifted(signal, LIFTING)
    return np.concatenate([signal[0::2] * LOW_GAIN, signal[1::2] / LOW_GAIN])


def synthesis(halves: np.ndarray) -> np.ndarray:
    if len(halves) == 1:
        return halves
    low = (len(halves) + 1) // 2
    signal = np.empty_like(halves)
    signal[0::2], signal[1::2] = halves[:low] / LOW_GAIN, halves[low:] * LOW_GAIN
    return lifted(signal, [(parity, -factor) for parity, factor in reversed(LIFTING)])


def sizes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the height and width of the part that each level transforms, finest first."""
    return [(-(-shape[0] // 2**level), -(-shape[1] // 2**level)) for level in range(LEVELS)]


def across(transform, part: np.ndarray) -> np.ndarray:
    return np.swapaxes(transform(np.swapaxes(part, 0, 1)), 0, 1)


def coefficients(image: np.ndarray) -> np.ndarray:
    """Return (H, W, 3), the transforms of Y, Cb and Cr, each times its norm."""
    planes = ((image.astype(np.float64) - 128) @ TO_YCBCR.T) * NORMS
    for h, w in sizes(image.shape):
        planes[:h, :w] = across(analysis, analysis(planes[:h, :w]))
    return planes


def restored(planes: np.ndarray) -> np.ndarray:
    planes = planes.copy()
    for h, w in reversed(sizes(planes.shape)):
        planes[:h, :w] = synthesis(across(synthesis, planes[:h, :w]))
    return np.clip((planes / NORMS) @ FROM_YCBCR.T + 128, 0, 255)


def quantised(planes: np.ndarray, step: float) -> np.ndarray:
    """Truncate to an integer number of steps; restore to the middle of the interval, or to 0 below one step."""
    whole = np.floor(np.abs(planes) / step)
    return np.where(whole > 0, np.sign(planes) * (whole + 0.5) * step, 0)


def file_bits(coded: np.ndarray, total: int) -> np.ndarray:
    """Return the bits of a file with ``coded`` of ``total`` coefficients non-zero."""
    return HEADER_BITS + coded * (VALUE_BITS + PLACE_BITS * np.log2(total / coded))


def step_of_ratio(planes: np.ndarray, ratio: float) -> float:
    """Return the quantisation step of a file of this ratio."""
    total = planes.size
    bits = file_bits(np.arange(1, total + 1), total)
    coded = np.searchsorted(bits, 8 * total / ratio, side="right")
    most = max(coded, total // 3 // LEAST_PIXELS + 4)
    steps = (np.arange(0x3F80, 0x4681, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    left = total - np.searchsorted(np.sort(np.abs(planes), axis=None), steps, side="left")
    return float(steps[np.argmax(left <= most)])


@define
def jpeg2000(image, params, seed, slot):
    planes = coefficients(image)
    return restored(quantised(planes, step_of_ratio(planes, params[0])))
