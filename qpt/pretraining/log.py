"""What a run says while it works: a progress bar, ``log.csv`` and TensorBoard events.

Used by ``qpt.pretraining.engine``. On resume the log is cut back to the checkpoint, so that no step appears twice.
"""

from __future__ import annotations

import csv
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

FIELDS = (
    "step",
    "loss",
    "lr",
    "positive_similarity",
    "negative_similarity",
    "same_image_similarity",
    "valid_rows",
    "pool_rows",
    "images_per_s",
    "load_share",
    "degrade_share",
    "decode_images_per_s",
    "copy_images_per_s",
    "degrade_images_per_s",
    "step_images_per_s",
)


class RunLog:
    """Writes one row per logged step; use as a context manager."""

    def __init__(self, run: Path, *, first_step: int, steps: int, tensorboard: bool) -> None:
        self.path = run / "log.csv"
        self.steps = steps
        kept: list[dict[str, str]] = []
        if first_step and self.path.exists():
            with open(self.path, newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if (row["step"] or "").isdigit()]
            kept = [row for row in kept if int(row["step"]) <= first_step and None not in row.values()]
        aside = self.path.with_suffix(".csv.part")  # renamed when it is whole: a kill in between loses no row
        self._stream = open(aside, "w", newline="")  # noqa: SIM115 - closed in __exit__
        self._rows = csv.DictWriter(self._stream, FIELDS)
        self._rows.writeheader()
        self._rows.writerows(kept)
        self.flush(events=False)
        os.replace(aside, self.path)
        self._complained = False  # that the disk is full: said once
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
        self.console = Console(stderr=True)
        columns = (
            TextColumn("pre-training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._bar.add_task("steps", total=steps, completed=first_step, loss="-", speed="-")
        self._spoke = time.monotonic()

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with suppress(OSError):  # a full disk: what was asked of the run matters more than the end of its log
            self._stream.close()
        if self._events is not None:
            self._events.close()

    def flush(self, *, events: bool = True) -> None:
        """Have all rows reach the disk; before each checkpoint, so that no step up to it is missing after a crash."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        if events and self._events is not None:
            self._events.flush()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def write(self, row: dict[str, float]) -> None:
        """One row of FIELDS; flushed, so that a crash loses nothing that was printed.

        On a full disk the run goes on: the rows wait in memory (about 80 of them) until there is room.
        """
        step = int(row["step"])
        try:
            self._rows.writerow({name: _short(row[name]) for name in FIELDS})
            self._stream.flush()
            if self._events is not None:
                for name in FIELDS[1:]:
                    self._events.add_scalar(name, row[name], step)
            self._complained = False
        except OSError as error:
            if not self._complained:
                self._complained = True
                self.console.print(f"cannot write the log at step {step}: {error}", highlight=False, markup=False)
        loss, speed = f"{row['loss']:.3f}", f"{row['images_per_s']:.0f}"
        self._bar.update(self._task, completed=step, loss=loss, speed=speed)
        now = time.monotonic()
        if self._bar.disable and (now - self._spoke > 15 or step == self.steps):
            self._spoke = now
            self.console.print(f"pre-training {step}/{self.steps}  loss {loss}  {speed} images/s", highlight=False)


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
