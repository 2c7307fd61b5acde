"""NumPy definitions of the ops that reproduce one source's code. Imports nothing of qpt.

The rows are in ``qpt/degradations/rows/by_source.py``.
"""

import numpy as np

from tests.reference.blurs import gaussian, luma
from tests.reference.colour import from_hsv, from_lab, to_hsv, to_lab
from tests.reference.definition import define
from tests.reference.geometry import integer_below
from tests.reference.philox import normals, words
from tests.reference.sampling import bilinear


def trail(radius: int, sigma: float, angle_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows down, columns right and weights, of sum 1, of the 2 radius + 1 pixels of a line."""
    steps = np.arange(2 * radius + 1)
    angle = np.deg2rad(angle_deg)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = -steps * np.sin(angle), steps * np.cos(angle)
    return np.ceil(down - 0.5).astype(int), np.ceil(right - 0.5).astype(int), weights / weights.sum()


@define
def motion_trail(image, params, seed, slot):
    """Each pixel of the line is read with a replicated border."""
    height, width, _ = image.shape
    out = np.zeros(image.shape)
    for down, right, weight in zip(*trail(int(params[0]), *params[1:3]), strict=True):
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        out += weight * image[rows][:, columns]
    return out


def scan(image: np.ndarray, reach: int, seed: int, slot: int, tag: int) -> np.ndarray:
    """Replace pixel (y, x), from the last row and column to the first, by the one at its drawn offset.

    Words 0 and 1 of counter p of the tag give the offsets of pixel p, floor(w 2 reach / 2^32) - reach.
    """
    height, width, _ = image.shape
    drawn = words(height * width, seed, slot, tag)[:, :2].astype(np.int64)
    shift = (drawn * 2 * reach // 2**32 - reach).reshape(height, width, 2)
    out = image.copy()
    for y in range(height - reach, reach, -1):
        for x in range(width - reach, reach, -1):
            out[y, x] = out[y + shift[y, x, 0], x + shift[y, x, 1]]
    return out


@define
def glass_shuffle(image, params, seed, slot):
    """The image is rounded to 8 bits before the scans."""
    reach, sigma, rounds = int(params[0]), params[1], int(params[2])
    blurred = np.rint(gaussian(image, sigma))
    for number in range(rounds):
        blurred = scan(blurred, reach, seed, slot, tag=56 + number)
    return gaussian(blurred, sigma)


@define
def rescale_nearest_floor(image, params, seed, slot):
    """Pixel i of the new side is pixel floor(i old / new), in single precision."""

    def pixels(old, new):
        return np.minimum((np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int), old - 1)

    rows, columns = (
        pixels(size, small)[pixels(small, size)]
        for size in image.shape[:2]
        for small in [max(int(size * params[0]), 1)]
    )
    return image[rows][:, columns].astype(np.float64)


def jitter_rounds(height: int, width: int, params, seed: int, slot: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows and columns that each round reads: normal numbers of tag 48 + round, two for each pixel."""
    std, rounds, drift = params[0], int(params[1]), params[2] >= 0.5
    rows, columns = np.mgrid[:height, :width]
    places = []
    for number in range(rounds):
        steps = std * normals(2 * height * width, seed, slot, tag=48 + number).reshape(height, width, 2)
        down, right = (int(np.ceil(abs(steps[..., axis].max()))) for axis in range(2))
        moved = right - down if drift else 0
        places.append((rows - moved + steps[..., 0], columns + moved + steps[..., 1]))
    return places


@define
def repeated_jitter(image, params, seed, slot):
    """The image is rounded to 8 bits between the rounds."""
    for rows, columns in jitter_rounds(*image.shape[:2], params, seed, slot):
        image = bilinear(np.rint(image), rows, columns)
    return image


def shuffled_squares(height: int, width: int, count: int, seed: int, slot: int) -> list[tuple[int, ...]]:
    """Return (rows, columns, top, left, new top, new left) of each square, from the four words of counter n of tag 19.

    Corners are uniform from 16 px inside one border to 16 px inside the other, or in the middle of a small image. A
    distance is (floor(32 u) + 1) // 2 - 8, which is a uniform number in [-8, 8], rounded.
    """
    rows, columns = min(16, height), min(16, width)

    def corner(word, last):
        inner = min(16, last // 2)
        return inner + integer_below(word, max(last - inner - 16, 0) + 1)

    def moved(place, word, last):
        return min(max(place + (integer_below(word, 32) + 1) // 2 - 8, 0), last)

    squares = []
    for x, y, z, w in words(count, seed, slot, tag=19):
        top, left = corner(x, height - rows), corner(y, width - columns)
        squares.append((rows, columns, top, left, moved(top, z, height - rows), moved(left, w, width - columns)))
    return squares


@define
def patch_shuffle(image, params, seed, slot):
    """In place, rows are copied one after another from the top; otherwise the square is copied as a whole."""
    out = image.astype(np.float64)
    for rows, columns, top, left, to_top, to_left in shuffled_squares(*image.shape[:2], int(params[0]), seed, slot):
        for first, count in [(row, 1) for row in range(rows)] if params[1] >= 0.5 else [(0, rows)]:
            part = out[top + first : top + first + count, left : left + columns].copy()
            out[to_top + first : to_top + first + count, to_left : to_left + columns] = part
    return out


@define
def saturation_affine(image, params, seed, slot):
    hue, old, value = to_hsv(image)
    return np.clip(from_hsv(hue, np.minimum(old * params[0] + params[1], 1), value), 0, 255)


@define
def tone_cubic(image, params, seed, slot):
    u = image / 255 - 0.5
    return 255 * np.clip(0.5 + params[0] * u + params[1] * u**3, 0, 1)


@define
def quantise_stretched(image, params, seed, slot):
    """Interval k holds the values in (255 (k - 1) / levels, 255 k / levels]; its number is ceil(levels x / 255)."""
    number = -(-image.astype(np.int64) * int(params[0]) // 255)
    low, high = number.min(), number.max()
    return np.clip((number - low) / (high - low) if high > low else number, 0, 1) * 255.0


def blur_lines(planes: np.ndarray, sigma: float, radius: int, border: str = "reflect") -> np.ndarray:
    """Blur (H, W, C) with a Gaussian of 2 radius + 1 taps along rows and columns; border reflect-101 or edge."""
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in range(2):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(planes, pad, mode=border)
        planes = sum(w * np.take(padded, np.arange(planes.shape[axis]) + t, axis) for t, w in enumerate(kernel))
    return planes


@define
def colour_diffusion_lab(image, params, seed, slot):
    """Swapped: of (blue, green, red), and rounded down, so half a level less here."""
    sigma, gain, swapped = params[:3]
    order = slice(None, None, -1 if swapped >= 0.5 else 1)
    lab = to_lab(image[..., order])
    if sigma > 0:
        lab[..., 1:] = blur_lines(lab[..., 1:], sigma, int(np.ceil(2 * sigma)))
    out = from_lab(lab * [1, gain, gain])[..., order]
    return np.maximum(out - 0.5, 0) if swapped >= 0.5 else out


def edge_share(image: np.ndarray) -> np.ndarray:
    """Return (H, W, 1) in [0, 1]: the luma's central differences, their length blurred and stretched."""
    padded = np.pad(luma(image)[..., 0], 1, mode="edge")
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    edge = blur_lines(np.hypot(across, down)[..., None], 4.0, 8, border="edge")
    return (edge - edge.min()) / np.where(edge.max() > edge.min(), edge.max() - edge.min(), 1)


def shifted_green(image: np.ndarray, shift_px: float, angle_deg: float) -> np.ndarray:
    """Return (H, W, 1) green moved right and up; each side is padded by the move along the other, then repeats."""
    right, up = (int(np.rint(shift_px * trig(np.deg2rad(angle_deg)))) for trig in (np.cos, np.sin))
    padded = np.pad(image[..., 1], ((abs(right),) * 2, (abs(up),) * 2), mode="edge")
    moved = np.roll(padded, (-up, right), axis=(0, 1))
    return moved[abs(right) : len(moved) - abs(right), abs(up) : moved.shape[1] - abs(up), None]


@define
def colour_shift_edges(image, params, seed, slot):
    out = image.astype(np.float64)
    out[..., 1:2] += edge_share(image) * (shifted_green(image, *params[:2]) - out[..., 1:2])
    return out
