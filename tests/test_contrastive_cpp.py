"""The loss's C++ passes: every instruction set of this processor against the definition, threads, symmetry, half pools.

The public function takes this backend on the CPU, so tests/test_contrastive.py covers the best instruction set as well.
"""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from qpt.errors import InputError
from qpt.ops import extension
from qpt.ops.contrastive import backend_cpp
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.backend_cpp import CppBackend
from qpt.ops.contrastive.backend_torch import TorchBackend
from qpt.ops.contrastive.problem import KeySet, Queries
from tests.reference.contrastive import contrastive as reference
from tests.test_contrastive import OPTIONS, problem, unit
from tests.tolerance import TOL, assert_close

CPP, TORCH = CppBackend(), TorchBackend()
ISAS = extension.load().contrastive_isas()
LOSS_RELATIVE = 1e-6  # of float64
# One pair; ragged; one past a strip, a slab and a group of rows; several parts of the stream; several blocks of rows
SIZES = [(1, 1, 1, 1), (7, 7, 13, 5), (65, 65, 97, 33), (30, 30, 2600, 64), (257, 257, 0, 20)]


@pytest.fixture(params=["", *ISAS])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(backend_cpp, "isa", request.param)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_portable_path_is_always_there() -> None:
    assert ISAS[-1] == "portable"


def test_precision_ieee_leaves_tiles_out() -> None:
    # Rows enough for the widest instruction set; the bytes tell whose they are.
    given = {name: x.float() if x.is_floating_point() else x for name, x in problem(0, 70, 70, 500, 48).items()}
    given["queries"].requires_grad_()

    def gradient(**options: str) -> torch.Tensor:
        loss = contrastive_loss(**given, temperature=0.1, backend="cpp", **options)
        return torch.autograd.grad(loss, given["queries"])[0]

    found = gradient(precision="ieee")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_cpp, "isa", next(name for name in ISAS if name != "AMX"))
        assert torch.equal(found, gradient())


@pytest.mark.rung("reference")
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_definition(size: tuple[int, ...], options: dict, long: bool) -> None:
    for seed in range(5 if long else 1):
        check_loss(problem(seed, *size, groups=9, images=7), **options)


