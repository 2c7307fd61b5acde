"""The numbers behind a report: out-of-fold predictions, severity curves, embedding maps.

Called by ``qpt.report.build``; ``figures`` draws what is computed here. Relies on the evaluation's own choice and
ridge, on the probe's features and on scikit-learn's PCA and t-SNE. Everything derives from the seed.
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
from qpt.evaluate.logistic import fit_logistic
from qpt.evaluate.metrics import is_constant
from qpt.evaluate.probe import ProbeSet, rank_correlation
from qpt.evaluate.protocol import choose, inner_folds
from qpt.evaluate.ridge import fit_ridge

Array = NDArray[np.float64]

TSNE_LEAST = 50  # points; with fewer, neighbourhoods mean little and two principal components show more
MAP_MOST = 3000  # points of a map: t-SNE of more takes minutes and shows no more
KIND_LEAST = 5  # images of a distortion type that a rank correlation is given for


@dataclass(frozen=True)
class OutOfFold:
    """predictions: (n,), each made by a regressor that saw no image of that image's group.  folds: their name."""

    predictions: Array
    folds: str


def out_of_fold(views: Mapping[str, Array], mos: Array, groups: NDArray[np.int64], seed: int) -> OutOfFold:
    """One prediction for every image, by the evaluation's protocol: a fold's read-out and penalty are chosen by
    cross-validation inside the other folds, its ridge is fitted on them, and folds keep groups together.

    views: read-out -> (n, d) features of all images.  mos, groups: (n,).
    """
    folds, name = inner_folds(groups, (seed,))
    predictions = np.empty(len(mos))
    for number, (fitted, held) in enumerate(folds):
        known = {read_out: features[fitted] for read_out, features in views.items()}
        choice = choose(known, mos[fitted], groups[fitted], (seed, number))
        ridge = fit_ridge(known[choice.read_out], mos[fitted], (choice.penalty,))
        predictions[held] = ridge.predict(views[choice.read_out][held])[0]
    return OutOfFold(predictions, name)


def fitted_curve(x: Array, y: Array) -> tuple[float, float, float, float] | None:
    """The evaluation's b1..b4 of ``logistic`` for y over x; None with fewer than 5 images or constant values."""
    return None if len(x) < 5 or is_constant(x) or is_constant(y) else fit_logistic(x, y)


def srcc_by_kind(predictions: Array, mos: Array, kinds: tuple[str, ...]) -> tuple[dict[str, float], dict[str, int]]:
    """SRCC within each distortion type of at least KIND_LEAST images, and how many images it has; sorted by name."""
    labels = np.array(kinds)
    counts = {str(kind): int((labels == kind).sum()) for kind in np.unique(labels)}
    counts = {kind: count for kind, count in counts.items() if count >= KIND_LEAST}
    return {kind: rank_correlation(predictions[labels == kind], mos[labels == kind]) for kind in counts}, counts


@dataclass(frozen=True)
class Severity:
    """How something changes as the engine degrades photographs harder.

    changes: op name -> (photographs, 6): value at level 0 (pristine, so 0) to 5, minus the pristine one's.
    falls: whether it should fall with the level (a score) or rise (a distance).
    """

    changes: dict[str, Array]
    falls: bool

    def correlation(self, op: str) -> float:
        """Spearman's correlation of level 0..5 and change within a photograph, mean over photographs."""
        change = self.changes[op]
        return float(np.mean([rank_correlation(np.arange(len(row)), row) for row in change]))

    def monotone(self, op: str) -> bool:
        """Whether the mean over photographs moves the right way at every one of the five steps."""
        steps = np.diff(self.changes[op].mean(0))
        return bool((steps < 0).all() if self.falls else (steps > 0).all())


def score_severity(
    score: Callable[[NDArray[np.uint8]], float],
    pictures: NDArray[np.uint8],
    degraded: Iterable[NDArray[np.uint8]],
    data: ProbeSet,
) -> Severity:
    """Change of a score. pictures: (n, S, S, 3) uint8 pristine.  degraded: (rows, S, S, 3), ``data``'s rows."""
    pristine = np.array([score(picture) for picture in pictures])
    values = np.array([score(picture) for picture in degraded])
    return _by_op(values - pristine[data.program.source.numpy()], data, falls=True)


def distance_severity(features: Array, pristine: Array, data: ProbeSet) -> Severity:
    """Euclidean distance to the pristine picture. features: (rows, d), pristine: (n, d), standardised alike."""
    return _by_op(np.linalg.norm(features - pristine[data.program.source.numpy()], axis=1), data, falls=False)


def _by_op(values: Array, data: ProbeSet, *, falls: bool) -> Severity:
    """Rows are ordered by (picture, op, level): one op's rows are (pictures, levels)."""
    pictures = len(data.photographs)
    changes = {}
    for op in dict.fromkeys(data.ops.tolist()):
        rows = values[data.ops == op].reshape(pictures, -1)
        changes[DEGRADATIONS[op].name] = np.concatenate([np.zeros((pictures, 1)), rows], axis=1)
    return Severity(changes, falls)


@dataclass(frozen=True)
class Cloud:
    """points: (m, 2).  kept: (m,) indices of the rows that are shown.  method: "t-SNE" or "PCA"."""

    points: Array
    kept: NDArray[np.int64]
    method: str


def embedding_map(features: Array, seed: int) -> Cloud:
    """Two dimensions for (n, d) features, standardised first: t-SNE of their first 50 principal components, or two
    principal components of fewer than TSNE_LEAST rows. Of more than MAP_MOST rows a random part is shown."""
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
