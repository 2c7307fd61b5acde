"""Decode images for evaluation, scale them down, and cut the grid of crops that bounds the work on large ones.

Called by ``table`` (headers), ``features``, ``classical``, ``finetune`` and ``scorer`` (pixels). It reads image files
through ``qpt.data.images``; nothing is random: an image always gives the same pixels and the same crops.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt import compat
from qpt.data.faults import UnreadableError
from qpt.data.images import DecodedImage, image_size, load_rgb
from qpt.data.listing import evenly_spaced
from qpt.data.remote import read_file
from qpt.data.urls import is_url, without_file_scheme
from qpt.errors import InputError, describe
from qpt.evaluate.progress import progress
from qpt.io import shown

S = TypeVar("S")
T = TypeVar("T")

MIN_SIDE = 32  # px; half of it still leaves one position in the last stage of an encoder of stride 32
MAX_PIXELS = 200_000_000
_BAND_PIXELS = 1 << 20  # halved at a time


def check_header(path: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return what is wrong with an image file as far as its header tells, or None. Decodes no pixels."""
    if isinstance(path, Path) and not os.path.isfile(path):  # of these none raises for a name that is too long
        if os.path.islink(path) and not os.path.exists(path):
            return "a link to nothing"
        return "a folder" if os.path.isdir(path) else "not a file" if os.path.exists(path) else "no such file"
    try:
        width, height = image_size(path, max_pixels=max_pixels)
        return _too_large(height, width, max_pixels)
    except UnreadableError as error:
        return str(error)


def load_image(path: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS, padded: bool = True) -> NDArray[np.uint8]:
    """Decode a file to (H, W, 3) uint8, upright RGB; ``padded`` to at least MIN_SIDE px a side (``mirror_pad``).

    path: also a URL, or the content of a file as a binary stream. Memory while decoding: 7 bytes a pixel. Raises
    InputError for a missing, truncated or foreign file, or one of more than ``max_pixels``.
    """
    file, fault = _on_hand(path)
    fault = fault or check_header(file, max_pixels=max_pixels)
    if fault is None:
        try:
            pixels = load_rgb(file, max_pixels=max_pixels)
            return mirror_pad(pixels) if padded else pixels
        except UnreadableError as error:
            fault = str(error)
    raise InputError(f"photograph: {path}: {fault}")


def _on_hand(path: str | Path | BinaryIO) -> tuple[Path | BinaryIO, str | None]:
    """Return the path of a file, or the content of a URL, and what is wrong with it if it is not there."""
    if not isinstance(path, (str, os.PathLike)):
        return path, None
    if not is_url(path):
        return Path(without_file_scheme(os.fspath(path))), None
    try:
        return io.BytesIO(read_file(str(path))), None
    except FileNotFoundError:
        return io.BytesIO(), "no such file"


def map_in_threads(
    work: Callable[[S], T], items: Iterable[S], *, workers: int, start: Callable[[], object] | None = None
) -> Iterator[T]:
    """Yield ``work(item)`` of each item in order; ``workers`` threads take an item each, and call ``start`` first."""
    following = iter(items)
    with ThreadPoolExecutor(workers, initializer=start) as pool:
        # Results wait for those before them, pixels do not: a thread has one image at a time.
        ahead = deque(pool.submit(work, item) for item in islice(following, 4 * workers))
        try:
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(work, item) for item in islice(following, 1))
        finally:
            for future in ahead:  # after Ctrl-C nothing more is begun
                future.cancel()


def map_images(
    compute: Callable[[NDArray[np.uint8]], T],
    paths: Sequence[Path],
    *,
    workers: int,
    label: str,
    quiet: bool,
    start: Callable[[], object] | None = None,
) -> Iterator[T]:
    """Yield ``compute(pixels)`` of each file in order, under a progress bar; ``workers`` threads take an image each.

    start: called first in each thread. Raises one InputError at the end that lists all files that cannot be used; after
    the first of them nothing more is computed or yielded.
    """
    faults: list[str] = []

    def work(path: Path) -> tuple[str, T | None]:
        try:
            pixels = load_image(path)
        except InputError as error:
            return str(error).removeprefix("photograph: "), None
        return "", None if faults else compute(pixels)

    found = map_in_threads(work, paths, workers=workers, start=start)
    for _, (fault, value) in zip(progress(paths, label, quiet), found, strict=True):
        if fault:
            faults.append(fault)
        elif not faults:
            yield cast("T", value)
    if faults:
        raise InputError(f"photographs: {len(faults)} cannot be used:\n  " + "\n  ".join(faults))