def check_loss(tensors: dict[str, torch.Tensor], temperature: float = 0.1, **options) -> None:
    """Loss within 1e-6 relative and gradients norm-wise 1e-5 of float64, with an upstream gradient other than 1."""
    given = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    arrays = {name: x.double().numpy() if x.is_floating_point() else x.numpy() for name, x in given.items()}
    truth = reference(**arrays, temperature=temperature, **options)
    leaves = [given["queries"].requires_grad_(), given["keys"].requires_grad_()]
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(**given, temperature=tau, backend="cpp", **options)
    assert abs(loss.item() - truth["loss"]) <= LOSS_RELATIVE * abs(truth["loss"]) + 1e-6
    gradients = torch.autograd.grad(loss * 2.5, [*leaves, tau])
    for gradient, name in zip(gradients, ("grad_queries", "grad_keys", "grad_temperature"), strict=True):
        assert_close(gradient, 2.5 * truth[name], torch.float32, scale=3 if name == "grad_temperature" else 1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weight", [1.0, 0.0, 3.0])
@pytest.mark.parametrize("size", [(9, 3), (63, 64), (300, 20), (700, 64)], ids=str)
def test_the_same_rows_as_queries_and_keys(size: tuple[int, int], weight: float) -> None:
    # The very same tensor: each logit is computed once. 700 rows are three blocks, one of which is idle in each round.
    generator = torch.Generator().manual_seed(size[0])
    x = unit(generator, *size, torch.float32).requires_grad_()
    groups = torch.randint(-1, size[0] // 2, (size[0],), generator=generator)
    images = torch.randint(-1, max(1, size[0] // 6), (size[0],), generator=generator)
    ids = {"query_groups": groups, "key_groups": groups, "query_images": images, "key_images": images}
    tau = torch.tensor(0.1, requires_grad=True)
    loss = contrastive_loss(x, x, **ids, temperature=tau, exclude_self=True, same_image_weight=weight, backend="cpp")
    arrays = {name: ids_.numpy() for name, ids_ in ids.items()}
    rows = x.detach().double().numpy()
    truth = reference(rows, rows, **arrays, temperature=0.1, exclude_self=True, same_image_weight=weight)
    assert abs(loss.item() - truth["loss"]) <= LOSS_RELATIVE * abs(truth["loss"]) + 1e-6
    gradient, for_tau = torch.autograd.grad(loss * 2.5, [x, tau])
    assert_close(gradient, 2.5 * (truth["grad_queries"] + truth["grad_keys"]), torch.float32)
    assert_close(for_tau, 2.5 * truth["grad_temperature"], torch.float32, scale=3)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_the_symmetric_form_equals_the_general_one(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # At 0.01 logits reach 100: exp would overflow without a maximum, and the general form is taken by itself.
    x = unit(torch.Generator().manual_seed(0), 300, 40, torch.float32).requires_grad_()
    groups = torch.arange(300) // 2
    results = []
    for limit in (backend_cpp._SAFE_LOGIT, -1.0):
        monkeypatch.setattr(backend_cpp, "_SAFE_LOGIT", limit)
        loss = contrastive_loss(
            x, x, query_groups=groups, key_groups=groups, temperature=temperature, exclude_self=True, backend="cpp"
        )
        results.append([loss.detach(), torch.autograd.grad(loss, x)[0]])
    for symmetric, general in zip(*results, strict=True):
        assert symmetric.isfinite().all()
        assert_close(symmetric, general, torch.float32)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("same_rows", [False, True])
def test_the_same_bytes_with_any_number_of_threads(same_rows: bool) -> None:
    tensors = {k: x.float() if x.is_floating_point() else x for k, x in problem(3, 700, 700, 5000, 24).items()}
    if same_rows:
        tensors |= {"keys": tensors["queries"], "key_groups": tensors["query_groups"]}
        tensors |= {"key_images": tensors["query_images"]}
    leaves = [tensors["queries"].requires_grad_(), tensors["keys"].requires_grad_()]
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        loss = contrastive_cpp_parts(tensors, leaves)
        results.append(loss)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def contrastive_cpp_parts(tensors: dict[str, torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """The C++ passes themselves: torch's own sums around them are ordered by its threads."""
    both = leaves[0] is leaves[1]
    tau = torch.tensor(0.1)
    queries = Queries(leaves[0].detach(), tensors["query_groups"], tensors["query_images"])
    batch = queries if both else Queries(leaves[1].detach(), tensors["key_groups"], tensors["key_images"])
    keys = KeySet(*batch, self_offset=0)
    row_max, row_sum, _ = CPP.lse_forward(queries, keys, tau, 0.5, weighted=False)
    pool = KeySet(tensors["pool"], tensors["pool_groups"], None)
    pooled = CPP.lse_forward(queries._replace(images=None), pool, tau, 0.0, weighted=True)
    lse = torch.where(row_sum > 0, row_max + row_sum.log(), math.inf)
    gradient = CPP.key_gradient(queries, keys, tau, 0.5, lse, both_roles=both)
    return [row_max, row_sum, *pooled, gradient]  # type: ignore[list-item]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 128])
def test_half_precision_pools_are_read_exactly(dtype: torch.dtype, dim: int) -> None:
    # Widened in C++ or by torch: the same float32 numbers, so the same bytes; subnormals and odd lengths included.
    generator = torch.Generator().manual_seed(dim)
    queries = unit(generator, 70, dim, torch.float32)
    pool = (
        torch.randn((500, dim), generator=generator) * 10.0 ** torch.randint(-7, 1, (500, 1), generator=generator)
    ).to(dtype)
    rows = Queries(queries, torch.arange(70), None)
    groups = torch.randint(-1, 90, (500,), generator=generator)
    results = [
        CPP.lse_forward(rows, KeySet(keys, groups, None), torch.tensor(0.2), 0.0, weighted=True)
        for keys in (pool, pool.float())
    ]
    for half, wide in zip(*results, strict=True):
        assert torch.equal(half, wide)  # type: ignore[arg-type]


@pytest.mark.usefixtures("isa")
def test_row_maxima_follow_logits_that_grow() -> None:
    # Keys in the order of their logits, up to 4e3: each row_max is raised again and again, and sums are rescaled.
    generator = torch.Generator().manual_seed(0)
    queries = unit(generator, 5, 8, torch.float32)
    keys = unit(generator, 4000, 8, torch.float32) * torch.linspace(0, 400, 4000)[:, None]
    rows, stream = Queries(queries, torch.arange(5), None), KeySet(keys, torch.arange(4000) + 5, None)
    exact = (rows._replace(vectors=queries.double()), stream._replace(vectors=keys.double()))
    truth = TORCH.lse_forward(*exact, torch.tensor(0.1, dtype=torch.float64), 0.0, weighted=True)
    ours = CPP.lse_forward(rows, stream, torch.tensor(0.1), 0.0, weighted=True)
    assert_close(ours[0] + ours[1].log(), truth[0] + truth[1].log(), torch.float32)
    assert ours[2] is not None
    assert truth[2] is not None
    # A logit of 4e3 in float32 is uncertain by 2e-4, and so is its exponential.
    assert_close(ours[2] / ours[1][:, None], truth[2] / truth[1][:, None], torch.float32, scale=100)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("self_offset", [None, 0, 3, -2])
@pytest.mark.parametrize("log_weight", [math.log(0.5), -math.inf])
def test_offsets_of_the_own_pair(self_offset: int | None, log_weight: float) -> None:
    # As in the gathered distributed form, where a process's own keys begin somewhere inside all keys.
    made = problem(2, 70, 0, 300, 12, groups=30)
    queries = Queries(made["queries"], made["query_groups"], made["query_images"])
    pool = (made["pool"], made["pool_groups"], made["pool_images"])
    for negatives, weighted in itertools.product((True, False), repeat=2):
        keys = KeySet(*pool, self_offset, negatives)
        exact = (queries, keys, torch.tensor(0.1, dtype=torch.float64), log_weight)
        single = (queries._replace(vectors=queries.vectors.float()), keys._replace(vectors=keys.vectors.float()))
        given = (*single, torch.tensor(0.1), log_weight)
        truth, ours = TORCH.lse_forward(*exact, weighted=weighted), CPP.lse_forward(*given, weighted=weighted)
        some = truth.row_sum > 0
        assert torch.equal(ours.row_sum > 0, some)
        lses = [sums.row_max + sums.row_sum.log() for sums in (truth, ours)]
        assert_close(lses[1][some], lses[0][some], torch.float32)
        lse = torch.where(some & (queries.groups >= 0), lses[0], math.inf)
        assert_close(CPP.key_gradient(*given, lse.float()), TORCH.key_gradient(*exact, lse), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_pool_is_no_worse_than_torch(dtype: torch.dtype) -> None:
    # |truth - ours| <= |truth - the same-dtype torch form| + tol, the truth being of the unrounded inputs.
    made = problem(4, 60, 60, 700, 64)
    ids = torch.arange(760)
    q, k, pool = made["queries"], made["keys"], made["pool"]
    truth = reference(q, k, ids[:60], ids[:60], pool=pool, pool_groups=ids[60:], in_batch_negatives=False)
    low = [x.to(dtype).requires_grad_(x is q) for x in (q, k, pool)]
    plain = F.cross_entropy(
        torch.cat([(low[0] * low[1]).sum(1, keepdim=True), low[0] @ low[2].T], 1) / 0.2, torch.zeros(60).long()
    )
    groups = {"query_groups": ids[:60], "key_groups": ids[:60], "pool_groups": ids[60:]}
    ours = contrastive_loss(low[0], low[1], pool=low[2], in_batch_negatives=False, backend="cpp", **groups)
    for expected, actual, same_dtype in (
        (torch.tensor(truth["loss"]), ours, plain),
        (torch.as_tensor(truth["grad_queries"]), *(torch.autograd.grad(x, low[0])[0] for x in (ours, plain))),
    ):
        tol = TOL[dtype][1] + TOL[dtype][0] * expected.norm().item()
        error = (actual.detach().double() - expected).norm()
        assert error <= (same_dtype.detach().double() - expected).norm() + tol


def test_what_this_backend_cannot_do_is_refused() -> None:
    made = problem(0, 3, 3, 4, 2)
    with pytest.raises(InputError, match=r"backend='cpp' accumulates in float32, got float64 embeddings"):
        contrastive_loss(**made, backend="cpp")
    with pytest.raises(InputError, match=r"backend='triton' needs tensors on cuda, got cpu"):
        contrastive_loss(**made, backend="triton")


def test_offsets_beyond_two_to_the_31(long: bool) -> None:
    # The last of 16.8 M keys of 128 is the only one near the query; 4.3 GB in float16, so only in the long form.
    count, dim = ((1 << 24) + 65536, 128) if long else (70000, 16)
    pool = torch.zeros((count, dim), dtype=torch.float16)
    pool[-1, 0] = 1
    queries = torch.zeros((1, dim))
    queries[0, 0] = 1
    rows = Queries(queries, torch.zeros(1, dtype=torch.int64), None)
    keys = KeySet(pool, torch.ones(count, dtype=torch.int64), None)
    row_max, row_sum, acc = CPP.lse_forward(rows, keys, torch.tensor(0.05), 0.0, weighted=True)
    assert acc is not None
    weight = math.exp(20)
    assert (row_max + row_sum.log()).item() == pytest.approx(math.log(count - 1 + weight), rel=1e-6)
    assert (acc[0, 0] / row_sum[0]).item() == pytest.approx(weight / (count - 1 + weight), rel=1e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 7, 16, 33])
@pytest.mark.parametrize("need_gradient", [False, True])
def test_every_number_of_the_pool_is_looked_at(dtype: torch.dtype, dim: int, need_gradient: bool) -> None:
    """Also in a key that is ignored, or whose logits would all be -inf: the pass over the keys looks at every slab."""
    generator = torch.Generator().manual_seed(dim)
    queries = torch.randn(300, dim, generator=generator).abs_().requires_grad_(need_gradient)
    pool = torch.randn(2500, dim, generator=generator).to(dtype)
    groups, pool_groups = torch.arange(300), torch.arange(1000, 3500)
    pool_groups[97] = -1
    given = {"query_groups": groups, "key_groups": groups, "pool_groups": pool_groups, "backend": "cpp"}
    assert torch.isfinite(contrastive_loss(queries, queries.detach().clone(), pool=pool, **given))
    for row, column, value in (
        (0, 0, math.inf),
        (97, dim - 1, math.nan),
        (1311, dim // 2, -math.inf),
        (2499, 0, -math.inf),
    ):
        broken = pool.clone()
        broken[row, column] = value
        with pytest.raises(InputError, match=rf"pool must be finite, got {value} in row {row}$"):
            contrastive_loss(queries, queries.detach().clone(), pool=broken, **given)
