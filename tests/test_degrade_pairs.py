"""degrade_pairs: equal to degrade, then cut, then the resize of the engine, byte for byte; and what it refuses."""

import numpy as np
import pytest
import torch

import qpt
from qpt.degradations.program import Program
from qpt.errors import InputError
from qpt.ops.degrade.resize import FILTERS, resize
from tests.engine import run_one
from tests.programs import sample, smooth_images
from tests.reference.geometry import resize_working

FILTER_NUMBERS = {name: number for number, name in enumerate(FILTERS)}


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (2, 3), (17, 1), (33, 64), (96, 131)])
@pytest.mark.parametrize(("to_height", "to_width"), [(1, 1), (5, 9), (16, 32), (33, 64), (50, 97), (140, 3)])
def test_the_resize_is_its_definition(filter, height, width, to_height, to_width):
    image = np.random.default_rng(height).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = resize(torch.from_numpy(image), to_height, to_width, filter).numpy()
    expected = [resize_working(one, to_height, to_width, FILTER_NUMBERS[filter]) for one in image]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("scale", [2, 3, 4, 16])
def test_the_resize_is_the_engines(filter, scale):
    """A row of resize_to alone is the resize to the working size and a bicubic one back."""
    image = smooth_images(1, 97, 66)
    small = resize(image, 97 // scale, 66 // scale, filter)
    back = resize(small, 97, 66, "bicubic")
    np.testing.assert_array_equal(run_one(image[0].numpy(), "resize_to", 1 / scale, FILTER_NUMBERS[filter]), back[0])


def test_a_strided_view_resizes_like_a_copy():
    images = smooth_images(2, 40, 60)[:, ::2, 3::3]
    assert torch.equal(resize(images, 7, 5, "area"), resize(images.contiguous(), 7, 5, "area"))


def degrade_then_resize(images, program, row, scale, filter):
    """Return (low, high) of a row by the definition, in NumPy after ``qpt.degrade``."""
    height, width = (side // scale * scale for side in images.shape[1:3])
    degraded = qpt.degrade(images, program)[row, :height, :width].numpy()
    low = resize_working(degraded, height // scale, width // scale, FILTER_NUMBERS[filter])
    return low.astype(np.uint8), images[program.source[row], :height, :width].numpy()


@pytest.mark.parametrize("preset", ["qpt", "realesrgan", "bsrgan"])
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_pairs_are_degrade_then_resize(preset, filter, scale):
    images = smooth_images(3, 50, 67)  # a multiple of neither 2 nor 4
    program = qpt.DegradationSpace.preset(preset).sample(3, views=2, generator=torch.Generator().manual_seed(4))
    low, high = qpt.degrade_pairs(images, program, scale, filter=filter)
    assert low.dtype == high.dtype == torch.uint8 and low.is_contiguous() and high.is_contiguous()
    assert low.shape == (6, 50 // scale, 67 // scale, 3)
    assert high.shape == (6, 50 // scale * scale, 67 // scale * scale, 3)
    for row in range(6):
        expected = degrade_then_resize(images, program, row, scale, filter)
        np.testing.assert_array_equal(low[row], expected[0])
        np.testing.assert_array_equal(high[row], expected[1])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_scale_per_row_gives_lists(as_tensor):
    images, program, scales = smooth_images(2, 41, 53), sample(2), [4, 1, 2, 3]
    given = torch.tensor(scales) if as_tensor else scales
    low, high = qpt.degrade_pairs(images, program, given)
    assert isinstance(low, list) and isinstance(high, list) and len(low) == len(high) == 4
    for row, scale in enumerate(scales):
        expected = degrade_then_resize(images, program, row, scale, "bicubic")
        np.testing.assert_array_equal(low[row], expected[0])
        np.testing.assert_array_equal(high[row], expected[1])


def test_an_array_of_one_scale_gives_lists_and_a_single_number_tensors():
    images, program = smooth_images(1, 12, 16), sample(1, views=1)
    for listed in ([2], torch.tensor([2]), np.array([2])):
        assert [len(part) for part in qpt.degrade_pairs(images, program, listed)] == [1, 1]
        assert isinstance(qpt.degrade_pairs(images, program, listed)[0], list)
    for single in (2, torch.tensor(2), np.int64(2)):
        assert qpt.degrade_pairs(images, program, single)[0].shape == (1, 6, 8, 3)


def test_a_row_does_not_depend_on_the_others():
    images, program = smooth_images(3, 32, 48), sample(3)
    low, high = qpt.degrade_pairs(images, program, 2, threads=2)
    alone = [qpt.degrade_pairs(images, program.select([row]), 2, threads=1) for row in (4, 1)]
    assert torch.equal(torch.cat([pair[0] for pair in alone]), low[[4, 1]])
    assert torch.equal(torch.cat([pair[1] for pair in alone]), high[[4, 1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_values_are_those_over_255(dtype):
    images, program = smooth_images(2, 20, 31), sample(2)
    bytes_, floats = qpt.degrade_pairs(images, program, 2), qpt.degrade_pairs(images, program, 2, dtype=dtype)
    for pixels, values in zip(bytes_, floats, strict=True):
        exact = pixels.double() / 255
        assert values.dtype == dtype and values.shape == pixels.shape and values.min() >= 0 and values.max() <= 1
        assert torch.equal(values, exact.to(dtype)) or (values.double() - exact).abs().max() <= torch.finfo(dtype).eps
    assert torch.equal((floats[0].double() * 255).round().to(torch.uint8), bytes_[0])


def test_no_rows():
    images, program = smooth_images(1, 20, 31), sample(1).select([])
    low, high = qpt.degrade_pairs(images, program, 2)
    assert low.shape == (0, 10, 15, 3) and high.shape == (0, 20, 30, 3)
    assert qpt.degrade_pairs(images, program, []) == ([], [])


def test_images_and_program_keep_their_bytes():
    images, program = smooth_images(2, 20, 31), sample(2)
    kept, same = images.clone(), program.select(range(4))
    _, high = qpt.degrade_pairs(images, program, 1)
    high.zero_()
    assert torch.equal(images, kept) and program.equal(same)


IMAGES, PROGRAM = smooth_images(2, 16, 20), sample(2, views=1)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0, r"scale must be an integer in 1\.\.16, got 0"),
        (17, r"scale must be an integer in 1\.\.16, got 17"),
        (2.0, "scale must be an integer, or 2 of them, one per program row, got 2.0"),
        (True, "scale must be an integer, or 2 of them, one per program row, got True"),
        ("24", "scale must be an integer, or 2 of them, one per program row, got '24'"),
        ([2], "scale must be an integer, or 2 of them, one per program row, got \\[2\\]"),
        ([2, 0], r"scale must be an integer in 1\.\.16, got 0"),
        (torch.tensor([2.0, 4.0]), r"scale must be an integer in 1\.\.16, got tensor\(2\.\)"),
        (torch.tensor([[2, 4]]), r"scale must be an integer, or 2 of them, one per program row, got \(1, 2\) int64"),
    ],
)
def test_scales_refused(scale, message):
    with pytest.raises(InputError, match=f"^degrade_pairs: {message}"):
        qpt.degrade_pairs(IMAGES, PROGRAM, scale)


def test_a_scale_is_at_most_the_shorter_side():
    with pytest.raises(InputError, match=r"^degrade_pairs: scale must be an integer in 1\.\.3, got 4"):
        qpt.degrade_pairs(IMAGES[:, :3], PROGRAM, 4)


def test_other_arguments_refused():
    with pytest.raises(InputError, match=r"^degrade_pairs: filter must be one of area, bilinear, bicubic, got 'cubic'"):
        qpt.degrade_pairs(IMAGES, PROGRAM, 2, filter="cubic")
    with pytest.raises(InputError, match=r"^degrade_pairs: dtype must be a floating-point torch dtype or torch.uint8"):
        qpt.degrade_pairs(IMAGES, PROGRAM, 2, dtype=torch.int32)
    with pytest.raises(InputError, match=r"^degrade_pairs: images must be \(B, H, W, 3\) uint8"):
        qpt.degrade_pairs(IMAGES.float(), PROGRAM, 2)
    with pytest.raises(InputError, match=r"^degrade_pairs: program must be a qpt.Program"):
        qpt.degrade_pairs(IMAGES, None, 2)
    with pytest.raises(InputError, match=r"^degrade_pairs: threads must be an integer"):
        qpt.degrade_pairs(IMAGES, PROGRAM, 2, threads=0)
    other = Program.from_chains([[("jpeg", 1)]], seeds=[0], source=[2])
    with pytest.raises(InputError, match=r"^degrade_pairs: program\.source must be below the number of images, 2"):
        qpt.degrade_pairs(IMAGES, other, 2)
    with pytest.raises(InputError, match=r"^degrade_pairs: backend must be one of"):
        qpt.degrade_pairs(IMAGES, PROGRAM, 2, backend="tpu")
