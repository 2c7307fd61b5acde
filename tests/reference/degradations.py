"""The degradations as NumPy float64 definitions, written from their sources; imports nothing of qpt.

``REFERENCE[name](image, params, seed, slot)`` takes (H, W, 3) uint8 and the op's parameters and returns the exact
result as (H, W, 3) float64 in [0, 255], before the last rounding: an implementation is right if it is within half a
level of it (plus its own arithmetic error). Used by tests/test_ops.py; a new op adds its function here.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tests.reference.jpeg import jpeg_round_trip
from tests.reference.philox import normals

Definition = Callable[[np.ndarray, Sequence[float], int, int], np.ndarray]
REFERENCE: dict[str, Definition] = {}


def define(function: Definition) -> Definition:
    REFERENCE[function.__name__] = function
    return function


# --- blurs ------------------------------------------------------------------------------------------------------------


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation with an odd square kernel; border reflect-101 (mirror about the edge pixels' centres)."""
    radius = kernel.shape[0] // 2
    height, width, _ = image.shape
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    out = np.zeros(image.shape)
    for dy, dx in zip(*np.nonzero(kernel), strict=True):
        out += kernel[dy, dx] * padded[dy : dy + height, dx : dx + width]
    return out


def offsets(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """dy, dx of a (2 radius + 1)^2 kernel."""
    grid = np.arange(-radius, radius + 1, dtype=np.float64)
    return np.meshgrid(grid, grid, indexing="ij")


def aniso_kernel(sigma_x: float, sigma_y: float, angle_deg: float) -> np.ndarray:
    """Gaussian with its sigma_x axis turned counter-clockwise by angle_deg as seen (y points down)."""
    dy, dx = offsets(int(np.ceil(3 * max(sigma_x, sigma_y))))
    angle = np.deg2rad(angle_deg)
    along = dx * np.cos(angle) - dy * np.sin(angle)
    across = dx * np.sin(angle) + dy * np.cos(angle)
    kernel = np.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return kernel / kernel.sum()


def motion_kernel(length: float, angle_deg: float) -> np.ndarray:
    """2 ceil(length) + 1 points, equally spaced from end to end of the segment, each spread bilinearly."""
    dy, dx = offsets(int(np.ceil(length / 2)))
    kernel = np.zeros(dx.shape)
    angle = np.deg2rad(angle_deg)
    for s in np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1):
        x, y = s * np.cos(angle), -s * np.sin(angle)
        kernel += np.maximum(1 - np.abs(dx - x), 0) * np.maximum(1 - np.abs(dy - y), 0)
    return kernel / kernel.sum()


def disk_kernel(disk: float) -> np.ndarray:
    dy, dx = offsets(int(np.ceil(disk)) + 1)
    kernel = np.clip(disk + 0.5 - np.hypot(dx, dy), 0, 1)
    return kernel / kernel.sum()


@define
def gaussian_blur(image, params, seed, slot):
    sigma = params[0]
    dy, dx = offsets(int(np.ceil(3 * sigma)))
    kernel = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    return correlate(image, kernel / kernel.sum())


@define
def gaussian_blur_aniso(image, params, seed, slot):
    return correlate(image, aniso_kernel(*params[:3]))


@define
def motion_blur(image, params, seed, slot):
    return correlate(image, motion_kernel(*params[:2]))


@define
def defocus_blur(image, params, seed, slot):
    return correlate(image, disk_kernel(params[0]))


# --- noise: which normal number an element gets is part of the definition -------------------------------------------


@define
def gaussian_noise(image, params, seed, slot):
    noise = normals(image.size, seed, slot, tag=4).reshape(image.shape)
    return np.clip(image + params[0] * noise, 0, 255)


@define
def gaussian_noise_grey(image, params, seed, slot):
    height, width, _ = image.shape
    noise = normals(height * width, seed, slot, tag=5).reshape(height, width, 1)
    return np.clip(image + params[0] * noise, 0, 255)


# --- compression ------------------------------------------------------------------------------------------------------


@define
def jpeg(image, params, seed, slot):
    return jpeg_round_trip(image, int(params[0]))


# --- geometry: Pillow's resize, whose roundings to 22 and 8 bits are part of the definition -------------------------


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


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


# --- colour -----------------------------------------------------------------------------------------------------------


@define
def brightness(image, params, seed, slot):
    return np.clip(image * float(params[0]), 0, 255)


@define
def contrast(image, params, seed, slot):
    red, green, blue = np.moveaxis(image.astype(np.int64), -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # ITU-R 601 as Pillow rounds it
    mean = np.floor(luma.mean() + 0.5)
    return np.clip(mean + params[0] * (image - mean), 0, 255)


def to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hexcone hue in sixths of a turn, saturation, value (0-255); Smith, SIGGRAPH 1978. Grey has hue 0."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    value = image.max(axis=-1).astype(np.float64)
    chroma = value - image.min(axis=-1)
    safe = np.where(chroma == 0, 1, chroma)
    hue = np.select(
        [chroma == 0, value == red, value == green],
        [0 * value, (green - blue) / safe, 2 + (blue - red) / safe],
        4 + (red - green) / safe,
    )
    return hue % 6, chroma / np.where(value == 0, 1, value), value


def from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The six faces of the hexcone, one by one."""
    face = np.floor(hue).astype(int) % 6
    rest = hue - np.floor(hue)
    low = value * (1 - saturation)
    falling = value * (1 - saturation * rest)
    rising = value * (1 - saturation * (1 - rest))
    faces = [
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    ]
    return np.stack([np.choose(face, [colours[c] for colours in faces]) for c in range(3)], axis=-1)


@define
def saturation(image, params, seed, slot):
    hue, old, value = to_hsv(image)
    return from_hsv(hue, np.clip(old * params[0], 0, 1), value)


@define
def hue(image, params, seed, slot):
    old, saturation, value = to_hsv(image)
    return from_hsv((old + params[0] / 60) % 6, saturation, value)
