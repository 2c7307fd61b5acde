"""Decode image files. Called by pre-training (regions) and by everything else that opens an image file.

Every room gets the same pixels of a file: any of the formats in ``qpt.data.formats``, upright (EXIF orientation), 8-bit
sRGB. Relies on Pillow and, where they are installed, on simplejpeg and nvImageCodec.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from qpt.data import jpeg_regions
from qpt.data.colour import ToRGB
from qpt.data.faults import UnreadableError, explained, is_machine_fault, read_with_retries
from qpt.data.formats import load_pixels, open_format

try:  # the extra "jpeg": the same pixels in seven eighths of the time
    import simplejpeg
except ImportError:
    simplejpeg = None

#: A JPEG decoded at a reduced size keeps this many times the target size; at less, the decoder's filter shows.
_DRAFT_FACTOR = 2
_BAND_PIXELS = 1 << 20  # converted at a time

# EXIF orientations (1 to 8) whose stored rows and columns are reversed or swapped.
_BOTTOM_UP, _RIGHT_TO_LEFT, _TRANSPOSED = (3, 4, 7, 8), (2, 3, 6, 7), (5, 6, 7, 8)


@contextmanager
def open_image(file: str | Path | BinaryIO, *, max_pixels: int | None = None) -> Iterator[ImageFile.ImageFile]:
    """Open an image file and read its header, within a limit on its pixels.

    file: a path, or the file's content as a binary stream.  max_pixels: width x height that is still opened; None is
    Pillow's own limit (``Image.MAX_IMAGE_PIXELS``), which is read and never changed.
    Raises UnreadableError for a file that is no image, or ReadError if the disk or the machine is at fault.
    """
    with ExitStack() as stack:
        with explained():
            if isinstance(file, (str, os.PathLike)):
                # Opening a pipe waits for who writes to it, maybe for ever; a device may have no end.
                if not stat.S_ISREG(mode := os.stat(file).st_mode) and not stat.S_ISDIR(mode):
                    raise UnreadableError("not a file")
                stream = stack.enter_context(open(file, "rb"))
                opened = open_format(stream, os.fspath(file))
            else:
                opened = open_format(file, "")
            stack.enter_context(opened)
        _check_pixels(opened.width, opened.height, max_pixels)
        yield opened


def image_size(file: str | Path | BinaryIO, *, max_pixels: int | None = None) -> tuple[int, int]:
    """Return (width, height) of an image file as its header states them; see ``open_image``. Decodes no pixels."""

    def read() -> tuple[int, int]:
        with open_image(file, max_pixels=max_pixels) as opened:
            return opened.size

    return read_with_retries(read, lambda: str(file))


def _check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and width * height > limit:
        raise UnreadableError(f"too large ({width}x{height} px is more than the limit of {limit:,} pixels)")


class DecodedImage:
    """The decoded pixels of an opened file, or of an image in memory, upright; only pixels asked for become RGB.

    An animation gives its first frame. height, width: pixels of the upright image; transposed: whether the file stores
    its rows as columns. Raises UnreadableError for a file that is not complete, and ReadError as ``open_image`` does.
    The pixels of a JPEG may be decoded later, as they are asked for: the file must then be open still.
    """

    @explained()
    def __init__(self, opened: Image.Image) -> None:
        self._stored: NDArray[np.uint8] | None = None
        self._jpeg = _content_of_jpeg(opened)
        if self._jpeg and not (jpeg_regions.available() and jpeg_regions.is_whole(self._jpeg)):
            opened = self._decode_jpeg(opened)
        elif not self._jpeg and isinstance(opened, ImageFile.ImageFile):
            # Before getexif: a PNG may have its EXIF behind the pixels, and a TIFF turns itself upright here.
            opened = load_pixels(opened)
        self._image = opened
        self._to_rgb = ToRGB(opened)
        self._orientation = _orientation(opened)
        self.transposed = self._orientation in _TRANSPOSED
        self.width, self.height = opened.size
        if self.transposed:
            self.width, self.height = self.height, self.width

    @explained()
    def rgb(self) -> NDArray[np.uint8]:
        """Return the whole image as (height, width, 3) uint8; what simplejpeg decoded upright is not copied."""
        self._decode_late()
        if self._stored is not None:
            return np.ascontiguousarray(_upright(self._to_rgb.stored(self._stored), self._orientation))
        upright = np.empty((self.height, self.width, 3), np.uint8)
        # By bands, so that besides what Pillow decoded (4 bytes a pixel) only these 3 bytes a pixel are held.
        rows = max(1, _BAND_PIXELS // self.width)
        for top in range(0, self.height, rows):
            upright[top : top + rows] = self.window(top, 0, min(rows, self.height - top), self.width)
        return upright

    @explained()
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
        if self._jpeg:
            pixels = jpeg_regions.decode_region(self._jpeg, self._image.size, box)
            if pixels is not None:
                return self._to_rgb.stored(pixels)
        self._decode_late()
        if self._stored is None:
            return self._to_rgb.pixels(self._image, box)
        left, top, right, bottom = box
        return self._to_rgb.stored(self._stored[top:bottom, left:right])

    def _decode_late(self) -> None:
        """Decode a JPEG of which nothing was decoded so far."""
        if self._jpeg:
            self._image = self._decode_jpeg(self._image)
            self._to_rgb = ToRGB(self._image)

    def _decode_jpeg(self, opened: Image.Image) -> Image.Image:
        """Decode a whole JPEG, with simplejpeg if it is undamaged, or else with Pillow; return the image to go on with.

        simplejpeg and Pillow's wheels have the same decoder, libjpeg-turbo: the pixels are the same.
        """
        content, self._jpeg = self._jpeg, b""
        if simplejpeg is not None:
            # ValueError for anything but a clean stream: Pillow decides whether it is readable, and words the error.
            with suppress(ValueError):
                stored = np.asarray(simplejpeg.decode_jpeg(content, "RGB"))
                if stored.shape[1::-1] == opened.size:
                    self._stored = stored
                    return opened
        return load_pixels(opened)


def load_rgb(file: str | Path | BinaryIO, *, max_pixels: int | None = None, shorter_side: int = 0) -> NDArray[np.uint8]:
    """Decode one image file to an (H, W, 3) uint8 array, upright, RGB: see ``DecodedImage``.

    max_pixels: see ``open_image``.  shorter_side: if not 0, resize (bicubic, antialiased) to a shorter side of that
    length; a JPEG is then decoded at the half, quarter or eighth of its size that still has twice that. The limit on
    pixels holds for the resized image too.
    Raises UnreadableError for a file that is not a complete image, and ReadError if the disk or the machine is at
    fault, after three more attempts.
    """
    return read_with_retries(
        lambda: decode_rgb(file, max_pixels=max_pixels, shorter_side=shorter_side), lambda: str(file)
    )


def decode_rgb(
    file: str | Path | BinaryIO, *, max_pixels: int | None = None, shorter_side: int = 0
) -> NDArray[np.uint8]:
    """Do what ``load_rgb`` does in a single attempt."""
    with open_image(file, max_pixels=max_pixels) as image:
        if not shorter_side:
            return DecodedImage(image).rgb()
        scale = shorter_side / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        _check_pixels(width, height, max_pixels)
        image.draft(None, (_DRAFT_FACTOR * width, _DRAFT_FACTOR * height))  # has no effect on any format but JPEG
        decoded = DecodedImage(image)
        if decoded.transposed:
            width, height = height, width
        with explained():
            return np.array(Image.fromarray(decoded.rgb()).resize((width, height), Image.Resampling.BICUBIC))


def _content_of_jpeg(opened: Image.Image) -> bytes:
    """Return the content of a colour JPEG that is decoded at its full size; nothing for any other image.

    Nothing either where Pillow alone could decode it, which reads the file itself.
    """
    if simplejpeg is None and not jpeg_regions.available():
        return b""
    if not isinstance(opened, JpegImageFile) or opened.mode != "RGB" or opened.decoderconfig:
        return b""
    assert opened.fp is not None  # nothing was loaded yet
    opened.fp.seek(0)
    content: bytes = opened.fp.read()
    return content


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or the EXIF is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # readers of EXIF raise anything; what they raise costs no pixels
        if is_machine_fault(error):
            raise
        return 1
    return int(value) if value in range(1, 9) else 1


def _upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an upright view of (h, w, 3) pixels as a file of this EXIF orientation (1 to 8) stores them."""
    if orientation in _TRANSPOSED:
        stored = stored.transpose(1, 0, 2)
    if orientation in _BOTTOM_UP:
        stored = stored[::-1]
    return stored[:, ::-1] if orientation in _RIGHT_TO_LEFT else stored
