"""NegativePool: MoCo's queue (older work says memory bank): past keys with their ids, negatives without a gradient.

The pre-training step pushes to it after the optimiser's step, ``qpt.contrastive_loss`` reads it, and the checkpoint
saves it. Relies on torch only.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qpt.errors import InputError, as_integer, check_int, describe, describe_tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Twice the 16 M that the tests fill past 2^31 elements: a larger number was most likely meant as elements or bytes.
MAX_CAPACITY = 2**25


class NegativePool:
    """The last ``capacity`` keys pushed, [capacity, dim] in ``dtype``, with group and image ids.

    capacity: 1 to 2^25 keys. dim: >= 1. dtype: float32, float16 or bfloat16, what the keys are stored in. Rows not yet
    filled have ids -1, which the loss ignores. ``len(pool)`` is the number of keys held. Memory is taken at once: a
    key costs dim numbers and 16 bytes of ids, so with dim=128 in float16 65,536 keys take 18 MB and 16.8 million 4.6
    GB (float32: 35 MB and 8.9 GB). A push costs what its keys cost, whatever the capacity.

    Group ids must not be those of other compositions still held, whose keys would count as positives: a push does not
    look for that. ``new_groups`` returns ids that are safe. A step of training::

        groups = pool.new_groups(len(queries))
        loss = qpt.contrastive_loss(queries, keys, query_groups=groups, key_groups=groups, pool=pool)
        loss.backward()
        pool.push(keys.detach(), groups)

    Raises InputError for bad arguments.
    """

    @torch.inference_mode(False)  # else a pool made under inference mode could not be pushed to outside it
    def __init__(
        self,
        capacity: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        capacity = check_int("NegativePool", "capacity", capacity, 1, MAX_CAPACITY)
        dim = check_int("NegativePool", "dim", dim, 1)
        device = "cpu" if device is None else device
        if dtype not in _DTYPES:
            raise InputError(f"NegativePool: dtype must be float32, float16 or bfloat16, got {dtype}")
        self._keys = torch.zeros((capacity, dim), dtype=dtype, device=device)
        self._groups = torch.full((capacity,), -1, dtype=torch.int64, device=device)
        self._images = torch.full((capacity,), -1, dtype=torch.int64, device=device)
        # Python integers, so that neither a push nor a read waits for the device. The pointer is the next row to write:
        # the oldest key once the ring is full.
        self._pointer = 0
        self._count = 0
        # Above every id pushed or returned by new_groups. On the pool's device, so that a push need not wait for it.
        self._next_group = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def capacity(self) -> int:
        """Largest number of keys it can hold."""
        return self._keys.shape[0]

    @property
    def dim(self) -> int:
        """Length D of a key."""
        return self._keys.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the keys are stored in."""
        return self._keys.dtype

    @property
    def device(self) -> torch.device:
        """Device of the ring."""
        return self._keys.device

    @property
    def memory_bytes(self) -> int:
        """Memory of the ring on its device, filled or not."""
        return sum(ring.numel() * ring.element_size() for ring in self.ring)

    @property
    def keys(self) -> Tensor:
        """[len, dim] view of the keys held, in ring order; the next push overwrites it."""
        return self._keys[: self._count]

    @property
    def groups(self) -> Tensor:
        """[len] int64 view of the keys' group ids."""
        return self._groups[: self._count]

    @property
    def images(self) -> Tensor:
        """[len] int64 view of the keys' image ids, -1 where none was given."""
        return self._images[: self._count]

    @property
    def ring(self) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, groups, images) of all ``capacity`` rows; unfilled rows have ids -1."""
        return self._keys, self._groups, self._images

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"NegativePool({len(self)}/{self.capacity} keys, dim={self.dim}, {dtype}, {self.device})"

    def new_groups(self, count: int) -> Tensor:
        """Return [count] int64 group ids, consecutive, above all that were ever pushed or returned; no wait for CUDA.

        The counter is a part of the state, so this also holds after loading. It knows this pool only: processes that
        exchange keys must agree on ids by other means. Raises InputError if count is not an integer of at least 0.
        """
        count = check_int("NegativePool.new_groups", "count", count, 0)
        groups = self._next_group + torch.arange(count, dtype=torch.int64, device=self.device)
        self._next_group = self._next_group + count
        return groups

    @torch.no_grad()
    def push(self, keys: Tensor, groups: Tensor, images: Tensor | None = None) -> None:
        """Append n keys, overwriting the oldest; the same as pushing them one by one. On an error nothing is stored.

        keys [n, dim] floating point, any n (of more than ``capacity`` the last ones stay), stored in the pool's dtype;
        groups [n] int64 below 2^63 - 1; images [n] int64 or None (-1). All on the pool's device. On the CPU a key that
        is nan or infinite, or becomes infinite in the pool's dtype, raises InputError; on CUDA that is not looked for.
        """
        stored = self._check_push(keys, groups, images)
        if images is None:
            images = torch.full_like(groups, -1)
        skipped = max(0, stored.shape[0] - self.capacity)
        start = (self._pointer + skipped) % self.capacity
        for ring, new in ((self._keys, stored), (self._groups, groups), (self._images, images)):
            new = new[skipped:]
            # Up to the end of the ring, then from its beginning.
            first = min(new.shape[0], self.capacity - start)
            ring[start : start + first].copy_(new[:first])
            ring[: new.shape[0] - first].copy_(new[first:])
        if stored.shape[0]:
            self._next_group = torch.maximum(self._next_group, groups.max() + 1)
        self._pointer = (self._pointer + stored.shape[0]) % self.capacity
        self._count = min(self.capacity, self._count + stored.shape[0])

    def _check_push(self, keys: Tensor, groups: Tensor, images: Tensor | None) -> Tensor:
        if not isinstance(keys, Tensor) or keys.ndim != 2 or keys.shape[1] != self.dim or not keys.is_floating_point():
            raise InputError(
                f"NegativePool.push: keys must be (n, {self.dim}) floating point, got {describe_tensor(keys)}"
            )
        n = keys.shape[0]
        for name, ids in (("groups", groups), ("images", images)):
            if name == "images" and ids is None:
                continue
            if not isinstance(ids, Tensor) or ids.shape != (n,) or ids.dtype != torch.int64:
                raise InputError(f"NegativePool.push: {name} must be ({n},) int64, got {describe_tensor(ids)}")
        for name, value in (("keys", keys), ("groups", groups), ("images", images)):
            if value is not None and value.device != self.device:
                raise InputError(f"NegativePool.push: {name} must be on {self.device}, got {value.device}")
        stored = keys.to(self.dtype)
        if self.device.type == "cpu":
            check_rows_finite("NegativePool.push", f"keys (as {self.dtype})".replace("torch.", ""), stored)
        return stored

    def state_dict(self) -> dict[str, Any]:
        """Return the ring (not copied) and the place in it; loads with ``torch.load(weights_only=True)``."""
        return {
            "keys": self._keys,
            "groups": self._groups,
            "images": self._images,
            "pointer": self._pointer,
            "count": self._count,
            "next_group": self._next_group,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in a ``state_dict`` of a pool of the same capacity, dim and dtype; InputError if it is not one.

        A state of an earlier version, without ``next_group``, loads: the counter then starts above the ids it holds.
        """
        if not isinstance(state, Mapping):
            raise InputError(f"NegativePool.load_state_dict: state must be a state_dict(), got {describe(state)}")
        rings = {"keys": self._keys, "groups": self._groups, "images": self._images}
        for name, ring in rings.items():
            given = state.get(name)
            if not isinstance(given, Tensor) or given.shape != ring.shape or given.dtype != ring.dtype:
                raise InputError(
                    f"NegativePool.load_state_dict: {name} must be {describe(ring)}, got {describe_tensor(given)}; "
                    "the pool it comes from has another capacity, dim or dtype"
                )
        pointer, count = as_integer(state.get("pointer")), as_integer(state.get("count"))
        if pointer is None or count is None or not self._is_place(pointer, count):
            raise InputError(
                f"NegativePool.load_state_dict: pointer and count must be a place in a ring of {self.capacity}, "
                f"got {state.get('pointer')!r} and {state.get('count')!r}"
            )
        counter = state.get("next_group", state["groups"].max().clamp(min=-1) + 1)
        if not isinstance(counter, Tensor) or counter.shape != () or counter.dtype != torch.int64:
            raise InputError(f"NegativePool.load_state_dict: next_group must be () int64, got {describe(counter)}")
        for name, ring in rings.items():
            ring.copy_(state[name])
        self._next_group = counter.to(self.device, copy=True)
        self._pointer, self._count = pointer, count

    def _is_place(self, pointer: int, count: int) -> bool:
        """Return True where pushes can have led: until the ring is full, the next row to write is the number held."""
        if count == self.capacity:
            return 0 <= pointer < self.capacity
        return 0 <= count < self.capacity and pointer == count


def check_rows_finite(function: str, name: str, values: Tensor) -> None:
    """Raise InputError naming the first row of ``values`` [R, D] that holds nan or infinity."""
    step = 8192
    for start in range(0, values.shape[0], step):
        part = values[start : start + step]
        # One pass without a temporary: a sum is finite unless something is not (or it overflowed: then look closer).
        if math.isfinite(part.sum(dtype=torch.promote_types(part.dtype, torch.float32)).item()):
            continue
        bad = (~torch.isfinite(part)).any(1).nonzero()
        if bad.numel():
            row = int(bad[0])
            value = part[row][~torch.isfinite(part[row])][0].item()
            raise InputError(f"{function}: {name} must be finite, got {value} in row {start + row}")
