"""NumPy definitions of down-up scaling: Pillow's resize, whose roundings to 22 and 8 bits are part of the definition.

Also of resize_to, with OpenCV's filters and the same roundings.

Imports nothing of qpt.
"""

import numpy as np

from tests.reference.definition import define


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def keys_cubic(x: np.ndarray) -> np.ndarray:
    """Cubic convolution with a = -1/2 (Keys, IEEE TASSP 1981)."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def resize_weights(size: int, new_size: int, kernel, support: float) -> np.ndarray:
    """(new_size, size) int64 weights with 22 fractional bits; the kernel is widened when shrinking (antialiasing)."""
    scale = size / new_size
    widen = max(scale, 1.0)
    centres = (np.arange(new_size) + 0.5) * scale
    weights = np.zeros((new_size, size))
    for row, centre in enumerate(centres):
        first = max(int(centre - support * widen + 0.5), 0)
        end = min(int(centre + support * widen + 0.5), size)
        positions = np.arange(first, end)
        weights[row, first:end] = kernel((positions - centre + 0.5) / widen)
    weights /= weights.sum(axis=1, keepdims=True)
    scaled = weights * 2**22
    return np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64)


def along(axis: int, image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    moved = np.moveaxis(image.astype(np.int64), axis, 0)
    summed = np.tensordot(weights, moved, axes=1)
    return np.moveaxis(np.clip((summed + 2**21) >> 22, 0, 255), 0, axis)


def resize(image: np.ndarray, height: int, width: int, kernel, support: float) -> np.ndarray:
    """x first, then y; y first where the height shrinks by more than twice what the width does (Pillow 13)."""
    by_y = resize_weights(image.shape[0], height, kernel, support)
    by_x = resize_weights(image.shape[1], width, kernel, support)
    if image.shape[0] - height > 2 * max(image.shape[1] - width, 0):
        return along(1, along(0, image, by_y), by_x)
    return along(0, along(1, image, by_x), by_y)


def down_up(image: np.ndarray, factor: float, kernel, support: float) -> np.ndarray:
    height, width, _ = image.shape
    small = resize(image, max(round(height / factor), 1), max(round(width / factor), 1), kernel, support)
    return resize(small, height, width, kernel, support).astype(np.float64)


@define
def rescale_bilinear(image, params, seed, slot):
    return down_up(image, params[0], triangle, 1)


@define
def rescale_bicubic(image, params, seed, slot):
    return down_up(image, params[0], keys_cubic, 2)


@define
def pixelate(image, params, seed, slot):
    return down_up(image, params[0], box, 0.5)


def nearest_pixels(size: int, new_size: int) -> np.ndarray:
    """The source pixel of each new one: the one that holds its centre. Centres are summed step by step, in float64."""
    step = size / new_size
    centres = np.cumsum(np.concatenate([[step / 2], np.full(new_size - 1, step)]))
    return np.minimum(centres.astype(int), size - 1)


@define
def rescale_nearest(image, params, seed, slot):
    rows, columns = (
        nearest_pixels(size, small)[nearest_pixels(small, size)]
        for size in image.shape[:2]
        for small in [max(round(size / params[0]), 1)]
    )
    return image[rows][:, columns].astype(np.float64)


def footprint_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size): share of each pixel in the new pixel's footprint (cv2.INTER_AREA)."""
    edges = np.arange(new_size + 1) * (size / new_size)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0) * new_size / size


def tap_weights(size: int, new_size: int, kernel, support: int) -> np.ndarray:
    """(new_size, size): the kernel at each new pixel's centre, the border pixel repeated outwards; no antialiasing."""
    weights = np.zeros((new_size, size))
    for row in range(new_size):
        centre = (row + 0.5) * size / new_size - 0.5
        for tap in range(int(np.floor(centre)) - support + 1, int(np.floor(centre)) + support + 1):
            weights[row, np.clip(tap, 0, size - 1)] += kernel(np.abs(centre - tap))
    return weights


def sharp_cubic(x: np.ndarray) -> np.ndarray:
    """Cubic convolution with a = -3/4, as OpenCV and PyTorch have it."""
    a = -0.75
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def resize_working(image: np.ndarray, height: int, width: int, filter: int) -> np.ndarray:
    """Area (0), bilinear (1) or bicubic (2), along x, then along y; weights of 22 bits, 8 bits after each pass."""
    for axis, new_size in ((1, width), (0, height)):
        size = image.shape[axis]
        exact = (
            footprint_weights(size, new_size),
            tap_weights(size, new_size, triangle, 1),
            tap_weights(size, new_size, sharp_cubic, 2),
        )[filter]
        scaled = exact * 2**22
        image = along(axis, image, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64))
    return image


def working_size(image_size: int, scale: float) -> int:
    return max(int(np.floor(image_size * np.float64(scale))), 1)


@define
def resize_to(image, params, seed, slot):
    """A row of this op alone: to the working size and, bicubic, back."""
    height, width, _ = image.shape
    scale, filter = params
    small = resize_working(image, working_size(height, scale), working_size(width, scale), int(filter))
    if small.shape != image.shape:
        small = resize_working(small, height, width, 2)
    return small.astype(np.float64)
