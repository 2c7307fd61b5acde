"""The images that scikit-image and scikit-learn ship, for the demonstration, documentation, benchmarks and tests.

Called by ``qpt demo`` without a folder; it opens no file.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qpt.errors import BackendError

#: Photographs (not drawings, not microscopy) in the two wheels.
_FILES = {
    "skimage": (
        *("coffee.png", "astronaut.png", "brick.png", "chelsea.png", "camera.png", "grass.png"),
        *("rocket.jpg", "coins.png", "gravel.png", "motorcycle_left.png", "hubble_deep_field.jpg"),
    ),
    "sklearn": ("flower.jpg", "china.jpg"),
}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


def sample_images() -> list[Path]:
    """Return the paths of the images in both wheels. Raises BackendError if one of them is not installed."""
    found = []
    for package, names in _FILES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise BackendError(f"demo: {package} is not installed; `pip install -e '.[demo]'` brings its photographs")
        root = Path(spec.origin).parent / _FOLDERS[package]
        found += [root / name for name in names if (root / name).is_file()]
    return found
