"""Does an encoder see degradations? Checks that need no opinion scores.

Photographs are degraded by every op at every level; a linear classifier then names the op and a linear regressor the
level, from statistics of the encoder's stages, and the distance between a degraded crop and the pristine one should
grow with the level. Fitted on one set of photographs, measured on another. Called by ``qpt probe``, the demonstration
and reports. Relies on ``qpt.degrade`` for the pixels and on scikit-learn and the evaluation's ridge for the probes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from qpt.data.crops import cut_crops
from qpt.data.images import UNREADABLE, list_images, load_rgb
from qpt.data.sources import data_fingerprint
from qpt.degradations.op_table import DEGRADATIONS
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.features import prepare
from qpt.evaluate.protocol import choose
from qpt.evaluate.ridge import fit_ridge
from qpt.models import ResNet, load_encoder
from qpt.models.encoder import read_checkpoint, untrained_encoder
from qpt.ops.degrade.api import degrade_patches
from qpt.runs.files import run_name

BATCH = 64
T = TypeVar("T")
FORMAT = "qpt-probe-1"


@dataclass(frozen=True)
class ProbeSet:
    """Crops (n, S, S, 3) uint8 under every op and level, rows ordered by (crop, op, level).

    sources: (rows,) int64, which photograph each row was cut from.  program.source: which crop.
    """

    photographs: Tensor
    sources: NDArray[np.int64]
    program: Program
    ops: NDArray[np.int16]
    levels: NDArray[np.int8]


@dataclass(frozen=True)
class ProbeResult:
    """op_accuracy: share of held-out images whose op is named rightly (chance: 1 / ops).  level_srcc: Spearman
    correlation of predicted and true level, mean over ops.  distance_srcc: the same of the level and the distance to
    the pristine crop.  level_srcc_per_op, distance_srcc_per_op: by op name. A correlation that is not defined
    (constant predictions) is 0: it orders nothing."""

    op_accuracy: float
    level_srcc: float
    distance_srcc: float
    level_srcc_per_op: dict[str, float]
    distance_srcc_per_op: dict[str, float]


def probe_set(photographs: Tensor, sources: NDArray[np.int64], space: DegradationSpace, seed: int) -> ProbeSet:
    """Every crop (n, S, S, 3) under each single op of ``space`` at each level; sources (n,): its photograph."""
    program = space.every_level(len(photographs), seed=seed)
    of_row = sources[program.source.numpy()]
    return ProbeSet(photographs, of_row, program, program.ops[:, 0].numpy(), program.levels[:, 0].numpy())


def pooled_features(encoder: ResNet, data: ProbeSet, *, label: str = "", quiet: bool = True) -> NDArray[np.float32]:
    """(rows, 2 · sum(stage_dims)) float32: mean and standard deviation over positions of each stage, in eval mode.

    label: of the progress bar, which ``quiet`` leaves out.
    """
    return _features(encoder, data.photographs, data.program, label, quiet)


def pristine_features(encoder: ResNet, data: ProbeSet) -> NDArray[np.float32]:
    """(crops, 2 · sum(stage_dims)) float32: the same statistics of the crops as they are."""
    n = len(data.photographs)
    pristine = Program.from_chains([[]] * n, seeds=[0] * n, source=range(n))
    return _features(encoder, data.photographs, pristine, "", True)


def _features(encoder: ResNet, photographs: Tensor, program: Program, label: str, quiet: bool) -> NDArray[np.float32]:
    size = photographs.shape[1]

    def batches() -> Iterator[Tensor]:
        for start in progress(range(0, len(program), BATCH), label, quiet):
            part = program[start : start + BATCH]
            yield degrade_patches(photographs, part, _corners(len(part)), size)[:, 0]

    return _statistics(encoder, batches())


def progress(items: Sequence[T], label: str, quiet: bool) -> Iterable[T]:
    """The items, under a progress bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    return track(items, label, disable=quiet or not console.is_terminal, console=console, transient=True)


def _corners(rows: int) -> Tensor:
    return torch.zeros(rows, 1, 2, dtype=torch.int32)


@torch.no_grad()
def _statistics(encoder: ResNet, batches: Iterator[Tensor]) -> NDArray[np.float32]:
    encoder = prepare(encoder)
    out = []
    for patches in batches:
        maps = encoder.stages(patches)
        moments = [moment for stage in maps for moment in (stage.mean((2, 3)), stage.std((2, 3), correction=0))]
        out.append(torch.cat(moments, dim=1))
    return torch.cat(out).numpy()


