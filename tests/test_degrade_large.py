"""Large images, 8192 x 8192 in the long form: Pillow's bytes, and noise up to the last row."""

import io

import numpy as np
import PIL.features
import pytest
import torch
from PIL import Image

from qpt.degradations.program import Program
from qpt.ops.degrade.api import degrade

HEIGHT_WIDTH = {False: (517, 1031), True: (8192, 8192)}


def large_image(height: int, width: int) -> np.ndarray:
    """Return (height, width, 3) uint8 gradients and a weave that is not periodic along a row or a column."""
    y, x = np.arange(height, dtype=np.uint32)[:, None], np.arange(width, dtype=np.uint32)
    smooth = (y * 200 // height + x * 55 // width)[..., None] + np.array([0, 30, 90], np.uint32)
    return (smooth ^ ((y * x // 97) & 15)[..., None]).astype(np.uint8)


@pytest.mark.skipif(not PIL.features.check("libjpeg_turbo"), reason="Pillow without libjpeg-turbo has other bytes")
def test_a_large_image_gets_the_bytes_of_pillow(long):
    image = large_image(*HEIGHT_WIDTH[long])
    height, width, _ = image.shape
    program = Program.from_chains([[("jpeg", [20.0]), ("rescale_bilinear", [3.0])]], seeds=[0])
    result = degrade(torch.from_numpy(image)[None], program)[0].numpy()
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=20)
    small = (round(width / 3), round(height / 3))
    decoded = Image.open(file).resize(small, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(result, np.asarray(decoded.resize((width, height), Image.Resampling.BILINEAR)))


def test_noise_reaches_the_last_row(long):
    height, width = HEIGHT_WIDTH[long]
    grey = torch.full((1, height, width, 3), 128, dtype=torch.uint8)
    noisy = degrade(grey, Program.from_chains([[("gaussian_noise", [20.0])]], seeds=[1]))[0]
    first, last = noisy[:40], noisy[-40:]
    assert not torch.equal(first, last)
    for rows in (first, last):  # at least 120,000 samples: their mean is within 0.06 and their spread within 0.04
        assert abs(rows.double().mean() - 128) < 0.3
        assert abs(rows.double().std() - 20) < 0.2
