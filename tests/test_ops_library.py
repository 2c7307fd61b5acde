"""Ops compared with the library call that the op table names as their oracle: OpenCV, Pillow, SciPy, scikit-image.

Continues ORACLES of test_ops.py; every level is tested on photographs, noise and awkward sizes. An oracle returns
floats before rounding, or the library's own integers if the op must give the same bytes.
"""

import itertools
import warnings

import cv2
import numpy as np
import pytest
import scipy.cluster.vq
import scipy.ndimage
import scipy.spatial.transform
import skimage.color
import skimage.data
import skimage.exposure
from PIL import Image, ImageDraw, ImageOps

from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from tests.engine import run_one
from tests.reference.blurs import glass_offsets, zoom_positions
from tests.reference.geometry import elastic_field, jittered_places, moved_patches, squares
from tests.reference.noise import covariance_quaternion, covariance_spread, iso_numbers
from tests.reference.philox import normals
from tests.reference.shapes import generalised_kernel, plateau_kernel, sinc_kernel
from tests.test_ops import (
    MISSES,
    ROUNDED,
    WITHIN,
    cv2_gaussian,
    filter2d,
    pillow_rescale,
    sample_images,
    settings_of,
    skimage_hsv,
)


def cv2_median(image, params, seed):
    return cv2.medianBlur(image, 2 * int(params[0]) + 1)


