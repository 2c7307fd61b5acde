"""Graded positives: pairs of two groups weighed by the distance of their severities, against the definition.

The definition is the dense NumPy float64 form, as in tests/test_contrastive.py. The Triton kernel is in
test_contrastive_graded_triton.py.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness import tensor_peak
from qpt.errors import InputError
from qpt.ops import extension
from qpt.ops.contrastive import backend_cpp, backend_torch
from qpt.ops.contrastive.api import QualityContrastiveLoss, contrastive_loss, contrastive_loss_with_stats
from qpt.ops.contrastive.distributed import distributed_contrastive_loss
from qpt.ops.contrastive.problem import GradedPairs, GradedRows
from tests.reference.contrastive import contrastive as reference
from tests.test_contrastive import EMBEDDINGS, SIZES, check_against_reference, problem, unit
from tests.tolerance import TOL, assert_close

OPTIONS = {
    "all": {"severity_width": 0.4},
    "heavier": {"severity_width": 0.4, "same_image_weight": 3.0},
    "self": {"severity_width": 0.2, "exclude_self": True},
    "removed": {"severity_width": 0.2, "same_image_weight": 0.0, "exclude_self": True},
}


def graded(seed: int, n: int, m: int, k: int, dim: int, kinds: int = 3, **ids: int) -> dict[str, torch.Tensor]:
    """A problem of tests/test_contrastive.py with severities: fifths, so that equal vectors occur."""
    generator = torch.Generator().manual_seed(seed + 100)
    severities = {
        f"{side}_severities": torch.randint(0, 6, (rows, kinds), generator=generator) / 5
        for side, rows in (("query", n), ("key", m))
    }
    return problem(seed, n, m, k, dim, **ids) | severities


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kinds", [1, 8])
def test_equals_reference(size, options, dtype, kinds):
    n, m, k, dim = size
    m = n if options.get("exclude_self") else m
    for seed in range(2):
        check_against_reference(graded(seed, n, m, k, dim, kinds), dtype, 0.2, **options)


def test_equals_reference_across_tiles(monkeypatch, long):
    monkeypatch.setattr(backend_torch, "_TILE", {"cpu": (5, 7)})
    sizes = [(13, 13, 31, 4), (5, 5, 7, 3), (11, 11, 0, 2)]
    if long:
        sizes += list(itertools.product((1, 4, 5, 6, 16), (1, 7, 15, 16), (0, 8), (3,)))
    for (n, m, k, dim), options in itertools.product(sizes, OPTIONS.values()):
        if not options.get("exclude_self") or n == m:
            check_against_reference(graded(n + k, n, m, k, dim), torch.float64, 0.1, **options)


@given(
    data=st.data(),
    n=st.integers(0, 9),
    m=st.integers(0, 9),
    k=st.integers(0, 9),
    kinds=st.integers(1, 8),
    options=st.sampled_from(sorted(OPTIONS)),
    width=st.floats(1e-6, 1e6),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_equals_reference_for_any_ids_and_width(data, n, m, k, kinds, options, width, dtype):
    chosen = {**OPTIONS[options], "severity_width": width}
    m = n if chosen.get("exclude_self") else m
    tensors = graded(n + m, n, m, k, 4, kinds)
    ids = st.sampled_from([-1, 0, 1, 7, 2**40, 2**63 - 1])
    for name in tensors:
        if name.endswith(("groups", "images")):
            rows = tensors[name].numel()
            tensors[name] = torch.tensor(data.draw(st.lists(ids, min_size=rows, max_size=rows)), dtype=torch.int64)
    check_against_reference(tensors, dtype, 0.3, **chosen)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradcheck(options):
    tensors = graded(3, 6, 6, 9, 4)
    queries, keys = (tensors.pop(name).requires_grad_() for name in ("queries", "keys"))
    tau = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def loss(q, k, t):
        return contrastive_loss(q, k, temperature=t, **tensors, **options) * 2.5

    assert torch.autograd.gradcheck(loss, (queries, keys, tau))


def same_rows(seed: int, n: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One tensor of rows, and the ids and severities that queries and keys share."""
    tensors = graded(seed, n, n, 0, dim, groups=max(1, n // 2), images=max(1, n // 4))
    shared = {}
    for name in ("groups", "images", "severities"):
        shared |= dict.fromkeys((f"query_{name}", f"key_{name}"), tensors[f"query_{name}"])
    return tensors["queries"].to(dtype).requires_grad_(), shared


@pytest.mark.parametrize("weight", [1.0, 0.0, 3.0])
def test_gradcheck_when_queries_and_keys_are_one_tensor(weight):
    x, shared = same_rows(0, 8, 5, torch.float64)
    options = {"severity_width": 0.3, "exclude_self": True, "same_image_weight": weight}
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def loss(x, tau):
        return contrastive_loss(x, x, **shared, **options, temperature=tau)

    assert torch.autograd.gradcheck(loss, (x, tau))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_one_tensor_has_the_gradient_of_copies(dtype):
    x, shared = same_rows(1, 40, 8, dtype)
    results = []
    for keys in (x, x.clone()):
        loss = contrastive_loss(x, keys, **shared, severity_width=0.3, exclude_self=True, same_image_weight=0.5)
        results.append([loss, torch.autograd.grad(loss, x)[0]])
    for one, copies in zip(*results, strict=True):
        assert_close(one, copies.detach(), dtype)


def test_hand_computed():
    # q = (1, 0), tau = 1, width 1: the own key has z = 1 and weight 1; the others z = 0, weights exp(-1/2) and 1.
    result = contrastive_loss_with_stats(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
        query_groups=torch.tensor([10]),
        key_groups=torch.tensor([10, 11, 12]),
        query_severities=torch.tensor([[0.5, 0.0]]),
        key_severities=torch.tensor([[0.5, 0.0], [0.5, 1.0], [0.5, 0.0]]),
        severity_width=1.0,
        temperature=1.0,
    )
    positive = 1 / (1 + math.exp(-0.5) + 1)
    assert result.loss.item() == pytest.approx(math.log(math.e + 2) - positive, rel=1e-6)
    assert result.positive_similarity.item() == pytest.approx(positive, rel=1e-6)
    assert result.negative_similarity.item() == 0
    assert result.valid_rows.item() == 1


def test_a_narrow_width_is_the_loss_without_severities():
    tensors = graded(1, 20, 20, 30, 8)
    for side in ("query", "key"):
        tensors[f"{side}_severities"] = tensors[f"{side}_groups"][:, None] / 10.0  # equal within a group alone
    narrow = contrastive_loss(**tensors, severity_width=1e-3)
    plain = {name: x for name, x in tensors.items() if not name.endswith("severities")}
    assert_close(narrow, contrastive_loss(**plain).item(), torch.float64)


def test_a_wide_width_makes_every_key_of_the_batch_a_positive():
    x = unit(torch.Generator().manual_seed(4), 12, 8)
    groups, severities = torch.arange(12) // 2, torch.rand((12, 4))
    shared = {"query_groups": groups, "key_groups": groups, "query_severities": severities}
    wide = contrastive_loss(x, x, **shared, key_severities=severities, severity_width=1e9, exclude_self=True)
    one_group = torch.zeros(12, dtype=torch.int64)
    expected = contrastive_loss(x, x, query_groups=one_group, key_groups=one_group, exclude_self=True)
    assert_close(wide, expected.item(), torch.float64)


def test_a_row_without_a_key_of_its_group_does_not_count():
    tensors = graded(2, 6, 6, 0, 4)
    tensors |= {"query_groups": torch.arange(6), "key_groups": torch.arange(6) + 3}
    result = contrastive_loss_with_stats(**tensors, severity_width=0.5)
    assert result.valid_rows.item() == 3
    tensors["key_groups"] += 10
    leaf = tensors["queries"].requires_grad_()
    loss = contrastive_loss(**tensors, severity_width=0.5)
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, leaf)[0] == 0).all()


