"""Each op at each level, compared with its NumPy float64 definition and with the library call named as its oracle.

The ops and their levels come from qpt.degradations.op_table and the definitions from tests/reference, so a new op is
tested as soon as both have it; ORACLES holds the library calls. The engine is called directly (tests/engine.py).
"""

import colorsys
import io
import itertools

import cv2
import numpy as np
import PIL
import PIL.features
import pytest
import scipy.stats
import skimage.color
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from qpt import _C
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES, Degradation
from tests.engine import OP_NAMES, run, run_one
from tests.reference.blurs import aniso_kernel, disk_kernel, motion_kernel
from tests.reference.degradations import REFERENCE

# Half a level of rounding, and float32 arithmetic: at most 841 terms of 255 x 2^-24 each for the blurs.
ROUNDED = 0.5 + 2e-3
WITHIN = {
    "gaussian_blur_aniso": 0.5 + 0.012,  # its weights below 1e-6 of the peak are set to 0
    "generalised_blur": 0.5 + 0.012,  # likewise
    "sinc_filter": 0.5 + 0.01,  # 441 weights of both signs, each within 1e-7
    "high_sharpen": 0.5 + 0.02,  # up to twelve times the blur's error
    "elastic": 0.5 + 0.04,  # positions as zoom_blur's, and alpha times the blur's error
    "zoom_blur": 0.5 + 0.02,  # a position near 131 has 2^-17 of a pixel, a slope up to 255 levels
    "chromatic_aberration": 0.5 + 0.02,  # likewise
    "spatial_jitter": 0.5 + 0.02,  # likewise
    "repeated_jitter": 0.5 + 0.02,  # likewise
    "colour_diffusion_lab": 0.5 + 0.02,  # as chroma
    "chroma": 0.5 + 0.02,  # f(X) - f(Y) has 2^-24, up to 16 times that after, and the slope near black is 3,295 levels
}
# Samples of an image that may differ: a uniform number within 1e-6 of a cumulative probability falls to either side, as
# does a value half way between two levels that is rounded before the op's last step.
MISSES = {"poisson_noise": 1, "poisson_noise_grey": 3, "iso_noise": 6, "glass_shuffle": 8, "repeated_jitter": 16}
# The float64 transform rounds some coefficients to the other side, a whole step away: only the mean is compared.
MEAN_DIFFERENCE = {"jpeg": 0.5, "jpeg2000": 0.5}

SIZES = [(1, 1), (1, 7), (5, 1), (2, 3), (3, 4), (17, 23), (33, 64), (40, 11)]


def photo() -> np.ndarray:
    """Return a 96 x 131 crop with texture, skin, and saturated colours."""
    return np.ascontiguousarray(skimage.data.astronaut()[10:106, 160:291])


def sample_images() -> list[np.ndarray]:
    """Return white noise of awkward sizes, a photograph, and saturated corners of the colour cube."""
    generator = np.random.default_rng(7)
    noise = [generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in SIZES]
    cube = np.array(list(itertools.product((0, 1, 127, 254, 255), repeat=3)), np.uint8).reshape(5, 25, 3)
    return [*noise, photo(), cube]


def settings_of(row: Degradation, level: int) -> list[tuple[float, ...]]:
    """Return all parameter tuples that an op may get at a level, with a few values of a uniformly drawn parameter."""
    alternatives = []
    for parameter in row.parameters:
        if parameter.levels:
            alternatives.append(parameter.alternatives(level))
        else:
            shares = (0.0, 0.17, 0.25, 0.5, 0.761)
            alternatives.append(tuple(parameter.low + share * (parameter.high - parameter.low) for share in shares))
    return [tuple(float(np.float32(value)) for value in values) for values in itertools.product(*alternatives)]


GRID = [pytest.param(row, level, id=f"{row.name}-{level}") for row in DEGRADATIONS for level in range(1, LEVELS + 1)]


