"""NegativePool against a plain Python ring, through saving and loading, and its errors."""

import io
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from qpt.errors import InputError
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.pool import NegativePool
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


@given(
    capacity=st.integers(1, 9),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(-1, 2**40)), max_size=10),
)
def test_new_groups_were_never_seen_and_the_newest_stay(capacity, steps):
    pool, held, highest = NegativePool(capacity, 1), deque(maxlen=capacity), -1
    for own, size, start in steps:
        # Ids of the pool itself, or others.
        groups = pool.new_groups(size) if own else torch.arange(start, start + size)
        if own:
            assert groups.tolist() == list(range(highest + 1, highest + 1 + size))
        pool.push(torch.zeros(size, 1), groups)
        held.extend(groups.tolist())
        highest = max([highest, *groups.tolist()])
    assert sorted(pool.groups.tolist()) == sorted(held)


def test_new_groups_are_not_repeated_after_loading():
    pool, loaded = NegativePool(4, 2), NegativePool(4, 2)
    pool.push(*numbered(0, 3))  # groups 0, 10, 20
    assert pool.new_groups(5).tolist() == [21, 22, 23, 24, 25]  # never pushed
    state = pool.state_dict()
    loaded.load_state_dict(state)
    assert loaded.new_groups(2).tolist() == pool.new_groups(2).tolist() == [26, 27]
    # A state written before there was a counter.
    del state["next_group"]
    loaded.load_state_dict(state)
    assert loaded.new_groups(1).tolist() == [21]
    empty = NegativePool(4, 2).state_dict()
    del empty["next_group"]
    loaded.load_state_dict(empty)
    assert loaded.new_groups(1).tolist() == [0]


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_the_place_in_a_state_is_any_integer(integer):
    pool, loaded = NegativePool(5, 2), NegativePool(5, 2)
    pool.push(*numbered(0, 7))
    state = pool.state_dict()
    loaded.load_state_dict(state | {name: integer(state[name]) for name in ("pointer", "count")})
    for each in (pool, loaded):
        each.push(*numbered(100, 2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(pool.ring, loaded.ring, strict=True))
    assert type(loaded.state_dict()["pointer"]) is int


def test_a_push_touches_no_more_than_its_keys():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is not torch.ops.aten.slice.Tensor:  # a view: costs nothing
                sizes = [x.numel() for x in args if isinstance(x, torch.Tensor)]
                self.elements = max([self.elements, *sizes])
            return function(*args, **(kwargs or {}))

    pool = NegativePool(1000, 2)
    pool.push(*numbered(0, 998))
    with Largest() as seen:
        pool.push(*numbered(998, 7))  # over the end of the ring
    assert seen.elements == 14
    assert pool.keys[:5, 0].tolist() == [1000, 1001, 1002, 1003, 1004]


def test_memory_is_that_of_keys_and_ids():
    assert NegativePool(1000, 128, dtype=torch.float16).memory_bytes == 1000 * (256 + 16)
    assert NegativePool(10, 3).memory_bytes == 10 * (12 + 16)


def test_a_pool_of_more_than_two_to_the_31_elements(long):
    # Quick form: the same steps in a small ring. Long form: 4.6 GB, freed at the end.
    capacity, dim = (16_800_000, 128) if long else (1_000, 128)
    assert not long or capacity * dim > 2**31
    pool = NegativePool(capacity, dim, dtype=torch.float16)
    step = 2**20
    for start in range(0, capacity - 3, step):
        size = min(step, capacity - 3 - start)
        ids = torch.arange(start, start + size)
        pool.push((ids % 2048)[:, None].expand(size, dim).half(), ids, ids)
    assert len(pool) == capacity - 3
    ids = torch.arange(capacity, capacity + 5)
    pool.push((ids % 2048)[:, None].expand(5, dim).half(), ids)  # the last three rows, then the first two
    assert len(pool) == capacity
    rows = torch.tensor([0, 1, 2, capacity // 2, capacity - 4, capacity - 3, capacity - 1])
    expected = torch.tensor([capacity + 3, capacity + 4, 2, capacity // 2, capacity - 4, capacity, capacity + 2])
    assert torch.equal(pool.groups[rows], expected)
    assert torch.equal(pool.keys[rows], (expected % 2048)[:, None].expand(7, dim).half())


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


def test_a_state_is_a_mapping():
    with pytest.raises(
        InputError, match=r"^NegativePool.load_state_dict: state must be a state_dict\(\), got NoneType"
    ):
        NegativePool(5, 2).load_state_dict(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(4, 2)}, r"keys must be \(5, 2\) float32, got \(4, 2\) float32"),
        ({"keys": torch.zeros(5, 2).half()}, r"keys must be \(5, 2\) float32, got \(5, 2\) float16"),
        ({"groups": None}, r"groups must be \(5,\) int64, got NoneType"),
        ({"pointer": 5, "count": 5}, "place in a ring of 5, got 5 and 5"),
        ({"pointer": 1, "count": 3}, "place in a ring of 5, got 1 and 3"),
        ({"next_group": 3}, r"next_group must be \(\) int64, got int"),
        ({"count": -1}, "place in a ring of 5"),
        ({"count": "3"}, "place in a ring of 5, got 3 and '3'"),
        ({"pointer": True, "count": True}, "place in a ring of 5, got True and True"),
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
        ((0, 2), {}, r"capacity must be an integer in 1\.\.33554432, got 0"),
        ((4.0, 2), {}, r"capacity must be an integer in 1\.\.33554432, got 4.0"),
        ((2**25 + 1, 2), {}, r"capacity must be an integer in 1\.\.33554432, got 33554433"),
        ((4, -1), {}, "dim must be an integer of at least 1, got -1"),
        ((4, 2), {"dtype": torch.float64}, "dtype must be float32, float16 or bfloat16, got torch.float64"),
    ],
)
def test_refused_when_made(arguments, options, message):
    with pytest.raises(InputError, match=message):
        NegativePool(*arguments, **options)


@pytest.mark.parametrize("count", [-1, 2.0, True])
def test_new_groups_refuses_other_counts(count):
    with pytest.raises(
        InputError, match=f"NegativePool.new_groups: count must be an integer of at least 0, got {count}"
    ):
        NegativePool(4, 2).new_groups(count)


def test_repr():
    pool = NegativePool(8, 2, dtype=torch.bfloat16)
    pool.push(*numbered(0, 3))
    assert repr(pool) == "NegativePool(3/8 keys, dim=2, bfloat16, cpu)"


def test_a_pool_made_under_inference_mode_is_a_pool_outside_it():
    with torch.inference_mode():
        pool = NegativePool(8, 4)
        pool.push(torch.ones(2, 4), pool.new_groups(2))
    pool.push(torch.ones(3, 4), pool.new_groups(3))
    pool.load_state_dict(pool.state_dict())
    assert pool.groups.tolist() == [0, 1, 2, 3, 4]
