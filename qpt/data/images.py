"""Find and decode photographs. Called by pre-training (regions) and by everything else that opens an image file.

One place decides what "an image" is: any format Pillow opens, upright (EXIF orientation), 8-bit RGB.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

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


def load_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Decode one image file to an (H, W, 3) uint8 array, upright, RGB.

    Transparency is dropped after compositing on white; 16-bit greyscale is scaled to 8 bits; of an animation, the first
    frame. Raises one of ``UNREADABLE`` for a file that is not a complete image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # Pillow would clip 16-bit grey to 255 instead of scaling it
        grey = np.asarray(image).astype(np.float64)
        scaled = np.rint(np.clip(grey, 0, 65535) / 257.0).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(scaled[..., None], 3, axis=2))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.array(image.convert("RGB"))
