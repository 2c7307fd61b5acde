"""cvt in every direction, approximate functions within the ISA's bounds, and the instructions between lanes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests import ptx
from tests.ptx.snippet import evaluate
from tests.test_ptx_arithmetic import FORMATS, decode, encode, pad, samples


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_floats_to_narrower_floats(source: str, target: str, mode: str) -> None:
    if source == target:
        return
    values = pad(samples(source, 320, 5), FORMATS[source][0])
    (found,) = evaluate(f"cvt.{mode}.{target}.{source} %d0, %a0;", [values], [FORMATS[target][0]])
    for bits, r in zip(values.tolist(), found.tolist(), strict=True):
        number = decode(bits, source)
        if number == 0 or not isinstance(number, Fraction):
            continue
        assert r == encode(number, target, mode), (hex(bits), hex(r))


def test_pairs_agree_with_torch_and_numpy() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(96).astype(np.float32) * np.float32(2) ** rng.integers(-20, 15, 96) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    (halves,) = evaluate("cvt.rn.f16x2.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert (halves.view(np.uint16)[0::2] == b.astype(np.float16).view(np.uint16)).all()
    assert (halves.view(np.uint16)[1::2] == a.astype(np.float16).view(np.uint16)).all()
    (brains,) = evaluate("cvt.rn.bf16x2.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert (brains.view(np.int16)[0::2] == torch.from_numpy(b).bfloat16().view(torch.int16).numpy()).all()
    (tf32,) = evaluate("cvt.rna.tf32.f32 %d0, %a0;", [a], [np.uint32])
    assert (tf32 == (a.view(np.uint32) + 0x1000 & 0xFFFFE000)).all()  # ties away from zero, 13 bits less
    x, y, z = (rng.standard_normal(64).astype(np.float16) for _ in range(3))
    packed = [np.ascontiguousarray(array).view(np.uint32) for array in (x, y, z)]
    (sums,) = evaluate("fma.rn.f16x2 %d0, %a0, %a1, %a2;", packed, [np.uint32])
    exact = x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)
    assert (sums.view(np.float16) == exact.astype(np.float16)).all()


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers_saturate(mode: str) -> None:
    rule = {"rni": lambda x: round(x), "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    numbers = [
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        3.7,
        -3.7,
        1e10,
        -1e10,
        255.4,
        2147483520.0,
        -2147483648.0,
        math.inf,
        -math.inf,
        math.nan,
        0.0,
    ]
    values = pad(numbers, np.float32)  # type: ignore[arg-type]
    for target, dtype in (
        ("s32", np.int32),
        ("u32", np.uint32),
        ("s64", np.int64),
        ("u16", np.uint16),
        ("s16", np.int16),
    ):
        (found,) = evaluate(f"cvt.{mode}.{target}.f32 %d0, %a0;", [values], [dtype])
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        for x, r in zip(values.tolist(), found.tolist(), strict=True):
            expected = (
                0
                if math.isnan(x)
                else most
                if x == math.inf
                else least
                if x == -math.inf
                else min(most, max(least, rule(x)))
            )
            assert r == expected, (target, x, r)
    (byte,) = evaluate("cvt.rzi.u8.f32 %size, %a0; mov.b32 %d0, %size;", [values], [np.uint32])
    assert byte[[9, 7, 6]].tolist() == [255, 255, 0]


def test_integers_to_floats_and_among_themselves() -> None:
    rng = np.random.default_rng(2)
    wide = rng.integers(-(2**63), 2**63 - 1, 64, dtype=np.int64) >> rng.integers(0, 60, 64)
    for mode in ("rn", "rz", "rm", "rp"):
        (found,) = evaluate(f"cvt.{mode}.f32.s64 %d0, %a0;", [wide], [np.uint32])
        assert all(r == encode(Fraction(int(x)), "f32", mode) for x, r in zip(wide, found.tolist(), strict=True) if x)
    (same,) = evaluate("cvt.rn.f64.s64 %d0, %a0;", [wide], [np.float64])
    assert (same == wide.astype(np.float64)).all()
    (low,) = evaluate("cvt.s64.s8 %d0, %a0;", [wide], [np.int64])
    assert (low == wide.astype(np.int8)).all()
    narrow = wide.astype(np.int32)
    (low,) = evaluate("cvt.s32.s16 %d0, %a0;", [narrow], [np.int32])  # registers wider than the type
    assert (low == narrow.astype(np.int16)).all()
    (low,) = evaluate("cvt.u32.u16 %d0, %a0;", [narrow], [np.int64])
    assert (low == narrow.astype(np.uint16)).all()
    (real,) = evaluate("cvt.rn.f32.u16 %d0, %a0;", [narrow], [np.float32])
    assert (real == narrow.astype(np.uint16)).all()
    (whole,) = evaluate("cvt.rzi.s32.f32 %d0, %a0;", [real - np.float32(0.5)], [np.int64])
    assert (whole == (real - np.float32(0.5)).astype(np.int32)).all()
    (cut,) = evaluate("cvt.sat.u8.s64 %d0, %a0;", [wide], [np.uint32])
    assert (cut == np.clip(wide, 0, 255)).all()
    (zero,) = evaluate("cvt.u32.u16 %d0, %a0;", [wide.astype(np.uint16)], [np.uint32])
    assert (zero == wide.astype(np.uint16)).all()


APPROXIMATE = {  # instruction -> function, samples, relative and absolute bound of the PTX ISA
    "ex2.approx.ftz.f32": (np.exp2, (-120, 120), 2.0**-22, 0),
    "lg2.approx.f32": (np.log2, (1e-3, 1e6), 2.0**-22, 2.0**-22),
    "rcp.approx.f32": (lambda x: 1 / x, (1e-3, 1e6), 2.0**-23, 0),
    "sqrt.approx.f32": (np.sqrt, (1e-3, 1e6), 2.0**-23, 0),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), (1e-3, 1e6), 2.0**-22.9, 0),
    "sin.approx.f32": (np.sin, (-3.1, 3.1), 0, 2.0**-20.5),
    "tanh.approx.f32": (np.tanh, (-4, 4), 2.0**-11, 0),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations_err_within_the_documented_bound(name: str) -> None:
    function, (low, high), relative, absolute = APPROXIMATE[name]
    x = np.random.default_rng(3).uniform(low, high, 1024).astype(np.float32)
    truth = function(x.astype(np.float64))
    bound = np.abs(truth) * relative + absolute
    worst = {}
    for how in ("exact", "up", "down", "mixed"):
        (found,) = evaluate(f"{name} %d0, %a0;", [x], [np.float32], arithmetic=ptx.Arithmetic(approximation=how))
        error = (found - truth) / bound
        assert np.abs(error).max() <= 1 + 1e-9, how
        worst[how] = error
    assert worst["up"].max() > 0.4  # the error is there, in the direction that was asked for
    assert worst["down"].min() < -0.4
    (halves,) = evaluate("ex2.approx.ftz.f32 %d0, %a0;", [np.arange(-16, 16, dtype=np.float32)], [np.float32])
    assert (halves == np.exp2(np.arange(-16, 16))).all()  # powers of two are exact


def test_division_approximately() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.uniform(-5, 5, 256).astype(np.float32), rng.uniform(0.1, 9, 256).astype(np.float32)
    truth = a.astype(np.float64) / b
    for name in ("div.full.f32", "div.approx.f32", "div.approx.ftz.f32"):
        (found,) = evaluate(f"{name} %d0, %a0, %a1;", [a, b], [np.float32], arithmetic=ptx.Arithmetic("up"))
        ulp = np.spacing(np.abs(truth).astype(np.float32))
        assert (np.abs(found - truth) <= 2 * ulp).all()
        assert (found != truth.astype(np.float32)).any()


def shuffled(kind: str, values: np.ndarray, lane_operand: np.ndarray, clamp: int) -> tuple[list[int], list[bool]]:
    """The pseudo-code of shfl in the PTX ISA."""
    out, inside = [], []
    for lane in range(32):
        b, c = int(lane_operand[lane]) & 31, clamp
        segment_mask, c_low = c >> 8 & 31, c & 31
        max_lane = (lane & segment_mask) | (c_low & ~segment_mask & 31)
        min_lane = lane & segment_mask
        if kind == "up":
            j, p = lane - b, lane - b >= max_lane
        elif kind == "down":
            j, p = lane + b, lane + b <= max_lane
        elif kind == "bfly":
            j, p = lane ^ b, (lane ^ b) <= max_lane
        else:
            j = min_lane | (b & ~segment_mask & 31)
            p = j <= max_lane
        out.append(int(values[j if p else lane]))
        inside.append(p)
    return out, inside


@pytest.mark.parametrize("kind", ["up", "down", "bfly", "idx"])
def test_shuffles(kind: str) -> None:
    values = np.arange(100, 132, dtype=np.uint32)
    rng = np.random.default_rng(5)
    for clamp in (0 if kind == "up" else 31, 0x1807 if kind != "up" else 0x1800, 0x1C03 if kind != "up" else 0x1C00):
        for lanes in (np.full(32, 1), np.full(32, 5), rng.integers(0, 32, 32)):
            if kind in ("up", "down", "bfly") and len(set(lanes.tolist())) > 1:
                continue
            lane_operand = lanes.astype(np.uint32)
            found, flags = evaluate(
                f"shfl.sync.{kind}.b32 %d0|%p1, %a0, %a1, {clamp}, 0xffffffff; selp.b32 %d1, 1, 0, %p1;",
                [values, lane_operand], [np.uint32, np.uint32],
            )  # fmt: skip
            expected = shuffled(kind, values, lane_operand, clamp)
            assert found.tolist() == expected[0]
            assert flags.tolist() == expected[1]


def test_votes_matches_and_reductions() -> None:
    values = np.array([5, 5, 7, -2] * 8, np.int32)
    (ballot,) = evaluate("setp.eq.s32 %p1, %a0, 5; vote.sync.ballot.b32 %d0, %p1, 0xffffffff;", [values], [np.uint32])
    assert (ballot == 0x33333333).all()
    for name, expected in (("any", 1), ("all", 0), ("uni", 0)):
        (found,) = evaluate(
            f"setp.eq.s32 %p1, %a0, 5; vote.sync.{name}.pred %p2, %p1, 0xffffffff; selp.b32 %d0, 1, 0, %p2;",
            [values],
            [np.uint32],
        )
        assert (found == expected).all()
    (same,) = evaluate("match.any.sync.b32 %d0, %a0, 0xffffffff;", [values], [np.uint32])
    assert same[:4].tolist() == [0x33333333, 0x33333333, 0x44444444, 0x88888888]
    for name, expected in (("add", values.sum()), ("min", -2), ("max", 7)):
        (found,) = evaluate(f"redux.sync.{name}.s32 %d0, %a0, 0xffffffff;", [values], [np.int32])
        assert (found == expected).all()
    (few,) = evaluate("redux.sync.or.b32 %d0, %a0, 0x7ff;", [np.arange(11, dtype=np.uint32)], [np.uint32])
    assert (few == 15).all()
