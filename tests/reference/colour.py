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


@define
def mean_shift(image, params, seed, slot):
    return np.clip(image + params[0], 0, 255)


@define
def gamma(image, params, seed, slot):
    return 255 * (image / 255) ** params[0]


@define
def contrast_curve(image, params, seed, slot):
    """Logistic of gain (x - 1/2) on [0, 1], moved and stretched so that 0 and 1 stay."""

    def logistic(x):
        return 1 / (1 + np.exp(-params[0] * (x - 0.5)))

    return 255 * (logistic(image / 255) - logistic(0)) / (logistic(1) - logistic(0))


@define
def quantise(image, params, seed, slot):
    values = np.arange(params[0]) * 255 / (params[0] - 1)
    return values[np.abs(image[..., None] - values).argmin(axis=-1)]


@define
def colour_shift(image, params, seed, slot):
    """Green moved right by rint(d cos), up by rint(d sin); the border is replicated."""
    height, width, _ = image.shape
    right, up = (int(np.rint(params[0] * trig(np.deg2rad(params[1])))) for trig in (np.cos, np.sin))
    rows = np.clip(np.arange(height) + up, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    out = image.astype(np.float64)
    out[..., 1] = image[rows][:, columns, 1]
    return out
