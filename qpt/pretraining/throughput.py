"""Images per second that each stage of pre-training can process, and which stage limits the run.

``qpt.pretraining.engine`` puts ``StageTimer.stage("degrade")`` around its work and passes on the loader's times;
``read`` returns the figures since the last call of it, ``total`` holds those of the whole run. On CUDA the times of
stages are taken on the stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from qpt.pretraining.loader import LoadTimes
from qpt.runs.files import DATA_BOUND


@dataclass
class Throughput:
    """Sums over some steps: images and seconds of each stage in this process, ``decode`` summed over its workers.

    workers: loader processes of this process.  processes: that share the batch, each with as many workers.
    """

    workers: int
    processes: int = 1
    images: int = 0
    seconds: float = 0.0  # of the main process, everything included
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "copy", "degrade", "step"), 0.0))
    decode_cpu: float = 0.0
    wait: float = 0.0

    def add(self, other: Throughput) -> None:
        """Add the other's sums."""
        for name in ("images", "seconds", "decode_cpu", "wait"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for stage, seconds in other.stages.items():
            self.stages[stage] += seconds

    def rate(self, stage: str) -> float | None:
        """Return the images per second of this process's stage on its own; None for one that took no time."""
        parallel = max(1, self.workers) if stage == "decode" else 1
        taken = self.stages[stage] / parallel
        return self.images / taken if taken > 0 else None

    @property
    def images_per_s(self) -> float:
        """Images per second of the whole run, all processes together."""
        return self.processes * self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def load_share(self) -> float:
        """Share of the time that the step waited for images."""
        return self.wait / self.seconds if self.seconds > 0 else 0.0

    @property
    def slowest(self) -> str:
        """The stage that limits the run: if it is data-bound decode or copy, else the slower of degrade and step."""
        if self.load_share >= DATA_BOUND:
            return "decode" if self.stages["decode"] / max(1, self.workers) >= self.stages["copy"] else "copy"
        return max(("degrade", "step"), key=lambda stage: self.stages[stage])

    def log_row(self) -> dict[str, float]:
        """Return the columns of ``log.csv``; a stage that took no time has 0."""
        return {
            "images_per_s": self.images_per_s,
            "load_share": self.load_share,
            "degrade_share": self.stages["degrade"] / self.seconds if self.seconds > 0 else 0.0,
            **{f"{stage}_images_per_s": self.rate(stage) or 0.0 for stage in self.stages},
        }

    def summary(self) -> dict[str, Any]:
        """Return the entry of ``summary.json``."""
        rates = {stage: self.rate(stage) for stage in self.stages}
        return {
            "images_per_s": round(self.images_per_s, 2),
            "stages_images_per_s": {name: None if rate is None else round(rate, 2) for name, rate in rates.items()},
            "waiting_for_photographs": round(self.load_share, 4),
            "decoding_on_the_processor": round(self.decode_cpu / self.stages["decode"], 4) if self.images else None,
            "slowest": self.slowest,
        }

    def text(self) -> str:
        """Return one line that a run prints at its end."""
        parts = [f"{name} {rate:.0f}" for name in self.stages if (rate := self.rate(name)) is not None]
        where = f"{self.workers} loader process{'es' * (self.workers != 1)}" if self.workers else "the main process"
        together = f"together {self.images_per_s:.0f}"
        if self.processes > 1:
            together = f"each of {self.processes} processes; all {together}"
        line = f"images/s by stage: {', '.join(parts)}; {together}. Decoding in {where}"
        share = f"the step waits for images {self.load_share:.0%} of the time"
        if self.load_share < DATA_BOUND:
            return f"{line} keeps up: {share}, the slowest stage is {self.slowest}"
        if self.slowest == "copy":
            return f"{line}: {share}, data-bound by the copy to the device"
        # Decoding that is mostly off the processor waits: for the disk, or for its turn on a core.
        busy = self.decode_cpu / self.stages["decode"]
        remedy = "more workers" if busy > 0.7 else "a faster disk, shards, or fewer processes on the same cores"
        return f"{line}: {share}, data-bound by decoding ({busy:.0%} of it on the processor); try {remedy}"


class StageTimer:
    """Collects the times of a run's stages."""

    def __init__(self, device: torch.device, workers: int, processes: int = 1) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._counts = (workers, processes)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._current = Throughput(workers, processes)
        self._since = time.monotonic()
        self.total = Throughput(workers, processes)

    def add_load(self, times: LoadTimes) -> None:
        """Add the cost of one batch."""
        current = self._current
        current.images += times.images
        current.stages["decode"] += times.decode_s
        current.stages["copy"] += times.copy_s
        current.decode_cpu += times.decode_cpu_s
        current.wait += times.wait_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as ``degrade`` or ``step``."""
        if self._cuda is None:
            started = time.perf_counter()
            yield
            self._current.stages[name] += time.perf_counter() - started
            return
        # Events are read in ``read``: reading one here would wait for the device at every step.
        stream = torch.cuda.current_stream(self._cuda)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(stream)
        yield
        after.record(stream)
        self._events.append((name, before, after))

    def read(self) -> Throughput:
        """Return the figures since the last call, and add them to ``total``."""
        for name, before, after in self._events:
            after.synchronize()
            self._current.stages[name] += before.elapsed_time(after) / 1000
        self._events.clear()
        now = time.monotonic()
        done, self._current = self._current, Throughput(*self._counts)
        done.seconds, self._since = now - self._since, now
        self.total.add(done)
        return done
