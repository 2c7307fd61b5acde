"""Counts of executed instructions against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests import ptx
from tests.ptx import compilers, counters
from tests.ptx.cuda_kernels import SOURCE

STRIDED = """
extern "C" __global__ void strided(const float* x, float* out, int stride) {
  out[threadIdx.x] = x[threadIdx.x * stride] + 1.0f;
}
extern "C" __global__ void diverged(int* out) {
  int v = threadIdx.x;
  if (v % 4 == 0) { for (int k = 0; k < 100; ++k) asm volatile("xor.b32 %0, %0, 5;" : "+r"(v)); }
  out[threadIdx.x] = v;
}
extern "C" __global__ void spaces(int* x, int* out) {
  __shared__ int cell[64];
  int own[8];
  for (int k = 0; k < 8; ++k) own[k] = x[k];
  cell[threadIdx.x] = threadIdx.x;
  const int third = threadIdx.x % 4;
  volatile int* from = third == 0 ? x + threadIdx.x : third == 1 ? own + x[63] : cell + threadIdx.x;
  int v;
  asm volatile("ld.s32 %0, [%1];" : "=r"(v) : "l"(from));
  out[threadIdx.x] = v;
}
"""


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (0, 1)])
def test_sectors_of_a_request(stride: int, sectors: int) -> None:
    kernel = ptx.load(compilers.cuda(STRIDED))["strided"]
    x, out = ptx.Buffer(np.zeros(32 * 8, np.float32)), ptx.Buffer.empty(64, np.float32)
    x = ptx.Buffer(np.zeros(64 * 8, np.float32))
    x.base -= x.base % 256  # sectors are counted from the device's addresses
    counts = kernel.launch(1, 64, [x, out, stride], count=True)
    loads = [t for t in counters.by_opcode(kernel, counts) if t.name.startswith("ld.global")]
    assert [(t.instructions, t.requests, t.bytes, t.sectors_per_request) for t in loads] == [(2, 2, 256, sectors)]
    (fma,) = [t for t in counters.by_pipe(kernel, counts) if t.name == "FMA"]
    assert (fma.instructions, fma.lanes) == (2, 1.0)


def test_lanes_of_a_diverged_loop() -> None:
    kernel = ptx.load(compilers.cuda(STRIDED))["diverged"]
    counts = kernel.launch(1, 32, [ptx.Buffer.empty(32, np.int32)], count=True)
    (xor,) = [t for t in counters.by_opcode(kernel, counts) if t.name.startswith("xor")]
    assert (xor.instructions, xor.lanes) == (100, 0.25)


@pytest.mark.parametrize(("width", "conflicts"), [(33, 0), (32, 31)])
def test_bank_conflicts_of_a_transpose(width: int, conflicts: int) -> None:
    kernel = ptx.load(compilers.cuda(SOURCE.replace("tile[32][33]", f"tile[32][{width}]")))["transpose"]
    x, out = ptx.Buffer(np.zeros((32, 32), np.float32)), ptx.Buffer.empty((32, 32), np.float32)
    counts = kernel.launch(1, (32, 8), [x, out, 32, 32], count=True)
    loads = [t for t in counters.by_opcode(kernel, counts) if t.name.startswith("ld.shared")]
    assert sum(t.requests for t in loads) == 32
    assert sum(t.bank_conflicts for t in loads) == 32 * conflicts
    stores = [t for t in counters.by_opcode(kernel, counts) if t.name.startswith("st.shared")]
    assert sum(t.bank_conflicts for t in stores) == 0
    assert "| load shared |" in counters.table(counters.by_pipe(kernel, counts))
    assert all("source.cu" in t.name for t in counters.by_line(kernel, counts))


def test_a_generic_address_is_counted_where_it_leads() -> None:
    kernel = ptx.load(compilers.cuda(STRIDED))["spaces"]
    x, out = ptx.Buffer(np.zeros(64, np.int32)), ptx.Buffer.empty(64, np.int32)
    x.base -= x.base % 256
    counts = kernel.launch(1, 64, [x, out], count=True)
    places = range(len(counts))
    (place,) = [p for p in places if kernel.program.instructions[p].opcode == "ld.s32" and counts["runs"][p]]
    found = dict(counters.by_space_reached(kernel, counts, place))
    # Of each of two warps: 8 lanes to global memory, one in four words of 128 bytes; 8 to local, 16 to shared memory.
    assert {space: int(row["runs"]) for space, row in found.items()} == {"global": 2, "shared": 2, "local": 2}
    assert {space: int(row["lanes"]) for space, row in found.items()} == {"global": 16, "shared": 32, "local": 16}
    assert counts["bytes"][place].tolist() == [64, 128, 64]
    assert counts["sectors"][place].tolist() == [8, 0, 8]
    names = {total.name for total in counters.by_pipe(kernel, counts)}
    assert {"load global", "load shared", "load local"} <= names
    assert not any("generic" in name for name in names)


def test_local_memory_of_a_warp_is_coalesced() -> None:
    """Words of 32 lanes at one local address lie side by side: 128 bytes, four sectors."""
    text = (
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n.reg .b32 %r;\n"
        ".local .align 8 .b8 stack[16];\nmov.u32 %r, 1; st.local.u32 [stack + 4], %r;\n"
        "ld.local.u32 %r, [stack + 4]; ret;\n}\n"
    )
    kernel = ptx.load(text)["k"]
    counts = kernel.launch(1, 32, [], count=True)
    for name in ("load local", "store local"):
        (total,) = [t for t in counters.by_pipe(kernel, counts) if t.name == name]
        assert (total.requests, total.bytes, total.sectors_per_request, total.sector_use) == (1, 128, 4, 1)


def test_pipes() -> None:
    expected = {
        "fma.rn.f32": "FMA", "mad.lo.s32": "IMAD", "mul.wide.u32": "IMAD", "add.s32": "ALU", "max.f32": "ALU",
        "fma.rn.f16x2": "half", "add.f64": "double", "ex2.approx.ftz.f32": "special", "cvt.rn.f32.s32": "convert",
        "cvt.rzi.f32.f32": "convert", "cvt.u32.u16": "ALU", "shfl.sync.bfly.b32": "lanes", "bar.sync": "control",
        "ld.shared.v4.f32": "load shared", "ld.f32": "load generic", "cp.async.cg.shared.global": "copy global",
        "cp.async.wait_group": "control", "atom.global.add.u32": "atomic global", "ld.param.u64": "load param",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": "tensor",
    }  # fmt: skip
    for opcode, name in expected.items():
        assert counters.pipe(ptx.parse.Instruction(opcode, ())) == name
