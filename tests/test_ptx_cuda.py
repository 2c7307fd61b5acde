"""CUDA kernels, compiled by nvcc and by NVRTC and executed from their PTX, against NumPy."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from tests import ptx
from tests.ptx import compilers
from tests.ptx.cuda_kernels import SOURCE

COMPILERS = [name for name, there in (("nvcc", compilers.find_nvcc()), ("nvrtc", compilers.find_nvrtc())) if there]
ORDERS = [ptx.Schedule("forward"), ptx.Schedule("reverse"), ptx.Schedule("random", seed=3)]


@functools.cache
def compiled(compiler: str) -> str:
    return getattr(compilers, compiler)(SOURCE)


@pytest.fixture(params=COMPILERS)
def kernels(request: pytest.FixtureRequest) -> ptx.Kernels:
    return ptx.load(
        compiled(request.param)
    )  # anew: a module's variables start from their initial values at each launch


@pytest.fixture(params=ORDERS, ids=lambda schedule: schedule.order)
def schedule(request: pytest.FixtureRequest) -> ptx.Schedule:
    return request.param


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_sum_by_shuffles(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().integers(-50, 50, 1000).astype(np.float32), ptx.Buffer.empty(1, np.float32)
    kernels["total"].launch(1, 256, [ptx.Buffer(x), out, 1000], schedule=schedule)
    assert out.read()[0] == x.sum()


def test_histogram(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().integers(0, 256, 3000).astype(np.uint8), ptx.Buffer(np.zeros(256, np.uint32))
    kernels["histogram"].launch(5, 96, [ptx.Buffer(x), out, 3000], schedule=schedule)
    assert (out.read() == np.bincount(x, minlength=256)).all()


def test_scan(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().integers(-9, 9, 500).astype(np.int32), ptx.Buffer.empty(500, np.int32)
    kernels["scan"].launch(1, 512, [ptx.Buffer(x), out, 500], schedule=schedule)
    assert (out.read() == np.cumsum(x)).all()


def test_transpose(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().standard_normal((70, 45)).astype(np.float32), ptx.Buffer.empty((45, 70), np.float32)
    kernels["transpose"].launch((2, 3), (32, 8), [ptx.Buffer(x), out, 70, 45], schedule=schedule)
    assert (out.read() == x.T).all()


def test_last_block_adds_up(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, parts, out = np.arange(100, dtype=np.float32), ptx.Buffer.empty(7, np.float32), ptx.Buffer.empty(1, np.float32)
    kernels["last_block"].launch(7, 64, [ptx.Buffer(x), parts, out, 100], schedule=schedule)
    assert out.read()[0] == x.sum()


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_blocks_wait_for_each_other(kernels: ptx.Kernels, order: str) -> None:
    squares, out = ptx.Buffer.empty(6, np.int32), ptx.Buffer.empty(6, np.int32)
    kernels["grid_barrier"].launch(6, 64, [squares, out], schedule=ptx.Schedule(order, resident=6, quantum=50))
    assert out.read().tolist() == [((b + 1) % 6) ** 2 for b in range(6)]


def test_blocks_that_are_not_resident_cannot_be_waited_for(kernels: ptx.Kernels) -> None:
    squares, out = ptx.Buffer.empty(6, np.int32), ptx.Buffer.empty(6, np.int32)
    with pytest.raises(ptx.Fault, match="did not end") as caught:
        kernels["grid_barrier"].launch(6, 64, [squares, out], limit=100_000)
    assert caught.value.kind == "limit"


def test_calls_with_structures(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    out, flags = ptx.Buffer.empty(96, np.float64), ptx.Buffer.empty(96, np.int32)
    kernels["calls"].launch(3, 32, [out, flags, 7], schedule=schedule)
    for i in range(96):
        first, second, third = i * 0.5, i, [1.0, 2.0, 3.0]
        for k in range(7):
            if (i + k) % 3:
                following = third[(k + 1) % 3] + 1
                first, second = first * k + third[k % 3], second ^ k
                third[k % 3] = following
        assert out.read()[i] == first + third[0] + 10 * third[1] + 100 * third[2]
        assert flags.read()[i] == second


def test_local_arrays_and_switches(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().integers(0, 1000, 90).astype(np.int32), ptx.Buffer.empty(90, np.int32)
    kernels["local_array"].launch(3, 32, [ptx.Buffer(x), out, 90], schedule=schedule)
    for value, found in zip(x.tolist(), out.read().tolist(), strict=True):
        counts = [0] * 16
        for k in range(40):
            counts[(value * (k + 1)) & 15] += k
        most = max(range(16), key=lambda k: (counts[k], -k))
        c = counts[most]
        expected = [
            c - 7 if most == 0 else counts[0] - 7,
            c * 3,
            ~counts[2],
            c << 2,
            counts[4] // 3,
            c % 11,
            counts[6] ^ 0x55,
            -counts[7],
            1000 + most,
        ]
        assert found == expected[most % 9]


# Largest error of the CUDA Math API in units of the last place; generous by one where NumPy's own result is rounded.
FLOAT_FUNCTIONS = [
    (np.exp, 2), (lambda a: np.log(np.abs(a)), 2), (lambda a: np.sin(np.float32(1e5) * a.astype(np.float32)), 2),
    (lambda a: np.abs(a) ** np.float64(np.float32(1.7)), 5), (np.vectorize(math.erf), 3), (np.tanh, 3), (np.cbrt, 2),
]  # fmt: skip


def test_float_functions_of_the_compiler(kernels: ptx.Kernels) -> None:
    x = np.concatenate([rng().uniform(-10, 10, 120), [0.001, -0.5, 1.0, 2.0, -3.0, 1e-3, 5.5, 7.0]]).astype(np.float32)
    out = ptx.Buffer.empty((8, 128), np.float32)
    arithmetic = ptx.Arithmetic("exact")
    kernels["functions"].launch(4, 32, [ptx.Buffer(x), out, 128], arithmetic=arithmetic)
    found = out.read()
    for row, (function, ulps) in enumerate(FLOAT_FUNCTIONS):
        argument = x.astype(np.float64)
        truth = np.sin((x * np.float32(1e5)).astype(np.float64)) if row == 2 else function(argument)
        assert (np.abs(found[row] - truth) <= ulps * np.spacing(np.abs(truth).astype(np.float32))).all(), row
    assert (found[7] == np.fmod(x * np.float32(1000), np.float32(3.3))).all()


def test_double_functions_of_the_compiler(kernels: ptx.Kernels) -> None:
    x = rng().uniform(-10, 10, 64)
    out = ptx.Buffer.empty((5, 64), np.float64)
    kernels["double_functions"].launch(2, 32, [ptx.Buffer(x), out, 64])
    truths = [np.exp(x), np.log(np.abs(x)), np.sin(x * 1e7), x / (x * x + 3), np.sqrt(np.abs(x))]
    for row, truth in enumerate(truths):
        exact = row == 4
        assert (np.abs(out.read()[row] - truth) <= (0 if exact else 2) * np.spacing(np.abs(truth))).all(), row


def test_votes(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().integers(-5, 5, 128).astype(np.int32), ptx.Buffer.empty((4, 128), np.int32)
    kernels["votes"].launch(1, 128, [ptx.Buffer(x), out], schedule=schedule)
    found = out.read()
    assert (found[0] == (x > 0).sum()).all()
    assert (found[1].reshape(4, 32) == (x > 0).reshape(4, 32).sum(1)[:, None]).all()
    assert (found[2] == 0).all()
    assert (found[3] == 1).all()


def test_atomics(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    cell, total, most = (
        ptx.Buffer(np.array(v, d)) for v, d in (([5, 0, 0], np.int32), ([0], np.float64), ([5000], np.uint64))
    )
    kernels["atomics"].launch(2, 64, [cell, total, most], schedule=schedule)
    assert cell.read().tolist() == [5 + sum(range(128)), 127, 0]
    assert total.read()[0] == 64
    assert most.read()[0] == 873


def test_ring_of_asynchronous_copies(kernels: ptx.Kernels, schedule: ptx.Schedule) -> None:
    x, out = rng().standard_normal((6, 64, 4)).astype(np.float32), ptx.Buffer.empty((6, 64, 4), np.float32)
    kernels["ring"].launch(1, 64, [ptx.Buffer(x), out, 6], schedule=schedule)
    assert (out.read() == np.roll(x, -1, axis=1)).all()


def test_exchange_within_a_warp(kernels: ptx.Kernels) -> None:
    out = ptx.Buffer.empty(32, np.int32)
    kernels["rotate"].launch(1, 32, [ptx.Buffer(np.arange(32, dtype=np.int32)), out])
    assert out.read().tolist() == [*range(1, 32), 0]
