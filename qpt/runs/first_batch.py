"""``RUN/seen.npz``: the patches of a few images of the first step, with the compositions that made them.

Written by ``qpt.pretraining.engine``, read by reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.data.arrays import read_npz
from qpt.degradations.program import Program
from qpt.errors import InputError
from qpt.io import shown, write_whole

FIRST_BATCH = "seen.npz"
FIRST_BATCH_IMAGES = 6


@dataclass(frozen=True)
class FirstBatch:
    """Patches (n, P, s, s, 3) uint8 as the encoder got them, before normalisation.

    image_numbers: (n,) int64, which image each row shows, counted from 0.  chains: printed composition of each row.
    """

    patches: NDArray[np.uint8]
    image_numbers: NDArray[np.int64]
    chains: list[str]


def save_first_batch(run: Path, patches: Tensor, images: Tensor, program: Program) -> None:
    """Save the rows of the first FIRST_BATCH_IMAGES images of a batch.

    patches: (r, P, 3, s, s) uint8; images: (r,) ids of images, equal ones adjacent; program: of r rows.
    """
    numbers = torch.unique_consecutive(images.cpu(), return_inverse=True)[1]
    rows = int((numbers < FIRST_BATCH_IMAGES).sum())
    pixels = patches[:rows].cpu().permute(0, 1, 3, 4, 2).contiguous().numpy()
    chains = np.array([str(program[row]) for row in range(rows)])

    def write(unfinished: Path) -> None:
        with open(unfinished, "wb") as stream:  # given a name, NumPy would add its own extension
            np.savez_compressed(stream, patches=pixels, photographs=numbers[:rows].numpy(), chains=chains)

    write_whole(run / FIRST_BATCH, write)


def read_first_batch(run: Path) -> FirstBatch | None:
    """Return what ``save_first_batch`` saved, None without a file. Raises InputError for a damaged one."""
    path = run / FIRST_BATCH
    if not path.is_file():
        return None
    try:
        stored = read_npz(path, ["patches", "photographs", "chains"])
    except (OSError, ValueError) as error:
        file = f"{FIRST_BATCH} of {shown(run.name)}"
        raise InputError(f"run: {file} must hold a batch's patches, got a damaged file ({error})") from None
    dtypes = "".join(array.dtype.kind for array in stored.values())
    shapes = [array.shape for array in stored.values()]
    fits = list(map(len, shapes)) == [5, 1, 1] and len({shape[0] for shape in shapes}) == 1 and shapes[0][-1] == 3
    if dtypes != "uiU" or stored["patches"].dtype != np.uint8 or not fits:
        file = f"{FIRST_BATCH} of {shown(run.name)}"
        raise InputError(f"run: {file} must hold patches (n, P, s, s, 3) uint8 with their chains")
    return FirstBatch(stored["patches"], stored["photographs"], stored["chains"].tolist())
