"""Triton kernels, compiled for sm_80 and sm_90 and launched through Triton's own path, against torch."""

from __future__ import annotations

import math

import pytest
import torch

from tests import ptx
from tests.ptx.compilers import TritonDevice
from tests.tolerance import TOL

SCHEDULES = [ptx.Schedule("forward"), ptx.Schedule("random", seed=1)]


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule.order)
def device(request: pytest.FixtureRequest):
    with TritonDevice(schedule=request.param).active() as found:
        yield found


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_addition(device: TritonDevice) -> None:
    from tests.ptx import triton_kernels as kernels

    for n in (1, 1000, 1024):
        x, y, out = numbers(n), numbers(n, seed=1), torch.empty(n)
        kernels.add[(-(-n // 256),)](x, y, out, n, BLOCK=256)
        assert torch.equal(device.check(out), x + y)


def test_softmax(device: TritonDevice) -> None:
    from tests.ptx import triton_kernels as kernels

    x, out = numbers(5, 300), torch.empty(5, 277)
    kernels.softmax[(5,)](x, out, 277, 300, BLOCK=512)
    truth = torch.softmax(x[:, :277].double(), 1)
    assert ((device.check(out) - truth).abs() <= 4e-6 * truth).all()


def test_layer_norm(device: TritonDevice) -> None:
    from tests.ptx import triton_kernels as kernels

    x, weight, bias, out = numbers(3, 700), numbers(700, seed=1), numbers(700, seed=2), torch.empty(3, 700)
    kernels.layer_norm[(3,)](x, weight, bias, out, 700, 1e-5, BLOCK=256, num_warps=2)
    truth = torch.nn.functional.layer_norm(x.double(), (700,), weight.double(), bias.double())
    assert (device.check(out) - truth).abs().max() <= 1e-5


def test_dropout_draws_triton_s_own_numbers(device: TritonDevice) -> None:
    from tests.ptx import triton_kernels as kernels

    x, out, number = numbers(1000), torch.empty(1000), torch.empty(1000)
    kernels.dropout[(4,)](x, out, number, 1000, 0.3, 42, BLOCK=256)
    drawn = device.check(number)
    assert torch.equal(drawn, torch.tensor([philox_uniform(42, i) for i in range(1000)]))
    assert torch.allclose(device.check(out), torch.where(drawn > 0.3, x / 0.7, 0.0), rtol=1e-6)


def philox_uniform(seed: int, offset: int) -> float:
    """Philox 4x32-10 (Salmon et al., SC 2011) at counter (offset, 0, 0, 0), key (seed, 0), as a float of tl.rand."""
    c, k = [offset, 0, 0, 0], [seed, 0]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    x = c[0] - (1 << 32) if c[0] >> 31 else c[0]
    x = -x - 1 if x < 0 else x
    return float(torch.tensor(x, dtype=torch.float32) * torch.tensor(4.6566127342e-10))


# dtype, input precision, shape, tile, warps, stages
PRODUCTS = [
    (torch.float32, "ieee", (70, 50, 90), (32, 32, 32), 4, 2),
    (torch.float32, "tf32", (70, 50, 90), (64, 32, 32), 4, 3),
    (torch.float32, "tf32x3", (70, 50, 90), (32, 32, 32), 2, 2),
    (torch.float16, "ieee", (70, 130, 200), (64, 64, 32), 4, 3),
    (torch.float16, "ieee", (128, 128, 256), (128, 64, 64), 8, 3),
    (torch.bfloat16, "ieee", (70, 130, 200), (64, 64, 32), 4, 4),
    (torch.int8, "ieee", (64, 64, 128), (32, 32, 64), 4, 2),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: f"{str(case[0])[6:]}-{case[1]}-{case[4]}")
@pytest.mark.parametrize("layout", ["nn", "tt"])
def test_matrix_product(case: tuple, layout: str) -> None:
    from tests.ptx import triton_kernels as kernels

    dtype, precision, (m, n, k), (tile_m, tile_n, tile_k), warps, stages = case
    import triton.language as tl

    whole = dtype == torch.int8
    a, b = ((50 if whole else 1) * numbers(*shape, seed=s) for s, shape in enumerate(((m, k), (k, n))))
    a, b = a.clamp(-127, 127).to(dtype), b.clamp(-127, 127).to(dtype)
    if layout == "tt":
        a, b = a.T.contiguous().T, b.T.contiguous().T
    with TritonDevice(schedule=SCHEDULES[1]).active() as device:
        out = torch.empty(m, n, dtype=torch.int32 if whole else torch.float32)
        grid = (-(-m // tile_m), -(-n // tile_n), 1)
        kernels.matmul[grid](
            a, b, out, m, n, k, *a.stride(), *b.stride(), M=tile_m, N=tile_n, K=tile_k, PRECISION=precision, SPLIT=1,
            ACC=tl.int32 if whole else tl.float32, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        found = device.check(out).double()
    truth = a.double() @ b.double()
    scale = (a.abs().double() @ b.abs().double()).max()
    bound = {"tf32": 2.0**-10, "ieee": 2.0**-20, "tf32x3": 2.0**-19}[precision]
    assert (found - truth).abs().max() <= bound * scale


def test_matrix_product_for_sm_90_without_warp_groups() -> None:
    from tests.ptx import triton_kernels as kernels

    a, b = numbers(40, 64).half(), numbers(64, 48, seed=1).half()
    with TritonDevice(90).active() as device:
        out = torch.empty(40, 48)
        kernels.matmul[(2, 2, 1)](
            a, b, out, 40, 48, 64, *a.stride(), *b.stride(), M=32, N=32, K=32, PRECISION="ieee", SPLIT=1, num_warps=2
        )
        assert (device.check(out) - a.double() @ b.double()).abs().max() <= 1e-4


def test_split_sums_by_atomics(device: TritonDevice) -> None:
    from tests.ptx import triton_kernels as kernels

    a, b, out = numbers(33, 256).bfloat16(), numbers(256, 40, seed=1).bfloat16(), torch.zeros(33, 40)
    kernels.matmul[(2, 2, 4)](
        a, b, out, 33, 40, 256, *a.stride(), *b.stride(), M=32, N=32, K=32, PRECISION="ieee", SPLIT=4, num_warps=4
    )
    truth = a.double() @ b.double()
    assert (out - truth).abs().max() <= 2.0**-18 * (a.abs().double() @ b.abs().double()).max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [32, 64])
def test_attention(device: TritonDevice, dtype: torch.dtype, dim: int) -> None:
    from tests.ptx import triton_kernels as kernels

    q, k, v = (numbers(100, dim, seed=s).to(dtype) for s in range(3))
    out = torch.empty(100, dim)
    kernels.attention[(2,)](q, k, v, out, 100, 1 / math.sqrt(dim), M=64, N=32, D=dim, num_warps=4, num_stages=3)
    truth = torch.softmax(q.double() @ k.double().T / math.sqrt(dim), 1) @ v.double()
    rival = torch.softmax(q @ k.T / math.sqrt(dim), 1) @ v
    relative, absolute = TOL[dtype]
    assert (device.check(out) - truth).norm() <= (rival - truth).norm() + absolute + relative * truth.norm()


def test_sort_sum_and_histogram(device: TritonDevice) -> None:
    from tests.ptx import triton_kernels as kernels

    x = torch.randint(0, 1000, (256,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    ordered, sums, counts = torch.empty_like(x), torch.empty_like(x), torch.empty(64, dtype=torch.int32)
    kernels.sort_and_scan[(1,)](x, ordered, sums, counts, BLOCK=256)
    assert torch.equal(ordered, x.sort().values)
    assert torch.equal(sums, x.cumsum(0).int())
    assert torch.equal(counts, torch.bincount(x & 63, minlength=64).int())
