"""From the list of photographs to the device: loader processes, the copy ahead of the step, what to do when they stall.

The engine asks a ``Feed`` for one batch after another. A thread of the feed's own takes batches from the loader and
moves them to the device on a stream of its own, on CUDA one batch ahead of the step. So the main thread never waits
inside a library: it can give up after ``stall_seconds`` and say which files are being decoded, and signals reach it.
"""

from __future__ import annotations

import math
import mmap
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from qpt.data.regions import Batch, Region, RegionDataset, StepSampler
from qpt.errors import StalledError
from qpt.pretraining.signals import ignore_in_worker

S = TypeVar("S")
T = TypeVar("T")
Key = tuple[int, int]  # (epoch, index)
_POLL_S = 0.2  # how long a signal may wait for its answer
_PREFETCH = 2  # batches given to each loader process in advance
_NAMED = 8  # workers that an error names


@dataclass(frozen=True)
class Load:
    """What getting one batch took: images read; seconds of decoding, summed over workers, wall and processor; of the
    copy to the device; and of waiting for the batch, in the main thread."""

    images: int
    decode_s: float
    decode_cpu_s: float
    copy_s: float = 0.0
    wait_s: float = 0.0


class Feed:
    """The batches of steps ``first_step`` to ``steps``, on the device, in order; use as a context manager.

    dataset: what (epoch, index) keys are looked up in; batches, and their order, depend on nothing else here but
    batch_images, seed, the steps and share.  workers: loader processes; 0 decodes in this one.  stall_seconds: how long
    a batch may take; 0 for ever.  share: the part of each batch of ``batch_images`` that is wanted, None for all.
    """

    def __init__(
        self,
        dataset: RegionDataset,
        *,
        batch_images: int,
        seed: int,
        first_step: int,
        steps: int,
        workers: int,
        device: torch.device,
        stall_seconds: float,
        share: slice | None = None,
    ) -> None:
        self._dataset, self._stall_seconds = dataset, stall_seconds
        self._board = Board(max(1, workers))
        keys = StepSampler(len(dataset), batch_images, seed, first_step, steps, share)
        slots = _PREFETCH * workers + 2  # given out, one in use, one that a failed step's report may still look at
        ring = _shared((slots, len(range(batch_images)[keys.share]), dataset.region_size, dataset.region_size, 3))
        loader = DataLoader(
            _Batches(dataset, ring, self._board),
            batch_size=None,  # an item is a whole batch
            sampler=Orders(keys, slots),
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            multiprocessing_context="fork" if workers else None,  # the ring and the board are inherited
            worker_init_fn=ignore_in_worker,
            generator=torch.Generator(),  # its own: the global one is the caller's
        )
        self._prefetch = Prefetch(loader, _Mover(ring, device), ahead=int(device.type == "cuda"))

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StalledError):
            self._board.kill()  # SIGTERM would wait for a read that does not come back
        self._prefetch.close()

    def next(self, stopped: Callable[[], bool] = lambda: False) -> tuple[Batch, Load] | None:
        """The next step's batch and what it took; None if ``stopped()`` became true while it was waited for.

        Raises StalledError after ``stall_seconds`` without it, or when a loader process died, naming the files that
        were being decoded; StopIteration after the last step.
        """
        try:
            return self._next(stopped)
        except RuntimeError as error:  # of the thread; or of a signal handler that torch installs for loaders of others
            if "DataLoader worker" not in str(error):
                raise
            raise StalledError(f"pretrain: a loader process died: {self._decoding()}") from error

    def _next(self, stopped: Callable[[], bool]) -> tuple[Batch, Load] | None:
        started = time.monotonic()
        while True:
            try:
                batch, load = self._prefetch.get(timeout=_POLL_S)
            except TimeoutError:
                waited = time.monotonic() - started
                if stopped():
                    return None
                if self._stall_seconds and waited >= self._stall_seconds:
                    reason = f"the loader gave nothing for {waited:.0f} s (stall_seconds)"
                    raise StalledError(f"pretrain: {reason}: {self._decoding()}") from None
                continue
            if batch.regions.is_cuda:  # made on the feed's stream, and freed after use on this one
                for tensor in (batch.regions, batch.images):
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
            return batch, replace(load, wait_s=time.monotonic() - started)

    def _decoding(self) -> str:
        return self._board.text(self._dataset.source.name)


class Prefetch(Generic[S, T]):
    """Items of an iterable, each passed through ``move``, got in a thread: on request, and ``ahead`` items before it.

    The thread is the only one that touches the iterable and what it opened. Items come in order; an exception,
    StopIteration among them, comes in its place and ends the thread.
    """

    def __init__(self, items: Iterable[S], move: Callable[[S], T], *, ahead: int) -> None:
        self._items, self._move = items, move
        self._wanted = threading.Semaphore(ahead)
        self._ready: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()
        self._requested = self._closed = False
        self._thread = threading.Thread(target=self._work, name="qpt feed", daemon=True)  # stuck, it ends with us
        self._thread.start()

    def get(self, timeout: float) -> T:
        """The next item. Raises TimeoutError if it is not there in time; then call again."""
        if not self._requested:
            self._requested = True
            self._wanted.release()
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(item, BaseException):
            raise item
        self._requested = False
        return item

    def close(self) -> None:
        """End the thread, and with it the iterator's processes. One that is stuck is left behind."""
        self._closed = True
        self._wanted.release()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        iterator: Iterator[S] | None = None
        try:
            while True:
                self._wanted.acquire()
                if self._closed:
                    return
                if iterator is None:  # here, so that the loader's processes report to this thread and not by a signal
                    iterator = iter(self._items)
                self._ready.put(self._move(next(iterator)))
        except BaseException as error:
            self._ready.put(error)
        finally:
            iterator = None  # an error that is still looked at holds this frame, and its processes would live on