def test_the_engine_the_table_and_the_definitions_name_the_same_ops():
    assert OP_NAMES == NAMES
    assert set(REFERENCE) == set(NAMES)


@pytest.mark.rung("reference")
@pytest.mark.parametrize(("row", "level"), GRID)
def test_agrees_with_its_numpy_definition(row, level):
    differences = []
    for image in sample_images():
        for seed, params in enumerate(settings_of(row, level)):
            exact = REFERENCE[row.name](image, params, seed, 0)
            ours = run_one(image, row.name, *params, seed=seed).astype(np.float64)
            differences.append(np.abs(ours - exact).ravel())
            if row.name not in MEAN_DIFFERENCE:
                off = np.count_nonzero(differences[-1] > WITHIN.get(row.name, ROUNDED))
                assert off <= MISSES.get(row.name, 0), (image.shape, params)
    assert np.concatenate(differences).mean() <= MEAN_DIFFERENCE.get(row.name, ROUNDED)


# --- library calls ----------------------------------------------------------------------------------------------------


def filter2d(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.filter2D(image.astype(np.float64), cv2.CV_64F, kernel, borderType=cv2.BORDER_REFLECT_101)


def cv2_gaussian(image, params):
    side = 2 * int(np.ceil(3 * params[0])) + 1
    return cv2.GaussianBlur(image.astype(np.float64), (side, side), params[0], borderType=cv2.BORDER_REFLECT_101)


def pillow_jpeg(image, params):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=int(params[0]))
    return np.asarray(Image.open(file).convert("RGB"), np.float64)


def pillow_resize(image, size, resample):
    """Resize as Pillow 13, first along y where the height shrinks by more than twice as much as the width, else x.

    Before 13 it begins with x always; resizes of one axis each are its two passes in the other order.
    """
    if int(PIL.__version__.split(".")[0]) < 13 and image.height - size[1] > 2 * max(image.width - size[0], 0):
        image = image.resize((image.width, size[1]), resample)
    return image.resize(size, resample)


def pillow_rescale(resample):
    def rescale(image, params):
        height, width, _ = image.shape
        small = (max(round(width / params[0]), 1), max(round(height / params[0]), 1))
        resized = pillow_resize(Image.fromarray(image), small, resample)
        return np.asarray(pillow_resize(resized, (width, height), resample), np.float64)

    return rescale


def skimage_hsv(channel, change):
    def oracle(image, params):
        hsv = skimage.color.rgb2hsv(image)
        hsv[..., channel] = change(hsv[..., channel], params[0])
        return skimage.color.hsv2rgb(hsv) * 255

    return oracle


ORACLES = {
    "gaussian_blur": cv2_gaussian,
    "gaussian_blur_aniso": lambda image, params: filter2d(image, aniso_kernel(*params)),
    "motion_blur": lambda image, params: filter2d(image, motion_kernel(*params)),
    "defocus_blur": lambda image, params: filter2d(image, disk_kernel(*params)),
    "jpeg": pillow_jpeg,
    "rescale_bilinear": pillow_rescale(Image.Resampling.BILINEAR),
    "rescale_bicubic": pillow_rescale(Image.Resampling.BICUBIC),
    "saturation": skimage_hsv(1, lambda s, factor: np.clip(s * factor, 0, 1)),
    "hue": skimage_hsv(0, lambda h, degrees: (h + degrees / 360) % 1),
}
EXACT = {"rescale_bilinear", "rescale_bicubic"} | ({"jpeg"} if PIL.features.check("libjpeg_turbo") else set())


@pytest.mark.rung("reference")
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("name", ORACLES)
def test_agrees_with_its_library_oracle(name, level):
    row = DEGRADATIONS[NAMES.index(name)]
    for image in sample_images():
        for params in settings_of(row, level):
            expected = ORACLES[name](image, params)
            difference = np.abs(run_one(image, name, *params) - expected)
            if name in EXACT:
                assert difference.max() == 0, (image.shape, params)
            elif name == "jpeg":
                assert difference.mean() <= 1, (image.shape, params)
            else:
                assert difference.max() <= WITHIN.get(name, ROUNDED), (image.shape, params)


