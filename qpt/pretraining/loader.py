"""From the list of images to the device: loader processes, the copy ahead of the step, and the response to a stall.

``qpt.pretraining.engine`` asks a ``BatchLoader`` for one batch after another. A thread of the loader's own takes
batches from torch's ``DataLoader`` and copies them to the device on a stream of its own, on CUDA one batch ahead of the
step. So the main thread never waits inside a library: it can give up after ``stall_seconds`` and say which files are
being decoded, and signals reach it.
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
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from qpt.data.faults import ReadError
from qpt.data.regions import Batch, Region, RegionDataset, StepSampler
from qpt.errors import InputError, StalledError
from qpt.pretraining.signals import ignore_in_worker

S = TypeVar("S")
T = TypeVar("T")
Key = tuple[int, int]  # (epoch, index)
_POLL_S = 0.2  # longest delay until a signal is noticed
_PREFETCH = 2  # batches requested of each loader process in advance
_MAX_NAMED = 8  # workers that an error names


@dataclass(frozen=True)
class LoadTimes:
    """The cost of one batch: images read; seconds of decoding, summed over workers, wall and processor; of the copy to
    the device; and of the main thread's wait for the batch."""

    images: int
    decode_s: float
    decode_cpu_s: float
    copy_s: float = 0.0
    wait_s: float = 0.0


class BatchLoader:
    """The batches of steps ``first_step`` to ``steps``, on the device, in order; use as a context manager.

    dataset: maps (epoch, index) keys to samples; batches, and their order, depend on nothing else here but
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
        self._status = WorkerStatus(max(1, workers))
        keys = StepSampler(len(dataset), batch_images, seed, first_step, steps, share)
        slots = _PREFETCH * workers + 2  # requested, one in use, one that the report of a failed step may still read
        side = dataset.region_size
        own = len(range(batch_images)[keys.share])
        check_memory(slots, own, side)
        buffer = _shared_memory((slots, own, side, side, 3))
        loader = DataLoader(
            _BatchDataset(dataset, buffer, self._status),
            batch_size=None,  # an item is a whole batch
            sampler=SlotSampler(keys, slots),
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            multiprocessing_context="fork" if workers else None,  # workers inherit the buffer and the status
            worker_init_fn=ignore_in_worker,
            generator=torch.Generator(),  # its own: torch would draw a seed from the caller's global one
        )
        self._prefetch = Prefetch(loader, _DeviceCopier(buffer, device), ahead=int(device.type == "cuda"))

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StalledError):
            self._status.kill_workers()  # SIGTERM would wait for a read that does not return
        self._prefetch.close()

    def next(self, stopped: Callable[[], bool] = lambda: False) -> tuple[Batch, LoadTimes] | None:
        """Return the next step's batch and its cost; None if ``stopped()`` became true during the wait for it.

        Raises StalledError after ``stall_seconds`` without it, or when a loader process died, naming the files that
        were being decoded, and when reading failed for another reason than the file; StopIteration after the last step.
        """
        try:
            return self._next(stopped)
        except ReadError as error:
            raise StalledError(f"pretrain: {error}") from error
        except RuntimeError as error:
            # Raised in the thread, or here by a signal handler that torch installs for loaders of the main thread.
            if "DataLoader worker" not in str(error):
                raise
            raise StalledError(f"pretrain: a loader process died: {self._decoding()}") from error

    def _next(self, stopped: Callable[[], bool]) -> tuple[Batch, LoadTimes] | None:
        started = time.monotonic()
        while True:
            try:
                batch, times = self._prefetch.get(timeout=_POLL_S)
            except TimeoutError:
                waited = time.monotonic() - started
                if stopped():
                    return None
                if self._stall_seconds and waited >= self._stall_seconds:
                    reason = f"the loader gave nothing for {waited:.0f} s (stall_seconds)"
                    raise StalledError(f"pretrain: {reason}: {self._decoding()}") from None
                continue
            if batch.regions.is_cuda:
                # Allocated on the copy's stream: its memory must not be reused before this stream is done with it.
                for tensor in (batch.regions, batch.images):
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
            return batch, replace(times, wait_s=time.monotonic() - started)

    def _decoding(self) -> str:
        return self._status.text(self._dataset.source.name)


class Prefetch(Generic[S, T]):
    """Items of an iterable, each passed through ``convert``, fetched in a thread: on request, and ``ahead`` items
    before it.

    The thread is the only one that touches the iterable and what it opened. Items come in order; an exception,
    StopIteration among them, comes in its place and ends the thread.
    """

    def __init__(self, items: Iterable[S], convert: Callable[[S], T], *, ahead: int) -> None:
        self._items, self._convert = items, convert
        self._wanted = threading.Semaphore(ahead)
        self._ready: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()
        self._requested = self._closed = False
        # A daemon, so that a thread stuck in a read does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="qpt loader", daemon=True)
        self._thread.start()

    def get(self, timeout: float) -> T:
        """Return the next item. Raises TimeoutError if it is not there within ``timeout`` seconds; then call again."""
        if not self._requested:  # a call after a timeout waits for the item requested before
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
        """End the thread, and with it the iterator's processes; a thread that is stuck is abandoned after 5 s."""
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
                if iterator is None:
                    # Made in this thread, so that a worker's death is raised here and not by torch's signal handler.
                    iterator = iter(self._items)
                self._ready.put(self._convert(next(iterator)))
        except BaseException as error:
            self._ready.put(error)
        finally:
            iterator = None  # the error's traceback holds this frame, and would keep the workers alive with it


