"""Small pictures for a page, as JPEG files. Called by the sections that show images; it reads image files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.evaluate.image_crops import load_image

THUMBNAIL_PX = 304
PATCH_PX = 150  # what a small patch is enlarged to at least
_GAP_PX = 6


def thumbnail(path: Path) -> bytes:
    """Return an image file as a JPEG of at most THUMBNAIL_PX px a side."""
    picture = Image.fromarray(load_image(path))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return _jpeg(picture, 82)


def patches_in_a_row(patches: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return patches (s, s, 3) side by side, pixel for pixel or enlarged by a whole factor."""
    # A whole factor and no chroma subsampling: the degradation must show, and nothing that the enlargement adds.
    factor = max(1, -(-PATCH_PX // patches[0].shape[0]))
    large = [patch.repeat(factor, axis=0).repeat(factor, axis=1) for patch in patches]
    gap = np.full((large[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    parts = [part for patch in large for part in (patch, gap)][:-1]
    return _jpeg(Image.fromarray(np.concatenate(parts, axis=1)), 92)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()
