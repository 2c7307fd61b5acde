"""The sections of a report about degraded images: severity curves and the map of patches.

Called by ``qpt.report.build``; it reads images and degrades crops of them. Every op of the default space acts at each
level on a few images; the curves show the change of a score, or of the distance to the pristine image, with the level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from qpt.data.crops import cut_crops
from qpt.data.listing import list_images
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.image_crops import MIN_SIDE, read_images
from qpt.evaluate.probe_set import ProbeSet, pooled_features, pristine_features, probe_set
from qpt.evaluate.progress import progress
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import ScoreTable
from qpt.io import shown
from qpt.models import Encoder
from qpt.ops.degrade.api import degrade
from qpt.report import figures
from qpt.report.measurements import Severity, distance_severity, embedding_map, score_severity
from qpt.report.page import Picture, Section

IMAGES = 8
CROP_PX = 224
_TITLE, _MAP_TITLE = "Score and severity", "Map of degraded patches"


@dataclass(frozen=True)
class Degraded:
    """Crops of images under every op and level. origin: of the images, in words."""

    data: ProbeSet
    origin: str


def given_images(folder: str | Path | None, table: ScoreTable | None, most: int) -> tuple[list[Path], str] | None:
    """Return the images of ``folder``, else the ``most`` best rated of the table, one of each group, and their origin.

    None without a folder and a table.
    """
    if folder is not None:
        return list_images(folder, most=most), f"photographs of {shown(Path(folder).resolve().name)}"
    if table is None:
        return None
    best = np.argsort(-table.mos, kind="stable")
    _, first = np.unique(table.groups[best], return_index=True)
    return [table.paths[row] for row in best[np.sort(first)][:most]], f"of the best rated photographs of {table.name}"


def degrade_images(folder: str | Path | None, table: ScoreTable | None, *, seed: int, quiet: bool) -> Degraded | str:
    """Cut one crop of each of up to IMAGES images of ``given_images``, to be degraded; without any, return the reason.

    Raises InputError for a folder without a usable image.
    """
    given = given_images(folder, table, IMAGES)
    if given is None:
        return "Not shown: it needs photographs to degrade; none were given (--photographs or --csv)."
    files, origin = given
    found, left_out = read_images(files, MIN_SIDE, most=IMAGES, quiet=quiet)
    pixels = list(found.values())
    if not pixels:
        raise InputError(f"report: photographs must hold a usable photograph, got none: {left_out}")
    size = min(CROP_PX, *(min(p.shape[:2]) for p in pixels))
    crops = torch.from_numpy(cut_crops(pixels, len(pixels), size=size, seed=seed))
    data = probe_set(crops, np.arange(len(pixels)), DegradationSpace.preset("qpt"), seed)
    return Degraded(data, f"{len(pixels)} {origin}, {size} × {size} px of each")


def degraded_sections(
    encoders: Mapping[str, Encoder],
    scorers: Mapping[str, Scorer],
    degraded: Degraded | str,
    *,
    seed: int,
    quiet: bool,
) -> list[Section]:
    """Return curves of each op, a table of them, and last the map of the degraded patches.

    The curves are of scores where every run has a scorer, else of distances.
    """
    if isinstance(degraded, str):
        return [Section(_TITLE, degraded), Section(_MAP_TITLE, degraded)]
    data = degraded.data
    features = {
        name: pooled_features(encoder, data, label=f"degraded patches, {name}", quiet=quiet).astype(np.float64)
        for name, encoder in encoders.items()
    }
    scored = set(scorers) == set(encoders)
    curves: dict[str, Severity] = {}
    if scored:
        degraded_crops = list(degrade(data.crops, data.program).numpy())
        for name, scorer in scorers.items():
            rows = progress(degraded_crops, f"scores under degradation, {name}", quiet)
            curves[name] = score_severity(scorer, rows, data)
    else:
        for name, encoder in encoders.items():
            scaler = StandardScaler().fit(features[name])
            pristine = scaler.transform(pristine_features(encoder, data).astype(np.float64))
            curves[name] = distance_severity(scaler.transform(features[name]), pristine, data)
    return [*_curve_sections(curves, degraded, scored), _map_section(features, degraded, seed)]


def _curve_sections(curves: Mapping[str, Severity], degraded: Degraded, scored: bool) -> list[Section]:
    values = np.concatenate([change.ravel() for curve in curves.values() for change in curve.changes.values()])
    low, high = np.quantile(values, (0.002, 0.998))  # one outlier must not flatten every other plot
    limits = (float(low - 0.05 * (high - low)), float(high + 0.05 * (high - low)))
    ops = list(next(iter(curves.values())).changes)
    pictures = [Picture(figures.severity_curve(op, curves, limits)) for op in ops]
    rows = [[op, *(cell for curve in curves.values() for cell in _cells(curve, op))] for op in ops]
    quantity = "mean SRCC with level"
    step = "falls at every level" if scored else "rises at every level"
    header = ["op", *(f"{name}: {what}" for name in curves for what in (quantity, step))]
    return [
        Section(_TITLE, _severity_text(degraded, curves, scored), pictures=pictures, size="small"),
        Section("Each op", header=header, rows=rows, part=True),
    ]


def _cells(curve: Severity, op: str) -> tuple[str, str]:
    return f"{curve.correlation(op):.3f}", "yes" if curve.monotone(op) else "no"


def _severity_text(degraded: Degraded, curves: Mapping[str, Severity], scored: bool) -> str:
    what = (
        "the score, minus that of the pristine picture,"
        if scored
        else "the distance to the pristine picture's features"
    )
    way = "falls" if scored else "rises"
    counts = ", ".join(
        f"{sum(curve.monotone(op) for op in curve.changes)} of {len(curve.changes)} ops"
        + (f" ({name})" if len(curves) > 1 else "")
        for name, curve in curves.items()
    )
    source = (
        "The scorer was fitted on all scored images; the degraded pictures are new to it, their originals may not be."
        if scored
        else "No scorer is at hand, so this is Euclidean distance between standardised features."
    )
    return (
        f"How {what} changes with the level of an op, 0 (pristine) to 5: {degraded.origin} (thin lines), and their "
        f"mean (thick). The mean {way} at every one of the five levels for {counts}. {source}"
    )


def _map_section(features: Mapping[str, NDArray[np.float64]], degraded: Degraded, seed: int) -> Section:
    ops, levels = degraded.data.ops.astype(np.int64), degraded.data.levels.astype(np.int64)
    pictures, method = [], ""
    for name, values in features.items():
        cloud = embedding_map(values, seed)
        method, kept = cloud.method, cloud.kept
        by_op = figures.map_by_op(cloud, ops[kept], levels[kept])
        pictures.append(Picture(by_op, f"{name}: hue by family, shade by op, larger for a higher level"))
        pictures.append(Picture(figures.map_by_level(cloud, levels[kept]), f"{name}: by level"))
    text = f"{method} of the statistics of the encoder's stages: {degraded.origin}, each under every op at every level."
    return Section(_MAP_TITLE, text, pictures=pictures, size="medium")
