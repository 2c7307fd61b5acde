"""NumPy definitions of the geometry ops: down-up scaling (Pillow's resize, whose roundings to 22 and 8 bits are part of
the definition), resize_to (OpenCV's filters, the same roundings), spatial jitter, patches, elastic deformation.

Imports nothing of qpt.
"""

import numpy as np

from tests.reference.blurs import gaussian
from tests.reference.definition import define
from tests.reference.philox import element_words, normals, words
from tests.reference.sampling import bilinear


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def keys_cubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution kernel with a = -1/2 (Keys, IEEE TASSP 1981)."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def area_weights(size: int, new_size: int) -> np.ndarray:
    """Return (new_size, size) int64 weights of 22 fractional bits: the part of each new pixel that an old one fills."""
    edges = np.arange(new_size + 1) * (size / new_size)
    old = np.arange(size)
    part = np.minimum(old + 1, edges[1:, None]) - np.maximum(old, edges[:-1, None])
    part = np.maximum(part, 0)
    return np.floor(part / part.sum(axis=1, keepdims=True) * 2**22 + 0.5).astype(np.int64)


def resize_weights(size: int, new_size: int, kernel, support: float) -> np.ndarray:
    """Return (new_size, size) int64 weights with 22 fractional bits; shrinking widens the kernel (antialiasing)."""
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


def resize(image: np.ndarray, height: int, width: int, *kernel_and_support) -> np.ndarray:
    by_y = resize_weights(image.shape[0], height, *kernel_and_support)
    by_x = resize_weights(image.shape[1], width, *kernel_and_support)
    return weigh(image, by_y, by_x)


def weigh(image: np.ndarray, by_y: np.ndarray, by_x: np.ndarray) -> np.ndarray:
    """Resize along x, then y; y first if the height shrinks by more than twice as much as the width (Pillow 13)."""
    height, width = len(by_y), len(by_x)
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
def rescale_lanczos(image, params, seed, slot):
    return down_up(image, params[0], lanczos, 3)


def weigh_twice(image: np.ndarray, by_y: np.ndarray, by_x: np.ndarray) -> np.ndarray:
    """Resize along both axes at once; exact, with 44 fractional bits."""
    return np.einsum("yi,ijc,xj->yxc", by_y, image.astype(np.int64), by_x, optimize=True)


@define
def rescale_area(image, params, seed, slot):
    """OpenCV's INTER_AREA, halves to even, then INTER_LINEAR, halves up, with weights of 22 bits."""
    sides = [(size, max(round(size / params[0]), 1)) for size in image.shape[:2]]
    small = np.rint(weigh_twice(image, *(area_weights(*pair) for pair in sides)) / 2**44).astype(np.int64)
    up = [resize_weights(less, size, triangle, 1) for size, less in sides]
    return ((weigh_twice(small, *up) + 2**43) >> 44).astype(np.float64)


@define
def pixelate(image, params, seed, slot):
    return down_up(image, params[0], box, 0.5)


def nearest_pixels(size: int, new_size: int) -> np.ndarray:
    """Return the source pixel that holds the centre of each new one. Centres are summed step by step, in float64."""
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
    """Return (new_size, size), the share of each pixel in the new pixel's footprint (cv2.INTER_AREA)."""
    edges = np.arange(new_size + 1) * (size / new_size)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0) * new_size / size


def tap_weights(size: int, new_size: int, kernel, support: int) -> np.ndarray:
    """Return (new_size, size), the kernel at each new pixel's centre, with a replicated border and no antialiasing."""
    weights = np.zeros((new_size, size))
    for row in range(new_size):
        centre = (row + 0.5) * size / new_size - 0.5
        for tap in range(int(np.floor(centre)) - support + 1, int(np.floor(centre)) + support + 1):
            weights[row, np.clip(tap, 0, size - 1)] += kernel(np.abs(centre - tap))
    return weights


def sharp_cubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution kernel with a = -3/4, as in OpenCV and PyTorch."""
    a = -0.75
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def resize_working(image: np.ndarray, height: int, width: int, filter: int) -> np.ndarray:
    """Resize by area (0), bilinear (1) or bicubic (2) along x, then along y, with 22-bit weights and 8-bit passes."""
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
    """A row of this op alone is resized to the working size and back, bicubic."""
    height, width, _ = image.shape
    scale, filter = params
    small = resize_working(image, working_size(height, scale), working_size(width, scale), int(filter))
    if small.shape != image.shape:
        small = resize_working(small, height, width, 2)
    return small.astype(np.float64)


def jittered_places(height: int, width: int, std_px: float, seed: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (height, width) rows and columns: each pixel's own plus its two normal numbers times sqrt(5) std_px."""
    steps = np.sqrt(5) * std_px * normals(2 * height * width, seed, slot, tag=14).reshape(height, width, 2)
    rows, columns = np.mgrid[:height, :width]
    return rows + steps[..., 0], columns + steps[..., 1]


