"""The contrastive loss against its definition: dense NumPy float64, gradcheck, and the losses it contains as settings.

The op's contract with torch (opcheck, compile, autocast, second derivative, memory) is in test_contrastive_op.py, the
refusals in test_contrastive_errors.py.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qpt.ops.contrastive import backend_torch
from qpt.ops.contrastive.api import QualityContrastiveLoss, contrastive_loss, contrastive_loss_with_stats
from tests.reference.contrastive import contrastive as reference
from tests.tolerance import TOL, assert_close

OPTIONS = {
    "all": {},
    "moco": {"in_batch_negatives": False},
    "self": {"exclude_self": True},
    "self_moco": {"exclude_self": True, "in_batch_negatives": False},
    "removed": {"same_image_weight": 0.0},
    "heavier": {"same_image_weight": 3.0, "exclude_self": True},
    "lighter_moco": {"same_image_weight": 0.25, "in_batch_negatives": False},
}
EMBEDDINGS = ("queries", "keys", "pool")


def unit(generator: torch.Generator, rows: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = torch.randn((rows, dim), generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=1).to(dtype)


def problem(seed: int, n: int, m: int, k: int, dim: int, groups: int = 5, images: int = 3) -> dict[str, torch.Tensor]:
    """Random embeddings and few ids, -1 among them, so that positives, ignored and same-image pairs all occur."""
    g = torch.Generator().manual_seed(seed)
    tensors = {"queries": unit(g, n, dim), "keys": unit(g, m, dim)}
    for name, rows in (("query", n), ("key", m), ("pool", k)):
        tensors[f"{name}_groups"] = torch.randint(-1, groups, (rows,), generator=g)
        tensors[f"{name}_images"] = torch.randint(-1, images, (rows,), generator=g)
    return tensors | {"pool": unit(g, k, dim)}


def check_against_reference(tensors: dict[str, torch.Tensor], dtype: torch.dtype, temperature: float, **options):
    """Loss, valid rows, statistics and all three gradients, with an upstream gradient other than 1."""
    given_ = {name: t.to(dtype) if name in EMBEDDINGS else t for name, t in tensors.items()}
    # The truth is of the rounded inputs.
    truth = reference(
        **{name: t.double().numpy() if t.is_floating_point() else t.numpy() for name, t in given_.items()},
        temperature=temperature,
        **options,
    )
    leaves = [given_["queries"].requires_grad_(), given_["keys"].requires_grad_()]
    tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
    result = contrastive_loss_with_stats(**given_, temperature=tau, **options)
    assert result.valid_rows.item() == truth["valid_rows"]
    assert_close(result.loss, truth["loss"], dtype)
    assert_close(result.positive_similarity, truth["positive_similarity"], dtype)
    if np.isnan(truth["negative_similarity"]):
        assert result.negative_similarity.isnan()
    else:
        assert_close(result.negative_similarity, truth["negative_similarity"], dtype)
    upstream = -1.75
    grads = torch.autograd.grad(result.loss, [*leaves, tau], torch.tensor(upstream, dtype=result.loss.dtype))
    assert_close(grads[0], truth["grad_queries"] * upstream, dtype)
    assert_close(grads[1], truth["grad_keys"] * upstream, dtype)
    # The temperature's gradient sums terms of both signs: its bound is of their size, not of their sum.
    assert_close(grads[2], truth["grad_temperature"] * upstream, dtype, scale=10 / temperature)


SIZES = [(1, 1, 0, 1), (1, 1, 1, 1), (2, 3, 5, 3), (7, 7, 13, 5), (33, 17, 129, 8), (64, 64, 100, 32)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_reference(size, options, dtype):
    n, m, k, dim = size
    if options.get("exclude_self"):
        m = n
    for seed in range(3):
        check_against_reference(problem(seed, n, m, k, dim), dtype, 0.2, **options)


def test_equals_reference_across_tiles(monkeypatch, long):
    # Tiles far smaller than the problem, which divide no side of it; the diagonal crosses tiles unevenly.
    monkeypatch.setattr(backend_torch, "_TILE", {"cpu": (5, 7)})
    monkeypatch.setattr(backend_torch, "LOOKUP_ROWS", 11)
    sizes = [(13, 13, 31, 4), (5, 5, 7, 3), (11, 11, 0, 2)]
    if long:
        sizes += list(itertools.product((1, 4, 5, 6, 16), (16,), (0, 1, 6, 7, 8, 50), (1, 9)))
    for (n, m, k, dim), options in itertools.product(sizes, OPTIONS.values()):
        if not options.get("exclude_self") or n == m:
            check_against_reference(problem(n + k, n, m, k, dim), torch.float64, 0.1, **options)


@given(
    data=st.data(),
    n=st.integers(0, 9),
    m=st.integers(0, 9),
    k=st.integers(0, 20),
    dim=st.integers(1, 6),
    options=st.sampled_from(sorted(OPTIONS)),
    temperature=st.floats(0.03, 5.0),
    seed=st.integers(0, 2**31),
)
def test_equals_reference_for_any_ids(data, n, m, k, dim, options, temperature, seed):
    chosen = OPTIONS[options]
    m = n if chosen.get("exclude_self") else m
    tensors = problem(seed, n, m, k, dim)
    # Ids of any size: they are names, not indices.
    ids = st.sampled_from([-1, 0, 1, 7, 2**40, 2**63 - 1])
    for name in tensors:
        if name.endswith(("groups", "images")):
            rows = tensors[name].numel()
            tensors[name] = torch.tensor(data.draw(st.lists(ids, min_size=rows, max_size=rows)), dtype=torch.int64)
    check_against_reference(tensors, torch.float64, temperature, **chosen)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradcheck(options):
    tensors = problem(3, 6, 6, 9, 4)
    queries, keys = (tensors.pop(name).requires_grad_() for name in ("queries", "keys"))
    tau = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def loss(q, k, t):
        return contrastive_loss(q, k, temperature=t, **tensors, **options) * 2.5

    assert torch.autograd.gradcheck(loss, (queries, keys, tau))


def test_gradcheck_when_queries_and_keys_are_one_tensor():
    x = unit(torch.Generator().manual_seed(0), 8, 5).requires_grad_()
    groups = torch.arange(8) % 3

    def loss(x):
        return contrastive_loss(x, x, query_groups=groups, key_groups=groups, exclude_self=True)

    assert torch.autograd.gradcheck(loss, (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("other_ids", [False, True])
@pytest.mark.parametrize("own_pool", [False, True])
def test_one_tensor_in_several_places_has_the_gradient_of_copies(dtype, exclude_self, other_ids, own_pool):
    # The gradient once left the batch's softmax out where one tensor was given twice without being the same rows.
    x = unit(torch.Generator().manual_seed(0), 12, 5, dtype).requires_grad_()
    groups = torch.arange(12) // 2
    ids = {"query_groups": groups, "key_groups": groups.clone() if other_ids else groups}
    pool = {"pool": x.detach(), "pool_groups": groups + 100} if own_pool else {}
    gradients = [
        torch.autograd.grad(contrastive_loss(x, keys, **ids, **pool, exclude_self=exclude_self), x)[0]
        for keys in (x, x.clone())
    ]
    assert_close(gradients[0], gradients[1], dtype)


def test_infonce_of_moco_is_a_setting():
    # He et al. 2020, algorithm 1: logits [l_pos, l_neg] / T, the label is column 0; the queue has no gradient.
    g = torch.Generator().manual_seed(1)
    q, k, queue = unit(g, 12, 16).requires_grad_(), unit(g, 12, 16), unit(g, 50, 16)
    expected = F.cross_entropy(
        torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.07, torch.zeros(12, dtype=torch.int64)
    )
    ids = torch.arange(62)
    ours = contrastive_loss(
        q,
        k,
        query_groups=ids[:12],
        key_groups=ids[:12],
        pool=queue,
        pool_groups=ids[12:],
        temperature=0.07,
        in_batch_negatives=False,
    )
    assert_close(ours, expected.item(), torch.float64)
    assert_close(torch.autograd.grad(ours, q)[0], torch.autograd.grad(expected, q)[0], torch.float64)


def test_nt_xent_of_simclr_is_a_setting():
    # Chen et al. 2020, equation 1 and algorithm 1: 2N rows, the positive of 2k-1 is 2k, all others are negatives.
    n, tau = 9, 0.5
    x = unit(torch.Generator().manual_seed(2), 2 * n, 8).requires_grad_()
    z = (x @ x.T / tau).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(z, torch.arange(2 * n) ^ 1)
    pair = torch.arange(2 * n) // 2
    ours = contrastive_loss(x, x, query_groups=pair, key_groups=pair, temperature=tau, exclude_self=True)
    assert_close(ours, expected.item(), torch.float64)
    assert_close(torch.autograd.grad(ours, x)[0], torch.autograd.grad(expected, x)[0], torch.float64)


def test_supcon_is_a_setting():
    # Khosla et al. 2020, equation 2 (L_out): the mean over P(i) outside the log, A(i) all rows but i.
    g = torch.Generator().manual_seed(4)
    x, labels = unit(g, 20, 8).requires_grad_(), torch.randint(0, 4, (20,), generator=g)
    others = ~torch.eye(20, dtype=torch.bool)
    z = x @ x.T / 0.1
    log_p = z - (z.exp() * others).sum(1, keepdim=True).log()
    positive = (labels[:, None] == labels[None]) & others
    assert (positive.sum(1) > 0).all()
    expected = -((log_p * positive).sum(1) / positive.sum(1)).mean()
    ours = contrastive_loss(x, x, query_groups=labels, key_groups=labels, temperature=0.1, exclude_self=True)
    assert_close(ours, expected.item(), torch.float64)
    assert_close(torch.autograd.grad(ours, x)[0], torch.autograd.grad(expected, x)[0], torch.float64)


def test_hand_computed():
    # q = (1, 0), tau = 1. Keys: positive (1, 0): z = 1; same image, weight 2, (0, 1): z = log 2; ignored: no term.
    loss = contrastive_loss(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]),
        query_groups=torch.tensor([10]),
        key_groups=torch.tensor([10, 11, -1]),
        query_images=torch.tensor([7]),
        key_images=torch.tensor([7, 7, 7]),
        temperature=1.0,
        same_image_weight=2.0,
    )
    assert loss.item() == pytest.approx(np.log(np.e + 2) - 1, rel=1e-6)


def test_weight_zero_equals_leaving_the_pairs_out():
    tensors = problem(5, 6, 9, 0, 4)
    del tensors["pool"], tensors["pool_groups"], tensors["pool_images"]
    tensors["query_images"] = torch.zeros(6, dtype=torch.int64)
    tensors["query_groups"] = torch.zeros(6, dtype=torch.int64)
    tensors["key_images"] = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, -1])
    tensors["key_groups"] = torch.tensor([0, 0, 1, 2, -1, 3, 0, 4, 5])
    removed = contrastive_loss(**tensors, same_image_weight=0.0)
    same_image = (tensors["key_images"] == 0) & (tensors["key_groups"] != 0)
    assert same_image.any()
    tensors["key_groups"] = tensors["key_groups"].masked_fill(same_image, -1)
    assert_close(removed, contrastive_loss(**tensors).item(), torch.float64)


@pytest.mark.parametrize("case", ["no queries", "no keys", "no positive", "all queries left out", "all keys ignored"])
def test_nothing_to_compare_gives_zero(case):
    g = torch.Generator().manual_seed(0)
    n, m = (0, 4) if case == "no queries" else (4, 0) if case == "no keys" else (4, 4)
    q, k = unit(g, n, 3).requires_grad_(), unit(g, m, 3).requires_grad_()
    gq, gk = torch.arange(n), torch.arange(m)
    if case == "no positive":
        gk = gk + 100
    if case == "all queries left out":
        gq = torch.full_like(gq, -1)
    if case == "all keys ignored":
        gk = torch.full_like(gk, -1)
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    result = contrastive_loss_with_stats(q, k, query_groups=gq, key_groups=gk, temperature=tau)
    assert result.loss.item() == 0
    assert result.valid_rows.item() == 0
    for leaf, grad in zip((q, k, tau), torch.autograd.grad(result.loss, [q, k, tau]), strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_huge_embeddings_stay_finite(dtype):
    # Entries of +-1e4: logits to 1e9, far beyond exp's range, and beyond float16's.
    tensors = problem(11, 16, 16, 40, 8)
    for name in ("queries", "keys", "pool"):
        tensors[name] = (tensors[name].sign() * 1e4).to(dtype)
    tensors["queries"].requires_grad_()
    tensors["keys"].requires_grad_()
    loss = contrastive_loss(**tensors, same_image_weight=0.0)
    arrays = {name: (t.detach().double() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}
    truth = reference(**arrays, same_image_weight=0.0)["loss"]
    largest = 8 * 1e8 / 0.2
    assert abs(loss.item() - truth) <= 1e-5 * largest
    for grad in torch.autograd.grad(loss, [tensors["queries"], tensors["keys"]]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_is_no_worse_than_torch(dtype):
    # |truth - ours| <= |truth - the same-dtype torch form| + tol, the truth being of the unrounded float64 inputs.
    tensors = problem(6, 40, 40, 300, 64)
    ids = torch.arange(340)
    q, k, pool = tensors["queries"], tensors["keys"], tensors["pool"]
    truth = reference(q, k, ids[:40], ids[:40], pool=pool, pool_groups=ids[40:], in_batch_negatives=False)
    low_q, low_k, low_pool = (x.to(dtype).requires_grad_(x is not pool) for x in (q, k, pool))
    plain = F.cross_entropy(
        torch.cat([(low_q * low_k).sum(1, keepdim=True), low_q @ low_pool.T], 1) / 0.2, torch.zeros(40).long()
    )
    groups = {"query_groups": ids[:40], "key_groups": ids[:40], "pool_groups": ids[40:]}
    ours = contrastive_loss(low_q, low_k, pool=low_pool, in_batch_negatives=False, **groups)
    assert ours.dtype == torch.float32
    pairs = [(truth["loss"], ours, plain)]
    names = ("grad_queries", "grad_keys")
    pairs += zip(
        (truth[name] for name in names),
        torch.autograd.grad(ours, [low_q, low_k]),
        torch.autograd.grad(plain, [low_q, low_k]),
        strict=True,
    )
    for expected, actual, same_dtype in pairs:
        expected = torch.as_tensor(expected)
        tol = TOL[dtype][1] + TOL[dtype][0] * expected.norm().item()
        error = (actual.detach().double() - expected).norm().item()
        assert error <= (same_dtype.detach().double() - expected).norm().item() + tol


def test_module_learns_its_temperature():
    tensors = problem(8, 6, 6, 9, 4)
    fixed = QualityContrastiveLoss(0.3, same_image_weight=0.5)
    learnt = QualityContrastiveLoss(0.3, same_image_weight=0.5, learn_temperature=True)
    assert list(fixed.parameters()) == []
    direct = contrastive_loss(**tensors, temperature=0.3, same_image_weight=0.5)
    assert torch.equal(fixed(**tensors), direct)
    loss = learnt(**tensors)
    loss.backward()
    # d L / d log(tau) = tau d L / d tau.
    arrays = {name: t.numpy() for name, t in tensors.items()}
    expected = 0.3 * reference(**arrays, temperature=0.3, same_image_weight=0.5)["grad_temperature"]
    assert_close(learnt.log_temperature.grad, expected, torch.float32, scale=10)
    stats = fixed.with_stats(**tensors)
    assert torch.equal(stats.loss, direct)
    assert stats.valid_rows > 0
