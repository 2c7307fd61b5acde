"""The contrastive loss over all processes of a group: gathered or ring-exchanged keys, a replicated or sharded pool.

``distributed_contrastive_loss`` is the public function, called by the pre-training step where there are several
processes. It puts the loss together from the same parts as the single process does (``loss.py``); here is the
communication: torch.distributed only, gloo on the CPU and NCCL on CUDA. Every process of the group must call it, and
run its backward, the same number of times.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qpt.errors import BackendError, InputError, as_number
from qpt.ops.contrastive import loss
from qpt.ops.contrastive.arithmetic import own_arithmetic
from qpt.ops.contrastive.backend_torch import SoftmaxSums
from qpt.ops.contrastive.loss import RunningSums, choose
from qpt.ops.contrastive.pool import NegativePool
from qpt.ops.contrastive.problem import (
    KeySet,
    Problem,
    Queries,
    check_finite_result,
    check_values,
    make_problem,
)

_NAME = "distributed_contrastive_loss"
_KEY_EXCHANGES, _POOL_LAYOUTS = ("gather", "ring"), ("replicated", "sharded")


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
    precision: str = "auto",
    check_finite: bool = False,
    process_group: dist.ProcessGroup | None = None,
    key_exchange: str = "gather",
    pool_layout: str = "replicated",
    keys_travel: str | None = None,
) -> Tensor:
    """Return ``contrastive_loss`` of the queries and keys of all processes, in the order of their ranks; a 0-d tensor.

    Every process returns the mean over all queries. Its backward gives the process's own queries and keys world size x
    their gradient, and the temperature world size x the part of its own queries: DistributedDataParallel's average is
    then the single-process gradient. Arguments are those of ``contrastive_loss``, each process's own rows, any number
    of them, 0 too; ids must mean the same everywhere. The options must be equal on all processes.

    process_group: None is the default group.
    key_exchange: "gather": every process holds all keys; one pass. "ring": blocks of keys go from rank to rank, and in
        the backward once more with their gradient; memory does not grow with the world size.
    pool_layout: "replicated": the pool is the same on all processes and is read in place. "sharded": each process holds
        its own keys, and the queries go from rank to rank with their running sums.
    keys_travel: the former name of key_exchange; it will be removed.

    Raises InputError on every process when one of them was given something wrong (the others name its rank), or when
    they disagree; so with BackendError. A second derivative raises RuntimeError.
    """
    if keys_travel is not None:
        warnings.warn(f"{_NAME}: keys_travel is now called key_exchange", FutureWarning, stacklevel=2)
        key_exchange = keys_travel
    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            f"{_NAME}: needs an initialised process group; call torch.distributed.init_process_group first"
        )
    problem: Problem | None = None
    error: InputError | BackendError | None = None
    try:
        for name, value, known in (
            ("key_exchange", key_exchange, _KEY_EXCHANGES),
            ("pool_layout", pool_layout, _POOL_LAYOUTS),
        ):
            if value not in known:
                raise InputError(f"{_NAME}: {name} must be one of {', '.join(known)}, got {value!r}")
        problem = make_problem(
            _NAME, queries, keys, query_groups, key_groups, query_images, key_images,
            pool, pool_groups, pool_images, temperature, same_image_weight,
            exclude_self, in_batch_negatives, backend, check_finite, precision=precision,
        )  # fmt: skip
        check_values(problem, "queries", "keys", "pool")
        problem = problem._replace(backend=choose(problem).name)
    except (InputError, BackendError) as caught:
        error = caught
    options = {
        "key_exchange": key_exchange,
        "pool_layout": pool_layout,
        "exclude_self": exclude_self,
        "in_batch_negatives": in_batch_negatives,
        "same_image_weight": same_image_weight,
        "precision": precision,
        "temperature": None if isinstance(temperature, Tensor) else as_number(temperature),
    }
    if problem is not None:
        options |= {
            "length of an embedding": queries.shape[1],
            "dtypes": [str(x.dtype) for x in (queries, keys)],
            "accumulation dtype (float64 if the pool is)": str(problem.temperature.dtype),
            "image ids": [query_images is not None, key_images is not None],
            "pool": problem.pool is not None,
        }
    processes = _Processes(process_group, key_exchange, pool_layout)
    processes.agree(problem, error, options)
    assert problem is not None
    return _Loss.apply(*problem.without_idle_images(), processes)


class _Processes:
    """The processes of a group: how tensors are exchanged between them, and what each one knows of the others.

    query_counts, key_counts: rows by rank. need_query_gradient, need_key_gradient: some process wants it.
    """

    def __init__(self, group: dist.ProcessGroup | None, key_exchange: str, pool_layout: str):
        self.group, self.key_exchange, self.pool_layout = group, key_exchange, pool_layout
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def agree(self, problem: Problem | None, error: InputError | BackendError | None, options: dict[str, Any]) -> None:
        """Raise on every process if one has an error or other options; else learn the counts and needs of all."""
        mine: tuple[Any, ...] = (error, options, 0, 0, False, False)
        if problem is not None:
            queries, keys = problem.queries, problem.keys
            wanted = queries.requires_grad or problem.temperature.requires_grad, keys.requires_grad
            needs = [torch.is_grad_enabled() and need for need in wanted]
            mine = (error, options, queries.shape[0], keys.shape[0], *needs)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, mine, group=self.group)
        if error is not None:
            raise error
        for rank, (fault, theirs, *_) in enumerate(gathered):
            if fault is not None:
                raise type(fault)(f"{_NAME}: rank {rank} was given something wrong: {fault}")
            for name, value in options.items():
                if theirs[name] != value:
                    raise InputError(
                        f"{_NAME}: {name} must be the same on all ranks, got {value!r} on rank {self.rank} and "
                        f"{theirs[name]!r} on rank {rank}"
                    )
        _, _, self.query_counts, self.key_counts, *needed = (list(column) for column in zip(*gathered, strict=True))
        self.need_query_gradient, self.need_key_gradient = map(any, needed)

    @property
    def first_key(self) -> int:
        """Place of this process's first key among all keys."""
        return sum(self.key_counts[: self.rank])

    def start_exchange(
        self, tensors: Sequence[Tensor | None], counts: list[int], step: int
    ) -> tuple[list[Any], list[Any]]:
        """Send the tensors of step ``step`` to the next rank and receive the previous one's, [counts[rank], ...].

        Returns requests, to ``_wait`` for, and the tensors that they fill.
        """
        rows = counts[(self.rank - step - 1) % self.size]  # of the rank where the arriving tensors started
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

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over ranks in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather_keys(self, keys: KeySet) -> KeySet:
        """Return all processes' keys as one key set; the self pair is (i, i + keys of the ranks before)."""
        vectors, groups, images = (
            x if x is None or self.size == 1 else gather_rows(x, self.key_counts, self.group)
            for x in (keys.vectors.detach(), keys.groups, keys.images)
        )
        assert vectors is not None
        assert groups is not None
        offset = None if keys.self_offset is None else self.first_key
        return KeySet(vectors, groups, images, offset, keys.negatives)