# --- the C++ passes


@pytest.fixture(params=["", *extension.load().contrastive_isas()])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(backend_cpp, "isa", request.param)
    return request.param


@pytest.mark.rung("reference")
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (7, 7, 13, 5), (65, 65, 97, 33), (300, 300, 0, 64)], ids=str)
def test_every_instruction_set_equals_the_definition(size, options):
    for kinds in (1, 2, 8):
        check_against_reference(graded(kinds, *size, kinds, groups=9, images=7), torch.float32, 0.1, **options)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weight", [1.0, 0.0, 3.0])
@pytest.mark.parametrize("size", [(9, 3), (300, 20)], ids=str)
def test_the_same_rows_as_queries_and_keys(size, weight):
    x, shared = same_rows(size[0], *size, torch.float32)
    options = {"severity_width": 0.3, "exclude_self": True, "same_image_weight": weight, "temperature": 0.1}
    loss = contrastive_loss(x, x, **shared, **options, backend="cpp")
    rows = x.detach().double().numpy()
    truth = reference(rows, rows, **{name: t.numpy() for name, t in shared.items()}, **options)
    assert_close(loss, truth["loss"], torch.float32)
    gradient = torch.autograd.grad(loss * 2.5, x)[0]
    assert_close(gradient, 2.5 * (truth["grad_queries"] + truth["grad_keys"]), torch.float32)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [None, 0, 3, -2])
