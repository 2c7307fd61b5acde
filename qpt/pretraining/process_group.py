"""The processes of a run: their ranks, and what they exchange besides the loss.

``torchrun --nproc_per_node N -m qpt pretrain ...`` starts N processes with its variables set (RANK, WORLD_SIZE, ...);
without them a run has one process and nothing is sent. Used by ``qpt.pretraining.engine``, ``learner`` and ``replay``.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from qpt import compat
from qpt.errors import BackendError, InputError
from qpt.ops.contrastive.distributed import gather_rows
from qpt.process import is_forked, usable_threads


@dataclass(frozen=True)
class ProcessGroup:
    """rank of this process among size; local_rank among the local_size processes on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """True in the process that writes the run's files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of ``count`` items in order; ``count`` must be a multiple of the size."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def on_main(self, action: Callable[[], Any]) -> None:
        """Run ``action`` on the first process while the others wait; an InputError of it is raised on all."""
        error = None
        if self.main:
            try:
                action()
            except InputError as caught:
                error = str(caught)
        error = self.gather(error)[0]
        if error is not None:
            raise InputError(error)

    def sum(self, *values: int) -> list[int]:
        """Return each value summed over the processes; sent between CPUs, so that no GPU is waited for."""
        if self.size == 1:
            return list(values)
        totals = torch.tensor([int(value) for value in values], dtype=torch.int64, device="cpu")
        dist.all_reduce(totals)
        return totals.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the value (picklable) of every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Gather [n_r, ...] of each process to [sum of n_r, ...], in the order of ranks; n_r may be 0. No gradient."""
        if self.size == 1:
            return rows
        return gather_rows(rows, self.gather(len(rows)))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        # One message in the order of the parameters, so that sums round alike in every run; torch's
        # DistributedDataParallel groups gradients by when they are ready.
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


@contextmanager
def join_process_group(device: str) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """Join the processes that torchrun started; yield the group and this process's device.

    device: as in ``PretrainConfig``; with several processes on GPUs each takes the one of its local rank. A GPU is the
    current one meanwhile, which is where Triton launches its kernels.
    Raises InputError for a device that is not usable.
    """
    group = _group_from_environment()
    if group.size == 1:
        alone = _device(device)
        with torch.cuda.device(alone) if alone.type == "cuda" else nullcontext():
            yield group, alone
        return
    own = _device(device)
    if own.type == "cuda":
        own = _device(f"cuda:{group.local_rank}")
        torch.cuda.set_device(own)
    initialised_before = dist.is_initialized()
    if not initialised_before:
        # The default arguments of this module's functions are the group of the moment when it is first imported. If
        # that were ours (torch imports it late), destroying the group would leave its threads running, and one that
        # still drops a tensor when the interpreter ends would abort the process.
        importlib.import_module("torch.distributed.nn.functional")
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=_store(group), rank=group.rank, world_size=group.size)
        except (RuntimeError, ValueError) as error:  # an address that is taken, unknown or silent
            where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"pretrain: the {group.size} processes of WORLD_SIZE must be able to meet at {where}, got: {reason}"
            ) from error
    try:
        yield group, own
    finally:
        if not initialised_before:
            compat.destroy_process_group()


def _group_from_environment() -> ProcessGroup:
    """Return the group that torchrun's variables describe, one process without them; an empty variable counts as unset.

    Raises InputError for a variable that is missing, is no integer, or does not fit the others.
    """
    size = _variable("WORLD_SIZE", 1, None)
    names = ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"] if size > 1 else []
    if names and not dist.is_initialized():  # else the processes have met already
        names += ["MASTER_ADDR", "MASTER_PORT"]
        _variable("MASTER_PORT", 0, 65535)
    missing = [name for name in names if not os.environ.get(name, "").strip()]
    if missing:
        raise InputError(
            f"pretrain: the environment of WORLD_SIZE={size} must hold {', '.join(names)} (torchrun sets them; unset "
            f"WORLD_SIZE to run one process), got none for {', '.join(missing)}"
        )
    local_size = _variable("LOCAL_WORLD_SIZE", 1, size)
    return ProcessGroup(_variable("RANK", 0, size - 1), size, _variable("LOCAL_RANK", 0, local_size - 1), local_size)


def _variable(name: str, low: int, high: int | None) -> int:
    """Return an environment variable, an integer in low..high; ``low`` if it is empty or unset."""
    text = os.environ.get(name, "").strip()
    number = int(text or low) if re.fullmatch(r"-?\d*", text, re.ASCII) and text != "-" else low - 1
    if number < low or (high is not None and number > high):
        rule = f"of at least {low}" if high is None else f"in {low}..{high}"
        raise InputError(f"pretrain: the environment variable {name} must be an integer {rule}, or unset, got {text!r}")
    return number


def _store(group: ProcessGroup) -> dist.Store:
    """Return torchrun's store, in which the processes find each other's addresses, with keys of this start alone."""
    store, _, _ = next(rendezvous("env://", group.rank, group.size))
    # torchrun keeps one store for all restarts (pytorch issue 135712): without a prefix, restarted processes would find
    # the addresses of the dead and wait for them. Agents of several machines count restarts each for itself, so their
    # counts cannot serve as a prefix, and torchrun must be told to make a new store (docs/runs.md).
    if group.local_size < group.size:
        return store
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"pretrain: device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count <= (device.index or 0):
        raise InputError(
            f"pretrain: device must be usable here (see `qpt doctor`), got {name!r} with {count} CUDA devices"
        )
    return device


@contextmanager
def use_threads(count: int, processes: int) -> Iterator[None]:
    """Run on this many CPU threads; 0: the share of one of ``processes`` of what ``usable_threads`` allows.

    Raises BackendError for more threads than torch has in a forked process, where they would hang.
    """
    before = torch.get_num_threads()
    if is_forked() and count > before:
        raise BackendError(
            f"pretrain: threads must be at most {before} in a forked process, whose thread pool is gone, got {count}; "
            "start the process by spawn"
        )
    torch.set_num_threads(count or (before if is_forked() else usable_threads(processes)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
