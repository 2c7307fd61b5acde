"""Find and decode photographs. Called by pre-training (regions) and by everything else that opens an image file.

One place decides what "an image" is: any format Pillow opens, upright (EXIF orientation), 8-bit RGB.
"""

from __future__ import annotations

import glob
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from qpt.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"})

#: What Pillow raises for a file that is not an image, is cut short, or is too large to be opened safely.
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    MemoryError,
)

_PILLOW_LIMIT = threading.Lock()
_BAND_PIXELS = 1 << 20  # converted at a time


def list_images(folder: str | Path) -> list[Path]:
    """Every file below ``folder`` with an image's extension, nested folders included, sorted by relative path.

    Raises InputError if ``folder`` is not a folder or holds no such file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"list_images: folder must be an existing folder of images, got {root}")
    found = [path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise InputError(f"list_images: folder must hold at least one image ({kinds}), got none below {root}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def find_images(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The image files that names stand for, each once, and what is wrong with names that stand for none.

    A name is a file, taken as it is whatever its extension; a folder, of which every image below it is taken
    (``list_images``); or, if there is no such file, a pattern with ``*``, ``?``, ``[...]`` or ``**``.
    Returns paths as text in the order of names (sorted within a folder or pattern), and name -> reason.
    """
    found: list[str] = []
    faults: dict[str, str] = {}
    for name in names:
        matches = [name]
        if not Path(name).exists() and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                faults[name] = "no file matches this pattern"
        for match in matches:
            if not Path(match).is_dir():
                found.append(match)
                continue
            try:
                found += [str(path) for path in list_images(match)]
            except InputError:
                faults[match] = "no image in this folder"
    return list(dict.fromkeys(found)), faults


@contextmanager
def open_image(path: str | Path, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image file and read its header, within a limit on its pixels.

    max_pixels: width x height that is still opened; None is Pillow's own limit (``Image.MAX_IMAGE_PIXELS``). Raises
    one of ``UNREADABLE``; Pillow's setting is as it was once the header is read.
    """
    if max_pixels is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path)
    else:
        # Pillow knows one limit for the whole process. It is lifted for the header alone; no pixels are decoded here.
        with _PILLOW_LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                opened = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    with opened:
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            size = f"{opened.width}x{opened.height}"
            raise Image.DecompressionBombError(f"{size} px is more than the limit of {max_pixels:,} pixels")
        yield opened


def load_rgb(path: str | Path, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode one image file to an (H, W, 3) uint8 array, upright, RGB.

    Transparency is dropped after compositing on white; 16-bit greyscale is scaled to 8 bits; of an animation, the first
    frame. max_pixels: see ``open_image``. Peak memory is Pillow's decoded image (4 bytes a pixel) and the array (3):
    the conversion goes by bands. Raises one of ``UNREADABLE`` for a file that is not a complete image.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        image.load()  # before getexif: a PNG may have its EXIF behind the pixels, and a TIFF turns itself
        width, height = image.size
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        swapped = orientation in (5, 6, 7, 8)
        upright = np.empty((width, height, 3) if swapped else (height, width, 3), np.uint8)
        stored = _as_stored(upright, orientation)
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            stored[top:bottom] = _band_rgb(image.crop((0, top, width, bottom)))
    return upright


def _as_stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of an upright picture in the order in which a file of this EXIF orientation (1 to 8) stores its pixels."""
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    return upright.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else upright


def _band_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Rows of an image of any mode as (h, w, 3) uint8."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # Pillow would clip 16-bit grey to 255 instead of scaling it
        grey = np.asarray(image).astype(np.float64)
        scaled = np.rint(np.clip(grey, 0, 65535) / 257.0).astype(np.uint8)
        return np.repeat(scaled[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.asarray(image.convert("RGB"))
