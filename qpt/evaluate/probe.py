"""The probe: a measure of how well an encoder tells degradations apart, without opinion scores.

Images are degraded by every op at every level; a linear classifier then predicts the op and a linear regressor the
level, from statistics of the encoder's stages, and the distance between a degraded crop and the pristine one is
correlated with the level. Fitted on one set of images, measured on another. Called by ``qpt probe`` and the
demonstration; it reads images and a checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from qpt.data.crops import cut_crops
from qpt.data.listing import list_images
from qpt.data.sources import data_fingerprint
from qpt.degradations.op_table import DEGRADATIONS
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError, check_int
from qpt.evaluate.image_crops import read_images
from qpt.evaluate.metrics import rank_correlation
from qpt.evaluate.probe_set import ProbeSet, pooled_features, pristine_features, probe_set
from qpt.evaluate.protocol import choose_read_out
from qpt.evaluate.ridge import fit_ridge
from qpt.models import Encoder, load_encoder
from qpt.models.checkpoint_file import read_checkpoint
from qpt.models.encoder import untrained_encoder
from qpt.models.names import is_named
from qpt.runs.files import run_name

FORMAT = "qpt-probe-1"


@dataclass(frozen=True)
class ProbeResult:
    """The measures of one encoder.

    op_accuracy: share of held-out images whose op is predicted (chance: 1 / ops).  level_srcc: Spearman correlation of
    predicted and true level, mean over ops.  distance_srcc: the same of the level and the distance to the pristine
    crop.  level_srcc_per_op, distance_srcc_per_op: by op name. A correlation that is not defined is 0.
    """

    op_accuracy: float
    level_srcc: float
    distance_srcc: float
    level_srcc_per_op: dict[str, float]
    distance_srcc_per_op: dict[str, float]


def probe(
    encoder: Encoder, fit_on: ProbeSet, measure_on: ProbeSet, *, label: str = "", quiet: bool = True
) -> ProbeResult:
    """Fit linear probes on ``fit_on`` and measure them on ``measure_on``; the two must share no image.

    The level's ridge is the evaluation's: its penalty is chosen by cross-validation that keeps images together.
    Distances are Euclidean, between features standardised by the mean and deviation of those of ``fit_on``.
    """
    x_fit, x_measure = (
        pooled_features(encoder, data, label=f"{label}, {part}", quiet=quiet)
        for data, part in ((fit_on, "to fit on"), (measure_on, "to measure"))
    )
    scaler = StandardScaler().fit(x_fit)
    pristine = scaler.transform(pristine_features(encoder, measure_on))
    x_fit, x_measure = scaler.transform(x_fit), scaler.transform(x_measure)
    distances = np.linalg.norm(x_measure - pristine[measure_on.program.source.numpy()], axis=1)
    classifier = LogisticRegression(C=0.01, max_iter=1000).fit(x_fit, fit_on.ops)
    accuracy = float(np.mean(classifier.predict(x_measure) == measure_on.ops))
    level, distance = {}, {}
    for op in np.unique(fit_on.ops):
        fitted, measured = fit_on.ops == op, measure_on.ops == op
        x, levels = x_fit[fitted].astype(np.float64), fit_on.levels[fitted].astype(np.float64)
        penalty = choose_read_out({"features": x}, levels, fit_on.sources[fitted], seed=(0,)).penalty
        predicted = fit_ridge(x, levels, (penalty,)).predict(x_measure[measured].astype(np.float64))[0]
        name = DEGRADATIONS[op].name
        level[name] = rank_correlation(predicted, measure_on.levels[measured])
        distance[name] = rank_correlation(distances[measured], measure_on.levels[measured])
    means = [float(np.mean(list(per_op.values()))) for per_op in (level, distance)]
    return ProbeResult(accuracy, means[0], means[1], level, distance)


def probe_run(
    run: str | Path,
    data: str | Path,
    *,
    photographs: int = 30,
    crops: int = 2,
    size: int = 192,
    space: str = "qpt",
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Probe a run's encoder, and an untrained one of its architecture, on the images of a folder.

    data: images the run was not trained on; every third is measured on, the others are fitted on.  photographs: the
    most that are used, evenly spaced, >= 3.  crops: of each image, at native resolution.  size: side of a crop, px, >=
    32; smaller images are left out.  space: a preset's name or a YAML file.  quiet: no progress bars.
    Returns plain data: settings, counts, ``trained`` and ``untrained`` (the fields of ProbeResult), and whether
    ``data`` is the very folder that the run was trained on. Raises InputError for what ``load_encoder`` or
    ``list_images`` refuse, arguments out of range, or fewer than 3 usable images.
    """
    photographs, crops = check_int("probe", "photographs", photographs, 3), check_int("probe", "crops", crops, 1)
    size, seed = check_int("probe", "size", size, 32), check_int("probe", "seed", seed, 0)
    checkpoint, encoder = {} if is_named(run) else read_checkpoint(run), load_encoder(run)
    degradations = DegradationSpace.named(space)
    files = list_images(data)
    images, left_out = read_images(files, size, most=photographs, quiet=quiet)
    if len(images) < 3:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(left_out.items())[:10])
        raise InputError(
            f"probe: data must hold at least 3 readable photographs of {size} px or more, got {len(images)}{reasons}"
        )
    parts = {"fit": [image for i, image in enumerate(images) if i % 3], "measure": images[::3]}
    sets = []
    for part in parts.values():
        cut = torch.from_numpy(cut_crops(part, crops * len(part), size=size, seed=seed))
        sets.append(probe_set(cut, np.arange(len(cut)) % len(part), degradations, seed + 1))
    arch, width = encoder.arch, encoder.width
    encoders = {"trained": encoder, "untrained": untrained_encoder(arch, width, seed)}
    return {
        "format": FORMAT,
        "run": run_name(run),
        "data": Path(data).resolve().name,
        "arch": arch,
        "width": width,
        "steps": checkpoint.get("step"),
        "space": space,
        "op_table": sets[0].program.table,
        "ops": len(degradations.names),
        "chance": 1 / len(degradations.names),
        "photographs": {name: len(part) for name, part in parts.items()},
        "left_out": left_out,
        "crops_per_photograph": crops,
        "crop_px": size,
        "seed": seed,
        "held_out_images": len(sets[1].program),
        "trained_on_this_folder": checkpoint.get("data_fingerprint") == data_fingerprint(Path(data), files),
        **{name: asdict(probe(net, *sets, label=name, quiet=quiet)) for name, net in encoders.items()},
    }
