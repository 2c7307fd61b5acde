"""Properties of tone, colour and geometry ops that do not depend on their arithmetic: means, ends, distances, draws.

Continues the properties of test_ops.py and test_ops_library.py. Seeds are fixed; p-values do not change between runs.
"""

import numpy as np
import pytest
import scipy.stats
import skimage.color
import skimage.data

from tests.engine import run_one


def test_chroma_keeps_lightness_and_multiplies_colour_where_it_fits():
    image = skimage.data.chelsea()[100:160, 150:230]  # muted colours
    before, after = skimage.color.rgb2lab(image), skimage.color.rgb2lab(run_one(image, "chroma", 1.4))
    assert np.abs(after[..., 0] - before[..., 0]).mean() < 0.3  # rounding to 8 bits
    inside = (run_one(image, "chroma", 1.4) > 0).all(axis=-1)
    assert np.abs(after - before * [1, 1.4, 1.4])[inside].mean() < 0.6


def test_brightness_curve_moves_mid_grey_by_half_its_amount_and_keeps_the_ends():
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for amount in (-0.8, -0.3, 0.2, 0.7):
        out = run_one(ramp, "brightness_curve", amount)[0, :, 0].astype(int)
        assert (out[0], out[-1]) == (0, 255) and (np.diff(out) >= 0).all()
        assert (np.sign(out - np.arange(256)) * np.sign(amount) >= 0).all()
    # on RGB the middle moves by amount / 2, on L (53.6 of 100 there) by 0.4974 amount
    assert abs(run_one(ramp, "brightness_curve", -0.4)[0, 128, 0] - (128 - 0.2 * 255)) <= 1
    assert abs(run_one(ramp, "brightness_curve", 0.4)[0, 128, 0] - (128 + 0.2 * 255)) <= 3


@pytest.mark.parametrize("levels", [2, 3, 6, 14])
def test_dither_keeps_the_mean_of_every_grey_to_a_64th_of_its_step(levels):
    for grey in range(256):
        out = run_one(np.full((16, 24, 3), grey, np.uint8), "dither", levels)
        assert len(np.unique(out)) <= 2
        assert abs(out.mean() - grey) <= 0.5 + 255 / (levels - 1) / 128


def test_chromatic_aberration_parts_red_and_blue_about_the_centre():
    """A white line right of the centre by 20 px: red goes outwards by 10 per cent of that, blue inwards."""
    image = np.zeros((5, 81, 3), np.uint8)
    image[:, 60] = 255
    out = run_one(image, "chromatic_aberration", 0.1)[2].astype(float)
    red, green, blue = (out[:, c] @ np.arange(81) / out[:, c].sum() for c in range(3))
    assert abs(red - 62) < 0.3 and green == 60 and abs(blue - 58) < 0.3


def test_jitter_steps_are_normal_and_independent():
    """Places on a ramp are read off its values: rows from green, columns from red, 8 levels to the pixel."""
    rows, columns = np.mgrid[:32, :32] * 8.0
    image = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    steps = []
    for seed in range(60):
        out = run_one(image, "spatial_jitter", 0.4, seed=seed).astype(np.float64) - image
        steps.append(out[12:20, 12:20, :2].reshape(-1, 2))  # so far inside that the border is not reached
    steps = np.concatenate(steps)
    steps = (steps + np.random.default_rng(0).uniform(-0.5, 0.5, steps.shape)) / 8  # the rounding's ties broken
    std = 0.4 * np.sqrt(5)
    assert scipy.stats.kstest(steps.ravel() / std, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(steps.T)[0, 1]) < 5 / np.sqrt(len(steps))


def test_patches_come_from_at_most_eight_pixels_away():
    """Every pixel names its place by its colour, so the step of each is known."""
    rows, columns = np.mgrid[:120, :130]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    steps = run_one(image, "non_eccentricity_patch", 60, seed=2).astype(int) - image
    assert np.abs(steps).max() == 8
    assert 0.3 < (steps != 0).any(axis=-1).mean() < 0.75


def test_colour_blocks_are_squares_of_uniform_colours():
    image = np.zeros((300, 320, 3), np.uint8)
    colours = []
    for seed in range(200):
        out = run_one(image, "colour_block", 1, seed=seed)
        at = np.argwhere(out.any(axis=-1))
        (top, left), (bottom, right) = at.min(axis=0), at.max(axis=0)
        assert bottom - top == right - left == 31
        assert (out[top : bottom + 1, left : right + 1] == out[top, left]).all()
        colours += out[top, left].tolist()
    assert scipy.stats.kstest(np.array(colours) / 256 + 1 / 512, "uniform").pvalue > 1e-3
