"""The values behind a report: out-of-fold predictions, severity curves, embedding maps.

Called by ``qpt.report.build`` and ``severity``; ``figures`` draws what is computed here. It touches nothing but its
arguments, and everything derives from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from qpt.degradations.op_table import DEGRADATIONS
from qpt.evaluate.metrics import rank_correlation
from qpt.evaluate.probe_set import ProbeSet
from qpt.evaluate.protocol import choose_read_out, inner_folds
from qpt.evaluate.ridge import fit_ridge
from qpt.evaluate.summary import MIN_OF_KIND

Array = NDArray[np.float64]

TSNE_LEAST = 50  # points; with fewer, neighbourhoods mean little and two principal components show more
MAP_MOST = 3000  # points of a map: t-SNE of more takes minutes and shows no more


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions.

    predictions: (n,), each by a regressor fitted without any image of that image's group.  folds: name of the folds.
    """

    predictions: Array
    folds: str


def out_of_fold(features: Mapping[str, Array], mos: Array, groups: NDArray[np.int64], seed: int) -> OutOfFold:
    """Predict every image once, by the evaluation's protocol.

    The read-out and penalty of a fold are chosen by cross-validation inside the other folds, its ridge is fitted on
    them, and folds keep groups together. features: read-out -> (n, d) of all images.  mos, groups: (n,).
    """
    folds, name = inner_folds(groups, (seed,))
    predictions = np.empty(len(mos))
    for number, (fitted, held) in enumerate(folds):
        inside = {read_out: x[fitted] for read_out, x in features.items()}
        chosen = choose_read_out(inside, mos[fitted], groups[fitted], (seed, number))
        ridge = fit_ridge(inside[chosen.read_out], mos[fitted], (chosen.penalty,))
        predictions[held] = ridge.predict(features[chosen.read_out][held])[0]
    return OutOfFold(predictions, name)


def srcc_by_kind(predictions: Array, mos: Array, kinds: tuple[str, ...]) -> tuple[dict[str, float], dict[str, int]]:
    """Return SRCC within each distortion type of at least MIN_OF_KIND images and its number of images, by name."""
    labels = np.array(kinds)
    counts = {str(kind): int((labels == kind).sum()) for kind in np.unique(labels)}
    counts = {kind: count for kind, count in counts.items() if count >= MIN_OF_KIND}
    return {kind: rank_correlation(predictions[labels == kind], mos[labels == kind]) for kind in counts}, counts


@dataclass(frozen=True)
class Severity:
    """The change of a value with the level of each op.

    changes: op name -> (images, 6): value at level 0 (pristine, so 0) to 5, minus that of the pristine image.
    falls: whether it should fall with the level (a score) or rise (a distance).
    """

    changes: dict[str, Array]
    falls: bool

    def correlation(self, op: str) -> float:
        """Return Spearman's correlation of level 0..5 and change within an image, mean over images."""
        change = self.changes[op]
        return float(np.mean([rank_correlation(np.arange(len(row)), row) for row in change]))

    def monotone(self, op: str) -> bool:
        """Return whether the mean over images moves the right way at every one of the five steps."""
        steps = np.diff(self.changes[op].mean(0))
        return bool((steps < 0).all() if self.falls else (steps > 0).all())


def score_severity(
    score: Callable[[NDArray[np.uint8]], float],
    degraded: Iterable[NDArray[np.uint8]],
    data: ProbeSet,
) -> Severity:
    """Return the change of a score. degraded: (rows, S, S, 3) uint8, the rows of ``data.program``."""
    pristine = np.array([score(crop) for crop in data.crops.numpy()])
    values = np.array([score(crop) for crop in degraded])
    return _by_op(values - pristine[data.program.source.numpy()], data, falls=True)


def distance_severity(features: Array, pristine: Array, data: ProbeSet) -> Severity:
    """Return the distance to the pristine image. features: (rows, d) and pristine: (n, d), standardised alike."""
    return _by_op(np.linalg.norm(features - pristine[data.program.source.numpy()], axis=1), data, falls=False)


def _by_op(values: Array, data: ProbeSet, *, falls: bool) -> Severity:
    crops = len(data.crops)
    changes = {}
    for op in dict.fromkeys(data.ops.tolist()):
        rows = values[data.ops == op].reshape(crops, -1)  # rows are ordered by (crop, op, level)
        changes[DEGRADATIONS[op].name] = np.concatenate([np.zeros((crops, 1)), rows], axis=1)
    return Severity(changes, falls)


@dataclass(frozen=True)
class Cloud:
    """An embedding map. points: (m, 2).  kept: (m,) indices of the rows shown.  method: "t-SNE" or "PCA"."""

    points: Array
    kept: NDArray[np.int64]
    method: str


def embedding_map(features: Array, seed: int) -> Cloud:
    """Reduce (n, d) features, standardised first, to two dimensions.

    The map is t-SNE of their first 50 principal components, or two principal components of fewer than TSNE_LEAST rows.
    Of more than MAP_MOST rows a random part is shown.
    """
    rows = np.arange(len(features))
    if len(rows) > MAP_MOST:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAP_MOST, replace=False))
    x = StandardScaler().fit_transform(features[rows])
    if len(x) < TSNE_LEAST:
        return Cloud(PCA(2, random_state=seed).fit_transform(x), rows, "PCA")
    x = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    points = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(x)
    return Cloud(points.astype(np.float64), rows, "t-SNE")