def read_images(
    files: Sequence[Path], min_side: int, *, most: int, quiet: bool = False
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, str]]:
    """Decode at most ``most`` files, evenly spaced in ``files``, and leave out those that cannot be used.

    min_side: pixels that both sides must have at least; nothing is padded. Returns name -> image, (H, W, 3) uint8 each
    in the order of ``files``, and name -> reason of those left out, named from the folder that all files share.
    """
    chosen = [files[place] for place in evenly_spaced(len(files), most)]
    folder = os.path.commonpath([path.parent for path in files]) if files else "."
    images, left_out = {}, {}
    for path in progress(chosen, "reading photographs", quiet):
        name = shown(os.path.relpath(path, folder))
        try:
            pixels = load_rgb(path)
        except UnreadableError as error:
            left_out[name] = str(error)
            continue
        height, width = pixels.shape[:2]
        if min(height, width) < min_side:
            reason = f"both sides must be at least {min_side} px, got {width}x{height}"
            left_out[name] = reason
            continue
        images[name] = pixels
    return images, left_out


def as_pixels(image: object, *, max_pixels: int = MAX_PIXELS, padded: bool = True) -> NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 pixels of a file (str or os.PathLike), of a Pillow image, or of an array of them.

    A Pillow image is read by the rules of files: orientation, mode, transparency. padded: as for ``load_image``, of a
    file. Raises InputError for what
    ``load_image`` and ``check_pixels`` refuse.
    """
    if isinstance(image, (str, os.PathLike)):
        return load_image(os.fsdecode(image), max_pixels=max_pixels, padded=padded)
    if not isinstance(image, Image.Image):
        return check_pixels(image, max_pixels=max_pixels)
    fault = _too_large(image.height, image.width, max_pixels)
    if fault is None:
        try:
            # A copy has no file behind it: the caller's image stays as it is, wherever its own reading stands.
            return check_pixels(DecodedImage(image.copy()).rgb(), max_pixels=max_pixels)
        except UnreadableError as error:
            fault = str(error)
    raise InputError(f"photograph: {fault}")


def check_pixels(pixels: object, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return ``pixels``, an (H, W, 3) uint8 array of 1 to ``max_pixels`` pixels; InputError for anything else."""
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"photograph: pixels must be (H, W, 3) uint8, got {describe(pixels)}{_remedy(pixels)}")
    if pixels.size == 0:
        raise InputError(f"photograph: pixels must be at least 1x1, got {describe(pixels)}")
    fault = _too_large(pixels.shape[0], pixels.shape[1], max_pixels)
    if fault:
        raise InputError(f"photograph: {fault}")
    return pixels


