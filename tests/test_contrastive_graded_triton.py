"""The Triton kernel of graded positives without a GPU: interpreted against the torch form, compiled with limits."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks import resources
from qpt.ops.contrastive.backend_torch import TorchBackend
from qpt.ops.contrastive.problem import GradedPairs, GradedRows
from tests import offline
from tests.contrastive_interpreted import guarded_outputs
from tests.interpreter import Interpreter
from tests.ptx.compilers import TritonDevice
from tests.tolerance import assert_close

# N, M, D, S: one pair, one key, one query, ragged against tiles of 32 and slices of 64
SHAPES = [(1, 1, 1, 1), (3, 1, 33, 2), (1, 40, 96, 8), (33, 65, 65, 3), (64, 32, 128, 8)]
LONG_SHAPES = [(n, m, dim, kinds) for n in (1, 31, 70) for m in (1, 33, 96) for dim in (1, 64, 130) for kinds in (1, 8)]


def case(n: int, m: int, dim: int, kinds: int, *, images: bool, offset: int | None) -> tuple[GradedPairs, Tensor]:
    """Random pairs, ids of -1 among them, and vectors that are not contiguous."""
    generator = torch.Generator().manual_seed(1000 * n + 10 * m + dim)

    def rows(count: int) -> GradedRows:
        ids = [torch.randint(-1, top, (count,), generator=generator) for top in (6, 3)]
        severities = torch.randint(0, 6, (count, kinds), generator=generator) / 5
        return GradedRows(severities, ids[0] << 33, ids[1] << 40 if images else None)

    return GradedPairs(rows(n), rows(m), 0.3, offset), torch.randn((dim, m), generator=generator).T


def run(pairs: GradedPairs, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return total, from a total of ones, and weights by the kernel."""
    from qpt.kernels import contrastive_graded

    total = torch.ones((pairs.queries.groups.numel(), vectors.shape[1]))
    with guarded_outputs():
        weights = contrastive_graded.add_graded(*pairs, vectors, total)
    return total, weights


def check(found: tuple[Tensor, Tensor], pairs: GradedPairs, vectors: Tensor) -> None:
    truth = torch.ones(found[0].shape, dtype=torch.float64)
    weights = TorchBackend().add_graded(pairs, vectors.double(), truth)
    assert_close(found[0], truth, torch.float32)
    assert_close(found[1], weights, torch.float32)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_shapes_agree_with_float64(interpreter: Interpreter, shape: tuple[int, int, int, int]) -> None:
    given = case(*shape, images=True, offset=1)
    check(interpreter(run, *given), *given)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("offset", [None, 0, 7, -3])
@pytest.mark.parametrize("images", [False, True])
def test_every_option_agrees_with_float64(interpreter: Interpreter, offset: int | None, images: bool) -> None:
    given = case(35, 40, 20, 3, images=images, offset=offset)
    check(interpreter(run, *given), *given)
    pairs = given[0].transposed()
    vectors = torch.randn((35, 20), generator=torch.Generator().manual_seed(0))
    check(interpreter(run, pairs, vectors), pairs, vectors)


@pytest.mark.rung("Triton interpreter")
def test_many_shapes(interpreter: Interpreter, long: bool) -> None:
    for number, shape in enumerate(LONG_SHAPES if long else LONG_SHAPES[::17]):
        given = case(*shape, images=bool(number % 2), offset=(None, 0, 2)[number % 3])
        check(interpreter(run, *given), *given)


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vectors_of_half_precision_are_read_exactly(interpreter: Interpreter, dtype: torch.dtype) -> None:
    pairs, vectors = case(18, 35, 33, 2, images=True, offset=None)
    check(interpreter(run, pairs, vectors.to(dtype)), pairs, vectors.to(dtype))


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_no_rows(n: int, m: int) -> None:
    from qpt.kernels import contrastive_graded

    pairs, vectors = case(n, m, 8, 2, images=True, offset=0)
    total = torch.ones((n, 8))
    weights = contrastive_graded.add_graded(*pairs, vectors, total)
    assert torch.equal(weights, torch.zeros(n)) and torch.equal(total, torch.ones(n, 8))


@pytest.fixture
def device() -> Iterator[TritonDevice]:
    with TritonDevice().active() as found:
        yield found


@offline.needs_triton
@pytest.mark.rung("PTX execution")
@pytest.mark.parametrize("kinds", [1, 8])
def test_compiled_code_agrees_with_float64(kinds: int, device: TritonDevice) -> None:
    from qpt.kernels import contrastive_graded

    pairs, vectors = case(33, 70, 64, kinds, images=True, offset=1)
    total = torch.ones((33, 64))
    weights = contrastive_graded.add_graded(*pairs, vectors, total)
    device.check(total)
    device.check(weights)
    check((total, weights), pairs, vectors)


@offline.needs_triton
@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("kinds", resources.GRADED)
def test_compiles_without_spills(architecture: int, kinds: int) -> None:
    from qpt.kernels.contrastive_graded import WARPS

    cubin, shared_bytes = resources.contrastive_graded(kinds, architecture)
    (found,) = resources.read(cubin).values()
    offline.check(found, architecture, registers=168, launch_shared_bytes=shared_bytes)
    assert resources.blocks_per_multiprocessor(found, WARPS * 32, architecture, shared_bytes) >= 3
