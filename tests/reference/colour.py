"""NumPy definitions of the colour ops. Imports nothing of qpt."""

import numpy as np

from tests.reference.definition import define
from tests.reference.sampling import bilinear


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
    """Return hexcone hue in sixths of a turn, saturation, value (0-255); Smith, SIGGRAPH 1978. Grey has hue 0."""
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
    """Return R, G and B (0-255), by the six faces of the hexcone."""
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


@define
def value_shift(image, params, seed, slot):
    hue, saturation, value = to_hsv(image)
    return from_hsv(hue, saturation, np.clip(value + 255 * params[0], 0, 255))


@define
def posterise(image, params, seed, slot):
    """The highest bits of every value (Pillow's ImageOps.posterize)."""
    step = 2 ** (8 - int(params[0]))
    return np.floor(image.astype(np.float64) / step) * step


def bayer(side: int) -> np.ndarray:
    """Return Bayer's threshold matrix (IEEE ICC 1973) of 0 .. side^2 - 1, made from that of half the side."""
    if side == 1:
        return np.zeros((1, 1), int)
    quarter = 4 * bayer(side // 2)
    return np.block([[quarter, quarter + 2], [quarter + 3, quarter + 1]])


@define
def dither(image, params, seed, slot):
    height, width, _ = image.shape
    steps = params[0] - 1
    tiles = np.tile(bayer(8), (height // 8 + 1, width // 8 + 1))[:height, :width, None]
    return np.floor(image * steps / 255 + (tiles + 0.5) / 64) * 255 / steps


# sRGB to XYZ of white D65, IEC 61966-2-1, with the digits of skimage.color
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])


def to_lab(image: np.ndarray) -> np.ndarray:
    """Return CIELAB (CIE 15) of sRGB values 0-255."""
    share = image.astype(np.float64) / 255
    light = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    xyz = light @ TO_XYZ.T / WHITE
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """Return sRGB values 0-255 of CIELAB, clipped, not rounded. f(Z) is at least 0, as in skimage.color."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, np.maximum(y - b / 200, 0)], axis=-1)
    xyz = np.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787) * WHITE
    light = np.clip(xyz @ np.linalg.inv(TO_XYZ).T, 0, 1)
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@define
def chroma(image, params, seed, slot):
    return from_lab(to_lab(image) * [1, params[0], params[0]])


@define
def brightness_curve(image, params, seed, slot):
    """The parabola through (0, 0), (1/2, (1 + amount) / 2), (1, 1) on R, G, B; to brighten, a third of it on L."""
    amount = params[0]

    def parabola(share):
        return np.clip((1 + 2 * amount) * share - 2 * amount * share**2, 0, 1)

    curved = 255 * parabola(image / 255)
    if amount <= 0:
        return curved
    lab = to_lab(image)
    lab[..., 0] = 100 * parabola(lab[..., 0] / 100)
    return (2 * curved + from_lab(lab)) / 3


@define
def chromatic_aberration(image, params, seed, slot):
    out = image.astype(np.float64)
    for channel, magnification in ((0, 1 + params[0]), (2, 1 - params[0])):
        rows, columns = (
            (size - 1) / 2 + (np.arange(size) - (size - 1) / 2) / magnification for size in image.shape[:2]
        )
        at = np.meshgrid(rows, columns, indexing="ij")
        out[..., channel] = bilinear(image, *at)[..., channel]
    return out
