"""The output of a run while it works: progress, ``log.csv``, observations, TensorBoard events and ``index.html``.

Used by ``qpt.pretraining.engine`` in the process that writes the run's files. On resume the files are cut back to the
checkpoint, so that no step appears twice. Formats are those of ``qpt.runs``; the page is ``qpt.report.build``'s.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qpt.io import flush_to_disk, write_whole
from qpt.runs.files import DATA_BOUND
from qpt.runs.log import FIELDS, LogWriter
from qpt.runs.observations import KINDS, Observation, ObservationWriter, bin_centres, bin_edges

PAGE = "index.html"
PAGE_TIME_SHARE = 0.01  # of the time of a run that its pages may take before its end
_FIRST_PAGE_S = 5.0  # assumed cost of the first page
_LINE_INTERVAL_S = 15.0  # between lines where there is no terminal
_OBSERVED = ("alignment", "uniformity")


class RunLog:
    """Writes one row per logged step and one line per observation; use as a context manager."""

    def __init__(self, run: Path, *, first_step: int, steps: int, tensorboard: bool) -> None:
        self.steps = steps
        self._rows = LogWriter(run, first_step)
        self._observations = ObservationWriter(run, first_step)
        self._disk_full_reported = False
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
        self._last_line = self._began = time.monotonic()
        self._first = first_step

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with suppress(OSError):  # on a full disk, an error of the run matters more than the end of its log
            self._rows.close()
            self._observations.close()
        if self._events is not None:
            self._events.close()

    def flush(self) -> None:
        """Flush everything to the disk; called before each checkpoint, so that a crash loses no step up to it."""
        for stream in (self._rows.stream, self._observations.stream):
            stream.flush()
            flush_to_disk(Path(stream.name))
        if self._events is not None:
            self._events.flush()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def write(self, row: Mapping[str, float]) -> None:
        """Write one row, the FIELDS of ``qpt.runs.log`` but the observed ones, flushed; on a full disk rows wait in
        memory until there is room."""
        last = self._observations.last
        row = {**row, **{name: getattr(last, name) if last else math.nan for name in _OBSERVED}}
        step = int(row["step"])
        with self.tolerate_full_disk(step):
            self._rows.write(row)
            if self._events is not None:
                for name in FIELDS[1:]:
                    if name not in _OBSERVED:  # ``observe`` writes those, at their own steps
                        self._events.add_scalar(name, row[name], step)
        loss, speed, limit = f"{row['loss']:.3f}", f"{row['images_per_s']:.0f}", limited_by(row)
        self._bar.update(self._task, completed=step, loss=loss, speed=speed, limit=limit)
        now = time.monotonic()
        if self._bar.disable and (now - self._last_line > _LINE_INTERVAL_S or step == self.steps):
            self._last_line = now
            left = (now - self._began) / max(1, step - self._first) * (self.steps - step)
            eta = datetime.timedelta(seconds=round(left))
            text = f"pre-training {step}/{self.steps}  loss {loss}  {speed} images/s  {limit}  ETA {eta}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def observe(self, step: int, observation: Observation) -> None:
        """Write one line of ``observations.jsonl`` and the same, with the histograms, to TensorBoard."""
        with self.tolerate_full_disk(step):
            self._observations.write(step, observation)
            if self._events is None:
                return
            for name in _OBSERVED:
                self._events.add_scalar(name, getattr(observation, name), step)
            for kind in KINDS:
                self._add_histogram(f"similarity/{kind}", getattr(observation, kind), step)

    @contextmanager
    def tolerate_full_disk(self, step: int) -> Iterator[None]:
        """Report a full disk once, and do not let it end the run; for files that the result does not depend on."""
        try:
            yield
            self._disk_full_reported = False
        except OSError as error:
            if not self._disk_full_reported:
                self._disk_full_reported = True
                self.say(f"cannot write the log at step {step}: {error}")

    def _add_histogram(self, tag: str, counts: list[int], step: int) -> None:
        centres = bin_centres()  # stand for the values in their bins
        filled = [centre for centre, count in zip(centres, counts, strict=True) if count]
        if filled:
            self._events.add_histogram_raw(
                tag,
                min=filled[0],
                max=filled[-1],
                num=sum(counts),
                sum=sum(count * centre for count, centre in zip(counts, centres, strict=True)),
                sum_squares=sum(count * centre**2 for count, centre in zip(counts, centres, strict=True)),
                bucket_limits=bin_edges()[1:],
                bucket_counts=counts,
                global_step=step,
            )


def limited_by(row: Mapping[str, float]) -> str:
    """Return what limits the run at a row of the log: the wait for images, or the work on them."""
    if row["load_share"] >= DATA_BOUND:
        return f"data-bound ({row['load_share']:.0%} waiting)"
    return "step-bound"


class RunPage:
    """``RUN/index.html``, the run's report: written at its end, and before it as often as PAGE_TIME_SHARE allows."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._cost_s, self._written = _FIRST_PAGE_S, time.monotonic()

    def update(self, say: Callable[[str], None], *, finished: bool = False) -> None:
        """Write the page from the last checkpoint and the files of the run.

        finished: write it even if it was just written, and with the nearest neighbours, which take a pass of the
        encoder over images. An error is passed to ``say`` and does not end the run.
        """
        started = time.monotonic()
        if not finished and (started - self._written) * PAGE_TIME_SHARE < self._cost_s:
            return
        try:
            from qpt.report.build import write_report  # here: nothing else in a run needs what it imports

            write_whole(self.run / PAGE, lambda path: write_report([self.run], path, neighbours=finished, quiet=True))
        except Exception as error:
            say(f"{PAGE} was not written: {type(error).__name__}: {error}")
        self._written = time.monotonic()
        self._cost_s = self._written - started
