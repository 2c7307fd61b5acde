"""mma.sync and ldmatrix: fragments laid out as the PTX ISA says, sums against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import ptx
from tests.ptx.snippet import HEADER

KINDS = {  # type -> elements of a register, shapes k
    "f16": (2, (8, 16)), "bf16": (2, (8, 16)), "tf32": (1, (4, 8)), "s8": (4, (16, 32)), "u8": (4, (16, 32)),
}  # fmt: skip
CASES = [(kind, k) for kind, (_, shapes) in KINDS.items() for k in shapes]


def place_a(kind: str, k: int, lane: int, i: int) -> tuple[int, int]:
    """Row and column of a lane's element i of A, as the figures of 'Matrix Fragments for mma.m16n8kX' say."""
    group, member = lane >> 2, lane % 4
    if kind in ("f16", "bf16"):
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, member * 2 + (i & 1) + (8 if i >= 4 else 0)
    if kind == "tf32":
        return (group if i in (0, 2) else group + 8), member + (4 if i >= 2 else 0)
    row = group if i < 4 or 8 <= i < 12 else group + 8
    return row, member * 4 + (i & 3) + (16 if i >= 8 else 0)


def place_b(kind: str, k: int, lane: int, i: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    if kind in ("f16", "bf16"):
        return member * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if kind == "tf32":
        return member + 4 * i, group
    return member * 4 + (i & 3) + (16 if i >= 4 else 0), group


def place_c(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


def bits(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind == "bf16":
        return torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    if kind == "tf32":
        return values.astype(np.float32).view(np.uint32)
    return values.astype(np.int8).view(np.uint8) if kind == "s8" else values.astype(np.uint8)


def fragments(matrix: np.ndarray, kind: str, k: int, place) -> np.ndarray:
    """Registers [32, n] of a matrix of bit patterns."""
    each = KINDS[kind][0]
    count = matrix.size // 32
    packed = np.zeros((32, count), matrix.dtype)
    for lane in range(32):
        for i in range(count):
            packed[lane, i] = matrix[place(kind, k, lane, i)]
    return np.ascontiguousarray(packed).view(np.uint32).reshape(32, count // each)


def multiply(kind: str, k: int, a: np.ndarray, b: np.ndarray, c: np.ndarray, arithmetic: ptx.Arithmetic) -> np.ndarray:
    left, right = fragments(bits(a, kind), kind, k, place_a), fragments(bits(b, kind), kind, k, place_b)
    start = np.zeros((32, 4), c.dtype)
    for lane in range(32):
        for i in range(4):
            start[lane, i] = c[place_c(lane, i)]
    out = "s32" if kind in ("s8", "u8") else "f32"
    names = {
        name: [f"%{name}{n}" for n in range(count)]
        for name, count in (("a", left.shape[1]), ("b", right.shape[1]), ("c", 4))
    }
    lines = [f".reg .b32 %{name}<8>;" for name in "abc"] + [
        ".reg .b32 %t; .reg .b64 %p; .reg .b64 %q;",
        "mov.u32 %t, %tid.x;",
    ]
    for place, registers in enumerate(names.values()):
        lines.append(f"ld.param.u64 %p, [p{place}]; mad.wide.u32 %q, %t, {4 * len(registers)}, %p;")
        lines += [f"ld.global.b32 {register}, [%q+{4 * n}];" for n, register in enumerate(registers)]
    group = {name: "{" + ", ".join(registers) + "}" for name, registers in names.items()}
    shape = f"mma.sync.aligned.m16n8k{k}.row.col.{out}.{kind}.{kind}.{out}"
    lines.append(f"{shape} {group['c']}, {group['a']}, {group['b']}, {group['c']};")
    lines += [
        "ld.param.u64 %p, [p3]; mad.wide.u32 %q, %t, 16, %p;",
        "st.global.v4.b32 [%q], {%c0, %c1, %c2, %c3};",
        "ret;",
    ]
    text = (
        HEADER
        + ".visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3)\n{\n"
        + "\n".join(lines)
        + "\n}\n"
    )
    result = ptx.Buffer.empty((32, 4), c.dtype)
    ptx.load(text)["k"].launch(
        1, 32, [ptx.Buffer(left), ptx.Buffer(right), ptx.Buffer(start), result], arithmetic=arithmetic
    )
    found = np.zeros((16, 8), c.dtype)
    for lane in range(32):
        for i in range(4):
            found[place_c(lane, i)] = result.read()[lane, i]
    return found


@pytest.mark.parametrize(("kind", "k"), CASES)
def test_products_of_tiles(kind: str, k: int) -> None:
    rng = np.random.default_rng(k)
    if kind in ("s8", "u8"):
        low, high = (-128, 128) if kind == "s8" else (0, 256)
        a, b = rng.integers(low, high, (16, k)), rng.integers(low, high, (k, 8))
        c = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
        assert (multiply(kind, k, a, b, c, ptx.Arithmetic()) == a @ b + c).all()
        return
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, k), (k, 8)))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    if kind == "bf16":
        a, b = (torch.from_numpy(x).bfloat16().float().numpy() for x in (a, b))
    elif kind == "f16":
        a, b = (x.astype(np.float16).astype(np.float32) for x in (a, b))
    else:
        a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))  # further bits are not looked at
    truth = a.astype(np.float64) @ b.astype(np.float64) + c
    rounded = multiply(kind, k, a, b, c, ptx.Arithmetic(tensor_core="rounded"))
    assert (rounded == truth.astype(np.float32)).mean() > 0.98  # float64 sums differ in their last bit at most
    assert (np.abs(rounded - truth) <= 0.51 * np.spacing(np.abs(truth).astype(np.float32))).all()
    truncated = multiply(kind, k, a, b, c, ptx.Arithmetic(tensor_core="truncated"))
    scale = np.abs(a).astype(np.float64) @ np.abs(b) + np.abs(c)
    assert (np.abs(truncated - truth) <= scale * (k + 1) * 2.0**-24).all()
    assert (truncated != rounded).any()


