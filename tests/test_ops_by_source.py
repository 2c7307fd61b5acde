"""The ops that reproduce one source's code, at the settings that its preset uses and the op table's levels do not.

Also their library oracles, which are compared as in test_ops_library.py.
"""

import warnings

import cv2
import numpy as np
import pytest
import skimage.color
import torch
from PIL import Image

from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.degradations.rows.by_source import BY_SOURCE
from tests.engine import run_one
from tests.reference.by_source import edge_share, jitter_rounds, scan, shifted_green, shuffled_squares, trail
from tests.reference.degradations import REFERENCE
from tests.test_ops import MISSES, ROUNDED, WITHIN, cv2_gaussian, sample_images, settings_of, skimage_hsv


@pytest.mark.rung("reference")
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("colour_diffusion_lab", (0.0, 1.0, 1)),
        ("colour_diffusion_lab", (6.5, 3.0, 1)),
        ("colour_diffusion_lab", (0.0, 9.0, 0)),
        ("glass_shuffle", (2, 1.0, 3)),
        ("glass_shuffle", (3, 0.5, 0)),
        ("motion_blur", (0.0, 30.0)),
        ("motion_trail", (24, 20.0, 10.0)),
        ("patch_shuffle", (100, 1)),
        ("repeated_jitter", (0.5, 5, 1)),
        ("repeated_jitter", (1.0, 2, 1)),
        ("saturation_affine", (5.0, 0.1)),
        ("saturation_affine", (20.0, 0.2)),
        ("saturation_affine", (0.5, -0.2)),
        ("tone_cubic", (1.744, -2.9762)),
        ("tone_cubic", (0.4048, 2.381)),
    ],
)
def test_agrees_with_its_numpy_definition_at_other_settings(name, params):
    params = tuple(float(np.float32(value)) for value in params)
    for image in sample_images():
        for seed in range(2):
            exact = REFERENCE[name](image, params, seed, 0)
            off = np.abs(run_one(image, name, *params, seed=seed) - exact) > WITHIN.get(name, ROUNDED)
            assert np.count_nonzero(off) <= MISSES.get(name, 0), (image.shape, params)


# --- library calls ----------------------------------------------------------------------------------------------------


def cv2_trail(image, params, seed):
    down, right, weights = trail(int(params[0]), *params[1:])
    reach = max(np.abs(down).max(), np.abs(right).max())
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (down + reach, right + reach), weights)
    return cv2.filter2D(image.astype(np.float64), cv2.CV_64F, kernel, borderType=cv2.BORDER_REPLICATE)


def cv2_glass_shuffle(image, params, seed):
    moved = np.rint(cv2_gaussian(image, params[1:2]))
    for number in range(int(params[2])):
        moved = scan(moved, int(params[0]), seed, 0, tag=56 + number)
    return cv2_gaussian(moved, params[1:2])


def torch_nearest(image, params, seed):
    height, width, _ = image.shape
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = (max(int(height * params[0]), 1), max(int(width * params[0]), 1))
    for size in (small, (height, width)):
        planes = torch.nn.functional.interpolate(planes, size, mode="nearest")
    return planes[0].permute(1, 2, 0).numpy()


def cv2_jitter(image, params, seed):
    image = image.astype(np.float64)
    for rows, columns in jitter_rounds(*image.shape[:2], params, seed, 0):
        rows, columns = np.clip(rows, 0, len(image) - 1), np.clip(columns, 0, image.shape[1] - 1)
        image, at = np.rint(image), (rows.astype(int), columns.astype(int))
        beside = np.minimum(at[1] + 1, image.shape[1] - 1)
        below = np.minimum(at[0] + 1, len(image) - 1)
        down, right = (rows - at[0])[..., None], (columns - at[1])[..., None]
        upper = image[at] + right * (image[at[0], beside] - image[at])
        lower = image[below, at[1]] + right * (image[below, beside] - image[below, at[1]])
        image = upper + down * (lower - upper)
    return image


def pillow_squares(image, params, seed):
    out = Image.fromarray(image)
    for rows, columns, top, left, to_top, to_left in shuffled_squares(*image.shape[:2], int(params[0]), seed, 0):
        out.paste(out.crop((left, top, left + columns, top + rows)), (to_left, to_top))
    return np.asarray(out)


def skimage_saturation(image, params, seed):
    change = skimage_hsv(1, lambda s, factor: np.minimum(s * factor + params[1], 1))
    return np.clip(change(image, params), 0, 255)


def numpy_tone(image, params, seed):
    curve = np.polynomial.Polynomial([0.5, params[0], 0, params[1]])
    return 255 * np.clip(curve(image / 255 - 0.5), 0, 1)


