"""info_nce, nt_xent and supcon: plain torch definitions, pytorch-metric-learning, and properties by hypothesis."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from qpt.errors import InputError
from qpt.ops.contrastive.api import info_nce, nt_xent, supcon
from qpt.ops.contrastive.pool import NegativePool
from tests.tolerance import assert_close

both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Rows of unit length, float64."""
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def check(ours, theirs, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Loss and gradients of ``ours`` in ``dtype`` equal those of ``theirs`` in float64, on the same values."""
    inputs = [x.to(dtype) for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    truths = [x.double().clone().requires_grad_() for x in inputs]
    loss, truth = ours(*leaves), theirs(*truths)
    (loss * 3).backward()  # an upstream gradient other than 1
    (truth * 3).backward()
    assert_close(loss, truth.detach(), dtype)
    for leaf, expected in zip(leaves, truths, strict=True):
        assert_close(leaf.grad, expected.grad, dtype)


def plain_supcon(rows: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Khosla et al., equation 2, with the full matrix; rows without a positive are left out of the mean."""
    others = ~torch.eye(len(rows), dtype=torch.bool)
    logits = (rows @ rows.T / temperature).masked_fill(~others, -torch.inf)
    positive = (labels[:, None] == labels[None]) & others
    log_share = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    valid = positive.any(1)
    return -(log_share.sum(1)[valid] / positive.sum(1)[valid]).mean()


@both_dtypes
@pytest.mark.parametrize("kind", ["tensor", "pool"])
def test_info_nce_is_cross_entropy_with_the_positive_first(dtype, kind):
    n, old = 7, unit(13, 5, seed=3).to(dtype)
    pool: object = old
    if kind == "pool":
        # float32 keys, not full, and ids of earlier batches that equal those a preset may give its rows.
        pool = NegativePool(20, 5)
        pool.push(old.float(), torch.arange(13))
        old = old.float()

    def plain(q, k):
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ old.double().T], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(n, dtype=torch.int64))

    check(lambda q, k: info_nce(q, k, pool), plain, [unit(n, 5, seed=1), unit(n, 5, seed=2)], dtype)


@both_dtypes
@pytest.mark.parametrize("rows", [1, 2, 9, 33])
def test_nt_xent_is_cross_entropy_over_all_other_rows(dtype, rows):
    def plain(first, second):
        both = torch.cat([first, second])
        logits = (both @ both.T / 0.5).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(2 * rows).roll(rows))

    check(nt_xent, plain, [unit(rows, 6, seed=1), unit(rows, 6, seed=2)], dtype)


@both_dtypes
def test_nt_xent_equals_pytorch_metric_learning(dtype):
    ids = torch.arange(11).repeat(2)

    def peer(first, second):
        return NTXentLoss(temperature=0.5)(torch.cat([first, second]), ids)

    # Its embeddings are normalised inside; so are ours here, for the gradients to mean the same.
    def ours(first, second):
        return nt_xent(F.normalize(first, dim=1), F.normalize(second, dim=1))

    check(ours, peer, [3 * unit(11, 8, seed=1), 2 * unit(11, 8, seed=2)], dtype)


@both_dtypes
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 5, 5, 5], [0, 0, 1, 1, 2, 3, 4, 5, 6]])
def test_supcon_equals_its_definition_and_pytorch_metric_learning(dtype, labels):
    labels = torch.tensor(labels)

    def ours(x):
        return supcon(F.normalize(x, dim=1), labels)

    rows = [2 * unit(9, 8)]
    check(ours, lambda x: plain_supcon(F.normalize(x, dim=1), labels, 0.1), rows, dtype)
    check(ours, lambda x: SupConLoss(temperature=0.1)(x, labels), rows, dtype)


@both_dtypes
def test_supcon_of_views_is_supcon_of_their_rows(dtype):
    labels = torch.tensor([3, 0, 3, 1])

    def plain(views):
        return plain_supcon(torch.cat(views.unbind(1)), labels.repeat(3), 0.1)

    check(lambda x: supcon(x, labels), plain, [unit(4, 3, 8)], dtype)


sizes = st.integers(2, 9)
seeds = st.integers(0, 2**20)


@given(n=sizes, seed=seeds)
def test_order_of_rows_and_names_of_labels_do_not_matter(n, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, labels = unit(n, 4, seed=seed), torch.randint(0, 3, (n,), generator=generator)
    expected = supcon(rows, labels)
    order = torch.randperm(n, generator=generator)
    assert_close(supcon(rows[order], labels[order]), expected, torch.float64)
    names = torch.tensor([2**62, 7, 0])
    assert_close(supcon(rows, names[labels]), expected, torch.float64)
    assert_close(nt_xent(rows[order], rows.flip(1)[order]), nt_xent(rows, rows.flip(1)), torch.float64)


@given(n=sizes, ignored=sizes, seed=seeds)
def test_ignored_rows_change_nothing(n, ignored, seed):
    rows, labels = unit(n + ignored, 4, seed=seed), torch.arange(n + ignored) // 2
    labels[n:] = -1
    leaf = rows.clone().requires_grad_()
    loss = supcon(leaf, labels)
    loss.backward()
    assert_close(loss, supcon(rows[:n], labels[:n]), torch.float64)
    assert (leaf.grad[n:] == 0).all()


@given(n=sizes, seed=seeds)
def test_equal_rows_of_one_label_give_log_of_the_others(n, seed):
    # All similarities are equal: the softmax is uniform over n - 1 rows, whatever the temperature.
    rows = unit(1, 4, seed=seed).expand(n, 4)
    loss = supcon(rows, torch.zeros(n, dtype=torch.int64), temperature=0.07)
    assert_close(loss, torch.tensor(float(n - 1), dtype=torch.float64).log(), torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: info_nce(x, x[:2], x), r"info_nce: queries and keys must have the same shape, got \(4, 3\) float32"),
        (lambda x: info_nce(x, x, None), "info_nce: pool must be a NegativePool or .* got NoneType"),
        (lambda x: info_nce(x, x, x[:, :2]), r"contrastive_loss: pool must be \(K, 3\)"),
        (lambda x: info_nce(x, x, x, temperature=0.0), "contrastive_loss: temperature must be finite and > 0"),
        (lambda x: nt_xent(x, x.to("meta")), "nt_xent: first and second must be on one device, got cpu, meta"),
        (lambda x: nt_xent(x[0], x[0]), r"nt_xent: first must be \(N, D\) floating point, got \(3,\) float32"),
        (lambda x: nt_xent(x, x.long()), r"nt_xent: second must be \(N, D\) floating point, got \(4, 3\) int64"),
        (lambda x: supcon(x, torch.arange(3)), r"supcon: labels must be \(4,\) int64, got \(3,\) int64"),
        (lambda x: supcon(x, torch.arange(4).int()), r"supcon: labels must be \(4,\) int64, got \(4,\) int32"),
        (lambda x: supcon(x[0], torch.arange(3)), r"supcon: features must be \(N, D\) or \(N, V, D\)"),
        (
            lambda x: supcon(x * torch.nan, torch.arange(4)),
            "contrastive_loss: queries must be finite, got nan in row 0",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call(torch.ones(4, 3))
