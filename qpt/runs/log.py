"""``RUN/log.csv``, one row per logged step, and ``RUN/summary.json``, which says that a run is complete.

``LogWriter`` serves ``qpt.pretraining.log``; the readers serve reports, the demonstration and resuming.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qpt.io import parse_json, write_lines
from qpt.runs.files import note_fault

LOG = "log.csv"
_STEP = re.compile("[0-9]+")
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
        rows = _read_rows(path)[0] if first_step else []
        kept = [row for row in rows if _STEP.fullmatch(row.get("step", "")) and int(row["step"]) <= first_step]
        write_lines(path, [_csv([dict(zip(FIELDS, FIELDS, strict=True)), *kept])])
        self.stream = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed by ``close``

    def write(self, row: Mapping[str, float]) -> None:
        """Append the FIELDS of one row and flush. Raises OSError on a full disk; the row then waits in the buffer."""
        self.stream.write(_csv([{name: _short(row[name]) for name in FIELDS}]))
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def read_log(run: Path, faults: list[str] | None = None) -> dict[str, list[float]]:
    """Return the columns of a run's log, of the rows that can be read; none without a file or rows.

    faults: gets a sentence on the rows that cannot, as a power cut may leave them.
    """
    rows, left_out = _read_rows(run / LOG)
    numbers: list[dict[str, float]] = []
    for row in rows:
        try:
            numbers.append({name: float(value) for name, value in row.items()})
        except ValueError:
            left_out += 1
    numbers = [row for row in numbers if math.isfinite(row.get("step", math.nan))]
    if left_out or len(numbers) < len(rows):
        note_fault(faults, run, LOG, f"{len(numbers)} rows are used, {left_out} cannot be read")
    elif (run / LOG).is_file() and not (run / LOG).stat().st_size:
        note_fault(faults, run, LOG, "it is empty")
    return {name: [row[name] for row in numbers] for name in (numbers[0] if numbers else {})}


def last_logged_step(run: Path) -> int:
    """Return the last step in the log, 0 if there is none or the file is unreadable."""
    with suppress(OSError):
        return max(
            (int(row["step"]) for row in _read_rows(run / LOG)[0] if _STEP.fullmatch(row.get("step", ""))), default=0
        )
    return 0


def read_summary(run: Path, faults: list[str] | None = None) -> dict[str, Any]:
    """Return the summary of a complete run; empty without a file that holds one.

    faults: gets a sentence on a damaged file.
    """
    path = run / "summary.json"
    try:
        summary = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = type(summary).__name__
    except OSError as error:
        summary, found = None, str(error)
    except ValueError:
        summary, found = None, "what is no JSON"
    if isinstance(summary, dict):
        return summary
    note_fault(faults, run, path.name, f"it must hold a mapping, got {found}")
    return {}


def _read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """Return the rows of a CSV that have all fields of its header, and the number of the others."""
    if not path.is_file():
        return [], 0
    # A power cut leaves NUL bytes, which csv refuses on Python 3.10, and perhaps half a row before them.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        table = list(csv.reader(line for line in lines if "\0" not in line))
    except csv.Error:  # a field of more than 128 KiB
        return [], len(lines)
    header = table[0] if table else []
    rows = [dict(zip(header, row, strict=True)) for row in table[1:] if len(row) == len(header)]
    return rows, len(lines) - 1 - len(rows) if lines else 0


def _csv(rows: Iterable[Mapping[str, str]]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, FIELDS, restval="nan", extrasaction="ignore").writerows(rows)
    return out.getvalue()


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
