"""Faults put into kernels that are right: each is caught, and by the check that should catch it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests import ptx
from tests.ptx import compilers
from tests.ptx.compilers import TritonDevice
from tests.ptx.cuda_kernels import SOURCE
from tests.ptx.snippet import HEADER

ORDERS = ("forward", "reverse")


@functools.cache
def compiled(source: str) -> str:
    return compilers.nvrtc(source) if compilers.find_nvrtc() else compilers.nvcc(source)


def changed(old: str, new: str, count: int = 1) -> str:
    """The kernels with a fault in their source."""
    assert SOURCE.count(old) >= count, old
    return compiled(SOURCE.replace(old, new, count))


def without(kernel: str, pattern: str, place: int, by: str = "") -> str:
    """The kernels' PTX with one instruction of a kernel replaced: the `place`-th that the pattern matches."""
    text = compiled(SOURCE)
    start = re.search(rf"\.entry {kernel}\b", text)
    assert start
    body = text[start.start() :]
    found = list(re.finditer(rf"^\s*{pattern}[^;]*;", body, re.MULTILINE))[place]
    return text[: start.start()] + body[: found.start()] + "\n\t" + by + body[found.end() :]


def total(text: str, schedule: ptx.Schedule) -> None:
    x, out = np.ones(1000, np.float32), ptx.Buffer.empty(1, np.float32)
    ptx.load(text)["total"].launch(1, 256, [ptx.Buffer(x), out, 1000], schedule=schedule)
    out.read()


def histogram(text: str, schedule: ptx.Schedule) -> None:
    x, out = np.zeros(3000, np.uint8), ptx.Buffer(np.zeros(256, np.uint32))
    ptx.load(text)["histogram"].launch(2, 96, [ptx.Buffer(x), out, 3000], schedule=schedule)
    out.read()


def scan(text: str, schedule: ptx.Schedule) -> None:
    x, out = np.ones(500, np.int32), ptx.Buffer.empty(500, np.int32)
    ptx.load(text)["scan"].launch(1, 512, [ptx.Buffer(x), out, 500], schedule=schedule)
    out.read()


def transpose(text: str, schedule: ptx.Schedule) -> None:
    x, out = np.arange(70 * 45, dtype=np.float32).reshape(70, 45), ptx.Buffer.empty((45, 70), np.float32)
    ptx.load(text)["transpose"].launch((2, 3), (32, 8), [ptx.Buffer(x), out, 70, 45], schedule=schedule)
    assert (out.read() == x.T).all()


def last_block(text: str, schedule: ptx.Schedule) -> None:
    parts, out = ptx.Buffer.empty(7, np.float32), ptx.Buffer.empty(1, np.float32)
    ptx.load(text)["last_block"].launch(
        7, 64, [ptx.Buffer(np.ones(100, np.float32)), parts, out, 100], schedule=schedule
    )
    out.read()


def grid_barrier(text: str, schedule: ptx.Schedule) -> None:
    squares, out = ptx.Buffer.empty(4, np.int32), ptx.Buffer.empty(4, np.int32)
    together = ptx.Schedule(schedule.order, resident=4, quantum=50)
    ptx.load(text)["grid_barrier"].launch(4, 64, [squares, out], schedule=together)
    out.read()


def ring(text: str, schedule: ptx.Schedule) -> None:
    x, out = np.zeros((6, 64, 4), np.float32), ptx.Buffer.empty((6, 64, 4), np.float32)
    ptx.load(text)["ring"].launch(1, 64, [ptx.Buffer(x), out, 6], schedule=schedule)
    out.read()


def rotate(text: str, schedule: ptx.Schedule) -> None:
    out = ptx.Buffer.empty(32, np.int32)
    ptx.load(text)["rotate"].launch(1, 32, [ptx.Buffer(np.arange(32, dtype=np.int32)), out], schedule=schedule)
    out.read()


def atomics(text: str, schedule: ptx.Schedule) -> None:
    cell, total, most = (
        ptx.Buffer(np.array(v, d)) for v, d in (([5, 0, 0], np.int32), ([0], np.float64), ([5000], np.uint64))
    )
    ptx.load(text)["atomics"].launch(2, 64, [cell, total, most], schedule=schedule)


