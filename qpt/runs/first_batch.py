"""What a run keeps beside its weights so that it can be looked at later: its starts, and the first batch it saw.

``RUN/history.jsonl`` has a line for each time the run was started or resumed; ``RUN/seen.npz`` the patches of a few
photographs of the first step with the programs that made them. Written by ``qpt.pretraining.engine``, read by reports.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.degradations.program import Program
from qpt.errors import InputError
from qpt.io import write_whole

SEEN = "seen.npz"
SEEN_PHOTOGRAPHS = 6


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

    write_whole(run / SEEN, write)


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
