"""Opening photographs for evaluation: header check, decoding, half scale, and the grid of crops that bounds the work.

Called by ``table`` (headers), ``features``, ``classical`` and ``scorer`` (pixels). Relies on ``qpt.data.images`` for
what an image is. Nothing here is random: a photograph always gives the same pixels and the same crops. Memory is
bounded by the area: 7 bytes a pixel while decoding, less afterwards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.data.images import UNREADABLE, load_rgb, open_image
from qpt.errors import InputError, describe

MIN_SIDE = 32  # px; half of it still leaves one position in the last stage of an encoder of stride 32
MAX_PIXELS = 200_000_000
_BAND_PIXELS = 1 << 20  # halved at a time


def check_header(path: Path, *, max_pixels: int = MAX_PIXELS) -> str | None:
    """What is wrong with an image file as far as its header tells, or None. Decodes no pixels, raises nothing."""
    if not path.is_file():
        return "no such file"
    try:
        with open_image(path, max_pixels=max_pixels) as image:
            return _too_large(image.height, image.width, max_pixels)
    except UNREADABLE as error:
        return _unreadable(error)


def load_photograph(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a file to (H, W, 3) uint8, as ``qpt.data.images.load_rgb`` does (upright, RGB, 8 bits), extended.

    Both sides are at least MIN_SIDE px afterwards (``extend``). Raises InputError for a missing, truncated or foreign
    file, or one of more than ``max_pixels``.
    """
    fault = check_header(Path(path), max_pixels=max_pixels)
    if fault is None:
        try:
            return extend(load_rgb(path, max_pixels=max_pixels))
        except UNREADABLE as error:
            fault = _unreadable(error)
    raise InputError(f"photograph: {path}: {fault}")


def check_pixels(pixels: NDArray[np.uint8], *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse, by InputError, an array that is not an (H, W, 3) uint8 photograph of 1 to ``max_pixels`` pixels."""
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"photograph: pixels must be (H, W, 3) uint8, got {describe(pixels)}")
    if pixels.size == 0:
        raise InputError(f"photograph: pixels must be at least 1x1, got {describe(pixels)}")
    fault = _too_large(pixels.shape[0], pixels.shape[1], max_pixels)
    if fault:
        raise InputError(f"photograph: {fault}")


def extend(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A photograph whose sides are at least MIN_SIDE px; unchanged if it is one.

    A shorter side is continued by mirror images of the photograph, edge pixels repeated (SciPy's and NumPy's
    "symmetric"), as many on both ends, the odd one at the end: one pixel becomes a flat 32 x 32.
    """
    missing = [max(0, MIN_SIDE - side) for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    return np.pad(pixels, [(rest // 2, rest - rest // 2) for rest in missing] + [(0, 0)], mode="symmetric")


def half_scale(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) -> (H // 2, W // 2, 3) uint8, H and W >= 2: Pillow's antialiased bicubic resize.

    Columns first, by bands of rows, then rows: these are Pillow's own two passes, so the result is that of one resize
    without a second copy of the whole photograph. As in Pillow 13, a tall photograph's rows come first.
    """
    height, width = pixels.shape[:2]
    if height - height // 2 > 2 * (width - width // 2):
        return np.ascontiguousarray(half_scale(pixels.transpose(1, 0, 2)).transpose(1, 0, 2))
    narrow = Image.new("RGB", (width // 2, height))
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows]))
        narrow.paste(band.resize((width // 2, band.height), Image.Resampling.BICUBIC), (0, top))
    return np.array(narrow.resize((width // 2, height // 2), Image.Resampling.BICUBIC))


def crops(pixels: NDArray[np.uint8], *, side: int, count: int) -> NDArray[np.uint8]:
    """The parts of a photograph that are looked at: (n, h, w, 3) uint8, n <= count; see ``crop_boxes``."""
    height, width = pixels.shape[:2]
    boxes = crop_boxes(width, height, side=side, count=count)
    return np.stack([pixels[top:bottom, left:right] for left, top, right, bottom in boxes])


def crop_boxes(width: int, height: int, *, side: int, count: int) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) in pixels, all of one size.

    A photograph of at most count x side^2 pixels is one box, the whole of it. A larger one gets an evenly spaced grid
    of at most ``count`` boxes of side px (less where the photograph is narrower), the outer ones touching its
    borders.
    """
    if width * height <= count * side * side:
        return [(0, 0, width, height)]
    per_axis = max(1, int(count**0.5))
    if height <= width:
        rows = min(per_axis, -(-height // side))
        columns = min(count // rows, -(-width // side))
    else:
        columns = min(per_axis, -(-width // side))
        rows = min(count // columns, -(-height // side))
    w, h = min(side, width), min(side, height)
    lefts, tops = _spaced(width - w, columns), _spaced(height - h, rows)
    return [(left, top, left + w, top + h) for top in tops for left in lefts]


def _spaced(room: int, number: int) -> list[int]:
    """``number`` offsets from 0 to ``room``, evenly spaced; a single one sits in the middle."""
    if number == 1:
        return [room // 2]
    return [round(room * index / (number - 1)) for index in range(number)]


def _too_large(height: int, width: int, max_pixels: int) -> str | None:
    """A side under MIN_SIDE counts as that, which it is extended to."""
    if max(height, MIN_SIDE) * max(width, MIN_SIDE) > max_pixels:
        return f"{width}x{height} px (a side counts as at least {MIN_SIDE}) is more than max_pixels = {max_pixels:,}"
    return None


def _unreadable(error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"too large ({reason})"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    return f"cannot be decoded ({reason})"
