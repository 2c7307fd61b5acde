"""The contrastive loss over all processes of a group: gathered or ring-passed keys, a replicated or sharded pool.

``distributed_contrastive_loss`` is the public function. It puts the loss together from the same parts as the single
process does (``loss.py``); here is what travels between processes. Relies on torch.distributed only: gloo
on the CPU, NCCL on CUDA. Every process of the group must call it, and run its backward, the same number of times.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from qpt.errors import BackendError, InputError
from qpt.ops.contrastive import loss
from qpt.ops.contrastive.backends import KeySet, Queries, choose
from qpt.ops.contrastive.inputs import (
    PoolTensors,
    accumulation_dtype,
    check_arguments,
    check_values,
    temperature_tensor,
)
from qpt.ops.contrastive.loss import Setting, Terms
from qpt.ops.contrastive.pool import NegativePool

_NAME = "distributed_contrastive_loss"
_TRAVEL, _LAYOUT = ("gather", "ring"), ("replicated", "sharded")


def distributed_contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None = None,
    key_images: Tensor | None = None,
    pool: NegativePool | Tensor | None = None,
    pool_groups: Tensor | None = None,
    pool_images: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    same_image_weight: float = 1.0,
    exclude_self: bool = False,
    in_batch_negatives: bool = True,
    backend: str = "auto",
    check_finite: bool = False,
    process_group: dist.ProcessGroup | None = None,
    keys_travel: str = "gather",
    pool_layout: str = "replicated",
) -> Tensor:
    """``contrastive_loss`` of the queries and keys of all processes, in the order of their ranks; a 0-d tensor.

    Every process returns the mean over all queries. Its backward gives the process's own queries and keys world size x
    their gradient, and the temperature world size x the part of its own queries: DistributedDataParallel's average is
    then the single-process gradient. Arguments are those of ``contrastive_loss``, each process's own rows, any number
    of them, 0 too; ids must mean the same everywhere. The options must be equal on all processes.

    process_group: None is the default group.
    keys_travel: "gather": every process holds all keys; one pass. "ring": blocks of keys go round, and in the backward
        once more with their gradient; memory does not grow with the world size.
    pool_layout: "replicated": the pool is the same on all processes and is read in place. "sharded": each process holds
        its own keys, and the queries go round with their running sums.

    Raises InputError on every process when one of them was given something wrong (the others name its rank), or when
    they disagree; so with BackendError. A second derivative raises RuntimeError.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            f"{_NAME}: needs an initialised process group; call torch.distributed.init_process_group first"
        )
    ring = _Ring(process_group)
    error: InputError | BackendError | None = None
    try:
        for name, value, known in (("keys_travel", keys_travel, _TRAVEL), ("pool_layout", pool_layout, _LAYOUT)):
            if value not in known:
                raise InputError(f"{_NAME}: {name} must be one of {', '.join(known)}, got {value!r}")
        tensors = check_arguments(
            _NAME,
            queries=queries,
            keys=keys,
            query_groups=query_groups,
            key_groups=key_groups,
            query_images=query_images,
            key_images=key_images,
            pool=pool,
            pool_groups=pool_groups,
            pool_images=pool_images,
            same_image_weight=same_image_weight,
            exclude_self=exclude_self,
            backend=backend,
        )
        dtype = accumulation_dtype(queries, keys, tensors.pool)
        tau = temperature_tensor(_NAME, temperature, queries.device, dtype)
        check_values(queries, keys, tensors.pool, tau, check_finite)
        backend = choose(backend, tau).name
    except (InputError, BackendError) as caught:
        error, tau, tensors = caught, torch.ones(()), PoolTensors(None, None, None)
    wants = torch.is_grad_enabled()
    weighted = same_image_weight != 1.0
    options = {
        "keys_travel": keys_travel,
        "pool_layout": pool_layout,
        "exclude_self": exclude_self,
        "in_batch_negatives": in_batch_negatives,
        "same_image_weight": same_image_weight,
        "temperature": temperature if isinstance(temperature, float) else None,
        "length of an embedding": queries.shape[1] if error is None else None,
        "dtypes": [str(x.dtype) for x in (queries, keys)] if error is None else None,
        "accumulation dtype (float64 if the pool is)": str(tau.dtype),
        "image ids": [query_images is not None, key_images is not None],
        "pool": tensors.pool is not None,
    }
    rows = (queries.shape[0], keys.shape[0]) if error is None else (0, 0)
    needs = (wants and (queries.requires_grad or tau.requires_grad), wants and keys.requires_grad)
    world = ring.agree(error, options, rows, needs if error is None else (False, False))
    plan = _Plan(
        ring,
        world,
        backend,
        float(same_image_weight),
        exclude_self,
        in_batch_negatives,
        keys_travel,
        pool_layout,
    )
    images = (query_images, key_images, tensors.pool_images) if weighted else (None, None, None)
    ids = (query_groups, key_groups, images[0], images[1])
    return _Loss.apply(queries, keys, tau, *ids, tensors.pool, tensors.pool_groups, images[2], plan)