@define
def spatial_jitter(image, params, seed, slot):
    return bilinear(image, *jittered_places(*image.shape[:2], params[0], seed, slot))


def integer_below(word: int, choices: int) -> int:
    """Map a 32-bit word to 0 .. choices - 1 by its highest bits."""
    return int(word) * choices >> 32


def squares(height: int, width: int, count: int, side: int, seed: int, slot: int, tag: int) -> list[tuple]:
    """Return (rows, columns, top, left, third word, fourth word) of squares, uniform over the image, cut if larger."""
    rows, columns = min(side, height), min(side, width)
    return [
        (rows, columns, integer_below(x, height - rows + 1), integer_below(y, width - columns + 1), int(z), int(w))
        for x, y, z, w in words(count, seed, slot, tag)
    ]


def moved_patches(
    height: int, width: int, count: int, seed: int, slot: int
) -> list[tuple[int, int, int, int, int, int]]:
    """Return (rows, columns, top, left, new top, new left) of each 16-px patch, moved up to 8 px within the image."""
    return [
        (
            rows,
            columns,
            top,
            left,
            min(max(top + integer_below(z, 17) - 8, 0), height - rows),
            min(max(left + integer_below(w, 17) - 8, 0), width - columns),
        )
        for rows, columns, top, left, z, w in squares(height, width, count, 16, seed, slot, tag=15)
    ]


@define
def non_eccentricity_patch(image, params, seed, slot):
    out = image.astype(np.float64)
    for rows, columns, top, left, to_top, to_left in moved_patches(*image.shape[:2], int(params[0]), seed, slot):
        patch = image[top : top + rows, left : left + columns]
        out[to_top : to_top + rows, to_left : to_left + columns] = patch
    return out


@define
def colour_block(image, params, seed, slot):
    """A block's red, green and blue are the highest three bytes of its third word."""
    out = image.astype(np.float64)
    for rows, columns, top, left, colour, _ in squares(*image.shape[:2], int(params[0]), 32, seed, slot, tag=16):
        out[top : top + rows, left : left + columns] = colour >> 24, colour >> 16 & 255, colour >> 8 & 255
    return out


def elastic_field(
    height: int, width: int, alpha: float, sigma: float, affine: float, seed: int, slot: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns (height, width) that each pixel is read at, not yet mirrored at the border.

    Noise: bytes 0 (down) and 1 (right) of pixel p's word of tag 32, b - 127.5 in units of 127.5, blurred, times alpha.
    Affine: three points at (1, 1), (-1, 1), (-1, -1) thirds of the shorter side from the centre, (down, right), move by
    affine times (2 u - 1), u the first six words of tag 33 as 24-bit fractions.
    """
    drawn = element_words(height * width, seed, slot, tag=32)
    noise = np.stack([drawn & 255, drawn >> np.uint32(8) & 255], axis=-1).reshape(height, width, 2) - 127.5
    smooth = gaussian(noise, sigma) / 127.5 * alpha
    u = (words(2, seed, slot, tag=33).ravel()[:6] >> np.uint32(8)) / 2**24
    moves = affine * (2 * u - 1).reshape(3, 2)
    side = max(min(height, width) / 3, 1)
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).astype(np.float64)
    centred = (places - (np.array([height, width]) - 1) / 2) / side
    corners = np.array([[1, 1, 1], [-1, 1, 1], [-1, -1, 1]], np.float64)
    linear = np.linalg.solve(corners, moves)  # (down, right, 1) -> move
    moved = places + smooth + centred @ linear[:2] + linear[2]
    return moved[..., 0], moved[..., 1]


@define
def elastic(image, params, seed, slot):
    """Bilinear between the four pixels around each position, mirrored about the centres of the border's pixels."""
    height, width, _ = image.shape
    rows, columns = elastic_field(height, width, *params[:3], seed, slot)

    def mirrored(index, size):
        period = max(2 * (size - 1), 1)
        return np.where((folded := index % period) < size, folded, period - folded) if size > 1 else index * 0

    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    out = np.zeros(image.shape)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - np.abs(rows - top - down)) * (1 - np.abs(columns - left - right))
        out += weight[..., None] * image[mirrored(top + down, height), mirrored(left + right, width)]
    return out
