"""``RUN/history.jsonl``: one line for each time the run was started or resumed.

Written by ``qpt.pretraining.engine``, read by reports.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from qpt.io import parse_json, whole_lines
from qpt.runs.files import note_unread_lines
from qpt.version import __version__

HISTORY = "history.jsonl"


def note_start(run: Path, step: int, device: torch.device, data: str = "") -> None:
    """Append an entry: the run continues now after ``step`` steps on the images in ``data``, with these versions on
    this device."""
    entry = {
        "step": step,
        "data": data if not data or "://" in data else os.path.abspath(data),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "qpt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
    path = run / HISTORY
    # A crash may have cut the last line short: the new entry must not become its end.
    cut_short = path.is_file() and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("\n" * cut_short + json.dumps(entry) + "\n")


def read_history(run: Path, faults: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the entries in order; none without a file. A line cut short by a crash is left out.

    faults: gets a sentence on lines that are no entries.
    """
    entries, lines = [], whole_lines(run / HISTORY)
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    note_unread_lines(faults, run, HISTORY, lines, len(entries))
    return entries