class _World(NamedTuple):
    """What all processes know of each other: rows of queries and keys by rank, and whether anyone wants a gradient."""

    queries: list[int]
    keys: list[int]
    need_queries: bool
    need_keys: bool


class _Plan(NamedTuple):
    ring: "_Ring"
    world: _World
    backend: str
    same_image_weight: float
    exclude_self: bool
    in_batch_negatives: bool
    keys_travel: str
    pool_layout: str

    def setting(self, temperature: Tensor) -> Setting:
        return Setting(choose(self.backend, temperature), temperature, self.same_image_weight)

    def block(self, source: int, keys: Tensor, groups: Tensor, images: Tensor | None) -> KeySet:
        """The key set of one process, as this one's queries see it."""
        own = 0 if self.exclude_self and source == self.ring.rank else None
        return KeySet(keys, groups, images, own, self.in_batch_negatives)


class _Ring:
    """Rank, size, and the three ways tensors travel: to the next rank, to all, summed."""

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def agree(
        self,
        error: InputError | BackendError | None,
        options: dict[str, Any],
        rows: tuple[int, int],
        needs: tuple[bool, bool],
    ) -> _World:
        """Raises on every process if one has an error or other options; else what there is to know of the others."""
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, (error, options, rows, needs), group=self.group)
        if error is not None:
            raise error
        for rank, (fault, theirs, *_) in enumerate(told):
            if fault is not None:
                raise type(fault)(f"{_NAME}: rank {rank} was given something wrong: {fault}")
            for name, value in options.items():
                if theirs[name] != value:
                    raise InputError(
                        f"{_NAME}: {name} must be the same on all ranks, got {value!r} on rank {self.rank} and "
                        f"{theirs[name]!r} on rank {rank}"
                    )
        counts = [entry[2] for entry in told]
        wanted = [entry[3] for entry in told]
        return _World(
            [n for n, _ in counts], [m for _, m in counts], any(q for q, _ in wanted), any(k for _, k in wanted)
        )

    def start(self, tensors: Sequence[Tensor | None], rows: int) -> tuple[list[Any], list[Tensor | None]]:
        """Sends tensors to the next rank and receives the previous one's, of ``rows`` rows; see ``wait``."""
        arriving = [None if x is None else x.new_empty((rows, *x.shape[1:])) for x in tensors]
        if self.size == 1:
            return [], list(tensors)
        following, previous = (self._global((self.rank + step) % self.size) for step in (1, -1))
        operations = []
        for leaving, place in zip(tensors, arriving, strict=True):
            if leaving is None or place is None:
                continue
            if leaving.shape[0]:
                operations.append(dist.P2POp(dist.isend, leaving.contiguous(), following, self.group))
            if rows:
                operations.append(dist.P2POp(dist.irecv, place, previous, self.group))
        return (dist.batch_isend_irecv(operations) if operations else []), arriving

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, tensor: Tensor, counts: list[int]) -> Tensor:
        """See ``gather_rows``."""
        return gather_rows(tensor, counts, self.group) if self.size > 1 else tensor


def gather_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """[counts[rank], ...] of each process -> all rows in the order of the ranks; a count may be 0. No gradient."""
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _wait(work: list[Any]) -> None:
    for request in work:
        request.wait()


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        temperature: Tensor,
        query_groups: Tensor,
        key_groups: Tensor,
        query_images: Tensor | None,
        key_images: Tensor | None,
        pool: Tensor | None,
        pool_groups: Tensor | None,
        pool_images: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            setting = plan.setting(temperature)
            rows = Queries(queries, query_groups, query_images)
            terms = Terms(rows, setting, plan.world.need_queries)
            _add_batch(terms, rows, (keys, key_groups, key_images), setting, plan)
            if pool is not None and pool_groups is not None:
                pooled = KeySet(pool, pool_groups, pool_images)
                if plan.pool_layout == "sharded":
                    _add_shards(terms, rows, pooled, setting, plan)
                else:
                    terms.add(rows, pooled, setting)
            result = terms.finish(rows, setting)
            local = torch.stack([result.loss_sum().double(), (result.positives > 0).sum().double()])
            loss, valid_rows = plan.ring.sum(local)
            valid_rows = valid_rows.clamp(min=1).to(setting.dtype)
            gradient = terms.query_gradient(result, setting, valid_rows) if plan.world.need_queries else None
            ctx.save_for_backward(
                queries, keys, temperature, query_groups, key_groups, query_images, key_images,
                result.lse, result.positives, valid_rows, gradient,
            )  # fmt: skip
            ctx.plan = plan
            return loss.to(setting.dtype) / valid_rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        return *_Gradient.apply(ctx.plan, needs, upstream, *ctx.saved_tensors), *(None,) * 8


