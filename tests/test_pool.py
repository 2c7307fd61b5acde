"""NegativePool against a plain Python ring, through saving and loading, and its refusals."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpt.errors import InputError
from qpt.ops.contrastive import contrastive_loss
from qpt.pool import NegativePool
from tests.tolerance import assert_close


def numbered(start: int, count: int, dim: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys whose entries say which they are (exact in float16 up to 2048), with group and image ids."""
    ids = torch.arange(start, start + count)
    return ids[:, None].expand(count, dim).float(), ids * 10, ids * 100


@given(
    capacity=st.integers(1, 12),
    batches=st.lists(st.integers(0, 30), max_size=12),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_batches_equal_a_ring_written_one_by_one(capacity, batches, dtype):
    pool = NegativePool(capacity, 2, dtype=dtype)
    ring, written = [-1] * capacity, 0
    for size in batches:
        # bfloat16 holds integers exactly to 256 only: count modulo that.
        keys, groups, images = numbered(written, size)
        pool.push(keys % 256, groups, images)
        for number in range(written, written + size):
            ring[number % capacity] = number
        written += size
    held = ring[: min(written, capacity)]
    assert len(pool) == len(held)
    assert pool.keys.dtype == dtype
    assert pool.keys[:, 0].tolist() == [number % 256 for number in held]
    assert pool.groups.tolist() == [number * 10 for number in held]
    assert pool.images.tolist() == [number * 100 for number in held]
    # The unfilled rest is ignored by its ids.
    _, groups, images = pool.ring
    assert (groups[len(held) :] == -1).all()
    assert (images[len(held) :] == -1).all()


def test_views_show_the_ring_and_not_a_copy():
    pool = NegativePool(4, 2)
    pool.push(*numbered(0, 4))
    keys = pool.keys
    pool.push(*numbered(4, 1))
    assert keys[0, 0] == 4
    assert keys.data_ptr() == pool.ring[0].data_ptr()


def test_images_default_to_unknown_and_keys_are_detached():
    pool = NegativePool(4, 2)
    keys, groups, _ = numbered(0, 3)
    pool.push(keys.requires_grad_(), groups)
    assert pool.images.tolist() == [-1, -1, -1]
    assert not pool.keys.requires_grad


def test_loss_with_a_pool_is_the_loss_with_its_tensors():
    generator = torch.Generator().manual_seed(0)
    q, k, old = (torch.randn((n, 3), generator=generator) for n in (4, 4, 5))
    ids, old_ids = torch.arange(4), torch.arange(5) + 10
    images, old_images = ids // 2, torch.tensor([0, 0, 1, 7, -1])
    options = {"same_image_weight": 0.0, "query_images": images, "key_images": images}
    groups = {"query_groups": ids, "key_groups": ids}
    pool = NegativePool(9, 3)  # partly filled: its empty rows must not count
    empty = contrastive_loss(q, k, **groups, **options, pool=pool)
    assert_close(empty, contrastive_loss(q, k, **groups, **options).item(), torch.float32)
    pool.push(old, old_ids, old_images)
    ours = contrastive_loss(q, k, **groups, **options, pool=pool)
    tensors = contrastive_loss(q, k, **groups, **options, pool=old, pool_groups=old_ids, pool_images=old_images)
    assert torch.equal(ours, tensors)
    assert not torch.equal(ours, empty)


def test_pushing_before_backward_does_not_change_the_gradient():
    generator = torch.Generator().manual_seed(0)
    q, k, old, new = (torch.randn((n, 3), generator=generator) for n in (4, 4, 8, 8))
    ids = torch.arange(4)
    gradients = []
    for early in (False, True):
        pool = NegativePool(8, 3)
        pool.push(old, torch.arange(8) + 10)
        leaf = q.clone().requires_grad_()
        loss = contrastive_loss(leaf, k, query_groups=ids, key_groups=ids, pool=pool)
        if early:
            pool.push(new, torch.arange(8) + 20)
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("pushed", [0, 3, 5, 13])
def test_a_loaded_pool_continues_as_the_saved_one(pushed):
    pool = NegativePool(5, 2, dtype=torch.float16)
    pool.push(*numbered(0, pushed))
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    loaded = NegativePool(5, 2, dtype=torch.float16)
    loaded.push(*numbered(50, 2))  # what it held before does not matter
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for each in (pool, loaded):
        each.push(*numbered(100, 3))
    assert len(pool) == len(loaded)
    for ours, theirs in zip(pool.ring, loaded.ring, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(4, 2)}, r"keys must be \(5, 2\) float32, got \(4, 2\) float32"),
        ({"keys": torch.zeros(5, 2).half()}, r"keys must be \(5, 2\) float32, got \(5, 2\) float16"),
        ({"groups": None}, r"groups must be \(5,\) int64, got NoneType"),
        ({"pointer": 5, "count": 5}, "place in a ring of 5, got 5 and 5"),
        ({"pointer": 1, "count": 3}, "place in a ring of 5, got 1 and 3"),
        ({"count": -1}, "place in a ring of 5"),
        ({"count": "3"}, "place in a ring of 5, got 3 and '3'"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(change, message):
    pool = NegativePool(5, 2)
    pool.push(*numbered(0, 3))
    before = [x.clone() for x in pool.ring]
    with pytest.raises(InputError, match=f"^NegativePool.load_state_dict: .*{message}"):
        pool.load_state_dict(pool.state_dict() | change)
    assert len(pool) == 3
    for ours, theirs in zip(pool.ring, before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.arange(2)), r"keys must be \(n, 2\) floating point, got \(2, 3\) float32"),
        ((torch.ones(2, 2).long(), torch.arange(2)), r"keys must be .* got \(2, 2\) int64"),
        ((torch.ones(2, 2), torch.arange(3)), r"groups must be \(2,\) int64, got \(3,\) int64"),
        ((torch.ones(2, 2), torch.arange(2).int()), r"groups must be \(2,\) int64, got \(2,\) int32"),
        ((torch.ones(2, 2), None), r"groups must be \(2,\) int64, got NoneType"),
        ((torch.ones(2, 2), torch.arange(2), torch.arange(1)), r"images must be \(2,\) int64"),
        ((torch.ones(2, 2, device="meta"), torch.arange(2)), "keys must be on cpu, got meta"),
        ((torch.tensor([[1.0, 1], [1, float("nan")]]), torch.arange(2)), "must be finite, got nan in row 1"),
        ((torch.tensor([[1.0, 1e6]]), torch.arange(1)), r"keys \(as float16\) must be finite, got inf in row 0"),
    ],
)
def test_a_refused_push_changes_nothing(arguments, message):
    pool = NegativePool(4, 2, dtype=torch.float16)
    pool.push(*numbered(0, 3))
    before = [x.clone() for x in pool.ring]
    with pytest.raises(InputError, match=f"^NegativePool.push: .*{message}"):
        pool.push(*arguments)
    assert len(pool) == 3
    for ours, theirs in zip(pool.ring, before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2), {}, "capacity must be an integer >= 1, got 0"),
        ((4.0, 2), {}, "capacity must be an integer >= 1, got 4.0"),
        ((4, -1), {}, "dim must be an integer >= 1, got -1"),
        ((4, 2), {"dtype": torch.float64}, "dtype must be float32, float16 or bfloat16, got torch.float64"),
    ],
)
def test_refused_when_made(arguments, options, message):
    with pytest.raises(InputError, match=message):
        NegativePool(*arguments, **options)


def test_says_what_it_is():
    pool = NegativePool(8, 2, dtype=torch.bfloat16)
    pool.push(*numbered(0, 3))
    assert repr(pool) == "NegativePool(3/8 keys, dim=2, bfloat16, cpu)"
