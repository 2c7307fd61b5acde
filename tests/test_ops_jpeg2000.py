"""JPEG 2000 compared with OpenJPEG through Pillow, on photographs of scikit-image and scikit-learn other than those on
which benchmarks/fit_jpeg2000.py fits the bits per coefficient. test_ops.py compares with the NumPy definition.
"""

import functools

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import features

from benchmarks.degrade_baselines import openjpeg
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from tests.engine import run_one
from tests.reference import jpeg2000

RATIOS = [DEGRADATIONS[NAMES.index("jpeg2000")].parameters[0].alternatives(level)[0] for level in range(1, LEVELS + 1)]
with_openjpeg = pytest.mark.skipif(not features.check("jpg_2000"), reason="needs a Pillow built with OpenJPEG")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(np.float64) - b).mean())


@functools.cache
def photographs() -> list[np.ndarray]:
    """Crops of 160 to 320 pixels a side."""
    astronaut, coffee, cat = skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()
    china, flower = sklearn.datasets.load_sample_images().images
    crops = [astronaut[:256, 90:346], astronaut[200:456, 200:456], coffee[60:316, 150:406], cat[20:276, 100:356]]
    crops += [china[100:356, 200:456], china[:160, 300:500], flower[50:306, 150:406], flower[100:420, 250:570]]
    return [np.ascontiguousarray(crop) for crop in crops]


@with_openjpeg
@pytest.mark.rung("reference")
def test_error_is_that_of_openjpeg_at_every_ratio():
    off, nearer = [], []
    for image in photographs():
        for ratio in RATIOS:
            ours, theirs = run_one(image, "jpeg2000", ratio), openjpeg(image, ratio)
            off.append(psnr(image, ours) - psnr(image, theirs))
            nearer.append(psnr(ours, theirs) - psnr(image, theirs))
    assert np.median(np.abs(off)) <= 0.5, off
    assert np.percentile(np.abs(off), 90) <= 1.5, off
    assert abs(np.median(off)) <= 0.3, off
    # closer to what OpenJPEG made than the original is; each on its own, but for noise that both round differently
    assert min(nearer) > -0.5 and np.median(nearer) > 2, nearer


@with_openjpeg
@pytest.mark.parametrize("side", [64, 96, 128])
def test_small_images_keep_as_much_as_a_file_of_headers(side):
    """OpenJPEG writes at least its headers and a few coefficients; here, too, some coefficients are always kept."""
    for image in photographs()[:4]:
        part = np.ascontiguousarray(image[64 : 64 + side, 64 : 64 + side])
        ours, theirs = run_one(part, "jpeg2000", 170.0), openjpeg(part, 170.0)
        assert psnr(part, ours) > psnr(part, theirs) - 3
        assert ours.std() > part.std() / 3


def test_the_transform_is_nearly_orthonormal_and_goes_back_exactly():
    generator = np.random.default_rng(2)
    for shape in ((1, 1), (1, 6), (5, 1), (2, 3), (33, 47), (64, 64)):
        image = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
        planes = jpeg2000.coefficients(image)
        np.testing.assert_allclose(jpeg2000.restored(planes), image, atol=0.01)  # the colour matrices have six digits
    energy = (planes**2).sum() / (((image - 128.0) @ jpeg2000.TO_YCBCR.T * jpeg2000.NORMS) ** 2).sum()
    assert 0.9 < energy < 1.1


def test_ratio_one_changes_little_and_higher_ratios_more():
    image = photographs()[0]
    assert np.abs(run_one(image, "jpeg2000", 1.0).astype(int) - image).max() <= 3
    errors = [psnr(image, run_one(image, "jpeg2000", ratio)) for ratio in (2, 4, 8, 16, 32, 64, 128, 256)]
    assert errors == sorted(errors, reverse=True)