class _Gradient(torch.autograd.Function):
    """The backward as a function of its own, so that a gradient of it is refused. ``once_differentiable`` would return
    constants where the upstream gradient needs none, and a gradient penalty would be dropped without a word."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, needs: tuple[bool, ...], upstream: Tensor, *saved: Any) -> tuple[Any, ...]:
        (queries, keys, temperature, query_groups, key_groups, query_images, key_images,
         lse, positives, valid_rows, gradient) = saved  # fmt: skip
        upstream = upstream * plan.ring.size
        for_queries = for_keys = for_temperature = None
        with torch.autocast(queries.device.type, enabled=False):
            if needs[0]:
                for_queries = (gradient * upstream).to(queries.dtype)
            if needs[2]:
                total = loss.row_products(queries.to(lse.dtype), gradient).sum()
                for_temperature = -total / temperature * upstream
            # Everyone takes part if anyone wants its keys' gradient: its share is computed where the queries are.
            if plan.world.need_keys:
                rows = Queries(queries, query_groups, query_images)
                batch = (keys, key_groups, key_images)
                setting = plan.setting(temperature)
                share = _key_gradient(rows, batch, setting, lse, positives, upstream / valid_rows, plan)
                for_keys = share.to(keys.dtype) if needs[1] else None
        return for_queries, for_keys, for_temperature

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"{_NAME}: second derivatives are not implemented")


def _gathered(batch: tuple[Tensor, Tensor, Tensor | None], plan: _Plan) -> KeySet:
    """All processes' keys as one key set; the own pair is (i, i + rows of the ranks before)."""
    keys, groups, images = (None if x is None else plan.ring.gather(x.detach(), plan.world.keys) for x in batch)
    assert keys is not None
    assert groups is not None
    before = sum(plan.world.keys[: plan.ring.rank])
    return KeySet(keys, groups, images, before if plan.exclude_self else None, plan.in_batch_negatives)


def _add_batch(
    terms: Terms, rows: Queries, batch: tuple[Tensor, Tensor, Tensor | None], setting: Setting, plan: _Plan
) -> None:
    if plan.keys_travel == "gather":
        terms.add(rows, _gathered(batch, plan), setting)
        return
    ring, block = plan.ring, batch
    for step in range(ring.size):
        source = (ring.rank - step) % ring.size
        last = step == ring.size - 1
        # The next block travels while this one is used.
        work, arriving = ([], []) if last else ring.start(block, plan.world.keys[(source - 1) % ring.size])
        terms.add(rows, plan.block(source, *block), setting)
        _wait(work)
        if not last:
            block = tuple(arriving)  # type: ignore[assignment]


def _add_shards(terms: Terms, rows: Queries, shard: KeySet, setting: Setting, plan: _Plan) -> None:
    """The pool's part of the sums: the queries go round with them, and come home when every shard was added."""
    ring = plan.ring
    travelling = Terms(rows, setting, plan.world.need_queries)
    if plan.world.need_queries:
        travelling.mean_sum = torch.zeros_like(travelling.positive_sum)
    # Guests bring sums even where this process had nothing to add to its own: never take the next ones for the first.
    travelling.empty = False
    guest = rows
    for step in range(ring.size):
        travelling.add(guest, shard, setting)
        luggage = (guest.vectors.detach(), guest.groups, guest.images, travelling.reference, travelling.total)
        sums = (travelling.mean_sum, travelling.positive_sum, travelling.positives)
        source = (ring.rank - step - 1) % ring.size
        work, arriving = ring.start((*luggage, *sums), plan.world.queries[source])
        _wait(work)
        vectors, groups, images, *state = arriving
        guest = Queries(vectors, groups, images)  # type: ignore[arg-type]
        travelling.reference, travelling.total, travelling.mean_sum, travelling.positive_sum, travelling.positives = (
            state  # type: ignore[assignment]
        )
    terms.merge(travelling.reference, travelling.total, travelling.mean_sum)
    terms.positive_sum += travelling.positive_sum
    terms.positives += travelling.positives


def _key_gradient(
    rows: Queries,
    batch: tuple[Tensor, Tensor, Tensor | None],
    setting: Setting,
    lse: Tensor,
    positives: Tensor,
    scale: Tensor,
    plan: _Plan,
) -> Tensor:
    """The gradient of this process's keys from the queries of all; scale: what each process multiplies its share by."""
    ring = plan.ring

    def share(key_set: KeySet) -> Tensor:
        gradient = loss.softmax_gradient(rows, key_set, setting, lse)
        return loss.subtract_positives(gradient, rows, key_set, setting, positives).mul_(scale)

    if plan.keys_travel == "gather":
        before = sum(plan.world.keys[: ring.rank])
        return ring.sum(share(_gathered(batch, plan)))[before : before + batch[0].shape[0]]
    block, gradient = batch, lse.new_zeros(batch[0].shape)
    for step in range(ring.size):
        source = (ring.rank - step) % ring.size
        gradient = gradient + share(plan.block(source, *block))
        # After the last step only the gradient has to come home.
        leaving = (*block, gradient) if step < ring.size - 1 else (None, None, None, gradient)
        work, arriving = ring.start(leaving, plan.world.keys[(source - 1) % ring.size])
        _wait(work)
        gradient, block = arriving[3], tuple(arriving[:3])  # type: ignore[assignment]
    return gradient
