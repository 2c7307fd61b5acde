"""Errors of the contrastive loss: one InputError per wrong argument, naming it."""

import pytest
import torch

from qpt.errors import InputError
from qpt.ops.contrastive.api import QualityContrastiveLoss, contrastive_loss
from qpt.ops.contrastive.pool import NegativePool


def arguments() -> dict[str, object]:
    return {
        "queries": torch.ones(4, 3),
        "keys": torch.ones(5, 3),
        "query_groups": torch.arange(4),
        "key_groups": torch.arange(5),
        "query_images": torch.arange(4),
        "key_images": torch.arange(5),
        "pool": torch.ones(6, 3),
        "pool_groups": torch.arange(6),
        "pool_images": torch.arange(6),
    }


WRONG = {
    "queries not a tensor": ({"queries": [[1.0]]}, r"queries must be \(N, D\) .*, got list"),
    "queries 1-d": ({"queries": torch.ones(4)}, r"queries must be \(N, D\) .*, got \(4,\) float32"),
    "queries integer": ({"queries": torch.ones(4, 3, dtype=torch.int64)}, r"queries must .* got \(4, 3\) int64"),
    "queries complex": ({"queries": torch.ones(4, 3, dtype=torch.complex64)}, "queries must .* complex64"),
    "queries without width": ({"queries": torch.ones(4, 0)}, r"queries must .* got \(4, 0\)"),
    "keys of another D": ({"keys": torch.ones(5, 2)}, r"keys must be \(M, 3\) .* got \(5, 2\) float32"),
    "keys on another device": ({"keys": torch.ones(5, 3, device="meta")}, "keys must be on the queries' device cpu"),
    "pool of another D": ({"pool": torch.ones(6, 4)}, r"pool must be \(K, 3\) .* got \(6, 4\)"),
    "pool with a gradient": ({"pool": torch.ones(6, 3, requires_grad=True)}, "pool gets no gradient"),
    "pool of another type": ({"pool": "moco"}, "pool must be .* got str"),
    "query ids too few": ({"query_groups": torch.arange(3)}, r"query_groups must be \(4,\) int64, got \(3,\) int64"),
    "query ids int32": ({"query_groups": torch.arange(4).int()}, r"query_groups must be \(4,\) int64, got .* int32"),
    "query ids missing": ({"query_groups": None}, r"query_groups must be \(4,\) int64, got NoneType"),
    "key ids 2-d": ({"key_groups": torch.ones(5, 1).long()}, r"key_groups must be \(5,\) int64, got \(5, 1\)"),
    "key ids elsewhere": ({"key_groups": torch.ones(5, device="meta").long()}, "key_groups must be on .* cpu"),
    "query images": ({"query_images": torch.arange(5)}, r"query_images must be \(4,\) int64, got \(5,\)"),
    "key images": ({"key_images": torch.ones(5)}, r"key_images must be \(5,\) int64, got \(5,\) float32"),
    "pool ids missing": ({"pool_groups": None}, r"a pool tensor needs pool_groups, int64 \(6,\)"),
    "pool ids too many": ({"pool_groups": torch.arange(7)}, r"pool_groups must be \(6,\) int64, got \(7,\)"),
    "pool images": ({"pool_images": torch.arange(5)}, r"pool_images must be \(6,\) int64"),
    "ids without a pool": ({"pool": None}, "pool_groups and pool_images go with a pool tensor, got none"),
    "ids beside a NegativePool": ({"pool": NegativePool(4, 3)}, "go with a pool tensor, got a NegativePool"),
    "temperature zero": ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
    "temperature negative": ({"temperature": -1}, "temperature must be finite and > 0, got -1"),
    "temperature nan": ({"temperature": float("nan")}, "temperature must be finite and > 0, got nan"),
    "temperature infinite": ({"temperature": float("inf")}, "temperature must be finite and > 0, got inf"),
    "temperature tensor zero": ({"temperature": torch.tensor(0.0)}, "temperature must be finite and > 0, got 0"),
    "temperature tensor nan": ({"temperature": torch.tensor(float("nan"))}, "temperature must .* got nan"),
    "temperature of two": ({"temperature": torch.ones(2)}, r"temperature must be .* one element, got \(2,\)"),
    "temperature integer": ({"temperature": torch.tensor(1)}, r"temperature must be .* got \(\) int64"),
    "temperature elsewhere": ({"temperature": torch.ones(1, device="meta")}, "temperature must be on .* cpu"),
    "temperature text": ({"temperature": "0.2"}, "temperature must be a float or a tensor, got str"),
    "weight negative": ({"same_image_weight": -0.1}, "same_image_weight must be finite and >= 0, got -0.1"),
    "weight nan": ({"same_image_weight": float("nan")}, "same_image_weight must be finite and >= 0, got nan"),
    "weight text": ({"same_image_weight": "1"}, "same_image_weight must be finite and >= 0, got '1'"),
    "self with other rows": ({"exclude_self": True}, "exclude_self needs .* got 4 queries and 5 keys"),
    "precision unknown": (
        {"precision": "fp32"},
        "precision must be one of auto, ieee, tf32, tf32x3, bf16x3, got 'fp32'",
    ),
    "precision that C++ does not have": (
        {"precision": "bf16x3"},
        r"precision must be auto or ieee with backend='cpp' \(on cpu\), got 'bf16x3'",
    ),
    "precision that torch does not have": (
        {"precision": "tf32", "backend": "torch"},
        r"precision must be auto or ieee with backend='torch' \(on cpu\), got 'tf32'",
    ),
    "backend unknown": ({"backend": "fortran"}, "backend must be one of auto, cpp, triton, torch, got 'fortran'"),
}


