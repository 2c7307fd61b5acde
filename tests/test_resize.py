"""resize_to: sizes and filters compared with OpenCV, chains with their ops applied one by one at the changed sizes."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpt.degradations.program import Program
from qpt.errors import InputError
from qpt.ops.degrade.api import degrade
from tests.engine import OP_NAMES, run, run_one
from tests.programs import sample, smooth_images
from tests.reference.geometry import resize_working, working_size
from tests.test_ops import photo, random_program

FILTERS = {0: cv2.INTER_AREA, 1: cv2.INTER_LINEAR, 2: cv2.INTER_CUBIC}
# Half a level of rounding per pass; the second pass multiplies the first one's by the sum of |weights|.
WITHIN = {0: 1.001, 1: 1.001, 2: 0.5 + 0.5 * 1.375 + 0.001}
CUBIC = 2
SCALES = (0.0625, 0.2, 0.33, 0.5, 0.67, 0.91, 1.0, 1.1, 1.25, 1.5)


@pytest.mark.rung("reference")
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("scale", SCALES)
def test_the_definition_is_opencvs_resize(filter, scale):
    """On float64, which OpenCV does not round, and values that no pass has to clip."""
    softened = photo() // 2 + 64
    for image in (softened, softened[:37, :41], softened[:5, :90]):
        height, width = (working_size(side, scale) for side in image.shape[:2])
        expected = cv2.resize(image.astype(np.float64), (width, height), interpolation=FILTERS[filter])
        ours = resize_working(image, height, width, filter)
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() <= WITHIN[filter]


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (2, 3), (17, 1), (33, 64), (96, 131)])
def test_agrees_with_its_definition_at_scales_between_the_levels(filter, scale, height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = resize_working(image, working_size(height, scale), working_size(width, scale), filter)
    assert small.shape[0] <= 1.5 * height and small.shape[1] <= 1.5 * width
    back = resize_working(small, height, width, CUBIC) if small.shape != image.shape else small
    np.testing.assert_array_equal(run_one(image, "resize_to", scale, filter), back)


def compose(image, ops, params, seed):
    """Apply the row's ops one at a time, each in its slot, on an image of the working size."""
    height, width, _ = image.shape
    for slot, (op, values) in enumerate(zip(ops, params, strict=True)):
        if OP_NAMES[op] == "resize_to" and op >= 0:
            scale, filter = values
            image = resize_working(image, working_size(height, scale), working_size(width, scale), int(filter))
            image = image.astype(np.uint8)
        else:
            image = run(image[None], [[-1] * slot + [op]], [[()] * slot + [values]], seeds=[seed])[0]
    return resize_working(image, height, width, CUBIC) if image.shape != (height, width, 3) else image


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (37, 41), (64, 50)])
def test_a_chain_is_its_ops_at_their_working_sizes(height, width, threads):
    rows, slots = 24, 6
    image = photo()[:height, :width]
    ops, params = random_program(rows, slots, seed=8)
    rng = np.random.default_rng(4)
    for row in range(rows):
        for slot in rng.choice(slots, row % 4, replace=False):  # none in every fourth row
            ops[row, slot] = OP_NAMES.index("resize_to")
            params[row][slot] = (float(np.float32(rng.choice(SCALES))), float(rng.integers(3)))
    chained = run(np.repeat(image[None], rows, axis=0), ops, params, seeds=range(rows), threads=threads)
    for row in range(rows):
        np.testing.assert_array_equal(chained[row], compose(image, ops[row], params[row], row))


@given(first=st.floats(0.0625, 1.5, width=32), second=st.floats(0.0625, 1.5, width=32), filter=st.integers(0, 2))
def test_a_scale_is_relative_to_the_image_and_not_to_the_working_size(first, second, filter):
    image = photo()[:23, :31]
    ops = [OP_NAMES.index("resize_to")] * 2
    params = [(first, filter), (second, filter)]
    once = resize_working(image, working_size(23, first), working_size(31, first), filter)
    twice = resize_working(once, working_size(23, second), working_size(31, second), filter)
    np.testing.assert_array_equal(
        run(image[None], [ops], [params])[0],
        resize_working(twice, 23, 31, CUBIC) if twice.shape != image.shape else twice,
    )


def test_a_last_resize_to_scale_1_chooses_the_filter():
    image = photo()
    for filter in FILTERS:
        ended = run(image[None], [["resize_to", "resize_to"]], [[(0.4, 1), (1.0, filter)]])[0]
        small = resize_working(image, working_size(96, 0.4), working_size(131, 0.4), 1)
        np.testing.assert_array_equal(ended, resize_working(small, 96, 131, filter))


def test_other_rows_of_the_program_keep_their_bytes():
    images, program = smooth_images(4, 41, 53), sample(4)
    resized = Program.from_chains([[("resize_to", 3), ("jpeg", 2)]], seeds=[3])
    assert torch.equal(degrade(images, Program.concat([program, resized]))[:-1], degrade(images, program))


def test_an_enlarged_image_must_stay_below_2_31_bytes():
    images = torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(1, 20_000, 20_000, 3)
    program = Program.from_chains([[("resize_to", 1)]], seeds=[1])
    with pytest.raises(InputError, match=r"1\.5 H \* 1\.5 W \* 3 < 2\^31"):
        degrade(images, program)
