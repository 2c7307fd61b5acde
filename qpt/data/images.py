"""Find and decode image files. Called by pre-training (regions) and by everything else that opens an image file.

Every room gets the same pixels of a file: any format that Pillow opens, upright (EXIF orientation), 8-bit RGB. Relies
on Pillow and, where it is installed, on simplejpeg.
"""

from __future__ import annotations

import glob
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from qpt.errors import InputError

try:  # the extra "jpeg": the same pixels in seven eighths of the time
    import simplejpeg
except ImportError:
    simplejpeg = None

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
_READ_BYTES = 4 << 20  # given to a decoder at a time: with Pillow's own 64 KiB it stops and resumes in most files
#: A JPEG decoded at a reduced size keeps this many times the target size; at less, the decoder's filter shows.
_DRAFT_FACTOR = 2
_ENCODER: Any = getattr(Image, "_getencoder", None)  # not public; ``_to_rgb`` has another way for a Pillow without it

# EXIF orientations (1 to 8) whose stored rows and columns are reversed or swapped.
_BOTTOM_UP, _RIGHT_TO_LEFT, _TRANSPOSED = (3, 4, 7, 8), (2, 3, 6, 7), (5, 6, 7, 8)


def list_images(folder: str | Path) -> list[Path]:
    """List every file below ``folder`` with an image's extension, nested folders included, sorted by relative path.

    Symbolic links are followed. A folder that several links (or a loop of them) lead to is taken once: under its own
    name if that is below ``folder``, else under the first link's. A link to nothing is listed, to be reported as
    unreadable like any other broken file. A folder that may not be read is left out with a warning.
    Raises InputError if ``folder`` is not a folder or holds no such file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"list_images: folder must be an existing folder of images, got {root}")
    found: list[Path] = []
    links, walked = _walk(root, found, set())
    while links:  # after everything that has a name of its own, in the order of their names
        link = links.pop(0)
        more, walked = _walk(link, found, walked)
        links += more
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise InputError(f"list_images: folder must hold at least one image ({kinds}), got none below {root}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _walk(top: Path, found: list[Path], walked: set[tuple[int, int]]) -> tuple[list[Path], set[tuple[int, int]]]:
    """Add the images below ``top`` to ``found``; return the links to folders met on the way and the folders walked.

    walked: (device, inode) of the folders that are not walked again.
    """
    links: list[Path] = []
    for place, folders, names in os.walk(top, onerror=_warn_left_out):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in walked:
            folders.clear()
            continue
        walked.add((status.st_dev, status.st_ino))
        folders.sort()
        here = Path(place)
        links += [here / name for name in folders if (here / name).is_symlink()]
        images = (here / name for name in names if os.path.splitext(name)[1].lower() in EXTENSIONS)
        found += [path for path in images if path.is_file() or path.is_symlink()]
    return links, walked


def _warn_left_out(error: OSError) -> None:
    warnings.warn(f"list_images: {error.filename} is left out: {error.strerror}", stacklevel=4)


def find_images(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Find the image files that names stand for, each once, and the reasons why other names stand for none.

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
def open_image(file: str | Path | BinaryIO, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image file and read its header, within a limit on its pixels.

    file: a path, or the file's content as a binary stream.  max_pixels: width x height that is still opened; None is
    Pillow's own limit (``Image.MAX_IMAGE_PIXELS``). Raises one of ``UNREADABLE``; Pillow's setting is as it was once
    the header is read.
    """
    # Pillow has one limit for the whole process, and warns before it refuses. It is lifted for the header alone; no
    # pixels are decoded here.
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if max_pixels is None:
        max_pixels = limit
    with opened:
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            size = f"{opened.width}x{opened.height}"
            raise Image.DecompressionBombError(f"{size} px is more than the limit of {max_pixels:,} pixels")
        yield opened


