"""Single PTX instructions against exact rational arithmetic, Python's integers and the formulas of the PTX ISA."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from tests import ptx
from tests.ptx.snippet import evaluate

FORMATS = {  # dtype -> significant binary digits, exponent of the smallest normal number, of the largest
    "f16": (np.uint16, 11, -14, 15),
    "bf16": (np.uint16, 8, -126, 127),
    "f32": (np.uint32, 24, -126, 127),
    "f64": (np.uint64, 53, -1022, 1023),
}


def pad(values: list[int], dtype: type) -> np.ndarray:
    """As many as fill whole warps."""
    return np.array(values + values[:1] * (-len(values) % 32), dtype)


def decode(bits: int, kind: str) -> Fraction | float:
    """The number that bits are: a Fraction, or an infinity, nan or negative zero as a float."""
    dtype, digits, low, _ = FORMATS[kind]
    size = 8 * np.dtype(dtype).itemsize
    sign = -1 if bits >> (size - 1) else 1
    fraction = bits & ((1 << digits - 1) - 1)
    exponent = bits >> digits - 1 & ((1 << size - digits) - 1)
    if exponent == (1 << size - digits) - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        value = Fraction(fraction) * Fraction(2) ** (low - digits + 1)
    else:
        value = Fraction(fraction + (1 << digits - 1)) * Fraction(2) ** (exponent - 1 + low - digits + 1)
    return -0.0 if sign < 0 and value == 0 else sign * value


def encode(value: Fraction, kind: str, mode: str = "rn", zero_sign: int = 0) -> int:
    """Bits of the number rounded to the format: rn to nearest even, rz to zero, rm down, rp up."""
    dtype, digits, low, high = FORMATS[kind]
    size = 8 * np.dtype(dtype).itemsize
    if value == 0:
        return zero_sign << size - 1
    negative, value = value < 0, abs(value)
    exponent = max(low, math.floor(math.log2(value.numerator) - math.log2(value.denominator)) - 1)
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    scaled = value / Fraction(2) ** (exponent - digits + 1)
    whole, rest = divmod(scaled, 1)
    up = {
        "rz": False,
        "rm": negative,
        "rp": not negative,
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2),
    }
    whole = int(whole) + (1 if rest and up[mode] else 0)
    if whole == 1 << digits:
        whole, exponent = whole // 2, exponent + 1
    top = ((1 << size - digits) - 1) << digits - 1
    if exponent > high:
        stays = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        bits = top - 1 if stays else top
    else:
        bits = whole if whole < 1 << digits - 1 else (exponent - low + 1 << digits - 1) + whole - (1 << digits - 1)
    return bits | negative << size - 1


def samples(kind: str, count: int, seed: int) -> list[int]:
    """Zeros, ones, the ends of the range and subnormals of both signs; the rest random, many of one magnitude."""
    dtype, digits, low, _ = FORMATS[kind]
    size = 8 * np.dtype(dtype).itemsize
    one = (-low + 1) << digits - 1
    top = ((1 << size - digits) - 1) << digits - 1
    ends = [0, 1, (1 << digits - 1) - 1, 1 << digits - 1, one, one + 1, top - 1, top - 2]
    rng = np.random.default_rng(seed)
    found = ends + [bits | 1 << size - 1 for bits in ends]
    while len(found) < count:
        sign = int(rng.integers(2)) << size - 1
        near = one + int(rng.integers(-12, 12)) * (1 << digits - 1)
        exponent = near if rng.random() < 0.7 else int(rng.integers(0, top >> digits - 1)) << digits - 1
        found.append(sign | (exponent & ~((1 << digits - 1) - 1)) | int(rng.integers(0, 1 << digits - 1)))
    return found


def check(kind: str, instruction: str, exact, operands: list[list[int]], mode: str) -> None:
    dtype = FORMATS[kind][0]
    inputs = [pad(column, dtype) for column in operands]
    (found,) = evaluate(instruction, inputs, [dtype])
    for row, bits in zip(zip(*[column.tolist() for column in inputs], strict=True), found.tolist(), strict=True):
        numbers = [Fraction(decode(x, kind)) for x in row]
        truth = exact(*numbers)
        if truth is None or truth == 0:  # the sign of zero has its own test
            continue
        assert bits == encode(truth, kind, mode), (
            instruction,
            [hex(x) for x in row],
            hex(bits),
            hex(encode(truth, kind, mode)),
        )


MODES = {"f16": ("rn",), "bf16": ("rn",), "f32": ("rn", "rz", "rm", "rp"), "f64": ("rn", "rz", "rm", "rp")}
CASES = [(kind, mode) for kind, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_arithmetic_is_rounded_once(kind: str, mode: str) -> None:
    a, b, c = (samples(kind, 320, seed) for seed in (1, 2, 3))
    check(kind, f"add.{mode}.{kind} %d0, %a0, %a1;", lambda x, y: x + y, [a, b], mode)
    check(kind, f"sub.{mode}.{kind} %d0, %a0, %a1;", lambda x, y: x - y, [a, b], mode)
    check(kind, f"mul.{mode}.{kind} %d0, %a0, %a1;", lambda x, y: x * y, [a, b], mode)
    check(kind, f"fma.{mode}.{kind} %d0, %a0, %a1, %a2;", lambda x, y, z: x * y + z, [a, b, c], mode)
    if kind in ("f32", "f64"):
        check(kind, f"div.{mode}.{kind} %d0, %a0, %a1;", lambda x, y: x / y if y else None, [a, b], mode)
        check(kind, f"rcp.{mode}.{kind} %d0, %a0;", lambda x: 1 / x if x else None, [a], mode)


def test_square_roots_are_rounded_once() -> None:
    for kind in ("f32", "f64"):
        digits = FORMATS[kind][1]
        values = [bits for bits in samples(kind, 320, 4) if isinstance(decode(bits, kind), Fraction)]

        def root(x: Fraction, digits: int = digits) -> Fraction | None:
            if x <= 0:
                return None
            scale = 1 << 2 * (1200 + digits)  # far more digits than the format, cut: no tie is possible
            return (
                Fraction(2 * math.isqrt(int(x * scale)) + 1, 2 << 1200 + digits)
                if math.isqrt(int(x * scale)) ** 2 != x * scale
                else Fraction(math.isqrt(int(x * scale)), 1 << 1200 + digits)
            )

        for mode in MODES[kind]:
            check(kind, f"sqrt.{mode}.{kind} %d0, %a0;", root, [values], mode)


def test_special_values() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    a = np.array([inf, inf, 0.0, -0.0, 0.0, 1.0, nan, -0.0] * 4, np.float32)
    b = np.array([inf, -inf, 0.0, 0.0, -0.0, 0.0, 1.0, -0.0] * 4, np.float32)
    (sums,) = evaluate("add.rn.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert sums[:8].tolist() == [0x7F800000, 0x7FFFFFFF, 0, 0, 0, 0x3F800000, 0x7FFFFFFF, 0x80000000]
    (ratios,) = evaluate("div.rn.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert ratios[:8].tolist() == [
        0x7FFFFFFF,
        0x7FFFFFFF,
        0x7FFFFFFF,
        0x7FFFFFFF,
        0x7FFFFFFF,
        0x7F800000,
        0x7FFFFFFF,
        0x7FFFFFFF,
    ]
    (least,) = evaluate("min.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert least[:8].tolist() == [0x7F800000, 0xFF800000, 0, 0x80000000, 0x80000000, 0, 0x3F800000, 0x80000000]
    (most,) = evaluate("max.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert most[:8].tolist() == [0x7F800000, 0x7F800000, 0, 0, 0, 0x3F800000, 0x3F800000, 0x80000000]
    (wins,) = evaluate("max.NaN.f32 %d0, %a0, %a1;", [a, b], [np.uint32])
    assert wins[6] == 0x7FFFFFFF
    (flushed,) = evaluate(
        "mul.ftz.f32 %d0, %a0, %a1;", [np.full(32, 1e-40, np.float32), np.full(32, 1e10, np.float32)], [np.float32]
    )
    assert (flushed == 0).all()
    (cut,) = evaluate("add.sat.f32 %d0, %a0, %a1;", [a, b], [np.float32])
    assert cut[:7].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]


COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b and a == a and b == b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "num": lambda a, b: a == a and b == b, "nan": lambda a, b: a != a or b != b,
}  # fmt: skip


def test_comparisons() -> None:
    values = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45]
    a, b = (np.array(column, np.float32) for column in zip(*itertools.product(values, values), strict=True))
    for name, test in COMPARISONS.items():
        unordered = {f"{name}u": name} if name in ("eq", "ne", "lt", "le", "gt", "ge") else {}
        for opcode in (name, *unordered):
            (found,) = evaluate(f"setp.{opcode}.f32 %p1, %a0, %a1; selp.b32 %d0, 1, 0, %p1;", [a, b], [np.int32])
            for x, y, r in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
                assert r == (bool(test(x, y)) or (opcode != name and (x != x or y != y))), (opcode, x, y)
    left = np.array([-1, 0, 5, 2**31 - 1] * 8, np.int32)
    right = np.array([1, 0, -5, -(2**31)] * 8, np.int32)
    (below,) = evaluate("setp.lt.s32 %p1, %a0, %a1; selp.b32 %d0, 1, 0, %p1;", [left, right], [np.int32])
    assert (below == (left < right)).all()
    (below,) = evaluate("setp.lo.u32 %p1, %a0, %a1; selp.b32 %d0, 1, 0, %p1;", [left, right], [np.int32])
    assert (below == (left.view(np.uint32) < right.view(np.uint32))).all()
    (both,) = evaluate(
        "setp.eq.s32 %p3, %a0, 5; setp.lt.and.s32 %p1|%p2, %a1, %a0, %p3; selp.b32 %d0, 1, 0, %p1; "
        "@%p2 add.s32 %d0, %d0, 2;",
        [left, right], [np.int32],
    )  # fmt: skip
    assert (both == ((right < left) & (left == 5)) + 2 * (~(right < left) & (left == 5))).all()


def wrapped(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> bits - 1 else value


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("signed", [True, False])
def test_integers(bits: int, signed: bool) -> None:
    dtype = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    kind = f"{'s' if signed else 'u'}{bits}"
    rng = np.random.default_rng(bits)
    ends = [0, 1, 2, 3, 7, bits - 1, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1, (1 << bits) - 7]
    values = [wrapped(x, bits, signed) for x in ends] + [
        int(x) for x in rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, 18, dtype)
    ]
    pairs = list(itertools.product(values, values[:24]))
    a, b = (pad([pair[k] for pair in pairs], dtype) for k in (0, 1))

    def agrees(instruction: str, exact, out_bits: int = bits, inputs: tuple = (a, b)) -> None:
        (found,) = evaluate(instruction, inputs, [np.dtype(f"{'i' if signed else 'u'}{out_bits // 8}")])
        for row, r in zip(zip(*[column.tolist() for column in inputs], strict=True), found.tolist(), strict=True):
            truth = exact(*row)
            if truth is not None:
                assert r == wrapped(truth, out_bits, signed), (instruction, row, r)

    agrees(f"add.{kind} %d0, %a0, %a1;", lambda x, y: x + y)
    agrees(f"sub.{kind} %d0, %a0, %a1;", lambda x, y: x - y)
    agrees(f"mul.lo.{kind} %d0, %a0, %a1;", lambda x, y: x * y)
    agrees(f"mul.hi.{kind} %d0, %a0, %a1;", lambda x, y: x * y >> bits)
    agrees(f"mad.lo.{kind} %d0, %a0, %a1, %a0;", lambda x, y: x * y + x)
    agrees(f"min.{kind} %d0, %a0, %a1;", min)
    agrees(f"max.{kind} %d0, %a0, %a1;", max)
    nonzero = b.copy()
    nonzero[nonzero == 0] = 3
    quotient = lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)  # noqa: E731
    agrees(f"div.{kind} %d0, %a0, %a1;", quotient, inputs=(a, nonzero))
    agrees(f"rem.{kind} %d0, %a0, %a1;", lambda x, y: x - quotient(x, y) * y, inputs=(a, nonzero))
    agrees(f"xor.b{bits} %d0, %a0, %a1;", lambda x, y: x ^ y)
    agrees(f"not.b{bits} %d0, %a0;", lambda x, y: ~x)
    if bits < 64:
        agrees(f"mul.wide.{kind} %d0, %a0, %a1;", lambda x, y: x * y, 2 * bits)
    shifts = pad([k % 70 for k in range(len(a))], np.uint32)[: len(a)]
    agrees(f"shl.b{bits} %d0, %a0, %a1;", lambda x, n: x << n, inputs=(a, shifts))
    agrees(f"shr.{kind} %d0, %a0, %a1;", lambda x, n: x >> n, inputs=(a, shifts))
    if signed:
        agrees(f"neg.{kind} %d0, %a0;", lambda x, y: -x)
        agrees(f"abs.{kind} %d0, %a0;", lambda x, y: abs(x))
    if bits == 16:
        return
    unsigned = lambda x: x & (1 << bits) - 1  # noqa: E731
    agrees(
        f"popc.b{bits} %x, %a0; cvt.u{bits}.u32 %d0, %x;".replace("%x", "%size"), lambda x, y: unsigned(x).bit_count()
    )
    agrees(f"clz.b{bits} %size, %a0; cvt.u{bits}.u32 %d0, %size;", lambda x, y: bits - unsigned(x).bit_length())
    agrees(f"brev.b{bits} %d0, %a0;", lambda x, y: int(f"{unsigned(x):0{bits}b}"[::-1], 2))

    def field(x: int, start: int, length: int) -> int:
        if length == 0:
            return 0
        sign = unsigned(x) >> min(start + length - 1, bits - 1) & 1 if signed else 0
        taken = [unsigned(x) >> start + k & 1 if k < length and start + k < bits else sign for k in range(bits)]
        return sum(bit << k for k, bit in enumerate(taken))

    for start, length in [(0, 5), (3, 9), (bits - 4, 8), (bits + 3, 2), (7, 0), (1, bits)]:
        agrees(f"bfe.{kind} %d0, %a0, {start}, {length};", lambda x, y, s=start, n=length: field(x, s, n))
        keep = ((1 << length) - 1) << start & (1 << bits) - 1
        agrees(
            f"bfi.b{bits} %d0, %a0, %a1, {start}, {length};",
            lambda x, y, s=start, k=keep: (unsigned(y) & ~k) | ((unsigned(x) << s) & k),
        )


def test_logic_of_three_and_bytes() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 1 << 32, 64, dtype=np.uint32) for _ in range(3))
    for table in (0x80, 0xFE, 0x96, 0x1B, 0xCA):
        (found,) = evaluate(f"lop3.b32 %d0, %a0, %a1, %a2, {table};", [a, b, c], [np.uint32])
        # The ISA's recipe: the table is the function of 0xF0, 0xCC and 0xAA.
        expected = np.zeros_like(a)
        for row in range(8):
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            expected |= term if table >> row & 1 else np.uint32(0)
        assert (found == expected).all()
    (mixed,) = evaluate("prmt.b32 %d0, %a0, %a1, 0x7362;", [a, b], [np.uint32])
    whole = (b.astype(np.uint64) << 32 | a).view(np.uint8).reshape(-1, 8)
    assert (mixed.view(np.uint8).reshape(-1, 4) == whole[:, [2, 6, 3, 7]]).all()
    (signs,) = evaluate("prmt.b32 %d0, %a0, %a1, 0xba98;", [a, b], [np.uint32])
    assert (signs.view(np.uint8).reshape(-1, 4) == np.where(whole[:, :4] > 127, 255, 0)).all()
    (turned,) = evaluate("shf.l.wrap.b32 %d0, %a0, %a0, 7;", [a], [np.uint32])
    assert (turned == (a << 7 | a >> 25)).all()
    (dot,) = evaluate("dp4a.s32.u32 %d0, %a0, %a1, %a2;", [a, b, c], [np.uint32])
    products = a.view(np.int8).reshape(-1, 4).astype(np.int64) * b.view(np.uint8).reshape(-1, 4)
    assert (dot == (products.sum(1) + c).astype(np.uint32)).all()
    (dot,) = evaluate("dp2a.lo.u32.u32 %d0, %a0, %a1, %a2;", [a, b, c], [np.uint32])
    products = a.view(np.uint16).reshape(-1, 2).astype(np.int64) * b.view(np.uint8).reshape(-1, 4)[:, :2]
    assert (dot == (products.sum(1) + c).astype(np.uint32)).all()


def test_carries() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 1 << 64, 64, dtype=np.uint64) for _ in range(2))
    halves = [half for x in (a, b) for half in (x.astype(np.uint32), (x >> np.uint64(32)).astype(np.uint32))]
    for name, truth in (("add", a + b), ("sub", a - b)):
        low, high = evaluate(f"{name}.cc.u32 %d0, %a0, %a2; {name}c.u32 %d1, %a1, %a3;", halves, [np.uint32] * 2)
        assert (low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32) == truth).all()
    low, high = evaluate("mad.lo.cc.u32 %d0, %a0, %a2, %a1; madc.hi.u32 %d1, %a0, %a2, 0;", halves, [np.uint32] * 2)
    truth = halves[0].astype(np.uint64) * halves[2] + halves[1]
    assert (low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32) == truth).all()


def test_division_by_zero_is_poison() -> None:
    ones = np.ones(32, np.int32)
    with pytest.raises(ptx.Fault, match="not defined"):
        evaluate("div.s32 %d0, %a0, %a1;", [ones, ones - 1], [np.int32])


def test_branches_by_a_table() -> None:
    chosen = np.array([0, 2, 1, 2] * 8, np.uint32)
    code = (
        "mov.b32 %d0, 7; table: .branchtargets FIRST, SECOND, THIRD; brx.idx %a0, table;\n"
        "FIRST: add.u32 %d0, %d0, 1; bra DONE;\nSECOND: add.u32 %d0, %d0, 10;\nTHIRD: add.u32 %d0, %d0, 100;\nDONE:\n"
    )
    (found,) = evaluate(code, [chosen], [np.uint32])
    assert found[:4].tolist() == [8, 107, 117, 107]
    with pytest.raises(ptx.Fault, match="beyond its table"):
        evaluate(code, [chosen + 1], [np.uint32])


def test_selections_and_packed_moves() -> None:
    a = np.arange(32, dtype=np.uint64) * np.uint64(0x123456789)
    low, high = evaluate("mov.b64 {%d0, %d1}, %a0;", [a], [np.uint32] * 2)
    assert (low == a.astype(np.uint32)).all()
    (back,) = evaluate("mov.b64 %d0, {%a0, %a1};", [low, high], [np.uint64])
    assert (back == a).all()
    # An undefined value that is not chosen does no harm.
    code, registers = "setp.ge.u32 %p1, %a0, 0; selp.b32 %d0, %a0, %undefined, %p1;", ".reg .b32 %undefined;"
    (found,) = evaluate(code, [low], [np.uint32], registers=registers)
    assert (found == low).all()
