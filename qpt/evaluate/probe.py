"""The probe: a measure of how well an encoder tells degradations apart, without opinion scores.

Images are degraded by every op at every level; a linear classifier then predicts the op and a linear regressor the
level, from statistics of the encoder's stages, and the distance between a degraded crop and the pristine one is
correlated with the level. Fitted on one set of images, measured on another. Where clean images are given, the distance
of images to them is measured too, and compared with scores if there are any. Called by ``qpt probe`` and the
demonstration; it reads images and a checkpoint, and keeps the features of scored images in the cache of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from qpt.data.crops import cut_crops
from qpt.data.listing import images_root, list_images
from qpt.data.sources import data_fingerprint
from qpt.degradations.op_table import DEGRADATIONS
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError, check_int
from qpt.evaluate.clean_distance import clean_reference
from qpt.evaluate.features import FeatureProtocol, extract, feature_cache, image_features, images_key
from qpt.evaluate.image_crops import read_images
from qpt.evaluate.metrics import rank_correlation
from qpt.evaluate.probe_set import ProbeSet, pooled_features, pristine_features, probe_set
from qpt.evaluate.protocol import choose_read_out
from qpt.evaluate.ridge import fit_ridge
from qpt.evaluate.table import ScoreTable
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
    photograph_count: int = 30,
    crops: int = 2,
    crop_px: int = 192,
    space: str = "qpt",
    seed: int = 0,
    clean: str | Path | None = None,
    clean_shrinkage: float = 1.0,
    scores: ScoreTable | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Probe a run's encoder, and an untrained one of its architecture, on the images of a folder.

    data: images the run was not trained on; every third is measured on, the others are fitted on.
    photograph_count: the most that are used, evenly spaced, >= 3.  crops: of each image, at native resolution.
    crop_px: side of a crop, >= 32; smaller images are left out.  space: a preset's name or a YAML file.  clean: a
    folder of at least 10 clean images, to which the distance of others is measured: of those of ``scores``, or of
    ``data`` without scores.  clean_shrinkage: of the correlations of clean features (``CleanReference.fit``).  quiet:
    no progress bars.
    Returns plain data: settings, counts, ``trained`` and ``untrained`` (the fields of ProbeResult), whether ``data`` is
    the very folder that the run was trained on and, with ``clean``, ``clean_distance`` (see ``_clean_distance``).
    Raises InputError for what ``load_encoder``, ``list_images`` or ``clean_reference`` refuse, arguments out of range,
    fewer than 3 usable images, or scores without clean images.
    """
    if scores is not None and clean is None:
        raise InputError("probe: clean must be a folder of clean photographs where scores are given, got none")
    most, crops = check_int("probe", "photograph_count", photograph_count, 3), check_int("probe", "crops", crops, 1)
    size, seed = check_int("probe", "crop_px", crop_px, 32), check_int("probe", "seed", seed, 0)
    checkpoint, encoder = {} if is_named(run) else read_checkpoint(run), load_encoder(run)
    degradations = DegradationSpace.named(space)
    files = list_images(data)
    found, left_out = read_images(files, size, most=most, quiet=quiet)
    images = list(found.values())
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
    trained_on = checkpoint.get("data_fingerprint")
    of_clean: dict[str, Any] = {}
    if clean is not None:  # first, since a bad argument of it shows at once
        cache = feature_cache(run)
        measured = {
            name: _clean_distance(net, clean, clean_shrinkage, images, scores, cache, name, quiet)
            for name, net in encoders.items()
        }
        of_clean["clean_distance"] = {
            "clean": Path(clean).resolve().name,
            "trained_on_clean": trained_on == data_fingerprint(images_root(clean), list_images(clean)),
            "shrinkage": float(clean_shrinkage),
            "scores": None if scores is None else scores.name,
            **measured,
        }
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
        "trained_on_this_folder": trained_on == data_fingerprint(images_root(data), files),
        **{name: asdict(probe(net, *sets, label=name, quiet=quiet)) for name, net in encoders.items()},
        **of_clean,
    }


def _clean_distance(
    encoder: Encoder,
    clean: str | Path,
    shrinkage: float,
    images: Sequence[NDArray[np.uint8]],
    scores: ScoreTable | None,
    cache: Path,
    label: str,
    quiet: bool,
) -> dict[str, Any]:
    """Measure the distance of the images of ``scores``, or else of ``images``, to clean ones with one encoder.

    Returns clean_images and images (counts), median (of the distances of the images), and srcc, Spearman's correlation
    of the negative distance with the scores; None without scores.
    """
    protocol = FeatureProtocol()
    name = f"{label}, clean photographs"
    reference = clean_reference(encoder, clean, protocol=protocol, shrinkage=shrinkage, label=name, quiet=quiet)
    if scores is None:
        features = np.stack([image_features(encoder, pixels, protocol) for pixels in images])
    else:
        name, key = f"{label}, photographs with scores", images_key(scores)
        features = extract(
            encoder, scores.paths, protocol=protocol, label=name, cache=cache, images_key=key, quiet=quiet
        )
    distances = reference.distances(features)
    return {
        "clean_images": reference.images,
        "images": len(distances),
        "median": float(np.median(distances)),
        "srcc": None if scores is None else rank_correlation(-distances, scores.mos),
    }
