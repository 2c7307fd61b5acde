"""What a run keeps beside its weights so that it can be looked at later: its starts, and the first batch it saw.

``RUN/history.jsonl`` has a line for each time the run was started or resumed; ``RUN/seen.npz`` the patches of a few
photographs of the first step with the programs that made them. Written by ``qpt.pretraining.engine``, read by reports.
"""

from __future__ import annotations

import datetime
import json
import platform
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.errors import InputError
from qpt.files import write_aside
from qpt.pretraining.observe import whole_lines
from qpt.program import Program
from qpt.version import __version__

HISTORY, SEEN = "history.jsonl", "seen.npz"
SEEN_PHOTOGRAPHS = 6


def note_start(run: Path, step: int, device: torch.device) -> None:
    """Append to the history that the run goes on after ``step`` steps, now, with these versions on this device."""
    entry = {
        "step": step,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "qpt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
    path = run / HISTORY
    cut_short = path.is_file() and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("\n" * cut_short + json.dumps(entry) + "\n")


def read_history(run: Path) -> list[dict[str, Any]]:
    """The entries of ``note_start``, in order; none without a file. A line cut short by a crash is left out."""
    entries = []
    for line in whole_lines(run / HISTORY):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return entries


@dataclass(frozen=True)
class Seen:
    """Patches (n, P, s, s, 3) uint8 as the encoder got them, before normalisation.  photographs: (n,) int64, which
    photograph each row shows, counted from 0.  chains: the printed composition of each row."""

    patches: NDArray[np.uint8]
    photographs: NDArray[np.int64]
    chains: list[str]


def keep_seen(run: Path, patches: Tensor, images: Tensor, program: Program) -> None:
    """Keep the first SEEN_PHOTOGRAPHS photographs of a batch.

    patches: (r, P, 3, s, s) uint8; images: (r,) ids of photographs, equal ones adjacent; program: of r rows.
    """
    numbers = torch.unique_consecutive(images.cpu(), return_inverse=True)[1]
    rows = int((numbers < SEEN_PHOTOGRAPHS).sum())
    pixels = patches[:rows].cpu().permute(0, 1, 3, 4, 2).contiguous().numpy()
    chains = np.array([str(program[row]) for row in range(rows)])

    def write(aside: Path) -> None:
        with open(aside, "wb") as stream:  # given a name, NumPy would add its own extension
            np.savez_compressed(stream, patches=pixels, photographs=numbers[:rows].numpy(), chains=chains)

    write_aside(run / SEEN, write)


def read_seen(run: Path) -> Seen | None:
    """What ``keep_seen`` kept; None without a file. Raises InputError for a damaged one."""
    path = run / SEEN
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            seen = Seen(stored["patches"], stored["photographs"], stored["chains"].tolist())
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise InputError(f"records: {SEEN} of {run.name} must hold a batch's patches, got: {error}") from None
    if seen.patches.ndim != 5 or len(seen.patches) != len(seen.chains) or seen.patches.dtype != np.uint8:
        raise InputError(f"records: {SEEN} of {run.name} must hold patches (n, P, s, s, 3) uint8 with their chains")
    return seen