class _DeviceCopier:
    """Copies a worker's batch to the device; on the CPU the step reads the shared buffer itself."""

    def __init__(self, buffer: NDArray[np.uint8], device: torch.device) -> None:
        self._buffer = torch.from_numpy(buffer)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, made: WorkerBatch | ReadError) -> tuple[Batch, LoadTimes]:
        if isinstance(made, ReadError):
            raise made
        batch = Batch(
            regions=self._buffer[made.slot, : len(made.images)],
            images=torch.from_numpy(made.images),
            boxes=torch.from_numpy(made.boxes),
            program_seeds=torch.from_numpy(made.program_seeds),
            unreadable=made.unreadable,
        )
        if self._device.type == "cpu":
            return batch, made.times
        started = time.monotonic()
        if self._stream is None:
            copied = self._copy(batch)
        else:
            with torch.cuda.stream(self._stream):
                copied = self._copy(batch)
            self._stream.synchronize()  # blocks this thread alone: the step goes on
        return copied, replace(made.times, copy_s=time.monotonic() - started)

    def _copy(self, batch: Batch) -> Batch:
        # Boxes and program seeds are read on the host.
        return replace(batch, regions=self._to_device(batch.regions), images=self._to_device(batch.images))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self._stream else tensor).to(self._device, non_blocking=True)


class SlotSampler(Sampler[tuple[int, list[Key]]]):
    """Yields (slot of the shared buffer, keys) for each batch of ``sampler``, slots in turn."""

    # DataLoader has at most slots - 2 batches requested and not yet returned, and requests the next one when it returns
    # one. So the memory of a batch is not written again before the second call after the one that returned it.

    def __init__(self, sampler: StepSampler, slots: int) -> None:
        self.sampler, self.slots = sampler, slots

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        for number, keys in enumerate(self.sampler):
            yield number % self.slots, keys


@dataclass(frozen=True)
class WorkerBatch:
    """The message of a loader process about a batch; its regions are in a slot of the shared buffer. See ``Batch``."""

    slot: int
    images: NDArray[np.int64]
    boxes: NDArray[np.int32]
    program_seeds: NDArray[np.int64]
    unreadable: list[tuple[int, str]]
    times: LoadTimes


