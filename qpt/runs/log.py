"""Readers of ``RUN/log.csv`` and ``RUN/summary.json``, which ``qpt.pretraining`` writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from qpt.errors import InputError


def read_log(run: Path) -> dict[str, list[float]]:
    """The columns of a run's ``log.csv``; none without a file or without rows. Raises InputError for a damaged one."""
    if not (run / "log.csv").is_file():
        return {}
    with open(run / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    except (TypeError, ValueError) as error:
        raise InputError(f"run: log.csv of {run.name} must hold numbers in every field, got: {error}") from None


def read_summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"run: summary.json of {run.name} must hold JSON, got: {error}") from None
    if not isinstance(summary, dict):
        raise InputError(f"run: summary.json of {run.name} must hold a mapping, got {type(summary).__name__}")
    return summary