def gather_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the rows [counts[rank], ...] of all processes in the order of the ranks; a count may be 0. No gradient."""
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _wait(work: list[Any]) -> None:
    for request in work:
        request.wait()


class _Loss(torch.autograd.Function):
    """The loss as a function of the fields of its problem and the processes."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        problem, processes = Problem(*arguments[:-1]), arguments[-1]
        with own_arithmetic(problem.queries.device):
            temperature, queries = problem.temperature, problem.query_rows()
            sums = RunningSums(queries, problem, choose(problem), processes.need_query_gradient)
            _add_batch(sums, queries, problem.batch_keys(), processes)
            for pool in problem.pool_keys():
                if processes.pool_layout == "sharded":
                    _add_shards(sums, queries, pool, processes)
                else:
                    sums.add(queries, pool)
            rows = sums.finish(queries)
            local = torch.stack([rows.loss_sum().double(), (rows.positives > 0).sum().double()])
            total, valid_rows = processes.all_reduce(local)
            valid_rows = valid_rows.clamp(min=1).to(temperature.dtype)
            gradient = sums.query_gradient(rows, valid_rows) if processes.need_query_gradient else None
            fields = problem.without_pool()
            options = Problem._fields.index("same_image_weight")  # the first field that is no tensor
            ctx.save_for_backward(rows.lse, rows.positives, valid_rows, gradient, *fields[:options])
            ctx.options, ctx.processes = fields[options:], processes
            value = total.to(temperature.dtype) / valid_rows
            check_finite_result(problem, value)  # the loss of all: every process raises
            return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        place = Problem._fields.index("temperature")
        needed = (needs[0], needs[1], needs[place])
        queries, keys, temperature = _Gradient.apply(ctx.processes, needed, ctx.options, upstream, *ctx.saved_tensors)
        after = (None,) * (len(needs) - place - 1)
        return queries, keys, *(None,) * (place - 2), temperature, *after


