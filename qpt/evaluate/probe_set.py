"""Crops under every op at every level, and the features of an encoder for them.

Called by the probe, the demonstration and reports. It degrades in memory and touches no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.evaluate.features import prepare
from qpt.evaluate.progress import progress
from qpt.models import Encoder
from qpt.ops.degrade.api import degrade_patches

BATCH = 64


@dataclass(frozen=True)
class ProbeSet:
    """Crops (n, S, S, 3) uint8 and a program that degrades each by every op at every level.

    Rows are ordered by (crop, op, level); ``program.source`` is the crop of each. sources: (rows,) int64, the image
    each row was cut from.  ops, levels: (rows,).
    """

    crops: Tensor
    sources: NDArray[np.int64]
    program: Program
    ops: NDArray[np.int16]
    levels: NDArray[np.int8]


def probe_set(crops: Tensor, sources: NDArray[np.int64], space: DegradationSpace, seed: int) -> ProbeSet:
    """Apply each op of ``space`` at each level to every crop. crops: (n, S, S, 3).  sources: (n,) their images."""
    program = space.every_level(len(crops), seed=seed)
    of_row = sources[program.source.numpy()]
    return ProbeSet(crops, of_row, program, program.ops[:, 0].numpy(), program.levels[:, 0].numpy())


def pooled_features(encoder: Encoder, data: ProbeSet, *, label: str = "", quiet: bool = True) -> NDArray[np.float32]:
    """Compute mean and standard deviation over positions of each stage: (rows, 2 · sum(stage_dims)) float32.

    label: of the progress bar, which ``quiet`` leaves out.
    """
    return _features(encoder, data.crops, data.program, label, quiet)


def pristine_features(encoder: Encoder, data: ProbeSet) -> NDArray[np.float32]:
    """Compute the same statistics of the crops as they are: (crops, 2 · sum(stage_dims)) float32."""
    n = len(data.crops)
    return _features(encoder, data.crops, Program.from_chains([[]] * n, seeds=[0] * n, source=range(n)), "", True)


@torch.no_grad()
def _features(encoder: Encoder, crops: Tensor, program: Program, label: str, quiet: bool) -> NDArray[np.float32]:
    encoder = prepare(encoder)
    rows = []
    for patches in degraded_batches(crops, program, BATCH, label=label, quiet=quiet):
        maps = encoder.stages(patches)
        moments = [moment for stage in maps for moment in (stage.mean((2, 3)), stage.std((2, 3), correction=0))]
        rows.append(torch.cat(moments, dim=1))
    return torch.cat(rows).numpy()


def degraded_batches(
    crops: Tensor, program: Program, batch: int, *, label: str = "", quiet: bool = True
) -> Iterator[Tensor]:
    """Yield the program's rows of whole crops, normalised: (at most ``batch``, 3, S, S) float32."""
    for start in progress(range(0, len(program), batch), label, quiet):
        part = program[start : start + batch]
        corners = torch.zeros(len(part), 1, 2, dtype=torch.int32, device="cpu")
        yield degrade_patches(crops, part, corners, crops.shape[1])[:, 0]