def test_products_of_infinities_and_zeros() -> None:
    a, b, c = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32), np.full((16, 8), 3.5, np.float32)
    a[2, 5], b[5, 1], b[5, 2] = np.inf, 1.0, 0.0
    found = multiply("f16", 16, a, b, c, ptx.Arithmetic())
    assert found[2, 1] == np.inf
    assert np.isnan(found[2, 2])
    assert (found[3:] == 3.5).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_from_shared_memory(transposed: bool, count: int) -> None:
    """Lane l gives the address of row l; lane t gets row t / 4, elements 2 (t % 4) and the next, or the transposed."""
    registers = [f"%r{n}" for n in range(count)]
    trans = ".trans" if transposed else ""
    lines = [
        ".reg .b32 %r<8>; .reg .b32 %t; .reg .b32 %s; .reg .b64 %p; .reg .b64 %q; .reg .b32 %v<4>;",
        ".shared .align 16 .b8 tile[512]; mov.u32 %t, %tid.x; mov.u32 %s, tile; mad.lo.u32 %s, %t, 16, %s;",
        "ld.param.u64 %p, [p0]; mad.wide.u32 %q, %t, 16, %p;",
        "ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%q]; st.shared.v4.b32 [%s], {%v0, %v1, %v2, %v3}; bar.sync 0;",
        f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{', '.join(registers)}}}, [%s];",
        f"ld.param.u64 %p, [p1]; mad.wide.u32 %q, %t, {4 * count}, %p;",
        *[f"st.global.b32 [%q+{4 * n}], {register};" for n, register in enumerate(registers)],
    ]
    text = HEADER + ".visible .entry k(.param .u64 p0, .param .u64 p1)\n{\n" + "\n".join(lines) + "\nret;\n}\n"
    rows = np.arange(256, dtype=np.uint16).reshape(32, 8)
    out = ptx.Buffer.empty((32, count), np.uint32)
    ptx.load(text)["k"].launch(1, 32, [ptx.Buffer(rows), out])
    found = np.ascontiguousarray(out.read()).view(np.uint16).reshape(32, count, 2)
    for n in range(count):
        matrix = rows[8 * n : 8 * n + 8].T if transposed else rows[8 * n : 8 * n + 8]
        for lane in range(32):
            assert found[lane, n].tolist() == matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].tolist()


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_to_shared_memory_and_back(trans: str) -> None:
    lines = [
        ".reg .b32 %a<2>; .reg .b32 %b<2>; .reg .b32 %t; .reg .b32 %s; .reg .b64 %p; .reg .b64 %q;",
        ".shared .align 16 .b8 tile[256]; mov.u32 %t, %tid.x; mov.u32 %s, tile; and.b32 %a0, %t, 15;",
        "mad.lo.u32 %s, %a0, 16, %s; mul.lo.u32 %a0, %t, 7; mul.lo.u32 %a1, %t, 11;",
        f"stmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 [%s], {{%a0, %a1}}; bar.sync 0;",
        f"ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%b0, %b1}}, [%s];",
        "ld.param.u64 %p, [p0]; mad.wide.u32 %q, %t, 8, %p; st.global.v2.b32 [%q], {%b0, %b1}; ret;",
    ]
    text = HEADER.replace("sm_80", "sm_90") + ".visible .entry k(.param .u64 p0)\n{\n" + "\n".join(lines) + "\n}\n"
    out = ptx.Buffer.empty((32, 2), np.uint32)
    ptx.load(text)["k"].launch(1, 32, [out])
    assert (out.read() == np.arange(32)[:, None] * [7, 11]).all()