def test_offsets_of_the_own_pair(offset):
    tensors = graded(2, 70, 150, 0, 12, groups=30)
    pairs = GradedPairs(
        *(
            GradedRows(*(tensors[f"{side}_{name}"] for name in ("severities", "groups", "images")))
            for side in ("query", "key")
        ),
        0.3,
        offset,
    )
    exact, ours = torch.ones((70, 12), dtype=torch.float64), torch.ones((70, 12))
    weights = backend_torch.TorchBackend().add_graded(pairs, tensors["keys"], exact)
    found = backend_cpp.CppBackend().add_graded(pairs, tensors["keys"].float(), ours)
    assert_close(ours, exact, torch.float32)
    assert_close(found, weights, torch.float32)
    back, exact = torch.zeros((150, 12)), torch.zeros((150, 12), dtype=torch.float64)
    backend_cpp.CppBackend().add_graded(pairs.transposed(), tensors["queries"].float(), back)
    backend_torch.TorchBackend().add_graded(pairs.transposed(), tensors["queries"], exact)
    assert_close(back, exact, torch.float32)


def test_the_same_bytes_with_any_number_of_threads():
    tensors = {k: x.float() if x.is_floating_point() else x for k, x in graded(3, 700, 700, 0, 24).items()}
    leaves = [tensors["queries"].requires_grad_(), tensors["keys"].requires_grad_()]
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            loss = contrastive_loss(**tensors, severity_width=0.2, backend="cpp")
            results.append(torch.autograd.grad(loss, leaves))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_reduced_precision_is_that_of_the_rounded_rows(dtype, backend):
    tensors = graded(4, 60, 60, 90, 64)
    low = {name: x.to(dtype) if name in EMBEDDINGS else x for name, x in tensors.items()}
    arrays = {name: (x.double() if x.is_floating_point() else x).numpy() for name, x in low.items()}
    truth = reference(**arrays, severity_width=0.3)
    leaves = [low["queries"].requires_grad_(), low["keys"].requires_grad_()]
    loss = contrastive_loss(**low, severity_width=0.3, backend=backend)
    assert_close(loss, truth["loss"], torch.float32)
    for gradient, name in zip(torch.autograd.grad(loss, leaves), ("grad_queries", "grad_keys"), strict=True):
        error = torch.as_tensor(truth[name]) - gradient.double()
        assert error.norm() <= TOL[dtype][0] * np.linalg.norm(truth[name]) + TOL[dtype][1]