def _remedy(image: object) -> str:
    """Return how an image in another form becomes one that is taken, as the end of a message; empty for no image."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "; for the content of a file: PIL.Image.open(io.BytesIO(content))"
    if hasattr(image, "read"):
        return "; for an open file: PIL.Image.open(file)"
    shape, dtype = tuple(getattr(image, "shape", ())), str(getattr(image, "dtype", ""))
    if not dtype or 0 in shape:
        return "; a path or a PIL.Image is taken too"
    if len(shape) == 4:
        return "; pass one image at a time"
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        turn = "permute(1, 2, 0)" if "torch" in dtype else "transpose(1, 2, 0)"
        return f"; put channels last: image.{turn}, values 0 to 255 as uint8" + _TENSOR * ("torch" in dtype)
    if "torch" in dtype:
        return f"; convert it{_TENSOR}"
    if dtype != "uint8":
        return "; for values 0 to 1: (255 * image).round().astype('uint8')"
    return f"; for grey or RGBA: PIL.Image.fromarray(image{'[..., 0]' * (shape[2:] == (1,))})"


_TENSOR = " with .numpy(), or use Scorer.as_metric() for (N, 3, H, W) values 0 to 1"


def mirror_pad(pixels: NDArray[np.uint8], min_side: int = MIN_SIDE) -> NDArray[np.uint8]:
    """Pad sides shorter than ``min_side`` px to it, evenly on both ends, the odd pixel at the end.

    The padding mirrors the image with its edge pixels repeated (``numpy.pad`` calls it "symmetric"): one pixel becomes
    a flat 32 x 32. An image that is large enough is returned as it is.
    """
    missing = [max(0, min_side - side) for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    return np.pad(pixels, [(rest // 2, rest - rest // 2) for rest in missing] + [(0, 0)], mode="symmetric")


def half_scale(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the (H // 2, W // 2, 3) image of Pillow's antialiased bicubic resize. pixels: H and W >= 2."""
    height, width = pixels.shape[:2]
    if compat.resizes_height_first((height, width), (height // 2, width // 2)):
        return np.ascontiguousarray(half_scale(pixels.transpose(1, 0, 2)).transpose(1, 0, 2))
    # Pillow's own two passes, the first by bands of rows: the bytes of one resize without a second copy of the image.
    narrow = Image.new("RGB", (width // 2, height))
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows]))
        narrow.paste(band.resize((width // 2, band.height), Image.Resampling.BICUBIC), (0, top))
    return np.array(narrow.resize((width // 2, height // 2), Image.Resampling.BICUBIC))


def scaled_images(pixels: NDArray[np.uint8], count: int, min_side: int = 1) -> Iterator[NDArray[np.uint8]]:
    """Yield an image at full, half, quarter, ... scale, ``count`` in all, each the half of the one before.

    pixels: (H, W, 3) uint8.  min_side: smallest side that the encoder takes, px. The full scale is padded to MIN_SIDE
    px or ``min_side``, the others to half of MIN_SIDE or ``min_side``, whichever is more (``mirror_pad``).
    """
    pixels = mirror_pad(pixels, max(MIN_SIDE, min_side))
    yield pixels
    for _ in range(count - 1):
        pixels = mirror_pad(half_scale(pixels), max(MIN_SIDE // 2, min_side))
        yield pixels


def crop_grid(pixels: NDArray[np.uint8], *, side: int, count: int) -> NDArray[np.uint8]:
    """Cut the boxes of ``crop_boxes`` from an image: (n, h, w, 3) uint8, n <= count."""
    height, width = pixels.shape[:2]
    boxes = crop_boxes(width, height, side=side, count=count)
    return np.stack([pixels[top:bottom, left:right] for left, top, right, bottom in boxes])


def crop_boxes(width: int, height: int, *, side: int, count: int) -> list[tuple[int, int, int, int]]:
    """Return boxes (left, top, right, bottom) in pixels, all of one size.

    An image of at most count x side^2 pixels is one box, the whole of it. A larger one gets an evenly spaced grid of
    at most ``count`` boxes of side px (less where the image is narrower), the outer ones touching its borders.
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
    lefts, tops = _evenly_spaced(width - w, columns), _evenly_spaced(height - h, rows)
    return [(left, top, left + w, top + h) for top in tops for left in lefts]


def _evenly_spaced(last: int, count: int) -> list[int]:
    """Return ``count`` offsets from 0 to ``last``; a single one is in the middle."""
    if count == 1:
        return [last // 2]
    return [round(last * index / (count - 1)) for index in range(count)]


def _too_large(height: int, width: int, max_pixels: int) -> str | None:
    # A side under MIN_SIDE counts as MIN_SIDE, which it is padded to.
    if max(height, MIN_SIDE) * max(width, MIN_SIDE) > max_pixels:
        return f"{width}x{height} px (a side counts as at least {MIN_SIDE}) is more than max_pixels = {max_pixels:,}"
    return None
