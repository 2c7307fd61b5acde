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
    assert "| memory shared |" in counters.table(counters.by_pipe(kernel, counts))
    assert all("source.cu" in t.name for t in counters.by_line(kernel, counts))