class _Mover:
    """Makes a batch of a parcel: copies what a step needs to the device; on the CPU the step reads the ring itself."""

    def __init__(self, ring: NDArray[np.uint8], device: torch.device) -> None:
        self._ring = torch.from_numpy(ring)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, parcel: Parcel) -> tuple[Batch, Load]:
        batch = Batch(
            regions=self._ring[parcel.slot, : len(parcel.images)],
            images=torch.from_numpy(parcel.images),
            boxes=torch.from_numpy(parcel.boxes),
            program_seeds=torch.from_numpy(parcel.program_seeds),
            unreadable=parcel.unreadable,
        )
        if self._device.type == "cpu":
            return batch, parcel.load
        started = time.monotonic()
        if self._stream is None:
            moved = self._move(batch)
        else:
            with torch.cuda.stream(self._stream):
                moved = self._move(batch)
            self._stream.synchronize()  # of this thread alone: the step runs on
        return moved, replace(parcel.load, copy_s=time.monotonic() - started)

    def _move(self, batch: Batch) -> Batch:
        return replace(batch, regions=self._to_device(batch.regions), images=self._to_device(batch.images))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self._stream else tensor).to(self._device, non_blocking=True)


class Orders(Sampler[tuple[int, list[Key]]]):
    """For each batch of ``sampler`` (slot of the ring, keys).

    Slots are used in turn. The loader has at most slots - 2 batches given out and not yet handed over, and gives out
    the next when it hands one over: so a batch's memory is its own until the second call after the one that gave it.
    """

    def __init__(self, sampler: StepSampler, slots: int) -> None:
        self.sampler, self.slots = sampler, slots

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        for number, keys in enumerate(self.sampler):
            yield number % self.slots, keys


@dataclass(frozen=True)
class Parcel:
    """What a loader process sends of a batch; its regions are in the ring's slot. See ``Batch``."""

    slot: int
    images: NDArray[np.int64]
    boxes: NDArray[np.int32]
    program_seeds: NDArray[np.int64]
    unreadable: list[tuple[int, str]]
    load: Load


class _Batches(Dataset[Parcel]):
    """Decodes the batch that an order asks for into the ring, and measures what it takes."""

    def __init__(self, dataset: RegionDataset, ring: NDArray[np.uint8], board: Board) -> None:
        self._dataset, self._ring, self._board = dataset, ring, board

    def __getitem__(self, order: tuple[int, list[Key]]) -> Parcel:
        slot, keys = order
        wall, processor = time.perf_counter(), time.thread_time()
        images: list[int] = []
        boxes: list[NDArray[np.int32]] = []
        program_seeds: list[int] = []
        unreadable: list[tuple[int, str]] = []
        for key in keys:
            self._board.begin(key[1])
            sample = self._dataset[key]
            if isinstance(sample, Region):
                self._ring[slot, len(images)] = sample.pixels
                images.append(sample.index)
                boxes.append(sample.boxes)
                program_seeds.append(sample.program_seed)
            else:
                unreadable.append(sample)
        self._board.end()
        return Parcel(
            slot=slot,
            images=np.array(images, np.int64),
            boxes=np.array(boxes, np.int32).reshape(-1, self._dataset.compositions, self._dataset.patches, 2),
            program_seeds=np.array(program_seeds, np.int64),
            unreadable=unreadable,
            load=Load(len(images), time.perf_counter() - wall, time.thread_time() - processor),
        )


def _shared(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory that processes forked from this one share. Batches travel through it: memory that is made for each batch
    costs a page fault for every 4 KiB on both sides, about a tenth of decoding a small photograph."""
    memory = mmap.mmap(-1, max(1, math.prod(shape)))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, math.prod(shape)).reshape(shape)


class Board:
    """Which photograph each loader process is at, in memory that they share: row = (process id, index, since ns).

    Index -1: at none. The clock is the system's monotonic one, the same in all processes.
    """

    def __init__(self, workers: int) -> None:
        self._rows = _shared((workers, 24)).view(np.int64)
        self._rows[:] = -1

    def begin(self, index: int) -> None:
        self._mine()[:] = os.getpid(), index, time.monotonic_ns()

    def end(self) -> None:
        self._mine()[1] = -1

    def _mine(self) -> NDArray[np.int64]:
        worker = get_worker_info()
        return self._rows[worker.id if worker is not None else 0]

    def text(self, name: Callable[[int], str]) -> str:
        """Who is decoding what, and for how long."""
        now, parts, idle = time.monotonic_ns(), [], 0
        for pid, index, since in self._rows.tolist():
            if index < 0:
                idle += 1
            else:
                parts.append(f"process {pid} has been at {name(index)} for {(now - since) / 1e9:.0f} s")
        if len(parts) > _NAMED:
            parts[_NAMED:] = [f"and {len(parts) - _NAMED} more"]
        return ", ".join(parts + ([f"{idle} of {len(self._rows)} idle"] if idle else []))

    def kill(self) -> None:
        """End the loader processes at once."""
        for pid, *_ in self._rows.tolist():
            if pid not in (-1, os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def _as_it_is(parcel: Any) -> Any:
    return parcel
