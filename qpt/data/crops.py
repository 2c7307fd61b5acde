"""Square crops of images, cut at random places and scales. Called by the demonstration, ``qpt probe`` and reports.

Relies on Pillow for the antialiased reduction. Everything derives from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def cut_crops(
    images: Sequence[NDArray[np.uint8]], count: int, *, size: int, seed: int, scales: Sequence[float] = (1.0,)
) -> NDArray[np.uint8]:
    """Cut (count, size, size, 3) uint8 crops from the images in turn: crop i is of image i % len(images).

    images: (H, W, 3) uint8 each.  size: side of a crop, px.  scales: in (0, 1]; a crop covers size / scale px of the
    image, antialiased down to size, at a scale drawn from those that fit. Where none fits, the crop is the largest
    square of the image at a random place, resized up.
    """
    rng = np.random.default_rng(seed)
    crops = []
    for index in range(count):
        image = images[index % len(images)]
        sides = [side for side in (round(size / scale) for scale in scales) if side <= min(image.shape[:2])]
        side = int(rng.choice(sides)) if sides else min(image.shape[:2])
        top, left = (int(rng.integers(0, image.shape[axis] - side + 1)) for axis in (0, 1))
        crop = Image.fromarray(image[top : top + side, left : left + side])
        crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(crops)
