"""NumPy definitions of changes of colour and tone. Imports nothing of qpt."""

import numpy as np

from tests.reference.definition import define


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
