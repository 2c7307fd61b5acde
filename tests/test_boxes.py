"""Boxes of two or more patches: the overlap rule holds for every draw, exactly."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qpt import InputError
from qpt.data.boxes import draw_boxes, draw_pair, overlap_offsets


def iou(a: np.ndarray, b: np.ndarray, side: int) -> float:
    """Count the pixels: draw both squares on a grid and divide."""
    grid = np.zeros((2, *(np.maximum(a, b) + side)), bool)
    for layer, (top, left) in zip(grid, (a, b), strict=True):
        layer[top : top + side, left : left + side] = True
    return float((grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum())


@given(
    patch=st.integers(8, 64),
    extra=st.integers(0, 64),
    seed=st.integers(0, 2**32),
    low=st.sampled_from([0.0, 0.1, 0.25]),
)
def test_every_pair_overlaps_as_asked(patch: int, extra: int, seed: int, low: float) -> None:
    region = 2 * patch + extra
    pair = np.array(draw_pair(np.random.default_rng(seed), patch, region, low, 0.3))
    assert pair.shape == (2, 2) and pair.dtype == np.int64
    assert (pair >= 0).all() and (pair <= region - patch).all()
    assert low <= iou(pair[0], pair[1], patch) <= 0.3
    assert not np.array_equal(pair[0], pair[1])


def test_offsets_are_complete() -> None:
    """Every integer offset that satisfies the rule is in the table, and no other."""
    side, found = 12, {tuple(row) for row in overlap_offsets(12, 24, 0.1, 0.3)}
    for dy in range(side + 1):
        for dx in range(side + 1):
            share = iou(np.array([0, 0]), np.array([dy, dx]), side)
            assert ((dy, dx) in found) == (0.1 <= share <= 0.3)


def test_all_four_diagonal_directions_and_both_orders_appear() -> None:
    rng = np.random.default_rng(0)
    signs = {tuple(np.sign(np.diff(draw_pair(rng, 16, 40, 0.1, 0.3), axis=0)[0])) for _ in range(400)}
    assert {(1, 1), (1, -1), (-1, 1), (-1, -1)} <= signs


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((33, 32, 0.1, 0.3), "patch_size"),
        ((0, 32, 0.1, 0.3), "patch_size"),
        ((16, 32, 0.3, 0.1), "iou_min"),
        ((16, 32, 0.1, 1.0), "iou_max"),
        ((16, 17, 0.1, 0.3), "region_size"),
    ],
)
def test_impossible_rules_are_refused(arguments: tuple[int, int, float, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        overlap_offsets(*arguments)


@given(
    patch=st.integers(8, 40),
    extra=st.integers(-3, 40),
    seed=st.integers(0, 2**32),
    patches=st.integers(2, 9),
    low=st.sampled_from([0.0, 0.1, 0.25]),
)
def test_every_further_patch_overlaps_the_first_and_none_comes_twice(
    patch: int, extra: int, seed: int, patches: int, low: float
) -> None:
    region = 2 * patch + extra
    assume(patches <= 1 + len(overlap_offsets(patch, region, low, 0.3)))
    boxes = np.array(draw_boxes(np.random.default_rng(seed), patches, patch, region, low, 0.3))
    assert boxes.shape == (patches, 2)
    assert (boxes >= 0).all() and (boxes <= region - patch).all()
    assert len(np.unique(boxes, axis=0)) == patches
    for box in boxes[1:]:
        assert low <= iou(boxes[0], box, patch) <= 0.3


def test_two_patches_are_a_pair() -> None:
    pair = draw_pair(np.random.default_rng(3), 16, 40, 0.1, 0.3)
    assert np.array_equal(draw_boxes(np.random.default_rng(3), 2, 16, 40, 0.1, 0.3), pair)


def test_a_tight_rule_yields_every_patch_it_has_room_for() -> None:
    """Side 4 in a region of 7, IoU up to 0.1: the others of a corner are at (2, 3), (3, 2) and (3, 3)."""
    room = len(overlap_offsets(4, 7, 0.01, 0.1))
    assert room == 3
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes = draw_boxes(rng, room + 1, 4, 7, 0.01, 0.1)
        assert len(np.unique(boxes, axis=0)) == room + 1
    with pytest.raises(InputError, match=f"patches must be between 2 and {room + 1}"):
        draw_boxes(rng, room + 2, 4, 7, 0.01, 0.1)
    with pytest.raises(InputError, match="patches must be between 2"):
        draw_boxes(rng, 1, 4, 7, 0.01, 0.1)
