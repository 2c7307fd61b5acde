"""``RUN/log.csv``, one row per logged step, and ``RUN/summary.json``, which says that a run is complete.

``LogWriter`` serves ``qpt.pretraining.log``; the readers serve reports, the demonstration and resuming.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qpt.errors import InputError
from qpt.io import write_lines

LOG = "log.csv"
FIELDS = (
    "step",
    "loss",
    "lr",
    "positive_similarity",
    "negative_similarity",
    "same_image_similarity",
    "valid_rows",
    "pool_rows",
    "alignment",  # this and the next: of the latest observation
    "uniformity",
    "images_per_s",
    "load_share",
    "degrade_share",
    "decode_images_per_s",
    "copy_images_per_s",
    "degrade_images_per_s",
    "step_images_per_s",
)


class LogWriter:
    """Appends rows to a run's log; rows after ``first_step``, from which a resumed run continues, are removed first."""

    def __init__(self, run: Path, first_step: int) -> None:
        path = run / LOG
        kept: list[dict[str, str]] = []
        if first_step and path.exists():
            with open(path, newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if (row["step"] or "").isdigit()]
            # A row cut short by a crash lacks fields, which the reader gives as None.
            kept = [row for row in kept if int(row["step"]) <= first_step and None not in row.values()]
        write_lines(path, [_csv([dict(zip(FIELDS, FIELDS, strict=True)), *kept])])
        self.stream = open(path, "a", newline="")  # noqa: SIM115 - closed by ``close``

    def write(self, row: Mapping[str, float]) -> None:
        """Append the FIELDS of one row and flush. Raises OSError on a full disk; the row then waits in the buffer."""
        self.stream.write(_csv([{name: _short(row[name]) for name in FIELDS}]))
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def read_log(run: Path) -> dict[str, list[float]]:
    """Return the columns of a run's log; none without a file or rows. Raises InputError for a damaged one."""
    if not (run / LOG).is_file():
        return {}
    with open(run / LOG, newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    except (TypeError, ValueError) as error:
        raise InputError(f"run: {LOG} of {run.name} must hold numbers in every field, got: {error}") from None


def last_logged_step(run: Path) -> int:
    """Return the last step in the log, 0 if there is none or the file is unreadable."""
    steps: list[str] = []
    with suppress(OSError, KeyError, csv.Error, UnicodeDecodeError), open(run / LOG, newline="") as stream:
        steps = [row["step"] or "" for row in csv.DictReader(stream)]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def read_summary(run: Path) -> dict[str, Any]:
    """Return the summary of a complete run; empty without a file. Raises InputError for a damaged one."""
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"run: summary.json of {run.name} must hold JSON, got: {error}") from None
    if not isinstance(summary, dict):
        raise InputError(f"run: summary.json of {run.name} must hold a mapping, got {type(summary).__name__}")
    return summary


def _csv(rows: Iterable[Mapping[str, str]]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, FIELDS, restval="nan", extrasaction="ignore").writerows(rows)
    return out.getvalue()


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