def test_the_arguments_are_right_but_for_the_change():
    assert contrastive_loss(**arguments()).isfinite()


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_one_clear_error(change, message):
    with pytest.raises(InputError, match=f"^contrastive_loss: .*{message}") as caught:
        contrastive_loss(**(arguments() | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["queries", "keys", "pool"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_nan_and_infinity_raise_with_the_row(name, value, dtype):
    given = arguments()
    given[name] = given[name].to(dtype)
    given[name][2, 1] = value
    with pytest.raises(InputError, match=f"{name} must be finite, got {value} in row 2$"):
        contrastive_loss(**given)


def test_the_row_is_right_far_down_the_pool():
    given = arguments() | {"pool": torch.ones(20000, 3), "pool_groups": torch.arange(20000), "pool_images": None}
    given["pool"][12345, 0] = float("nan")
    with pytest.raises(InputError, match=r"in row 12345$"):
        contrastive_loss(**given)


def test_a_sum_that_overflows_is_not_an_infinity():
    # Finite float32 entries whose row sum is not; the products overflow, which is the caller's scale to choose.
    given = arguments() | {"pool": torch.full((6, 3), 3e38), "pool_groups": torch.full((6,), -1)}
    assert contrastive_loss(**given).isfinite()


def test_module_checks_its_temperature_when_made():
    with pytest.raises(InputError, match="QualityContrastiveLoss: temperature must be finite and > 0"):
        QualityContrastiveLoss(0.0)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(
    ("function", "queries", "keys", "temperature"),
    [
        ("pairs", 1e20, 1e20, 0.5),
        ("pairs", 1e19, 1e19, 1e-4),
        ("pairs", 1.0, 3e38, 0.1),
        ("pairs", 1e-35, 3e38, 1e-3),  # the loss is finite, the queries' gradient is not
        ("rows", 1e20, 1e20, 0.5),
        ("rows", 3e38, 3e38, 0.5),
        ("pool", 1e19, 1e20, 0.5),
    ],
)
def test_finite_rows_whose_products_overflow_are_refused(backend, function, queries, keys, temperature):
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(8, 32, generator=generator), dim=1) * queries
    k = torch.nn.functional.normalize(torch.randn(8, 32, generator=generator), dim=1) * keys
    q.requires_grad_()
    ids, options = torch.arange(8), {"temperature": temperature, "backend": backend}
    given = {"queries": q, "keys": k, "query_groups": ids, "key_groups": ids, **options}
    if function == "rows":
        given |= {"keys": q, "query_groups": ids // 2, "exclude_self": True}
        given["key_groups"] = given["query_groups"]
    elif function == "pool":
        pool = NegativePool(16, 32)
        pool.push(k, pool.new_groups(8) + 100)
        given |= {"keys": q.detach() * 1e-19, "pool": pool}
    with pytest.raises(
        InputError, match=r"^contrastive_loss: similarity / temperature .* in float32.* normalise the rows$"
    ):
        contrastive_loss(**given)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_what_does_not_overflow_is_not_refused(backend):
    q = torch.nn.functional.normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    for scale in (1e-30, 1.0, 1e15):
        x = (q * scale).requires_grad_()
        value = contrastive_loss(x, x, query_groups=torch.arange(8), key_groups=torch.arange(8), backend=backend)
        value.backward()
        assert value.isfinite() and x.grad.isfinite().all()
    double = (q.double() * 1e100).requires_grad_()
    assert contrastive_loss(double, double, query_groups=torch.arange(8), key_groups=torch.arange(8)).isfinite()


def test_a_learnt_temperature_has_a_floor_and_comes_back():
    ids, q = torch.arange(16).repeat_interleave(2), torch.eye(16).repeat_interleave(2, 0)
    module = QualityContrastiveLoss(0.2, learn_temperature=True, exclude_self=True, min_temperature=0.05)
    optimizer = torch.optim.SGD(module.parameters(), 10.0)
    for _ in range(6):
        optimizer.zero_grad()
        module(q, q, query_groups=ids, key_groups=ids).backward()
        optimizer.step()
        assert module.temperature.item() >= 0.05 * (1 - 1e-6)
    assert module.temperature.item() == pytest.approx(0.05)
    # Positives less alike than negatives: the loss falls with a higher temperature, and the parameter follows at once.
    wrong = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    wrong = torch.nn.functional.normalize(wrong, dim=1)
    before = module(wrong, wrong, query_groups=ids, key_groups=ids)
    optimizer.zero_grad()
    before.backward()
    optimizer.step()
    assert module.temperature.item() > 0.05
    assert "learnt, >= 0.05" in repr(module)


def test_the_floor_of_a_learnt_temperature_is_checked():
    assert QualityContrastiveLoss(learn_temperature=True).min_temperature == 0.01
    assert QualityContrastiveLoss(0.002, learn_temperature=True).temperature.item() == pytest.approx(0.002)
    for value, message in (
        (0, "a finite number above 0"),
        ("x", "a finite number above 0"),
        (0.3, "at most temperature 0.2"),
    ):
        with pytest.raises(InputError, match=f"^QualityContrastiveLoss: min_temperature must be {message}, got"):
            QualityContrastiveLoss(0.2, learn_temperature=True, min_temperature=value)