# --- the op


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compiles_without_a_graph_break(options):
    tensors = {k: x.float() if x.is_floating_point() else x for k, x in graded(4, 6, 6, 9, 4).items()}

    def step(queries, keys, tau, rest):
        loss, valid, *_ = contrastive_loss_with_stats(queries * 2, keys, temperature=tau, **rest, **options)
        return loss * 3, valid

    queries, keys, tau = tensors.pop("queries"), tensors.pop("keys"), torch.tensor(0.3)
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (queries, keys, tau)]
        loss, valid = function(*leaves, tensors)
        results.append([loss.detach(), valid, *torch.autograd.grad(loss, leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert_close(compiled, eager, torch.float32)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_no_array_of_queries_by_keys_appears(backend):
    # N x D is 0.5 MiB, N x M in float32 would be 16 MiB. The torch form has tiles of 2 MiB, one of logits and two more.
    tensors = {k: x.float() if x.is_floating_point() else x for k, x in graded(0, 2048, 2048, 0, 64).items()}
    leaves = [tensors["queries"].requires_grad_(), tensors["keys"].requires_grad_()]
    for name in ("pool", "pool_groups", "pool_images", "query_images", "key_images"):
        del tensors[name]

    def step():
        return torch.autograd.grad(contrastive_loss(**tensors, severity_width=0.2, backend=backend), leaves)

    assert tensor_peak(step) / 2**20 < 14


def test_only_wanted_gradients_are_made():
    tensors = graded(2, 6, 6, 9, 4)
    leaves = [tensors.pop("queries"), tensors.pop("keys")]
    everything = [x.clone().requires_grad_() for x in leaves]
    full = torch.autograd.grad(contrastive_loss(*everything, **tensors, severity_width=0.3), everything)
    for wanted in range(2):
        given_ = [x.clone().requires_grad_(place == wanted) for place, x in enumerate(leaves)]
        contrastive_loss(*given_, **tensors, severity_width=0.3).backward()
        assert torch.equal(given_[wanted].grad, full[wanted])


def test_the_module_passes_severities_on():
    tensors = graded(8, 6, 6, 9, 4)
    module = QualityContrastiveLoss(0.3, severity_width=0.5)
    assert torch.equal(module(**tensors), contrastive_loss(**tensors, temperature=0.3, severity_width=0.5))


# --- errors

S = torch.rand(4, 3)
WRONG = {
    "queries' alone": (
        {"key_severities": None},
        "query_severities, key_severities and severity_width go together, got ",
    ),
    "no width": ({"severity_width": None}, "go together, got query_severities and key_severities alone"),
    "width alone": ({"query_severities": None, "key_severities": None}, "go together, got severity_width alone"),
    "not a tensor": (
        {"query_severities": [[0.1]]},
        r"query_severities must be \(4, S\), 1 <= S <= 8, float32, got list",
    ),
    "1-d": ({"query_severities": S[:, 0]}, r"query_severities must be \(4, S\), .*, got \(4,\) float32"),
    "other rows": ({"key_severities": S}, r"key_severities must be \(5, 3\), float32, got \(4, 3\) float32"),
    "other numbers": ({"key_severities": torch.rand(5, 2)}, r"key_severities must be \(5, 3\), float32, got \(5, 2\)"),
    "nine": ({"query_severities": torch.rand(4, 9)}, r"query_severities must be .* got \(4, 9\) float32"),
    "none": ({"query_severities": torch.rand(4, 0)}, r"query_severities must be .* got \(4, 0\) float32"),
    "float64": ({"query_severities": S.double()}, r"query_severities must be .* got \(4, 3\) float64"),
    "another device": (
        {"query_severities": S.to("meta")},
        "query_severities must be on the queries' device cpu, got meta",
    ),
    "a gradient": ({"query_severities": S.clone().requires_grad_()}, "query_severities gets no gradient"),
    "nan": ({"query_severities": S.clone().fill_(torch.nan)}, "query_severities must be finite, got nan in row 0"),
    "infinity": ({"key_severities": torch.full((5, 3), torch.inf)}, "key_severities must be finite, got inf in row 0"),
    "width zero": ({"severity_width": 0.0}, "severity_width must be finite and >= 1e-06, got 0.0"),
    "width tiny": ({"severity_width": 1e-7}, "severity_width must be finite and >= 1e-06, got 1e-07"),
    "width nan": ({"severity_width": math.nan}, "severity_width must be finite and >= 1e-06, got nan"),
    "width text": ({"severity_width": "1"}, "severity_width must be finite and >= 1e-06, got '1'"),
    "no negatives": ({"in_batch_negatives": False}, "in_batch_negatives must be True with severities, got False"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_one_clear_error(change, message):
    given_ = {
        "queries": torch.ones(4, 3),
        "keys": torch.ones(5, 3),
        "query_groups": torch.arange(4),
        "key_groups": torch.arange(5),
        "query_severities": S,
        "key_severities": torch.rand(5, 3),
        "severity_width": 0.2,
    }
    assert contrastive_loss(**given_).isfinite()
    with pytest.raises(InputError, match=f"^contrastive_loss: .*{message}") as caught:
        contrastive_loss(**(given_ | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [contrastive_loss, distributed_contrastive_loss])
def test_severities_of_a_pool_and_of_several_processes_are_no_arguments(function):
    wrong = "pool_severities" if function is contrastive_loss else "query_severities"
    with pytest.raises(TypeError, match=wrong):
        function(S, S, query_groups=torch.arange(4), key_groups=torch.arange(4), **{wrong: S})