def numpy_quantise(image, params, seed):
    levels = int(params[0])
    number = np.digitize(image, np.arange(levels + 1) * 255 / levels, right=True)
    stretched = np.interp(number, (number.min(), number.max()), (0, 255)) if np.ptp(number) else number * 255.0
    return np.clip(stretched, 0, 255)


def skimage_diffusion(image, params, seed):
    lab, radius = skimage.color.rgb2lab(image), int(np.ceil(2 * params[0]))
    blurred = cv2.GaussianBlur(lab, (2 * radius + 1,) * 2, params[0], borderType=cv2.BORDER_REFLECT_101)
    lab[..., 1:] = params[1] * blurred[..., 1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of colours beyond the RGB cube, which are meant
        return skimage.color.lab2rgb(lab) * 255


def cv2_edge_shift(image, params, seed):
    grey = np.pad((image @ np.array([0.299, 0.587, 0.114])), 1, mode="edge")
    down, across = (part[1:-1, 1:-1] for part in np.gradient(grey))
    edge = cv2.GaussianBlur(np.hypot(across, down), (17, 17), 4, borderType=cv2.BORDER_REPLICATE)
    share = cv2.normalize(edge, None, 0, 1, cv2.NORM_MINMAX) if np.ptp(edge) > 1e-9 else np.zeros_like(edge)
    out = image.astype(np.float64)
    out[..., 1] = (1 - share) * image[..., 1] + share * shifted_green(image, *params)[..., 0]
    return out


ORACLES = {
    "motion_trail": cv2_trail,
    "glass_shuffle": cv2_glass_shuffle,
    "rescale_nearest_floor": torch_nearest,
    "repeated_jitter": cv2_jitter,
    "patch_shuffle": pillow_squares,
    "saturation_affine": skimage_saturation,
    "tone_cubic": numpy_tone,
    "quantise_stretched": numpy_quantise,
    "colour_diffusion_lab": skimage_diffusion,
    "colour_shift_edges": cv2_edge_shift,
}
EXACT = {"rescale_nearest_floor", "patch_shuffle"}


@pytest.mark.rung("reference")
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("row", BY_SOURCE, ids=lambda row: row.name)
def test_agrees_with_its_library_oracle(row, level):
    for image in sample_images():
        for seed, params in enumerate(settings_of(row, level)):
            difference = np.abs(run_one(image, row.name, *params, seed=seed) - ORACLES[row.name](image, params, seed))
            limit = 0 if row.name in EXACT else WITHIN.get(row.name, ROUNDED)
            assert np.count_nonzero(difference > limit) <= MISSES.get(row.name, 0), (image.shape, params)


# --- properties -------------------------------------------------------------------------------------------------------


def test_these_rows_are_the_last_of_the_table():
    assert DEGRADATIONS[-len(BY_SOURCE) :] == BY_SOURCE


def test_a_scan_carries_pixels_further_than_its_reach():
    """A pixel that the scan has passed may be read again: colours travel up and left by more than the reach."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :, 0] = np.arange(64)[:, None] * 4
    moved = scan(image, 3, seed=1, slot=0, tag=56)[..., 0].astype(int) - image[..., 0]
    assert moved.min() >= -3 * 4
    assert moved.max() > 3 * 4


def test_colour_shift_at_edges_leaves_flat_regions():
    image = np.full((64, 64, 3), 40, np.uint8)
    image[:, 32:] = 200
    out = run_one(image, "colour_shift_edges", 6.0, 0.0)
    assert (out[..., [0, 2]] == image[..., [0, 2]]).all()
    changed = np.flatnonzero((out != image).any(axis=(0, 2)))
    assert changed.min() >= 32 and changed.max() < 38
    assert edge_share(image)[:, 31:33].min() > 0.99


def test_the_floored_grid_moves_the_picture():
    """Halving keeps every other pixel of the first of a pair: a pixel right of it is lost."""
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, ::2] = 255
    assert (run_one(image, "rescale_nearest_floor", 0.5) == 255).all()


def test_swapped_diffusion_is_that_of_the_reversed_channels_rounded_down():
    image = np.random.default_rng(3).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    reversed_image = np.ascontiguousarray(image[..., ::-1])
    plain = run_one(reversed_image, "colour_diffusion_lab", 2.0, 2.0, 0)[..., ::-1].astype(int)
    swapped = run_one(image, "colour_diffusion_lab", 2.0, 2.0, 1).astype(int)
    assert set(np.unique(plain - swapped)) == {0, 1}