def cv2_glass(image, params, seed):
    rows, columns = glass_offsets(*image.shape[:2], int(params[0]), seed, 0)
    at = columns.astype(np.float32), rows.astype(np.float32)
    moved = cv2.remap(image, *at, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return cv2_gaussian(moved, params[1:])


def scipy_zoom(image, params, seed):
    height, width, _ = image.shape
    total = np.zeros(image.shape)
    for rows, columns in zip(zoom_positions(height, params[0]), zoom_positions(width, params[0]), strict=True):
        at = np.stack(np.meshgrid(rows, columns, indexing="ij"))
        for channel in range(3):
            plane = image[..., channel].astype(np.float64)
            total[..., channel] += scipy.ndimage.map_coordinates(plane, at, order=1, mode="nearest")
    return total / 16


def cv2_unsharp(image, params, seed):
    return np.clip(image + params[0] * (image - cv2_gaussian(image, params[1:])), 0, 255)


def cv2_colour_diffusion(image, params, seed):
    """Through OpenCV's own colour difference: Y and x - Y."""
    luma = cv2.transform(image.astype(np.float64), np.full((3, 1), 1.0) @ np.array([[0.299, 0.587, 0.114]]))
    side = 2 * int(np.ceil(3 * params[0])) + 1
    blurred = cv2.GaussianBlur(image - luma, (side, side), params[0], borderType=cv2.BORDER_REFLECT_101)
    return np.clip(luma + params[1] * blurred, 0, 255)


def scipy_colour_shift(image, params, seed):
    right, up = np.rint(params[0] * np.cos(np.deg2rad(params[1]))), np.rint(params[0] * np.sin(np.deg2rad(params[1])))
    out = image.copy()
    out[..., 1] = scipy.ndimage.shift(image[..., 1], (-up, right), order=0, mode="nearest")
    return out


def skimage_gamma(image, params, seed):
    return skimage.exposure.adjust_gamma(image / 255, params[0]) * 255


def skimage_sigmoid(image, params, seed):
    ends = np.array([[[0.0, 1.0]]])
    low, high = skimage.exposure.adjust_sigmoid(ends, 0.5, params[0]).ravel()
    return (skimage.exposure.adjust_sigmoid(image / 255, 0.5, params[0]) - low) / (high - low) * 255


def scipy_quantise(image, params, seed):
    values = np.linspace(0, 255, int(params[0]))[:, None]
    return values[scipy.cluster.vq.vq(image.reshape(-1, 1).astype(np.float64), values)[0]].reshape(image.shape)


def lab2rgb(lab):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of colours beyond the RGB cube, which are meant
        return skimage.color.lab2rgb(lab)


def skimage_chroma(image, params, seed):
    lab = skimage.color.rgb2lab(image)
    lab[..., 1:] *= params[0]
    return lab2rgb(lab) * 255


def polyfit_brightness_curve(image, params, seed):
    """A parabola fitted to its three points by NumPy, on RGB and on scikit-image's L."""
    parabola = np.polynomial.Polynomial.fit([0, 0.5, 1], [0, 0.5 + params[0] / 2, 1], 2)
    curved = np.clip(parabola(image / 255), 0, 1)
    if params[0] < 0:
        return curved * 255
    lab = skimage.color.rgb2lab(image)
    lab[..., 0] = np.clip(parabola(lab[..., 0] / 100), 0, 1) * 100
    return (2 * curved + lab2rgb(lab)) / 3 * 255


# Bayer, IEEE ICC 1973, as printed
BAYER = np.array(
    [
        [0, 32, 8, 40, 2, 34, 10, 42],
        [48, 16, 56, 24, 50, 18, 58, 26],
        [12, 44, 4, 36, 14, 46, 6, 38],
        [60, 28, 52, 20, 62, 30, 54, 22],
        [3, 35, 11, 43, 1, 33, 9, 41],
        [51, 19, 59, 27, 49, 17, 57, 25],
        [15, 47, 7, 39, 13, 45, 5, 37],
        [63, 31, 55, 23, 61, 29, 53, 21],
    ]
)


def published_dither(image, params, seed):
    """Pixel by pixel: the value above when the share of the way to it exceeds the printed threshold."""
    values = np.linspace(0, 255, int(params[0]))
    lower = np.minimum(np.searchsorted(values, image, side="right") - 1, int(params[0]) - 2)
    share = (image - values[lower]) / (values[lower + 1] - values[lower])
    rows, columns = np.indices(image.shape[:2])
    threshold = 1 - (BAYER[rows % 8, columns % 8, None] + 0.5) / 64
    return np.rint(values[lower + (share > threshold)])


def scipy_at(channel, rows, columns):
    return scipy.ndimage.map_coordinates(channel.astype(np.float64), [rows, columns], order=1, mode="nearest")


def scipy_chromatic_aberration(image, params, seed):
    out = image.astype(np.float64)
    for channel, magnification in ((0, 1 + params[0]), (2, 1 - params[0])):
        centre = (np.array(image.shape[:2]) - 1)[:, None, None] / 2
        at = (np.indices(image.shape[:2]) - centre) / magnification + centre
        out[..., channel] = scipy_at(image[..., channel], *at)
    return out


def scipy_jitter(image, params, seed):
    at = jittered_places(*image.shape[:2], params[0], seed, 0)
    return np.stack([scipy_at(image[..., channel], *at) for channel in range(3)], axis=-1)


def pillow_patches(image, params, seed):
    out, source = Image.fromarray(image), Image.fromarray(image)
    for rows, columns, top, left, to_top, to_left in moved_patches(*image.shape[:2], int(params[0]), seed, 0):
        out.paste(source.crop((left, top, left + columns, top + rows)), (to_left, to_top))
    return np.asarray(out)


def pillow_blocks(image, params, seed):
    out = Image.fromarray(image)
    draw = ImageDraw.Draw(out)
    for rows, columns, top, left, colour, _ in squares(*image.shape[:2], int(params[0]), 32, seed, 0, tag=16):
        fill = tuple(colour.to_bytes(4, "big")[:3])
        draw.rectangle((left, top, left + columns - 1, top + rows - 1), fill=fill)
    return np.asarray(out)


def pillow_posterise(image, params, seed):
    return np.asarray(ImageOps.posterize(Image.fromarray(image), int(params[0])))


def cv2_iso_noise(image, params, seed):
    """Single precision, in and out."""
    turns, share = iso_numbers(image, *params, seed, 0)
    hls = cv2.cvtColor((image / 255).astype(np.float32), cv2.COLOR_RGB2HLS)
    hls[..., 0] = (hls[..., 0] + 360 * turns) % 360
    hls[..., 1] += share * (1 - hls[..., 1])
    return cv2.cvtColor(hls, cv2.COLOR_HLS2RGB).astype(np.float64) * 255


def scipy_gaussian_noise_cov(image, params, seed):
    """The rotation from its quaternion by SciPy, which puts the scalar last."""
    scalar, *vector = covariance_quaternion(seed, 0)
    rotation = scipy.spatial.transform.Rotation.from_quat([*vector, scalar]).as_matrix()
    mixing = rotation @ np.diag(np.sqrt(covariance_spread(seed, 0)))
    return np.clip(image + params[0] * normals(image.size, seed, 0, tag=12).reshape(image.shape) @ mixing.T, 0, 255)


def cv2_box(image, params, seed):
    side = 2 * int(params[0]) + 1
    return cv2.blur(image, (side, side), borderType=cv2.BORDER_REFLECT_101)


def cv2_high_sharpen(image, params, seed):
    side = 2 * int(params[1]) + 1
    luma = cv2.transform(image.astype(np.float64), np.array([[0.299, 0.587, 0.114]]))
    blurred = cv2.GaussianBlur(luma, (side, side), params[1], borderType=cv2.BORDER_REFLECT_101)
    return np.clip(image + params[0] * (luma - blurred)[..., None], 0, 255)


def cv2_bilateral(image, params, seed):
    return cv2.bilateralFilter(image, -1, params[0], params[1], borderType=cv2.BORDER_REFLECT_101)


def cv2_denoise(image, params, seed):
    return cv2_bilateral(run_one(image, "gaussian_noise", params[0], seed=seed), params[1:], seed)


def cv2_area(image, params, seed):
    height, width, _ = image.shape
    small = (max(round(width / params[0]), 1), max(round(height / params[0]), 1))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)