@pytest.mark.rung("reference")
@pytest.mark.parametrize(
    ("name", "enhance"), [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)]
)
@pytest.mark.parametrize("factor", [0.0, 0.35, 0.88, 1.0, 1.12, 1.72])
def test_enhancements_are_pillows_rounded_instead_of_truncated(name, enhance, factor):
    for image in sample_images():
        pillow = np.asarray(enhance(Image.fromarray(image)).enhance(factor)).astype(int)
        step = run_one(image, name, factor).astype(int) - pillow
        assert step.min() >= 0 and step.max() <= 1


@pytest.mark.rung("reference")
@pytest.mark.parametrize("quality", range(5, 96))
def test_jpeg_is_within_one_level_of_pillow_at_every_quality(quality):
    for image in (photo(), skimage.data.coffee()[100:200, 200:333]):
        assert np.abs(run_one(image, "jpeg", quality) - pillow_jpeg(image, [quality])).mean() <= 1


def test_jpeg_sizes_around_whole_units_match_pillow():
    for height, width in itertools.product((1, 2, 7, 8, 9, 15, 16, 17, 31, 33), (1, 2, 3, 4, 5, 6, 15, 16, 17, 34)):
        image = photo()[:height, :width]
        assert np.abs(run_one(image, "jpeg", 50) - pillow_jpeg(image, [50])).mean() <= 1, (height, width)


def test_hsv_ops_agree_with_colorsys_pixel_by_pixel():
    image = photo()[::7, ::7]
    paler, turned = run_one(image, "saturation", 0.4), run_one(image, "hue", 35.0)
    for at in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255.0))
        assert np.abs(paler[at] - 255 * np.array(colorsys.hsv_to_rgb(h, s * 0.4, v))).max() <= ROUNDED
        assert np.abs(turned[at] - 255 * np.array(colorsys.hsv_to_rgb((h + 35 / 360) % 1, s, v))).max() <= ROUNDED


# --- properties -------------------------------------------------------------------------------------------------------


TEXTURED = {"dither", "colour_block"}  # they give a constant image a pattern, as noise does


@pytest.mark.parametrize(
    ("row", "level"),
    [case for case in GRID if "noise" not in case.values[0].name and case.values[0].name not in TEXTURED],
)
def test_a_grey_constant_image_stays_constant(row, level):
    image = np.full((19, 22, 3), 96, np.uint8)
    for params in settings_of(row, level):
        out = run_one(image, row.name, *params)
        assert (out == out[0, 0, 0]).all()
        if row.family != "colour" and "jpeg" not in row.name:  # JPEG rounds the mean to its quantiser's step
            assert (out == 96).all()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("gaussian_blur", (0.1,)),
        ("motion_blur", (0.0, 30.0)),
        ("gaussian_noise", (0.0,)),
        ("gaussian_noise_grey", (0.0,)),
        ("rescale_bilinear", (1.0,)),
        ("rescale_bicubic", (1.0,)),
        ("brightness", (1.0,)),
        ("contrast", (1.0,)),
        ("saturation", (1.0,)),
        ("hue", (0.0,)),
        ("hue", (360.0,)),
        ("median_blur", (0,)),
        ("glass_blur", (0, 0.1)),
        ("zoom_blur", (1.0,)),
        ("unsharp_mask", (0.0, 1.0)),
        ("box_blur", (0,)),
        ("generalised_blur", (0.1, 0.1, 30.0, 1.0)),
        ("sinc_filter", (3.0, 0)),
        ("high_sharpen", (0.0, 6)),
        ("rescale_area", (1.0,)),
        ("rescale_lanczos", (1.0,)),
        ("elastic", (0.0, 2.0, 0.0)),
        ("gaussian_noise_ycbcr", (0.0,)),
        ("speckle_noise", (0.0,)),
        ("impulse_noise", (0.0,)),
        ("rescale_nearest", (1.0,)),
        ("pixelate", (1.0,)),
        *[("resize_to", (1.0, filter)) for filter in range(3)],
        ("gamma", (1.0,)),
        ("mean_shift", (0.0,)),
        ("quantise", (256,)),
        ("colour_diffusion", (0.1, 1.0)),
        ("colour_shift", (0.0, 77.0)),
        ("gaussian_noise_cov", (0.0,)),
        ("iso_noise", (0.0, 0.0)),
        ("spatial_jitter", (0.0,)),
        ("non_eccentricity_patch", (0,)),
        ("colour_block", (0,)),
        ("chroma", (1.0,)),
        ("value_shift", (0.0,)),
        ("brightness_curve", (0.0,)),
        ("posterise", (8,)),
        ("dither", (256,)),
        ("chromatic_aberration", (0.0,)),
    ],
)
def test_the_neutral_parameter_changes_nothing(name, params):
    for image in sample_images():
        np.testing.assert_array_equal(run_one(image, name, *params), image)