class _Gradient(torch.autograd.Function):
    """The backward as a function of its own, so that a gradient of it is refused. ``once_differentiable`` would return
    constants where the upstream gradient needs none, and a gradient penalty would be dropped without a word."""

    @staticmethod
    def forward(
        ctx: Any,
        processes: _Processes,
        needs: tuple[bool, ...],
        options: tuple[Any, ...],
        upstream: Tensor,
        *saved: Any,
    ) -> tuple[Any, ...]:
        lse, positives, valid_rows, gradient, *tensors = saved
        problem = Problem(*tensors, *options)
        queries, temperature = problem.queries, problem.temperature
        upstream = upstream * processes.size
        for_queries = for_keys = for_temperature = None
        with own_arithmetic(queries.device):
            if needs[0]:
                for_queries = (gradient * upstream).to(queries.dtype)
            if needs[2]:
                total = loss.row_products(queries.to(lse.dtype), gradient).sum()
                for_temperature = -total / temperature * upstream
            # Every process's queries have a share in a key's gradient: each computes its share where any needs the sum.
            if processes.need_key_gradient:
                share = _key_gradient(problem, processes, lse, positives, upstream / valid_rows)
                for_keys = share.to(problem.keys.dtype) if needs[1] else None
        return for_queries, for_keys, for_temperature

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"{_NAME}: second derivatives are not implemented")


def _add_batch(sums: RunningSums, queries: Queries, keys: KeySet, processes: _Processes) -> None:
    if processes.key_exchange == "gather":
        sums.add(queries, processes.gather_keys(keys))
        return
    block = keys
    for step in range(processes.size):
        last = step == processes.size - 1
        # The next block is on its way while this one is used.
        work, arriving = ([], []) if last else processes.start_exchange(block[:3], processes.key_counts, step)
        sums.add(queries, block)
        _wait(work)
        if not last:
            block = keys.of_other_process(*arriving)


def _add_shards(sums: RunningSums, queries: Queries, shard: KeySet, processes: _Processes) -> None:
    """Add the pool's part of the sums: the queries go round the ring with them, past each process's shard."""
    remote, moving = queries, RunningSums(queries, sums.problem, sums.backend, processes.need_query_gradient)
    if processes.need_query_gradient:
        moving.acc = torch.zeros_like(moving.positive_sum)
    # Remote queries bring sums even where this process had no shard to add: the next ones are never the first.
    moving.empty = False
    for step in range(processes.size):
        moving.add(remote, shard)
        payload = [
            *(remote.vectors.detach(), remote.groups, remote.images),
            *(moving.row_max, moving.row_sum, moving.acc, moving.positive_sum, moving.positives),
        ]
        work, arriving = processes.start_exchange(payload, processes.query_counts, step)
        _wait(work)
        remote, state = Queries(*arriving[:3]), arriving[3:]
        moving.row_max, moving.row_sum, moving.acc, moving.positive_sum, moving.positives = state
    sums.merge(SoftmaxSums(moving.row_max, moving.row_sum, moving.acc))
    sums.positive_sum += moving.positive_sum
    sums.positives += moving.positives


def _key_gradient(problem: Problem, processes: _Processes, lse: Tensor, positives: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of this process's keys from the queries of all; scale: the factor of each process's share."""
    backend, queries, keys = choose(problem), problem.query_rows(), problem.batch_keys()

    def share(block: KeySet) -> Tensor:
        return loss.full_key_gradient(queries, block, problem, backend, lse, positives).mul_(scale)

    if processes.key_exchange == "gather":
        first = processes.first_key
        return processes.all_reduce(share(processes.gather_keys(keys)))[first : first + problem.keys.shape[0]]
    block, gradient = keys, lse.new_zeros(problem.keys.shape)
    for step in range(processes.size):
        gradient = gradient + share(block)
        # After the last step only the gradient has to come home.
        leaving = (*block[:3], gradient) if step < processes.size - 1 else (None, None, None, gradient)
        work, arriving = processes.start_exchange(leaving, processes.key_counts, step)
        _wait(work)
        block, gradient = keys.of_other_process(*arriving[:3]), arriving[3]
    return gradient