BARRIER = r"(?:bar|barrier)\.sync"
Fault = tuple[str, Callable[[], str], Callable[[str, ptx.Schedule], None], str]
FAULTS: list[Fault] = [
    ("sum: barrier left out", lambda: without("total", BARRIER, 0), total, "race"),
    ("histogram: barrier after the bins are cleared", lambda: without("histogram", BARRIER, 0), histogram, "race"),
    ("histogram: barrier before the bins are read", lambda: without("histogram", BARRIER, 1), histogram, "race"),
    ("histogram: bins not cleared", lambda: changed("bins[i] = 0;", ";"), histogram, "poison"),
    ("histogram: not an atomic", lambda: changed("atomicAdd(&bins[x[i]], 1u)", "bins[x[i]] += 1"), histogram, "race"),
    (
        "histogram: a block's end beyond the data",
        lambda: changed("i < n; i += gridDim", "i <= n; i += gridDim"),
        histogram,
        "bounds",
    ),
    ("scan: first barrier", lambda: without("scan", BARRIER, 0), scan, "race"),
    ("scan: second barrier", lambda: without("scan", BARRIER, 1), scan, "race"),
    ("scan: mask off by one", lambda: changed("threadIdx.x < n ? x", "threadIdx.x <= n ? x"), scan, "bounds"),
    (
        "scan: shuffle in a branch",
        lambda: changed(
            "if (lane >= step) value += before", "if (lane >= step) value += __shfl_up_sync(0xffffffff, value, step)"
        ),
        scan,
        "lanes",
    ),
    ("transpose: barrier", lambda: without("transpose", BARRIER, 0), transpose, "race"),
    ("transpose: rows beyond the last", lambda: changed("row + k < height &&", ""), transpose, "bounds"),
    (
        "transpose: columns not tested when writing",
        lambda: changed("&& to_column < height", ""),
        transpose,
        "bounds|race",
    ),
    ("transpose: index beyond the tile", lambda: changed("tile[32][33];", "tile[24][33];"), transpose, "bounds"),
    ("transpose: swapped stride", lambda: changed("x[(row + k) * width", "x[(row + k) * height"), transpose, "bounds"),
    (
        "last block: no fence before the ticket",
        lambda: changed("    __threadfence();\n    last", "    last"),
        last_block,
        "race",
    ),
    (
        "grid barrier: no fence before it",
        lambda: changed("    __threadfence();\n    atomicAdd(&arrived", "    atomicAdd(&arrived"),
        grid_barrier,
        "race",
    ),
    (
        "grid barrier: not waited for",
        lambda: changed("while (atomicAdd(&arrived, 0u) < gridDim.x)", "if (false)"),
        grid_barrier,
        "poison|race",
    ),
    ("ring: no wait for the copies", lambda: without("ring", r"cp\.async\.wait_group", 0), ring, "poison|race"),
    (
        "ring: one group too few is waited for",
        lambda: without("ring", r"cp\.async\.wait_group", 0, "cp.async.wait_group 3;"),
        ring,
        "poison|race",
    ),
    ("ring: barrier after the wait", lambda: without("ring", BARRIER, 0), ring, "race"),
    (
        "ring: a slot too early",
        lambda: changed("buffer[(k + 3) % 4][t]);\n      asm", "buffer[(k + 4) % 4][t]);\n      asm"),
        ring,
        "race",
    ),
    (
        "ring: misaligned copy",
        lambda: changed('"l"(x + k * 64 + t)', '"l"((const char*)(x + k * 64 + t) + 4)'),
        ring,
        "misaligned",
    ),
    ("warp: exchange without __syncwarp", lambda: changed("  __syncwarp();\n", ""), rotate, "race"),
    ("atomics: a plain read beside them", lambda: changed("*(volatile int*)cell", "cell[0]"), atomics, "race"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_fault_in_a_cuda_kernel_is_caught(fault: Fault) -> None:
    _, make, run, kind = fault
    text = make()
    for order in ORDERS:
        run(compiled(SOURCE), ptx.Schedule(order))  # which is right without the fault
        with pytest.raises(ptx.Fault) as caught:
            run(text, ptx.Schedule(order))
        assert re.fullmatch(kind, caught.value.kind), caught.value


SMALL = {  # body of a kernel with parameters p0 (128 bytes in, 128 bytes out at p1), 32 threads -> the check
    "bar.sync 0; setp.lt.u32 %q, %t, 16; @%q bar.sync 0;": "barrier",
    "setp.lt.u32 %q, %t, 16; @%q ret; bar.sync 0;": "barrier",
    "add.u32 %r, %undefined, 1; setp.eq.u32 %q, %r, 0; @%q bra END;": "poison",
    "cvt.u64.u32 %b, %undefined; add.u64 %b, %b, %a; ld.global.b32 %r, [%b];": "poison",
    "st.global.b32 [%a], %t;": "bounds",
    "mov.u64 %b, 0; ld.global.b32 %r, [%b];": "bounds",
    "add.u64 %b, %a, 128; ld.global.b32 %r, [%b];": "bounds",
    "add.u64 %b, %a, -4; ld.global.b32 %r, [%b];": "bounds",
    "add.u64 %b, %a, 4; ld.global.v2.b32 {%r, %r2}, [%b];": "misaligned",
    "ld.shared.b32 %r, [cell + 128];": "bounds",
    "st.shared.b32 [other], %t; ld.shared.b32 %r, [other];": "race",
    "mul.lo.u32 %r, %t, 4; ld.local.b32 %r2, [%r];": "bounds",
    "setp.lt.u32 %q, %t, 4; @%q shfl.sync.idx.b32 %r, %t, 0, 31, 0xffffffff;": "lanes",
    "setp.lt.u32 %q, %t, 4; @%q bra.uni END;": "lanes",
    "LOOP: bra LOOP;": "limit",
    "trap;": "trap",
}


@pytest.mark.parametrize("body", SMALL)
def test_fault_in_a_few_instructions_is_caught(body: str) -> None:
    text = (
        HEADER + ".visible .entry k(.param .u64 p0, .param .u64 p1) {\n.reg .b32 %t; .reg .b32 %r; .reg .b32 %r2;"
        ".reg .b32 %undefined;"
        ".reg .b64 %a; .reg .b64 %b; .reg .pred %q;\n.shared .align 16 .b8 cell[128];\n"
        ".shared .align 16 .b8 other[128];\n"
        ".local .align 4 .b8 stack[64];\nmov.u32 %t, %tid.x; ld.param.u64 %a, [p0];\n" + body + "\nEND: ret;\n}\n"
    )
    kernel = ptx.load(text)["k"]
    given = ptx.Buffer(np.zeros(32, np.int32), writable=False)
    with pytest.raises(ptx.Fault) as caught:
        kernel.launch(1, 32, [given, ptx.Buffer.empty(32, np.int32)], limit=10_000)
    assert caught.value.kind == SMALL[body], caught.value


def test_warps_at_different_barriers() -> None:
    text = HEADER + (
        ".visible .entry k() {\n.reg .b32 %t; .reg .pred %q;\nmov.u32 %t, %tid.x; setp.lt.u32 %q, %t, 32;\n"
        "@%q bra ONE; bar.sync 0; bra END; ONE: bar.sync 0;\nEND: ret;\n}\n"
    )
    with pytest.raises(ptx.Fault, match="different barriers"):
        ptx.load(text)["k"].launch(1, 64, [])
    waits = text.replace("ONE: bar.sync 0;", "ONE:")
    with pytest.raises(ptx.Fault, match="only 32 of a block's 64"):
        ptx.load(waits)["k"].launch(1, 64, [])


READERS = """
extern "C" __global__ void readers(int* out) {
  __shared__ int cell;
  const int t = threadIdx.x;
  if (t == 0) cell = 5;
  __syncthreads();
  int v = 0;
  if (t < 2 || t == 32 || t == 64) v = cell;
  __syncwarp();
  if (t == 0) cell = 7;  // ordered after what its own warp has read, not after the other warps' reads
  out[t] = v;
}
"""


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_read_is_not_forgotten_for_later_reads(order: str) -> None:
    """Two threads of the writer's own warp read the word after another warp has: the race is with the earlier read."""
    kernel = ptx.load(compiled(READERS))["readers"]
    with pytest.raises(ptx.Fault) as caught:
        kernel.launch(1, 96, [ptx.Buffer.empty(96, np.int32)], schedule=ptx.Schedule(order))
    assert caught.value.kind == "race"
    ordered = compiled(READERS.replace("__syncwarp", "__syncthreads"))
    ptx.load(ordered)["readers"].launch(1, 96, [ptx.Buffer.empty(96, np.int32)], schedule=ptx.Schedule(order))


def test_output_that_is_not_written_is_reported() -> None:
    out = ptx.Buffer.empty(100, np.float32)
    x = ptx.Buffer(np.ones(100, np.float32))
    text = compiled(
        'extern "C" __global__ void k(const float* x, float* o) { if (threadIdx.x < 99) o[threadIdx.x] = 2 * *x; }'
    )
    ptx.load(text)["k"].launch(1, 100, [x, out])
    with pytest.raises(ptx.Fault, match=r"4 of 400 bytes of .* not defined, first 396"):
        out.read()


def test_an_unknown_opcode_is_named() -> None:
    text = HEADER + ".visible .entry k() {\n.reg .b32 %r;\nfrobnicate.rn.b32 %r, %r;\nret;\n}\n"
    with pytest.raises(ptx.UnknownOpcode, match=r"frobnicate\.rn\.b32"):
        ptx.load(text)["k"]
    with pytest.raises(ptx.UnknownOpcode, match=r"wgmma"):
        ptx.load(text.replace("frobnicate.rn.b32 %r, %r", "wgmma.fence.sync.aligned"))["k"]


def test_a_report_names_both_lines() -> None:
    with pytest.raises(ptx.Fault) as caught:
        transpose(without("transpose", BARRIER, 0), ptx.Schedule())
    message = str(caught.value)
    assert len(re.findall(r"source\.cu:\d+, block \d+, thread \d+", message)) == 2
    assert caught.value.instruction is not None
    assert caught.value.other is not None
    assert {caught.value.instruction.opcode.split(".")[0], caught.value.other.opcode.split(".")[0]} == {"ld", "st"}


def product(patch: Callable[[str], str]) -> tuple[torch.Tensor, torch.Tensor]:
    from tests.ptx import triton_kernels as kernels

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).half() for shape in ((60, 128), (128, 64)))
    with TritonDevice(patch=patch).active() as device:
        out = torch.empty(60, 64)
        kernels.matmul[(2, 2, 1)](
            a, b, out, 60, 64, 128, *a.stride(), *b.stride(), M=32, N=32, K=32, PRECISION="ieee", SPLIT=1, num_warps=4,
            num_stages=3,
        )  # fmt: skip
        return device.check(out), a.double() @ b.double()