class _BatchDataset(Dataset["WorkerBatch | ReadError"]):
    """Decodes the samples of (slot, keys) into the shared buffer, and measures the time.

    A ReadError is returned: raised, it would come out of a loader process with a traceback for its message.
    """

    def __init__(self, dataset: RegionDataset, buffer: NDArray[np.uint8], status: WorkerStatus) -> None:
        self._dataset, self._buffer, self._status = dataset, buffer, status

    def __getitem__(self, request: tuple[int, list[Key]]) -> WorkerBatch | ReadError:
        try:
            return self._batch(*request)
        except ReadError as error:
            return error

    def _batch(self, slot: int, keys: list[Key]) -> WorkerBatch:
        wall, processor = time.perf_counter(), time.thread_time()
        images: list[int] = []
        boxes: list[NDArray[np.int32]] = []
        program_seeds: list[int] = []
        unreadable: list[tuple[int, str]] = []
        if keys:
            self._status.begin(keys[0][1])
            self._dataset.prefetch(keys)
        for key in keys:
            self._status.begin(key[1])
            sample = self._dataset[key]
            if isinstance(sample, Region):
                self._buffer[slot, len(images)] = sample.pixels
                images.append(sample.index)
                boxes.append(sample.boxes)
                program_seeds.append(sample.program_seed)
            else:
                unreadable.append(sample)
        self._status.end()
        return WorkerBatch(
            slot=slot,
            images=np.array(images, np.int64),
            boxes=np.array(boxes, np.int32).reshape(-1, self._dataset.compositions, self._dataset.patches, 2),
            program_seeds=np.array(program_seeds, np.int64),
            unreadable=unreadable,
            times=LoadTimes(len(images), time.perf_counter() - wall, time.thread_time() - processor),
        )


class WorkerStatus:
    """The image that each loader process is decoding, in shared memory: row = (process id, index, since ns).

    Index -1: none. The clock is the system's monotonic one, the same in all processes.
    """

    def __init__(self, workers: int) -> None:
        self._rows = _shared_memory((workers, 24)).view(np.int64)
        self._rows[:] = -1

    def begin(self, index: int) -> None:
        self._own_row()[:] = os.getpid(), index, time.monotonic_ns()

    def end(self) -> None:
        self._own_row()[1] = -1

    def _own_row(self) -> NDArray[np.int64]:
        worker = get_worker_info()
        return self._rows[worker.id if worker is not None else 0]

    def text(self, name: Callable[[int], str]) -> str:
        """Describe which process has been decoding which file, and for how long."""
        now, parts, idle = time.monotonic_ns(), [], 0
        for pid, index, since in self._rows.tolist():
            if index < 0:
                idle += 1
            else:
                parts.append(f"process {pid} has been at {name(index)} for {(now - since) / 1e9:.0f} s")
        if len(parts) > _MAX_NAMED:
            parts[_MAX_NAMED:] = [f"and {len(parts) - _MAX_NAMED} more"]
        return ", ".join(parts + ([f"{idle} of {len(self._rows)} idle"] if idle else []))

    def kill_workers(self) -> None:
        """End the loader processes at once."""
        for pid, *_ in self._rows.tolist():
            if pid not in (-1, os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def check_memory(slots: int, images: int, side: int) -> None:
    """Raise InputError unless the memory of ``slots`` batches of regions can be had."""
    needed, available = slots * images * side**2 * 3, available_memory()
    if needed > available:
        raise InputError(
            f"pretrain: batch_images, region_size and workers must fit the memory, got {slots} batches of {images} "
            f"regions of {side} x {side} pixels, which take {needed / 2**30:.1f} GiB of the "
            f"{available / 2**30:.1f} GiB available; lower batch_images, region_size or workers"
        )


def available_memory() -> float:
    """Return the bytes that this process can still have, by the system and by its own limit; infinite if unknown."""
    available = math.inf
    with suppress(OSError, ValueError, IndexError):
        available = int(Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")[1].split()[0]) * 1024
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            available = min(available, limit - used)
    return available


def _shared_memory(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return zeros in memory that processes forked from this one share."""
    # Allocated once, and not per batch as DataLoader does: new memory costs a page fault per 4 KiB on both sides, about
    # a tenth of decoding a small image.
    memory = mmap.mmap(-1, max(1, math.prod(shape)))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, math.prod(shape)).reshape(shape)


def _unchanged(batch: Any) -> Any:
    return batch  # the collate_fn: DataLoader's own would make tensors of the arrays