def test_a_point_turns_into_the_kernel():
    """A motion at 90 degrees is a column, at 0 a row; 4 px long: whole weight inside, half a step at each end."""
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    # 9 points at -2, -1.5, ..., 2: per pixel 1 + 2 x 1/2 = 2 inside, 1 + 1/2 = 1.5 at the ends; 9 in all.
    expected = np.rint(255 * np.array([0, 0, 1.5, 2, 2, 2, 1.5, 0, 0]) / 9)
    np.testing.assert_array_equal(run_one(image, "motion_blur", 4, 90)[:, 4, 0], expected)
    np.testing.assert_array_equal(run_one(image, "motion_blur", 4, 0)[4, :, 1], expected)


def test_long_axis_of_the_rotated_gaussian_and_the_motion_point_up_to_the_right():
    """45 degrees counter-clockwise as seen: the blurred point extends to the upper right, not to the lower right."""
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    for name, params in (("motion_blur", (15, 45)), ("gaussian_blur_aniso", (3.0, 0.8, 45))):
        out = run_one(image, name, *params)[..., 0].astype(int)
        assert out[12, 18] > 0 and out[12, 18] == out[18, 12] and out[18, 18] == out[12, 12] == 0


@pytest.mark.parametrize("std", [4.0, 22.0])
def test_noise_is_normal_and_independent(std):
    """On mid-grey, where nothing clips: moments within 5 standard errors, a Kolmogorov-Smirnov test, correlations."""
    image = np.full((160, 160, 3), 128, np.uint8)
    colour = run_one(image, "gaussian_noise", std, seed=11).astype(np.float64) - 128
    grey = run_one(image, "gaussian_noise_grey", std, seed=11).astype(np.float64) - 128
    assert (grey == grey[..., :1]).all()
    for values in (colour.ravel(), grey[..., 0].ravel()):
        count, spread = values.size, np.sqrt(std**2 + 1 / 12)  # rounding adds a uniform error
        assert abs(values.mean()) < 5 * spread / np.sqrt(count)
        assert abs(values.std() - spread) < 5 * spread / np.sqrt(2 * count)
        smooth = values + np.random.default_rng(0).uniform(-0.5, 0.5, count)
        assert scipy.stats.kstest(smooth / std, "norm").pvalue > 1e-4
    for shifted in (colour[:, 1:, 0] * colour[:, :-1, 0], colour[1:] * colour[:-1], colour[..., 0] * colour[..., 1]):
        assert abs(shifted.mean()) < 5 * std**2 / np.sqrt(shifted.size)


