"""Opening photographs for evaluation: header check, decoding, half scale, and the grid of crops that bounds the work.

Called by ``table`` (headers), ``features`` and ``classical`` (pixels). Relies on ``qpt.data.images`` for what an
image is. Nothing here is random: a photograph always gives the same pixels and the same crops.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.data.images import UNREADABLE, load_rgb
from qpt.errors import InputError

MIN_SIDE = 32  # px; half of it still leaves one position in the last stage of an encoder of stride 32


def check_header(path: Path) -> str | None:
    """What is wrong with an image file as far as its header tells, or None. Decodes no pixels, raises nothing."""
    if not path.is_file():
        return "no such file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _too_small(image.height, image.width)
    except UNREADABLE as error:
        return _unreadable(error)


def load_photograph(path: str | Path) -> NDArray[np.uint8]:
    """Decode a file to (H, W, 3) uint8, as ``qpt.data.images.load_rgb`` does (upright, RGB, 8 bits).

    Raises InputError for a missing, truncated or foreign file, one above Pillow's decompression-bomb limit, or a side
    under MIN_SIDE px.
    """
    fault = check_header(Path(path))
    if fault is None:
        try:
            return load_rgb(path)
        except UNREADABLE as error:
            fault = _unreadable(error)
    raise InputError(f"photograph: {path}: {fault}")


def check_pixels(pixels: NDArray[np.uint8]) -> None:
    """Refuse, by InputError, an array that is not an (H, W, 3) uint8 photograph of sides >= MIN_SIDE."""
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        got = f"{pixels.shape} {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputError(f"photograph: pixels must be (H, W, 3) uint8, got {got}")
    fault = _too_small(*pixels.shape[:2])
    if fault:
        raise InputError(f"photograph: {fault}")


def half_scale(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) -> (H // 2, W // 2, 3) uint8: Pillow's antialiased bicubic resize."""
    height, width = pixels.shape[:2]
    return np.array(Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.BICUBIC))


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


def _too_small(height: int, width: int) -> str | None:
    if min(height, width) < MIN_SIDE:
        return f"both sides must be at least {MIN_SIDE} px, got {width}x{height}"
    return None


def _unreadable(error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large to be opened safely ({reason})"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    return f"cannot be decoded ({reason})"