def replaced(pattern: str, by: str, place: int) -> Callable[[str], str]:
    def patch(text: str) -> str:
        found = list(re.finditer(pattern, text))[place]
        return text[: found.start()] + found.expand(by) + text[found.end() :]

    return patch


WAIT = r"(cp\.async\.wait_group)\s+\w+;"  # Triton before 3.3 writes its number as 0x2
TRITON_FAULTS = {
    "a wait removed": (replaced(WAIT, "", 0), "poison|race"),
    "a wait too lax": (replaced(WAIT, r"\1 3;", 0), "poison|race"),
    "all waits too lax": (lambda text: re.sub(WAIT, r"\1 3;", text), "poison|race"),
    "a barrier removed": (replaced(r"(cp\.async\.wait_group\s+\w+;[^;]*)bar\.sync\s+\d+;", r"\1", 0), "race"),
    "registers of a fragment swapped": (
        replaced(r"(mma\.sync[^{]*\{[^}]*\}, \{ )(%\w+), (%\w+)", r"\1\3, \2", 0), "result"
    ),
    "a transposing load made plain": (replaced(r"\.trans", "", 0), "result"),
    "a store without its mask": (replaced(r"@%p\d+ (st\.global)", r"\1", -1), "bounds"),
    "a load without its mask": (
        replaced(r"(cp\.async\.cg\S+ \[[^]]*\], \[[^]]*\], 0x10), %r\d+;", r"\1;", 0),
        "bounds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRITON_FAULTS)
def test_fault_in_a_triton_kernel_is_caught(name: str) -> None:
    patch, kind = TRITON_FAULTS[name]
    if kind == "result":
        found, truth = product(patch)
        assert (found - truth).abs().max() > 0.1
    else:
        with pytest.raises(ptx.Fault) as caught:
            product(patch)
        assert re.fullmatch(kind, caught.value.kind), caught.value
    found, truth = product(lambda text: text)
    assert (found - truth).abs().max() < 1e-3