def scipy_elastic(image, params, seed):
    at = elastic_field(*image.shape[:2], *params, seed, 0)
    planes = [scipy.ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="mirror") for c in range(3)]
    return np.stack(planes, axis=-1)


ORACLES = {
    "box_blur": cv2_box,
    "generalised_blur": lambda image, params, seed: filter2d(image, generalised_kernel(*params)),
    "plateau_blur": lambda image, params, seed: filter2d(image, plateau_kernel(*params)),
    "sinc_filter": lambda image, params, seed: np.clip(filter2d(image, sinc_kernel(params[0], int(params[1]))), 0, 255),
    "high_sharpen": cv2_high_sharpen,
    "bilateral": cv2_bilateral,
    "denoise": cv2_denoise,
    "rescale_area": cv2_area,
    "rescale_lanczos": lambda image, params, seed: pillow_rescale(Image.Resampling.LANCZOS)(image, params),
    "elastic": scipy_elastic,
    "median_blur": cv2_median,
    "glass_blur": cv2_glass,
    "zoom_blur": scipy_zoom,
    "unsharp_mask": cv2_unsharp,
    "rescale_nearest": lambda image, params, seed: pillow_rescale(Image.Resampling.NEAREST)(image, params),
    "pixelate": lambda image, params, seed: pillow_rescale(Image.Resampling.BOX)(image, params),
    "mean_shift": lambda image, params, seed: cv2.add(image, np.full(4, params[0])),
    "gamma": skimage_gamma,
    "contrast_curve": skimage_sigmoid,
    "quantise": scipy_quantise,
    "colour_diffusion": cv2_colour_diffusion,
    "colour_shift": scipy_colour_shift,
    "gaussian_noise_cov": scipy_gaussian_noise_cov,
    "iso_noise": cv2_iso_noise,
    "spatial_jitter": scipy_jitter,
    "non_eccentricity_patch": pillow_patches,
    "colour_block": pillow_blocks,
    "chroma": skimage_chroma,
    "value_shift": lambda image, params, seed: skimage_hsv(2, lambda v, shift: np.clip(v + shift, 0, 1))(image, params),
    "brightness_curve": polyfit_brightness_curve,
    "posterise": pillow_posterise,
    "dither": published_dither,
    "chromatic_aberration": scipy_chromatic_aberration,
}
EXACT = {"box_blur", "rescale_lanczos", "median_blur", "rescale_nearest", "pixelate", "mean_shift", "colour_shift"}
EXACT |= {"posterise", "dither", "non_eccentricity_patch", "colour_block"}


# Against bytes: ours and theirs are rounded each. rescale_area's small image is rounded too, by OpenCV from float32.
BYTES_WITHIN = {"bilateral": 1, "denoise": 1, "rescale_area": 2}


@pytest.mark.rung("reference")
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("name", ORACLES)
def test_agrees_with_its_library_oracle(name, level):
    row = DEGRADATIONS[NAMES.index(name)]
    for image in [*sample_images(), np.ascontiguousarray(skimage.data.coffee()[100:200, 200:333])]:
        for seed, params in enumerate(settings_of(row, level)):
            expected = np.asarray(ORACLES[name](image, params, seed), np.float64)
            difference = np.abs(run_one(image, name, *params, seed=seed) - expected)
            if name in EXACT:
                assert difference.max() == 0, (image.shape, params)
            elif name in BYTES_WITHIN:
                assert difference.max() <= BYTES_WITHIN[name] and difference.mean() <= 0.6, (image.shape, params)
            else:
                off = np.count_nonzero(difference > WITHIN.get(name, ROUNDED))
                assert off <= MISSES.get(name, 0), (image.shape, params)


