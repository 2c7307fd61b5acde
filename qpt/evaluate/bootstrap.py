"""Confidence intervals of metrics by resampling images, whole groups at a time, with trained models held fixed.

Called by ``qpt.evaluate.summary`` and ``qpt.evaluate.compare``; it touches nothing but its arguments. A resample is a
vector of weights, the number of times each image was drawn. Source: Efron and Tibshirani, An Introduction to the
Bootstrap, 1993 (percentile interval, chapter 13), with groups as the units drawn.
"""

# ``scipy.stats.bootstrap`` draws rows, not groups, and calls the metric once for each resample. Weights let one sort
# serve all resamples; SciPy's coefficients take no weights, so the weighted ones are written out here.

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpt.evaluate.metrics import METRICS, curves, is_constant

Array = NDArray[np.float64]
Index = NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95
#: The cost of KRCC grows with the square of the images: a test part of more than KRCC_IMAGES gets fewer resamples.
KRCC_IMAGES, KRCC_RESAMPLES = 500, 200
_ROWS = 256  # of the pair matrix at once: bounds memory


def draw_weights(groups: Index, seed: int, resamples: int = RESAMPLES) -> NDArray[np.int16]:
    """Return (resamples, n) int16: the number of times each image is drawn, with its group.

    groups: (n,); as many are drawn as there are. The same groups and seed give the same draws, whatever is measured on
    them: that pairs two results.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng([seed, zlib.crc32(b"bootstrap")])
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts.astype(np.int16)[:, inverse]


def resample(
    predictions: Array, mos: Array, weights: NDArray[Any], fits: Mapping[str, tuple[float, ...]]
) -> dict[str, Array]:
    """Return every metric of every resample: (b,) each, nan where it is not defined.

    predictions, mos: (n,).  weights: (b, n).  fits: as ``metrics.measure_and_fit`` returns them; the logistic curves
    are those fitted to all the images, so their intervals leave out the (small) uncertainty of the fit. KRCC of more
    than KRCC_IMAGES images uses the first KRCC_RESAMPLES rows.
    """
    w = weights.astype(np.float64)
    total = w.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rmse = np.sqrt(w @ (predictions - mos) ** 2 / total)
    undefined = np.full(len(w), np.nan)
    if is_constant(predictions) or is_constant(mos):
        return {**dict.fromkeys(METRICS, undefined), "rmse": rmse}
    fitted = curves(predictions, mos, fits)
    rows = w if len(mos) <= KRCC_IMAGES else w[:KRCC_RESAMPLES]
    return {
        "srcc": _correlations(_ranks(predictions, w), _ranks(mos, w), w),
        "plcc_raw": _correlations(predictions, mos, w),
        **{
            name: _correlations(fitted[name], mos, w) if name in fitted else undefined
            for name in ("plcc_logistic", "plcc_logistic5")
        },
        "krcc": _kendall(predictions, mos, rows),
        "rmse": rmse,
    }


def resampled_metrics(
    records: Sequence[Mapping[str, Any]], tests: Sequence[Index], mos: Array, weights: NDArray[Any]
) -> dict[str, Array]:
    """Return every metric of every split and resample: (splits, b) each.

    records: of the splits (predictions and fits).  tests: their test parts.  mos: (n,) of the whole table.  weights:
    (b, n): an image is drawn for all splits at once, since splits share it. Undefined coefficients count as 0, as in a
    summary; a split is nan in a resample that has none of its images.
    """
    found = []
    for record, test in zip(records, tests, strict=True):
        drawn = weights[:, test]
        metrics = resample(np.array(record["predictions"]), mos[test], drawn, record["fits"])
        empty = drawn.sum(axis=1) == 0
        found.append(
            {
                name: np.where(empty[: len(values)], np.nan, values if name == "rmse" else np.nan_to_num(values))
                for name, values in metrics.items()
            }
        )
    # KRCC may have fewer resamples in a large split than in a small one.
    shortest = {metric: min(len(part[metric]) for part in found) for metric in METRICS}
    return {metric: np.stack([part[metric][: shortest[metric]] for part in found]) for metric in METRICS}


def intervals(
    records: Sequence[Mapping[str, Any]], tests: Sequence[Index], mos: Array, groups: Index, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the interval at LEVEL of the median over splits of each metric; see ``resampled_metrics``."""
    found = resampled_metrics(records, tests, mos, draw_weights(groups, seed))
    return {metric: percentile_interval(median_over_splits(values)) for metric, values in found.items()}


def median_over_splits(values: Array) -> Array:
    """Return the (b,) medians over the splits of (splits, b) values, nan left out; nan where all are."""
    usable = ~np.isnan(values).all(axis=0)
    result = np.full(values.shape[1], np.nan)
    result[usable] = np.nanmedian(values[:, usable], axis=0)
    return result


def percentile_interval(values: Array) -> tuple[float, float]:
    """Return the ends of the middle LEVEL of the finite values; nan if there is none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _ranks(values: Array, w: Array) -> Array:
    """Return the (b, n) average rank of each image among the drawn ones, each as often as it was drawn."""
    place, counts = _counts(values, w)
    middle = np.cumsum(counts, axis=1) - counts / 2  # the ranks of equal values average to below + (count + 1) / 2
    return middle[:, place] + 0.5


def _correlations(x: Array, y: Array, w: Array) -> Array:
    """Return (b,) Pearson correlations with weights (b, n); nan where x or y, (n,) or (b, n), is constant."""
    total = w.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = x - ((w * x).sum(axis=1) / total)[:, None]
        b = y - ((w * y).sum(axis=1) / total)[:, None]
        xx, yy = (w * a * a).sum(axis=1), (w * b * b).sum(axis=1)
        # Relative to the values' own size: what only rounding separates is constant.
        constant = (xx <= 1e-20 * (w * x * x).sum(axis=1)) | (yy <= 1e-20 * (w * y * y).sum(axis=1))
        result = (w * a * b).sum(axis=1) / np.sqrt(xx * yy)
    return np.where(constant, np.nan, result)


def _kendall(x: Array, y: Array, w: Array) -> Array:
    """Return (b,) tau-b with weights: a pair of images counts w_i w_j times, and an image is tied with itself."""
    ranks = [np.unique(values, return_inverse=True)[1].astype(np.float32) for values in (x, y)]
    w32 = w.astype(np.float32)
    concordance = np.zeros(len(w))
    for first in range(0, len(x), _ROWS):
        part = slice(first, first + _ROWS)
        signs = np.sign(ranks[0][part, None] - ranks[0]) * np.sign(ranks[1][part, None] - ranks[1])
        concordance += ((w32 @ signs.T) * w32[:, part]).sum(axis=1, dtype=np.float64)
    total = w.sum(axis=1) ** 2
    untied = [total - (_counts(values, w)[1] ** 2).sum(axis=1) for values in (x, y)]
    with np.errstate(invalid="ignore", divide="ignore"):
        result = concordance / np.sqrt(untied[0] * untied[1])
    return np.where((untied[0] > 0) & (untied[1] > 0), result, np.nan)


def _counts(values: Array, w: Array) -> tuple[Index, Array]:
    """Return the index (n,) of each image's distinct value, and the number (b, distinct) of draws of each value."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    return place, np.add.reduceat(w[:, order], np.searchsorted(place[order], np.arange(len(distinct))), axis=1)
