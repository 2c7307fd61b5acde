"""degrade_patches computes only a window of an image and gives the bytes of degrade, then crop.

Every op at every level and random chains are tested, with windows at each border, inside, and as large as the image.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.degradations.row import Degradation
from qpt.ops.degrade import patches
from qpt.ops.degrade.api import degrade, degrade_patches
from qpt.ops.degrade.patches import normalisation_lut, row_windows
from tests.programs import smooth_images

HEIGHT, WIDTH, SIZE = 91, 117, 11
# (top, left): the four corners, the middle of each border, an odd and an even place inside, on the grid of JPEG
PLACES = [(0, 0), (0, 106), (80, 0), (80, 106), (0, 51), (80, 40), (37, 0), (33, 106), (41, 53), (48, 32)]


def cropped(rows: torch.Tensor, boxes: torch.Tensor, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the definition: the patches (r, P, 3, size, size) of degraded rows, normalised by the lookup table."""
    lut = normalisation_lut(dtype)
    patches = [
        torch.stack([lut[c][row[top : top + size, left : left + size, c].long()] for c in range(3)])
        for row, corners in zip(rows, boxes.tolist(), strict=True)
        for top, left in corners
    ]
    return torch.stack(patches).unflatten(0, boxes.shape[:2])


def boxes_of(*rows: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("name", NAMES)
def test_every_op_gives_its_bytes_in_a_window(name, level):
    images = smooth_images(1, HEIGHT, WIDTH, seed=level)
    program = Program.from_chains([[(name, level)]] * len(PLACES), seeds=range(len(PLACES)))
    boxes = boxes_of(*([place] for place in PLACES))
    expected = cropped(degrade(images, program), boxes, SIZE)
    patches = degrade_patches(images, program, boxes, SIZE)
    for row, place in enumerate(PLACES):
        assert torch.equal(patches[row], expected[row]), place


@pytest.mark.parametrize("name", [row.name for row in DEGRADATIONS if row.grid_px is not None])
def test_an_op_that_takes_windows_is_given_one(name):
    program = Program.from_chains([[(name, LEVELS)]], seeds=[1])
    windowed, top, left, h, w = row_windows(program, boxes_of([(200, 300)]), 16, 512, 640)[0].tolist()
    assert windowed == 0
    assert h * w < 512 * 640 / 4
    assert top <= 200 and left <= 300 and top + h >= 216 and left + w >= 316


chains = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(1, LEVELS)), max_size=5
)  # of any ops, with resize_to and ops that need the whole image among them


@settings(max_examples=150)
@given(
    chains=st.lists(chains, min_size=1, max_size=4),
    seed=st.integers(-(2**63), 2**63 - 1),
    size=st.sampled_from([1, 7, 16, 40]),
    height=st.sampled_from([40, 61, 96]),
    width=st.sampled_from([41, 64, 107]),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_random_chains_give_their_bytes_in_windows(chains, seed, size, height, width, threads, data):
    images = smooth_images(2, height, width, seed=size)
    r = len(chains)
    program = Program.from_chains(chains, seeds=[seed] * r, source=[row % 2 for row in range(r)])
    corner = st.tuples(st.integers(0, height - size), st.integers(0, width - size))
    count = data.draw(st.integers(1, 3))
    boxes = boxes_of(*(data.draw(st.lists(corner, min_size=count, max_size=count)) for _ in range(r)))
    patches = degrade_patches(images, program, boxes, size, threads=threads)
    assert torch.equal(patches, cropped(degrade(images, program), boxes, size))


def test_the_window_is_the_union_of_the_boxes_grown_by_the_summed_halo_after_the_last_whole_op():
    chains = [
        [("gaussian_blur", (2.0,)), ("contrast", 3), ("gaussian_blur", (2.0,)), ("median_blur", (3.0,)), ("hue", 1)],
        [("gaussian_blur", (1.0,)), ("jpeg", 1)],
        [("jpeg", 1), ("contrast", 1)],
        [],
        [("resize_to", 1), ("hue", 1)],
        [("gaussian_blur", (8.0,)), ("gaussian_blur", (8.0,)), ("gaussian_blur", (8.0,)), ("gaussian_blur", (8.0,))],
    ]
    program = Program.from_chains(chains, seeds=[0] * len(chains))
    boxes = boxes_of(*[[(50, 100), (60, 83)]] * len(chains))
    whole = [5, 0, 0, 128, 200]
    assert row_windows(program, boxes, 20, 128, 200).tolist() == [
        [2, 50 - 9, 83 - 9, 30 + 18, 37 + 18],
        [0, 16, 64, 112 - 16, 144 - 64],  # 50 - 3 - 16 = 31, 80 + 19 = 99; 83 - 19 = 64, 120 + 19 = 139: to 16
        whole,
        whole,
        whole,
        whole,  # grown beyond every border
    ]


def test_an_op_without_grid_px_gets_the_whole_image(monkeypatch):
    """None is the default, so that an op that was written without windows in mind is correct."""
    assert next(field for field in dataclasses.fields(Degradation) if field.name == "grid_px").default is None
    hue = op_table.op_id("hue")
    without_grid = [dataclasses.replace(row, grid_px=None) if i == hue else row for i, row in enumerate(DEGRADATIONS)]
    program = Program.from_chains([[("hue", 1), ("gamma", 2)], [("gamma", 2), ("hue", 1)]], seeds=[1, 2])
    boxes = boxes_of([(3, 4)], [(3, 4)])
    assert row_windows(program, boxes, 8, 64, 64)[:, 0].tolist() == [0, 0]
    monkeypatch.setattr(patches, "DEGRADATIONS", without_grid)
    assert row_windows(program, boxes, 8, 64, 64)[:, 0].tolist() == [1, 2]


def test_an_op_that_needs_the_whole_image_cannot_take_windows():
    whole = next(row for row in DEGRADATIONS if row.halo == "whole")
    with pytest.raises(ValueError, match="grid_px must be None"):
        dataclasses.replace(whole, grid_px=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_windows_in_every_form(dtype, memory_format):
    images = smooth_images(1, HEIGHT, WIDTH)
    program = Program.from_chains([[("gaussian_blur", 2), ("gaussian_noise", 4)], []], seeds=[1, 2])
    boxes = boxes_of(PLACES[:3], PLACES[3:6])
    patches = degrade_patches(images, program, boxes, SIZE, dtype=dtype, memory_format=memory_format)
    assert torch.equal(patches, cropped(degrade(images, program), boxes, SIZE, dtype))