def test_nearest_takes_the_pixel_of_pillow_at_every_size_and_factor():
    """Boundaries that fall on a pixel's centre are decided by the rounding of the summed step."""
    image = np.random.default_rng(5).integers(0, 256, (60, 97, 3), dtype=np.uint8)
    for factor in (1.0, 1.25, 4 / 3, 1.5, 1.7, 2.0, 2.4, 3.0, 6.0, 16.0):
        for height, width in ((60, 97), (41, 64), (12, 30), (1, 96)):
            part = np.ascontiguousarray(image[:height, :width])
            params = (float(np.float32(factor)),)
            expected = pillow_rescale(Image.Resampling.NEAREST)(part, params)
            np.testing.assert_array_equal(run_one(part, "rescale_nearest", *params), expected)


# --- properties -------------------------------------------------------------------------------------------------------


def photograph() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:200, 100:300])


@pytest.mark.parametrize("name", [row.name for row in DEGRADATIONS])
def test_a_higher_level_changes_a_photograph_more(name):
    """Mean absolute change grows from level to level, with one sign and one angle per op."""
    row = DEGRADATIONS[NAMES.index(name)]
    image = photograph()
    changes = []
    for level in range(1, LEVELS + 1):
        changes.append(np.abs(run_one(image, name, *settings_of(row, level)[-1], seed=1).astype(float) - image).mean())
    assert changes[0] > 0.3
    assert all(more > less for less, more in itertools.pairwise(changes)), changes


def test_median_removes_single_pixels_and_keeps_edges():
    image = np.zeros((12, 12, 3), np.uint8)
    image[:, 6:] = 200
    image[3, 2] = 255
    expected = np.where(np.arange(12)[None, :, None] >= 6, 200, 0)
    np.testing.assert_array_equal(run_one(image, "median_blur", 1), np.broadcast_to(expected, image.shape))


def test_unsharp_mask_overshoots_on_both_sides_of_an_edge():
    image = np.full((9, 20, 3), 100, np.uint8)
    image[:, 10:] = 150
    row = run_one(image, "unsharp_mask", 1.5, 1.0)[4, :, 0].astype(int)
    assert row[9] < 100 and row[10] > 150 and row[0] == 100 and row[-1] == 150


def test_colour_shift_moves_green_right_and_up():
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    for angle, at in ((0.0, (4, 7)), (90.0, (1, 4)), (180.0, (4, 1)), (270.0, (7, 4)), (45.0, (2, 6))):
        out = run_one(image, "colour_shift", 3.0, angle)
        assert [tuple(map(int, place)) for place in np.argwhere(out[..., 1])] == [at]
        np.testing.assert_array_equal(out[..., ::2], image[..., ::2])


def test_colour_diffusion_keeps_luma():
    image = np.clip(photograph(), 60, 190)  # far enough from black and white that nothing clips
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(run_one(image, "colour_diffusion", 4.0, 1.0) @ weights - image @ weights).max() <= 0.501


def test_glass_draws_every_offset_equally_often():
    """One bright column in front of black: the share of bright pixels is its share of the 7 offsets."""
    image = np.zeros((400, 41, 3), np.uint8)
    image[:, 20] = 255
    out = run_one(image, "glass_blur", 3, 0.1, seed=5)[..., 0] > 127
    for x in range(41):
        expected = 400 / 7 if 17 <= x <= 23 else 0
        assert abs(out[:, x].sum() - expected) <= (40 if expected else 0)
    counts = out[:, 17:24].sum(axis=0)
    assert ((counts - 400 / 7) ** 2).sum() / (400 / 7 * 6 / 7) < 30


def test_curves_keep_black_and_white():
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for name, value in (("gamma", 2.2), ("contrast_curve", 8.0), ("quantise", 7)):
        out = run_one(ramp, name, value)[0, :, 0].astype(int)
        assert (out[0], out[-1]) == (0, 255)
        assert (np.diff(out) >= 0).all()
    assert len(set(run_one(ramp, "quantise", 7)[0, :, 0].tolist())) == 7
