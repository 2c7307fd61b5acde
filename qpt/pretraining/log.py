"""What a run says while it works: a progress line, ``log.csv``, ``observations.jsonl`` and TensorBoard events.

Used by ``qpt.pretraining.engine``. On resume the files are cut back to the checkpoint, so that no step appears twice.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qpt.io import write_lines
from qpt.runs.files import DATA_BOUND
from qpt.runs.observations import KINDS, Observation, ObservationLog, bin_edges, bin_middles

FIELDS = (
    "step",
    "loss",
    "lr",
    "positive_similarity",
    "negative_similarity",
    "same_image_similarity",
    "valid_rows",
    "pool_rows",
    "alignment",  # these two: of the latest observation
    "uniformity",
    "images_per_s",
    "load_share",
    "degrade_share",
    "decode_images_per_s",
    "copy_images_per_s",
    "degrade_images_per_s",
    "step_images_per_s",
)
_SILENCE_S = 15.0  # between lines where there is no terminal


class RunLog:
    """Writes one row per logged step and one line per observation; use as a context manager."""

    def __init__(self, run: Path, *, first_step: int, steps: int, tensorboard: bool) -> None:
        self.path = run / "log.csv"
        self.steps = steps
        kept: list[dict[str, str]] = []
        if first_step and self.path.exists():
            with open(self.path, newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if (row["step"] or "").isdigit()]
            kept = [row for row in kept if int(row["step"]) <= first_step and None not in row.values()]
        write_lines(self.path, [_csv([dict(zip(FIELDS, FIELDS, strict=True)), *kept])])
        self._stream = open(self.path, "a", newline="")  # noqa: SIM115 - closed in __exit__
        self._observations = ObservationLog(run, first_step)
        self._complained = False  # that the disk is full: said once
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
        self.console = Console(stderr=True)
        columns = (
            TextColumn("pre-training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s  {task.fields[limit]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("steps", total=steps, completed=first_step, loss="-", speed="-", limit="")
        self._spoke = self._began = time.monotonic()
        self._first = first_step

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with suppress(OSError):  # a full disk: what was asked of the run matters more than the end of its log
            self._stream.close()
            self._observations.close()
        if self._events is not None:
            self._events.close()

    def flush(self, *, events: bool = True) -> None:
        """Have everything reach the disk; before each checkpoint, so that no step up to it is missing after a crash."""
        for stream in (self._stream, self._observations.stream):
            stream.flush()
            os.fsync(stream.fileno())
        if events and self._events is not None:
            self._events.flush()

    def say(self, text: str) -> None:
        """A line for the reader, above the progress line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def write(self, row: Mapping[str, float]) -> None:
        """One row of FIELDS but the observed ones; flushed, so that a crash loses nothing that was printed.

        On a full disk the run goes on: rows wait in memory until there is room.
        """
        last = self._observations.last
        observed = {name: getattr(last, name) if last else math.nan for name in ("alignment", "uniformity")}
        row = {**row, **observed}
        step = int(row["step"])
        with self.going_on(step):
            self._stream.write(_csv([{name: _short(row[name]) for name in FIELDS}]))
            self._stream.flush()
            if self._events is not None:
                for name in FIELDS[1:]:
                    if name not in observed:  # ``observe`` writes those, at their own steps
                        self._events.add_scalar(name, row[name], step)
        loss, speed, limit = f"{row['loss']:.3f}", f"{row['images_per_s']:.0f}", limited_by(row)
        self._bar.update(self._task, completed=step, loss=loss, speed=speed, limit=limit)
        now = time.monotonic()
        if self._bar.disable and (now - self._spoke > _SILENCE_S or step == self.steps):
            self._spoke = now
            left = (now - self._began) / max(1, step - self._first) * (self.steps - step)
            text = f"pre-training {step}/{self.steps}  loss {loss}  {speed} images/s  {limit}  ETA {_clock(left)}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def observe(self, step: int, observation: Observation) -> None:
        """One line of ``observations.jsonl``; to TensorBoard the same, the histograms as they are."""
        with self.going_on(step):
            self._observations.write(step, observation)
            if self._events is None:
                return
            for name in ("alignment", "uniformity"):
                self._events.add_scalar(name, getattr(observation, name), step)
            for kind in KINDS:
                self._add_histogram(f"similarity/{kind}", getattr(observation, kind), step)

    @contextmanager
    def going_on(self, step: int) -> Iterator[None]:
        """Around what is only to be looked at later: a full disk is said once and does not end the run."""
        try:
            yield
            self._complained = False
        except OSError as error:
            if not self._complained:
                self._complained = True
                self.say(f"cannot write the log at step {step}: {error}")

    def _add_histogram(self, tag: str, counts: list[int], step: int) -> None:
        """Sums are those of the bins' middles."""
        middles = bin_middles()
        filled = [middle for middle, count in zip(middles, counts, strict=True) if count]
        if filled:
            self._events.add_histogram_raw(
                tag,
                min=filled[0],
                max=filled[-1],
                num=sum(counts),
                sum=sum(count * middle for count, middle in zip(counts, middles, strict=True)),
                sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
                bucket_limits=bin_edges()[1:],
                bucket_counts=counts,
                global_step=step,
            )


def limited_by(row: Mapping[str, float]) -> str:
    """What holds the run up, for a row of the log: waiting for photographs, or the work on them."""
    if row["load_share"] >= DATA_BOUND:
        return f"data starves ({row['load_share']:.0%} waiting)"
    return "step-bound"


def _csv(rows: Iterable[Mapping[str, str]]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, FIELDS, restval="nan", extrasaction="ignore").writerows(rows)
    return out.getvalue()


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
