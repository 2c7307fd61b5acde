"""The loss's Triton kernels as compiled for sm_80, and for sm_90 without wgmma, executed on the CPU, against float64.

Launched through Triton's own path by the package's launchers: products on tensor cores, pipelines of asynchronous
copies, roundings to half precision. Approximate instructions err by a hash within the ISA's bounds, and tensor cores
cut their sums as measured on hardware (ptx.Arithmetic). The rule is the one of tests/tolerance.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests import offline, ptx
from tests.conftest import LONG
from tests.contrastive_interpreted import Case, case, converted, dense, sides
from tests.ptx.compilers import TritonDevice
from tests.tolerance import TOL, assert_close

pytestmark = [pytest.mark.rung("PTX execution"), offline.needs_triton]

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
WEIGHTS = {"no images": None, "images": 0.0, "weight 0.5": math.log(0.5), "weight 0": -math.inf}


def run(
    given: Case, truth_lse: torch.Tensor, parts: int, precision: str = "auto", **device: object
) -> dict[str, torch.Tensor]:
    """Return lse, mean and gradient as ``dense`` has them, and the same lse without the weighted sum."""
    from qpt.kernels import contrastive as kernels

    common = (*sides(given), torch.tensor(given.temperature), given.log_weight)
    left_out = (given.query_groups < 0) | (truth_lse == -torch.inf)
    lse = truth_lse.masked_fill(left_out, torch.inf).float()
    found = TritonDevice(**device)  # type: ignore[arg-type]
    with (
        found.active(),
        mock.patch.object(kernels, "parts_for", return_value=parts),
        mock.patch.object(kernels, "_device", return_value=(found.architecture, 2)),
    ):
        row_max, row_sum, acc = kernels.lse_forward(*common, weighted=True, precision=precision)
        bare = kernels.lse_forward(*common, weighted=False, precision=precision)
        gradient = kernels.key_gradient(*common, lse, both_roles=given.both_roles, precision=precision)
        assert acc is not None
        # A gradient is divided by the temperature in torch, in place: its bytes stay as defined as they were.
        for tensor in (row_max, row_sum, acc, bare[0], bare[1], gradient):
            found.check(tensor)
    assert all(f".target sm_{found.architecture}" in compiled.asm["ptx"] for compiled in found.compiled)
    assert torch.equal(row_max == -torch.inf, row_sum == 0)
    return {
        "lse": row_max + row_sum.log(),
        "mean": acc / row_sum.clamp(min=1e-30)[:, None],
        "gradient": gradient,
        "bare_lse": bare[0] + bare[1].log(),
    }


def check(given: Case, parts: int, precision: str = "auto", **device: object) -> None:
    dtype = given.queries.dtype if given.queries.dtype == given.keys.dtype else FLOAT32
    truth = dense(given, torch.float64)
    found = run(given, truth[0], parts, precision, **device)
    eligible = truth[0] > -math.inf
    assert torch.equal(found["lse"] > -math.inf, eligible)
    assert torch.allclose(found["lse"][eligible], found["bare_lse"][eligible], rtol=1e-6)
    if dtype == FLOAT32:
        assert_close(found["lse"][eligible], truth[0][eligible], dtype)
        assert_close(found["mean"], truth[1], dtype)
        assert_close(found["gradient"], truth[2], dtype)
        return
    relative, absolute = TOL[dtype]
    for name, right, rival in zip(("lse", "mean", "gradient"), truth, dense(given, dtype), strict=True):
        fine = right.isfinite()
        bound = (rival.double() - right)[fine].norm() + absolute + relative * right[fine].norm()
        assert (found[name].double() - right)[fine].norm() <= bound, name


# dtype, precision, D, N, M, parts: every row of the launch table for sm_80, with ragged tiles on both sides
VARIANTS = [
    (FLOAT32, "auto", 64, 33, 70, 1),
    (FLOAT32, "auto", 128, 21, 75, 2),
    (FLOAT32, "ieee", 128, 21, 75, 3),
    (FLOAT32, "tf32x3", 128, 21, 75, 2),
    (FLOAT16, "auto", 64, 70, 150, 2),
    (FLOAT16, "auto", 128, 33, 150, 2),
    (BFLOAT16, "auto", 128, 70, 130, 1),
    (BFLOAT16, "auto", 256, 21, 70, 2),
    (FLOAT16, "auto", 512, 21, 40, 1),
]
LONG_VARIANTS = [
    (dtype, precision, dim, n, m, parts)
    for dtype, precision in (
        *((FLOAT32, precision) for precision in ("auto", "ieee", "tf32x3")),
        *((half, precision) for half in (FLOAT16, BFLOAT16) for precision in ("auto", "bf16x3")),
    )
    for dim in (64, 96, 128, 200, 256, 384, 512)
    for n, m, parts in ((1, 1, 1), (65, 129, 1), (64, 128, 2), (33, 200, 3))
]


def name_of(variant: tuple) -> str:
    return f"{str(variant[0]).removeprefix('torch.')}-{'-'.join(map(str, variant[1:]))}"


@pytest.mark.parametrize("variant", VARIANTS + (LONG_VARIANTS if LONG else []), ids=name_of)
def test_ragged_shapes_agree_with_float64(variant: tuple) -> None:
    dtype, precision, dim, n, m, parts = variant
    given = converted(case(n, m, dim, log_weight=math.log(0.5), self_offset=1), dtype)
    check(given, parts, precision)


# Of the launch table for sm_90 and of Triton's passes for it; on the device, products of 64 rows are those of wgmma.
VARIANTS_90 = [
    (FLOAT32, "auto", 64, 33, 130, 2),
    (FLOAT32, "tf32x3", 128, 21, 75, 2),
    (FLOAT16, "auto", 128, 70, 150, 1),
    (BFLOAT16, "auto", 256, 21, 70, 2),
]


@pytest.mark.parametrize("variant", VARIANTS_90 + (LONG_VARIANTS[::3] if LONG else []), ids=name_of)
def test_ragged_shapes_for_sm_90_agree_with_float64(variant: tuple) -> None:
    dtype, precision, dim, n, m, parts = variant
    given = converted(case(n, m, dim, log_weight=math.log(0.5), self_offset=1), dtype)
    check(given, parts, precision, architecture=90)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_options_agree_with_float64(dtype: torch.dtype, long: bool) -> None:
    grid = list(itertools.product((None, 0, 7, -3), (True, False), WEIGHTS.values()))
    for self_offset, negatives, log_weight in grid if long else grid[3::14][:2]:
        options = {"self_offset": self_offset, "negatives": negatives, "log_weight": log_weight or 0.0}
        check(converted(case(18, 70, 64, images=log_weight is not None, **options), dtype), parts=2)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16])
def test_both_roles_agree_with_float64(dtype: torch.dtype) -> None:
    rows = converted(case(70, 70, 64), dtype)
    shared = (rows.queries, rows.queries, *[rows.query_groups] * 2, *[rows.query_images] * 2)
    check(Case(*shared, log_weight=math.log(0.5), self_offset=0, both_roles=True), parts=2)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_two_dtypes_lose_no_more_than_float32(dtype: torch.dtype) -> None:
    given = case(18, 35, 64)
    check(Case(given.queries, given.keys.to(dtype), given.query_groups, given.key_groups), parts=2)


@pytest.mark.parametrize("pool", [FLOAT32, BFLOAT16], ids=str)
def test_a_step_of_training_is_no_worse_than_torch_in_float32(pool: torch.dtype) -> None:
    """A pool without image ids, whose pass has programs of its own: |truth - ours| <= |truth - torch| + tol."""
    given = case(21, 300, 128, images=False)
    given = replace(given, keys=given.keys.to(pool))
    truth, torchs = dense(given, torch.float64), dense(given, FLOAT32)
    relative, absolute = TOL[FLOAT32]
    for precision in ("auto", "tf32x3"):
        found = run(given, truth[0], 2, precision)
        for name, right, rival in zip(("lse", "mean", "gradient"), truth, torchs, strict=True):
            fine = right.isfinite()
            bound = (rival.double() - right)[fine].norm() + absolute + relative * right[fine].norm()
            assert (found[name].double() - right)[fine].norm() <= bound, (precision, name)


def test_one_tf32_product_is_worse_and_only_by_name() -> None:
    given = case(21, 75, 64)
    truth = dense(given, torch.float64)
    error = {}
    for precision in ("auto", "tf32"):
        mean = run(given, truth[0], 1, precision)["mean"].double()
        error[precision] = ((mean - truth[1]).norm() / truth[1].norm()).item()
    assert error["auto"] <= 1e-5 < 1e-4 < error["tf32"]


def test_nothing_eligible_anywhere() -> None:
    given = converted(case(18, 70, 64), BFLOAT16)
    given.key_groups.fill_(-1)
    check(given, parts=1)


@pytest.mark.parametrize("arithmetic", [ptx.Arithmetic("up"), ptx.Arithmetic("down", "rounded")], ids=str)
def test_errors_that_hardware_may_make_stay_within_the_tolerance(arithmetic: ptx.Arithmetic) -> None:
    for dtype, precision in ((FLOAT32, "auto"), (FLOAT32, "tf32x3"), (FLOAT16, "auto")):
        check(converted(case(21, 75, 128), dtype), 2, precision, arithmetic=arithmetic)
