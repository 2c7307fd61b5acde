"""Convert decoded pixels of any mode to 8-bit sRGB. Called by ``qpt.data.images``; relies on Pillow and LittleCMS.

Colour profiles are applied, samples of more than 8 bits are scaled by the range that their file states, and
transparency is laid on white.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from qpt.data.faults import UnreadableError
from qpt.errors import BackendError

_ENCODER: Any = getattr(Image, "_getencoder", None)  # not public; ``ToRGB`` has another way for a Pillow without it
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
#: TIFF tags: the lowest and the highest sample, as the range of the file and as that of the picture.
_RANGE_TAGS = ((340, 341), (280, 281))
_PHOTOMETRIC, _SAMPLE_FORMAT, _BITS = 262, 339, 258
_WHITE_IS_ZERO, _SIGNED = 0, 2
#: Samples that use less than a sixteenth of their range come out black, which their source need not be.
_LEAST_SHARE = 16
_SRGB_LEVELS = 2  # a profile that moves no colour by more is sRGB, rounded
#: Colour space of a profile -> the mode that it applies to, and the modes whose images are converted to that one first.
_PROFILE_MODES = {
    b"RGB ": ("RGB", ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")),
    b"GRAY": ("L", ("1", "L", "LA", "La", *_DEEP)),
    b"CMYK": ("CMYK", ("CMYK",)),
}


class ToRGB:
    """The conversion of one decoded image to 8-bit sRGB.

    Raises UnreadableError for samples whose range is not known: signed ones, and such that would come out black.
    """

    def __init__(self, image: Image.Image) -> None:
        self._tags: Any = getattr(image, "tag_v2", {})
        self._profile_mode, self._transform = "", None
        if profile := image.info.get("icc_profile"):
            mode, modes = _PROFILE_MODES.get(bytes(profile[16:20]), ("", ()))
            if image.mode in modes:
                self._profile_mode, self._transform = mode, _to_srgb(bytes(profile), mode)
        if image.mode in _DEEP:
            self._low, self._high = self._range(image)
        elif _SIGNED in self._numbers(_SAMPLE_FORMAT):
            raise UnreadableError("cannot be decoded (signed samples are no picture)")

    def pixels(self, image: Image.Image, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return the (left, top, right, bottom) box of the image as (h, w, 3) uint8."""
        left, top, right, bottom = box
        if image.mode == "RGB" and not image.has_transparency_data and self._transform is None and _ENCODER is not None:
            # The same as crop and tobytes in one pass instead of three, which take a tenth of decoding a small JPEG.
            encoder = _ENCODER("RGB", "raw", ("RGB", 0, 1))
            encoder.setimage(image.im, box)
            _, _, packed = encoder.encode(3 * (right - left) * (bottom - top))
            return np.frombuffer(packed, np.uint8).reshape(bottom - top, right - left, 3)
        image = image.crop(box)
        if image.mode in _DEEP:
            image = self._scaled(image)
        opaque = None
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            if self._transform is not None:
                profiled = _apply(self._transform, rgba.convert(self._profile_mode))
                profiled.putalpha(rgba.getchannel("A"))
                rgba = profiled
            opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
        elif self._transform is not None:
            opaque = _apply(self._transform, image.convert(self._profile_mode))
        return np.asarray((opaque or image).convert("RGB"))

    def stored(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (h, w, 3) uint8 pixels in the image's own colours as sRGB; the same array where they are that."""
        if self._transform is None:
            return pixels
        return np.asarray(_apply(self._transform, Image.fromarray(pixels)))

    def _scaled(self, image: Image.Image) -> Image.Image:
        """Return an image of more than 8 bits as 8-bit greyscale, white where it is transparent."""
        samples = self._samples(image)
        scale = 255.0 / (self._high - self._low)
        grey = np.rint((np.clip(samples, self._low, self._high) - self._low) * scale).astype(np.uint8)
        if self._numbers(_PHOTOMETRIC) == (_WHITE_IS_ZERO,):
            grey = 255 - grey
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[samples == transparent] = 255
        return Image.fromarray(grey)

    def _samples(self, image: Image.Image) -> NDArray[np.float64]:
        samples = np.asarray(image)
        if samples.dtype == np.int32 and self._numbers(_SAMPLE_FORMAT) != (_SIGNED,):
            samples = samples.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
        return samples.astype(np.float64)

    def _range(self, image: Image.Image) -> tuple[float, float]:
        """Return the samples that are black and white: as the file states them, else of the samples' type."""
        for low_tag, high_tag in _RANGE_TAGS:
            low, high = self._numbers(low_tag) or (0,), self._numbers(high_tag)
            if high and high[0] > low[0]:
                return float(low[0]), float(high[0])
        samples = self._samples(image)
        least, most = float(samples.min()), float(samples.max())
        bits = self._numbers(_BITS)
        if image.mode == "F":
            full = next((full for full in (1.0, 255.0, 65535.0) if most <= full), 0.0)
        else:
            full = 2.0 ** (bits[0] if bits else 16) - 1
        if _SIGNED in self._numbers(_SAMPLE_FORMAT) or not (0 <= least <= most <= full and most * _LEAST_SHARE >= full):
            if most == least == 0:  # black, whatever the range
                return 0.0, 1.0
            raise UnreadableError(
                f"cannot be decoded (samples from {least:g} to {most:g} of a range that the file does not state)"
            )
        return 0.0, full

    def _numbers(self, tag: int) -> tuple[float, ...]:
        """Return the values of a TIFF tag; () if the image has none."""
        value = self._tags.get(tag, ())
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@functools.lru_cache(16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a colour profile to sRGB; None for sRGB itself and for a profile that is damaged."""
    if not features.check("littlecms2"):
        raise BackendError(
            "images: a colour profile needs LittleCMS, which this Pillow was built without: pip install pillow"
        )
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode != "CMYK":
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        given = Image.fromarray(colours).convert(mode)
        moved = np.asarray(_apply(transform, given), np.int16) - np.asarray(given.convert("RGB"))
        if np.abs(moved).max() <= _SRGB_LEVELS:
            return None
    return transform


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only a conversion in place returns nothing
    return converted