def test_noise_differs_between_seeds_slots_and_ops_and_repeats_otherwise():
    image = np.full((1, 24, 24, 3), 128, np.uint8)
    draws = [
        run(image, [[op, None]], [[(9.0,), ()]], seeds=[seed])[0] - run(image, [[None]], [[()]])[0]
        for op in ("gaussian_noise", "gaussian_noise_grey")
        for seed in (0, 1, 1 << 32, -1)
    ]
    draws.append(run(image, [[None, "gaussian_noise"]], [[(), (9.0,)]], seeds=[0])[0] - 128)
    for a, b in itertools.combinations(draws, 2):
        assert (a != b).mean() > 0.5
    np.testing.assert_array_equal(draws[0], run(image, [["gaussian_noise"]], [[(9.0,)]], seeds=[0])[0] - 128)


# --- chains -----------------------------------------------------------------------------------------------------------


def random_program(rows: int, slots: int, seed: int):
    """Draw ops (r, S) and params (r, S) from the whole table; a few slots are unused."""
    generator = np.random.default_rng(seed)
    ops, params = [], []
    for _ in range(rows):
        row_ops, row_params = [], []
        for _ in range(slots):
            op = int(generator.integers(-1, len(NAMES)))
            level = int(generator.integers(1, LEVELS + 1))
            options = settings_of(DEGRADATIONS[op], level) if op >= 0 else [()]
            row_ops.append(op)
            row_params.append(options[generator.integers(len(options))])
        ops.append(row_ops)
        params.append(row_params)
    return np.array(ops), params


def test_a_chain_is_its_ops_one_after_another():
    """Each op alone in its slot gives the chain's bytes: uint8 between ops, randomness from the slot, gaps skipped."""
    image = photo()[None, :37, :41]
    ops, params = random_program(rows=30, slots=5, seed=3)
    ops[ops == NAMES.index("resize_to")] = -1  # the only op that changes the image's size; see test_resize.py
    chained = run(np.repeat(image, 30, axis=0), ops, params, seeds=range(30))
    for row in range(30):
        current = image
        for slot in range(5):
            alone = [[-1] * slot + [ops[row][slot]]]
            current = run(current, alone, [[()] * slot + [params[row][slot]]], seeds=[row])
        np.testing.assert_array_equal(chained[row], current[0])


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), threads=st.integers(1, 5), rows=st.integers(1, 12))
def test_same_bytes_whatever_thread_count_row_order_and_batch_size(seed, threads, rows):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (3, 21, 34, 3), dtype=np.uint8)
    ops, params = random_program(rows, 4, seed)
    seeds = generator.integers(-(2**63), 2**63, rows)
    source = generator.integers(0, 3, rows)
    expected = run(images, ops, params, seeds, source)
    np.testing.assert_array_equal(run(images, ops, params, seeds, source, threads=threads), expected)
    order = generator.permutation(rows)
    shuffled = run(images, ops[order], [params[i] for i in order], seeds[order], source[order], threads=threads)
    np.testing.assert_array_equal(shuffled, expected[order])
    one = run(images[source[:1]], ops[:1], params[:1], seeds[:1], [0])
    np.testing.assert_array_equal(one[0], expected[0])


def test_no_ops_copies_and_no_rows_does_nothing():
    image = photo()[None]
    np.testing.assert_array_equal(run(image, [[-1, -1]], [[(), ()]]), image)
    empty = run(image, np.zeros((0, 2), int), [], seeds=np.zeros(0), source=np.zeros(0))
    assert empty.shape == (0, *image.shape[1:])


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_writes_out_of_bounds(name):
    """Even of values that Python refuses: tests/engine.py guards both ends of the output and of the scratch."""
    values = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-30, 1e30, 49.0, 3.7)
    for height, width in ((1, 1), (2, 9), (30, 5), (18, 50)):
        image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for value in values:
            for other in (value, 1.0):
                run_one(image, name, value, other, other, other)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (160, 160), (192, 192), (256, 320), (1080, 1920)])
def test_scratch_stays_within_its_budget(height, width):
    assert _C.scratch_bytes(height, width, False, False) <= 6 * height * width * 3 + 64 * 1024