def probe(
    encoder: ResNet, fit_on: ProbeSet, measure_on: ProbeSet, *, label: str = "", quiet: bool = True
) -> ProbeResult:
    """Fit linear probes on ``fit_on`` and measure them on ``measure_on``; the two must share no photograph.

    The level's ridge is the evaluation's: its penalty is chosen by cross-validation that keeps photographs together.
    Distances are Euclidean, between features standardised by the mean and deviation of those of ``fit_on``.
    """
    known, asked = (
        pooled_features(encoder, data, label=f"{label}, {part}", quiet=quiet)
        for data, part in ((fit_on, "to fit on"), (measure_on, "to measure"))
    )
    scaler = StandardScaler().fit(known)
    pristine = scaler.transform(pristine_features(encoder, measure_on))
    known, asked = scaler.transform(known), scaler.transform(asked)
    distances = np.linalg.norm(asked - pristine[measure_on.program.source.numpy()], axis=1)
    classifier = LogisticRegression(C=0.01, max_iter=1000).fit(known, fit_on.ops)
    accuracy = float(np.mean(classifier.predict(asked) == measure_on.ops))
    level, distance = {}, {}
    for op in np.unique(fit_on.ops):
        mine, theirs = fit_on.ops == op, measure_on.ops == op
        features, levels = known[mine].astype(np.float64), fit_on.levels[mine].astype(np.float64)
        choice = choose({"features": features}, levels, fit_on.sources[mine], seed=(0,))
        predicted = fit_ridge(features, levels, (choice.penalty,)).predict(asked[theirs].astype(np.float64))[0]
        name = DEGRADATIONS[op].name
        level[name] = rank_correlation(predicted, measure_on.levels[theirs])
        distance[name] = rank_correlation(distances[theirs], measure_on.levels[theirs])
    means = [float(np.mean(list(per_op.values()))) for per_op in (level, distance)]
    return ProbeResult(accuracy, means[0], means[1], level, distance)


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's correlation of two (n,) arrays; 0 where one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def read_photographs(
    files: Sequence[Path], size: int, *, most: int, quiet: bool = False
) -> tuple[list[NDArray[np.uint8]], dict[str, str]]:
    """At most ``most`` photographs, evenly spaced in ``files``, both sides >= size px, and why others were left out.

    Returns the pixels, (H, W, 3) uint8 each, in the order of ``files``, and file name -> reason.
    """
    chosen = files if len(files) <= most else [files[i * len(files) // most] for i in range(most)]
    found, left_out = [], {}
    for path in progress(chosen, "reading photographs", quiet):
        try:
            pixels = load_rgb(path)
        except UNREADABLE as error:
            left_out[path.name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        height, width = pixels.shape[:2]
        if min(height, width) < size:
            left_out[path.name] = f"both sides must be at least {size} px, got {width}x{height}"
            continue
        found.append(pixels)
    return found, left_out


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
    """Probe a run's encoder, and an untrained one of its architecture, on the photographs of a folder.

    data: photographs the run was not trained on; every third is measured on, the others are fitted on.  photographs:
    the most that are used, evenly spaced, >= 3.  crops: of each photograph, at native resolution.  size: side of a
    crop, px, >= 32; smaller photographs are left out.  space: a preset's name or a YAML file.  quiet: no progress bars.
    Returns plain data: settings, counts, ``trained`` and ``untrained`` (the fields of ProbeResult), and whether
    ``data`` is the very folder that the run was trained on. Raises InputError for what ``load_encoder`` or
    ``list_images`` refuse, arguments out of range, or fewer than 3 usable photographs.
    """
    for name, value, low in (
        ("photographs", photographs, 3),
        ("crops", crops, 1),
        ("size", size, 32),
        ("seed", seed, 0),
    ):
        if value < low:
            raise InputError(f"probe: {name} must be >= {low}, got {value}")
    checkpoint, encoder = read_checkpoint(run), load_encoder(run)
    degradations = DegradationSpace.named(space)
    files = list_images(data)
    pixels, left_out = read_photographs(files, size, most=photographs, quiet=quiet)
    if len(pixels) < 3:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(left_out.items())[:10])
        raise InputError(
            f"probe: data must hold at least 3 readable photographs of {size} px or more, got {len(pixels)}{reasons}"
        )
    parts = {"fit": [p for i, p in enumerate(pixels) if i % 3], "measure": pixels[::3]}
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
