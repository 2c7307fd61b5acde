"""The contrastive loss as a torch op: opcheck, compile, autocast, second derivatives, gradients on request, memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import tensor_peak
from qpt.errors import InputError
from qpt.ops.contrastive.api import contrastive_loss, contrastive_loss_with_stats
from qpt.ops.contrastive.op import LOSS, SELF_FIELDS, SELF_LOSS
from qpt.ops.contrastive.pool import NegativePool
from qpt.ops.contrastive.problem import Problem
from tests.test_contrastive import OPTIONS, problem, unit
from tests.tolerance import assert_close

SIDES = ("query", "key")


def make_problem(dtype: torch.dtype, pool: bool, images: bool, need_gradient: bool, **options) -> Problem:
    t = {name: x.to(dtype) if x.is_floating_point() else x for name, x in problem(1, 6, 6, 9, 4).items()}
    graded = options.get("graded", False)
    t |= {f"{side}_severities": torch.rand((6, 3), generator=torch.Generator().manual_seed(9)) for side in SIDES}
    return Problem(
        t["queries"].requires_grad_(need_gradient),
        t["keys"].requires_grad_(need_gradient),
        t["query_groups"],
        t["key_groups"],
        t["query_images"] if images else None,
        t["key_images"] if images else None,
        t["pool"] if pool else None,
        t["pool_groups"] if pool else None,
        t["pool_images"] if pool and images else None,
        t["query_severities"] if graded else None,
        t["key_severities"] if graded else None,
        torch.tensor(0.2, dtype=torch.promote_types(dtype, torch.float32), requires_grad=need_gradient),
        options.get("same_image_weight", 1.0),
        0.4 if graded else 0.0,
        options.get("exclude_self", False),
        options.get("in_batch_negatives", True),
        options.get("backend", "auto"),
        "auto",
        check_finite=False,
    )


def self_fields(problem: Problem) -> tuple:
    return tuple(getattr(problem, name) for name in SELF_FIELDS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("need_gradient", [False, True])
@pytest.mark.parametrize("graded", [False, True])
def test_opcheck_forward(dtype, pool, need_gradient, graded):
    made = make_problem(dtype, pool, pool, need_gradient, exclude_self=True, graded=graded)
    torch.library.opcheck(LOSS.forward_op, (*made, need_gradient, False))
    torch.library.opcheck(SELF_LOSS.forward_op, (*self_fields(made), need_gradient, False))


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.parametrize("graded", [False, True])
def test_opcheck_backward(needs, graded):
    made = make_problem(torch.float32, pool=True, images=True, need_gradient=False, graded=graded)
    _, _, lse, positives, gradient, _ = LOSS.forward_op(*made, True, False)
    saved = (torch.tensor(0.5), gradient, lse, positives)
    torch.library.opcheck(LOSS.backward_op, (*made.without_pool(), *saved, *needs))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("graded", [False, True])
def test_opcheck_backward_of_the_same_rows(needs, graded):
    made = make_problem(torch.float32, pool=True, images=True, need_gradient=False, graded=graded)
    _, _, lse, positives, gradient, _ = SELF_LOSS.forward_op(*self_fields(made), True, False)
    saved = (torch.tensor(0.5), gradient, lse, positives)
    torch.library.opcheck(SELF_LOSS.backward_op, (*self_fields(made.without_pool()), *saved, *needs))


def test_a_dispatch_mode_sees_the_op_and_plain_tensors_call_the_same_function():
    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    t = problem(2, 6, 6, 9, 4)
    leaf = t["queries"].requires_grad_()
    loss = contrastive_loss(**t)
    (gradient,) = torch.autograd.grad(loss, leaf)
    with Watch():
        observed = contrastive_loss(**t)
        (same,) = torch.autograd.grad(observed, leaf)
    assert any("qpt.contrastive_forward" in call for call in calls)
    assert torch.equal(loss, observed) and torch.equal(gradient, same)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert contrastive_loss(**{name: fake.from_tensor(x) for name, x in t.items()}).shape == ()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_only_wanted_gradients_are_made(options):
    tensors = problem(2, 6, 6, 9, 4)
    queries, keys = tensors.pop("queries"), tensors.pop("keys")
    tau = torch.tensor(0.2, dtype=torch.float64)
    leaves = [queries, keys, tau]
    everything = [x.clone().requires_grad_() for x in leaves]
    loss = contrastive_loss(everything[0], everything[1], temperature=everything[2], **tensors, **options)
    full = torch.autograd.grad(loss, everything)
    for wanted in range(3):
        given = [x.clone().requires_grad_(place == wanted) for place, x in enumerate(leaves)]
        alone = contrastive_loss(given[0], given[1], temperature=given[2], **tensors, **options)
        alone.backward()
        assert torch.equal(given[wanted].grad, full[wanted])
        assert all(x.grad is None for place, x in enumerate(given) if place != wanted)
    with torch.no_grad():
        silent = contrastive_loss(everything[0], everything[1], temperature=everything[2], **tensors, **options)
    assert not silent.requires_grad
    assert_close(silent, loss.item(), torch.float64)


def test_second_derivative_is_refused():
    tensors = problem(2, 6, 6, 9, 4)
    tensors["queries"].requires_grad_()
    (gradient,) = torch.autograd.grad(contrastive_loss(**tensors), tensors["queries"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        gradient.sum().backward()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compiles_without_a_graph_break(options):
    tensors = problem(4, 6, 6, 9, 4)
    tensors = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}

    def step(queries, keys, tau, ids):
        loss, valid, *_ = contrastive_loss_with_stats(queries * 2, keys, temperature=tau, **ids, **options)
        return loss * 3, valid

    queries, keys, tau = tensors.pop("queries"), tensors.pop("keys"), torch.tensor(0.3)
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (queries, keys, tau)]
        loss, valid = function(*leaves, tensors)
        results.append([loss.detach(), valid, *torch.autograd.grad(loss, leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert_close(compiled, eager, torch.float32)


def test_compiles_once_while_a_pool_fills():
    pool = NegativePool(20, 4)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    generator = torch.Generator().manual_seed(0)

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(queries, keys, ids):
        return contrastive_loss(queries, keys, query_groups=ids, key_groups=ids, pool=pool)

    for step in range(5):
        ids = torch.arange(6) + 6 * step
        queries = unit(generator, 6, 4, torch.float32)
        eager = contrastive_loss(queries, queries, query_groups=ids, key_groups=ids, pool=pool)
        assert_close(compiled(queries, queries, ids), eager, torch.float32)
        pool.push(queries, ids)
    assert counter.frame_count == 1


def test_autocast_does_not_lower_the_precision():
    tensors = problem(7, 20, 20, 50, 16)
    tensors = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    results = []
    for enabled in (False, True):
        leaves = [tensors[name].clone().requires_grad_() for name in ("queries", "keys")]
        rest = {name: x for name, x in tensors.items() if name not in ("queries", "keys")}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = contrastive_loss(*leaves, **rest)
            results.append([loss, *torch.autograd.grad(loss, leaves)])
    for plain, autocast in zip(*results, strict=True):
        assert autocast.dtype == torch.float32
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_mixed_dtypes_give_each_its_gradient_dtype(dtypes):
    tensors = problem(9, 8, 8, 30, 16)
    given = dict(tensors, pool=tensors["pool"].to(torch.float16))
    for name, dtype in zip(("queries", "keys"), dtypes, strict=True):
        given[name] = tensors[name].to(dtype).requires_grad_()
    widened = {name: x.detach().double() if x.is_floating_point() else x for name, x in given.items()}
    widened["queries"].requires_grad_()
    widened["keys"].requires_grad_()
    loss, truth = contrastive_loss(**given), contrastive_loss(**widened)
    assert loss.dtype == torch.float32
    assert truth.dtype == torch.float64
    assert_close(loss, truth.item(), torch.float32)
    loss.backward()
    truth.backward()
    for name, dtype in zip(("queries", "keys"), dtypes, strict=True):
        assert given[name].grad.dtype == dtype
        assert_close(given[name].grad, widened[name].grad, dtype)


def test_any_strides():
    tensors = problem(10, 8, 8, 12, 4)
    spread = {name: x.repeat_interleave(2, 0)[::2] for name, x in tensors.items()}
    spread["keys"] = tensors["keys"].T.contiguous().T
    assert not spread["queries"].is_contiguous()
    assert not spread["keys"].is_contiguous()
    assert_close(contrastive_loss(**spread), contrastive_loss(**tensors).item(), torch.float64)


def test_inputs_are_not_written():
    tensors = problem(10, 8, 8, 12, 4)
    copies = {name: x.clone() for name, x in tensors.items()}
    tensors["queries"].requires_grad_()
    contrastive_loss(**tensors, same_image_weight=0.0).backward()
    for name, x in tensors.items():
        assert torch.equal(x.detach(), copies[name])


def peak_mib(n: int, k: int, dim: int, dtype: torch.dtype, *, positives: bool = False) -> float:
    """High-water mark of tensor memory over forward and backward, gradients included, inputs not.

    positives: every key of the pool is of some query's group, else none is.
    """
    generator = torch.Generator().manual_seed(0)
    queries, keys, pool = (torch.randn((rows, dim), generator=generator) for rows in (n, n, k))
    queries.requires_grad_()
    keys.requires_grad_()
    pool = pool.to(dtype)
    groups, pool_groups = torch.arange(n), torch.arange(k) + n
    if positives:
        pool_groups %= n

    def step() -> tuple[torch.Tensor, ...]:
        loss = contrastive_loss(
            queries,
            keys,
            query_groups=groups,
            key_groups=groups,
            query_images=groups // 2,
            key_images=groups // 2,
            pool=pool,
            pool_groups=pool_groups,
            pool_images=pool_groups % n // 2,
            same_image_weight=0.5,
        )
        return torch.autograd.grad(loss, [queries, keys])

    return tensor_peak(step) / 2**20


@pytest.mark.usefixtures("one_thread")
def test_no_array_of_queries_by_keys_appears():
    # One tile of logits (2 MiB in float32) or partial results (at most 4 MiB), one look-up of keys (8192 x 64 floats:
    # 2 MiB), a few N x D (64 KiB); the logits of 256 x 65536 would be 64 MiB, their ids compared 16 MiB.
    small = peak_mib(256, 4096, 64, torch.float32)
    large = peak_mib(256, 65536, 64, torch.float32)
    assert 1 < large < 8
    assert large <= small + 4
    assert peak_mib(256, 65536, 64, torch.float16) <= large + 1
    assert peak_mib(256, 65536, 64, torch.float32, positives=True) < 8
    # Here N x D is 0.5 MiB and N x (M + K) would be 80 MiB, N x M 16 MiB.
    assert peak_mib(2048, 8192, 64, torch.float32) < 12


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_cuda_equals_cpu(options):
    tensors = problem(13, 40, 40, 300, 16)
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        given = {name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in tensors.items()}
        leaves = [given[name].requires_grad_() for name in ("queries", "keys")]
        loss = contrastive_loss(**given, **options, check_finite=True)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for truth, cuda in zip(*results, strict=True):
        assert_close(cuda, truth.detach(), torch.float32)


@pytest.mark.gpu
def test_nan_on_cuda_goes_through_unless_looked_for():
    tensors = {name: x.to("cuda") for name, x in problem(13, 8, 8, 9, 4).items()}
    tensors["keys"][3, 1] = float("nan")
    tensors["key_groups"][3] = 0
    assert contrastive_loss(**tensors).isnan()
    with pytest.raises(InputError, match=r"keys must be finite, got nan in row 3$"):
        contrastive_loss(**tensors, check_finite=True)


def test_gradients_of_a_scaled_loss_survive_half_precision():
    # A temperature of 1e5 makes query gradients of 1e-7, where float16 has steps of 6e-8; an upstream gradient of 1e5
    # (a loss scale) lifts them. They come out right because they are kept in float32 until it has been applied.
    tensors = {name: x for name, x in problem(12, 16, 16, 0, 8).items() if not name.startswith("pool")}
    half = tensors.pop("queries").half()
    gradients = []
    for queries in (half.requires_grad_(), half.detach().double().requires_grad_()):
        contrastive_loss(queries, temperature=1e5, **tensors).backward(torch.tensor(1e5, dtype=torch.float64))
        gradients.append(queries.grad)
    assert gradients[0].dtype == torch.float16
    assert_close(gradients[0], gradients[1], torch.float16)