class DecodedImage:
    """The decoded pixels of an opened image, upright; only the pixels asked for are converted to RGB.

    Transparency is composited on white and dropped; 16-bit greyscale is scaled to 8 bits; an animation gives its first
    frame. height, width: pixels of the upright image; transposed: whether the file stores its rows as columns. Raises
    one of ``UNREADABLE`` for a file that is not complete.
    """

    def __init__(self, opened: Image.Image) -> None:
        self._stored = _plain_jpeg(opened)
        if self._stored is None:
            if isinstance(opened, ImageFile.ImageFile):
                opened.decodermaxblock = _READ_BYTES
            # Before getexif: a PNG may have its EXIF behind the pixels, and a TIFF turns itself upright here.
            opened.load()
        self._image = opened
        self._orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        self.transposed = self._orientation in _TRANSPOSED
        self.width, self.height = opened.size
        if self.transposed:
            self.width, self.height = self.height, self.width

    def rgb(self) -> NDArray[np.uint8]:
        """Return the whole image as (height, width, 3) uint8; what simplejpeg decoded upright is not copied."""
        if self._stored is not None:
            return np.ascontiguousarray(_upright(self._stored, self._orientation))
        upright = np.empty((self.height, self.width, 3), np.uint8)
        # By bands, so that besides what Pillow decoded (4 bytes a pixel) only these 3 bytes a pixel are held.
        rows = max(1, _BAND_PIXELS // self.width)
        for top in range(0, self.height, rows):
            upright[top : top + rows] = self.window(top, 0, min(rows, self.height - top), self.width)
        return upright

    def window(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return ``rgb()[top : top + height, left : left + width]``, converting these pixels alone; read-only."""
        if self._orientation in _BOTTOM_UP:
            top = self.height - top - height
        if self._orientation in _RIGHT_TO_LEFT:
            left = self.width - left - width
        box = (left, top, left + width, top + height)
        if self.transposed:
            box = (top, left, top + height, left + width)
        return _upright(self._cut(box), self._orientation)

    def _cut(self, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return the (left, top, right, bottom) box of the stored pixels as (h, w, 3) uint8."""
        if self._stored is None:
            return _to_rgb(self._image, box)
        left, top, right, bottom = box
        return self._stored[top:bottom, left:right]


def load_rgb(file: str | Path | BinaryIO, *, max_pixels: int | None = None, shorter_side: int = 0) -> NDArray[np.uint8]:
    """Decode one image file to an (H, W, 3) uint8 array, upright, RGB: see ``DecodedImage``.

    max_pixels: see ``open_image``.  shorter_side: if not 0, resize (bicubic, antialiased) to a shorter side of that
    length; a JPEG is then decoded at the half, quarter or eighth of its size that still has twice that.
    Raises one of ``UNREADABLE`` for a file that is not a complete image.
    """
    with open_image(file, max_pixels=max_pixels) as image:
        if not shorter_side:
            return DecodedImage(image).rgb()
        scale = shorter_side / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image.draft(None, (_DRAFT_FACTOR * width, _DRAFT_FACTOR * height))  # has no effect on any format but JPEG
        decoded = DecodedImage(image)
        if decoded.transposed:
            width, height = height, width
        return np.array(Image.fromarray(decoded.rgb()).resize((width, height), Image.Resampling.BICUBIC))


def _plain_jpeg(opened: Image.Image) -> NDArray[np.uint8] | None:
    """Decode an undamaged colour JPEG at its full size to its stored (h, w, 3) uint8 pixels; None for any other image.

    simplejpeg and Pillow's wheels have the same decoder, libjpeg-turbo: the pixels are those that Pillow would give.
    """
    if simplejpeg is None or not isinstance(opened, JpegImageFile) or opened.mode != "RGB" or opened.decoderconfig:
        return None
    assert opened.fp is not None  # nothing was loaded yet
    opened.fp.seek(0)
    try:
        stored = np.asarray(simplejpeg.decode_jpeg(opened.fp.read(), "RGB"))
    except ValueError:  # anything but a clean stream: Pillow decides whether it is readable, and words the error
        return None
    return stored if stored.shape[1::-1] == opened.size else None


def _upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an upright view of (h, w, 3) pixels as a file of this EXIF orientation (1 to 8) stores them."""
    if orientation in _TRANSPOSED:
        stored = stored.transpose(1, 0, 2)
    if orientation in _BOTTOM_UP:
        stored = stored[::-1]
    return stored[:, ::-1] if orientation in _RIGHT_TO_LEFT else stored


def _to_rgb(image: Image.Image, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return the (left, top, right, bottom) box of an image of any mode as (h, w, 3) uint8."""
    left, top, right, bottom = box
    if image.mode == "RGB" and not image.has_transparency_data and _ENCODER is not None:
        # The same as crop and tobytes in one pass instead of three, which take a tenth of decoding a small JPEG.
        encoder = _ENCODER("RGB", "raw", ("RGB", 0, 1))
        encoder.setimage(image.im, box)
        _, _, packed = encoder.encode(3 * (right - left) * (bottom - top))
        return np.frombuffer(packed, np.uint8).reshape(bottom - top, right - left, 3)
    image = image.crop(box)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # Pillow would clip 16-bit grey to 255 instead of scaling it
        grey = np.asarray(image).astype(np.float64)
        scaled = np.rint(np.clip(grey, 0, 65535) / 257.0).astype(np.uint8)
        return np.repeat(scaled[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.asarray(image.convert("RGB"))
