"""Does an encoder see degradations? Linear probes that need no opinion scores.

Photographs are degraded by every op at every level; a linear classifier then names the op and a linear regressor the
level, from statistics of the encoder's stages. Fitted on one set of photographs, measured on another. Called by
``qpt.demo``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from qpt.degradations import DEGRADATIONS
from qpt.evaluate.features import prepare
from qpt.evaluate.protocol import choose
from qpt.evaluate.ridge import fit_ridge
from qpt.models import ResNet
from qpt.ops.degrade import degrade_patches
from qpt.program import Program
from qpt.space import DegradationSpace

BATCH = 64


@dataclass(frozen=True)
class ProbeSet:
    """Crops (n, S, S, 3) uint8 under every op and level, rows ordered by (crop, op, level).

    sources: (rows,) int64, which photograph each row was cut from.
    """

    photographs: Tensor
    sources: NDArray[np.int64]
    program: Program
    ops: NDArray[np.int16]
    levels: NDArray[np.int8]


@dataclass(frozen=True)
class ProbeResult:
    """op_accuracy: share of held-out images whose op is named rightly (chance: 1 / ops).  level_srcc: Spearman
    correlation of predicted and true level, mean over ops.  level_srcc_per_op: the same, by op name."""

    op_accuracy: float
    level_srcc: float
    level_srcc_per_op: dict[str, float]


def probe_set(photographs: Tensor, sources: NDArray[np.int64], space: DegradationSpace, seed: int) -> ProbeSet:
    """Every crop (n, S, S, 3) under each single op of ``space`` at each level; sources (n,): its photograph."""
    program = space.every_level(len(photographs), seed=seed)
    of_row = sources[program.source.numpy()]
    return ProbeSet(photographs, of_row, program, program.ops[:, 0].numpy(), program.levels[:, 0].numpy())


@torch.no_grad()
def pooled_features(encoder: ResNet, data: ProbeSet) -> NDArray[np.float32]:
    """(rows, 2 · sum(stage_dims)) float32: mean and standard deviation over positions of each stage, in eval mode."""
    encoder = prepare(encoder)
    size = data.photographs.shape[1]
    out = []
    for start in range(0, len(data.program), BATCH):
        part = data.program.select(range(start, min(start + BATCH, len(data.program))))
        boxes = torch.zeros(len(part), 1, 2, dtype=torch.int32)
        maps = encoder.stages(degrade_patches(data.photographs, part, boxes, size)[:, 0])
        moments = [moment for stage in maps for moment in (stage.mean((2, 3)), stage.std((2, 3), correction=0))]
        out.append(torch.cat(moments, dim=1))
    return torch.cat(out).numpy()


def probe(encoder: ResNet, fit_on: ProbeSet, measure_on: ProbeSet) -> ProbeResult:
    """Fit linear probes on ``fit_on`` and measure them on ``measure_on``; the two must share no photograph.

    The level's ridge is the evaluation's: its penalty is chosen by cross-validation that keeps photographs together.
    """
    known, asked = pooled_features(encoder, fit_on), pooled_features(encoder, measure_on)
    scaler = StandardScaler().fit(known)
    known, asked = scaler.transform(known), scaler.transform(asked)
    classifier = LogisticRegression(C=0.01, max_iter=1000).fit(known, fit_on.ops)
    accuracy = float(np.mean(classifier.predict(asked) == measure_on.ops))
    per_op = {}
    for op in np.unique(fit_on.ops):
        mine, theirs = fit_on.ops == op, measure_on.ops == op
        features, levels = known[mine].astype(np.float64), fit_on.levels[mine].astype(np.float64)
        choice = choose({"features": features}, levels, fit_on.sources[mine], seed=(0,))
        predicted = fit_ridge(features, levels, (choice.penalty,)).predict(asked[theirs].astype(np.float64))[0]
        per_op[DEGRADATIONS[op].name] = float(spearmanr(predicted, measure_on.levels[theirs]).statistic)
    return ProbeResult(accuracy, float(np.mean(list(per_op.values()))), per_op)
