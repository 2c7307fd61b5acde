"""Targets of the regression head: measures compared with NumPy definitions, levels of ops, undegraded patches."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from qpt.degradations.op_table import DEGRADATIONS, op_id
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.evaluate.measures import MEASURES, measure
from qpt.ops.degrade.api import degrade_patches
from qpt.pretraining.targets import COLUMNS, KINDS, OPS, RunningMoments, cut_patches, op_levels

SCORE = {name: place for place, name in enumerate(MEASURES)}


def pairs(count: int = 6, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Return degraded and undegraded patches, the first of them equal."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    noise = torch.randint(-60, 60, clean.shape, generator=generator)
    noise[0] = 0
    return (clean.int() + noise).clamp(0, 255).to(torch.uint8), clean


def luma(patch: torch.Tensor) -> np.ndarray:
    return np.tensordot([0.299, 0.587, 0.114], patch.double().numpy() / 255, 1)


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (sliding_window_view(each, (7, 7))[::2, ::2].reshape(-1, 49) for each in (a, b))
    covariance = ((x - x.mean(1, keepdims=True)) * (y - y.mean(1, keepdims=True))).mean(1)
    lightness = (2 * x.mean(1) * y.mean(1) + 1e-4) / (x.mean(1) ** 2 + y.mean(1) ** 2 + 1e-4)
    return float((lightness * (2 * covariance + 9e-4) / (x.var(1) + y.var(1) + 9e-4)).mean())


def reference_gmsd(a: np.ndarray, b: np.ndarray) -> float:
    prewitt = np.array([[1, 0, -1]] * 3) / 3

    def gradient(image: np.ndarray) -> np.ndarray:
        half = image.reshape(image.shape[0] // 2, 2, -1, 2).mean((1, 3))
        windows = sliding_window_view(half, (3, 3))
        return np.hypot((windows * prewitt).sum((2, 3)), (windows * prewitt.T).sum((2, 3)))

    x, y, c = gradient(a), gradient(b), 170 / 255**2
    return float(((2 * x * y + c) / (x**2 + y**2 + c)).std())


def test_measures_are_those_of_the_definitions() -> None:
    degraded, clean = pairs()
    found = measure(degraded, clean)
    assert found.shape == (6, len(MEASURES)) and found.dtype == torch.float32
    for row, a, b in zip(found.double().numpy(), degraded, clean, strict=True):
        x, y = luma(a), luma(b)
        error = ((a.double() - b.double()) / 255).square().mean()
        assert row[SCORE["log_mse"]] == pytest.approx(float(torch.log10(error + 1e-5)), abs=1e-4)
        assert row[SCORE["ssim"]] == pytest.approx(reference_ssim(x, y), abs=1e-4)
        assert row[SCORE["gmsd"]] == pytest.approx(reference_gmsd(x, y), abs=1e-4)
        assert row[SCORE["contrast_ratio"]] == pytest.approx(np.log((x.std() + 0.01) / (y.std() + 0.01)), abs=1e-4)
        assert row[SCORE["luma_shift"]] == pytest.approx((x - y).mean(), abs=1e-5)


def test_equal_patches_have_the_best_values() -> None:
    _, clean = pairs()
    best = {"log_mse": -5, "ssim": 1, "contrast_structure": 1, "chroma_error": -3}
    expected = torch.tensor([float(best.get(name, 0)) for name in MEASURES]).expand(6, -1)
    torch.testing.assert_close(measure(clean, clean), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_patches_have_finite_measures(value: int) -> None:
    flat = torch.full((2, 3, 8, 8), value, dtype=torch.uint8)
    for other in (flat, 255 - flat, torch.randint(0, 256, flat.shape, dtype=torch.uint8)):
        assert measure(flat, other).isfinite().all() and measure(other, flat).isfinite().all()


def test_levels_are_the_highest_of_each_op() -> None:
    program = DegradationSpace.named("qpt").sample(40, generator=torch.Generator().manual_seed(0))
    levels = op_levels(program)
    assert levels.shape == (40, len(OPS)) and len(MEASURES) + len(OPS) == COLUMNS
    for row, chain in zip(levels, program, strict=True):
        expected: dict[int, int] = {}
        for step in chain.steps:
            expected[op_id(step.name)] = max(step.level, expected.get(op_id(step.name), 0))
        assert {op: round(float(row[op]) * 5) for op in row.nonzero().flatten().tolist()} == expected


def test_a_variant_counts_as_the_op_that_it_is_a_variant_of() -> None:
    rows = [[("colour_shift_edges", 4)], [("colour_shift", 2), ("colour_shift_edges", 5)], [("hue", 1)]]
    levels = op_levels(Program.from_chains(rows, seeds=[0, 1, 2])) * 5
    assert levels[:, OPS.index("colour_shift")].tolist() == [4, 5, 0]
    assert levels.count_nonzero().item() == 3
    assert all(op.variant_of in {"", *OPS} for op in DEGRADATIONS)
    assert set(OPS) == {op for kind in KINDS.values() for op in kind}


def test_undegraded_patches_are_those_of_a_program_without_ops() -> None:
    regions = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    program = Program.from_chains([[], [], [], []], seeds=[0, 1, 2, 3])
    source = torch.tensor([2, 0, 1, 2], dtype=torch.int32)
    program = Program(program.ops, program.levels, program.params, program.seeds, source, program.table)
    boxes = torch.tensor([[[0, 0], [24, 24]], [[3, 5], [24, 0]], [[1, 1], [7, 9]], [[2, 2], [2, 3]]], dtype=torch.int32)
    expected = degrade_patches(regions, program, boxes, 16, dtype=torch.uint8)
    assert torch.equal(cut_patches(regions, source, boxes, 16), expected.view(4, 2, 3, 16, 16))


def test_running_moments_are_those_of_all_rows() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 30.0, 0.01]) + 100
    moments = RunningMoments(3, epsilon=0.0)
    for part in rows.split([1, 20, 29]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, rows.double().mean(0))
    torch.testing.assert_close(moments.scale(), 1 / rows.double().std(0, correction=0).float())
    torch.testing.assert_close(moments.standardise(rows).std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)
