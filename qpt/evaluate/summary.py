"""Summaries of split records: median, mean, spread and interval of every metric, by distortion, and in pairs.

Called by ``qpt.evaluate.run``. Relies on ``bootstrap`` for intervals and on NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpt.errors import InputError
from qpt.evaluate.bootstrap import intervals
from qpt.evaluate.metrics import METRICS, measure_rank_and_error
from qpt.evaluate.table import ScoreTable

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MIN_OF_KIND = 5  # test images of a distortion that a split must have to say something about it


def summarise(
    records: Sequence[Mapping[str, Any]], found: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Any]:
    """Median, mean, quartiles and standard deviation of each metric over splits, and its interval.

    found: the interval of each metric (``bootstrap.intervals``); None leaves it out. The standard deviation is the
    sample's (n - 1), nan for one split; splits share images, so it is no standard error. A coefficient that is nan
    (constant predictions: labels of a split never are) counts as 0, since such predictions order nothing;
    ``undefined`` says how many did.
    """
    summary: dict[str, Any] = {"splits": len(records)}
    for metric in METRICS:
        values = np.array([record[metric] for record in records], np.float64)
        missing = np.isnan(values)
        values = np.where(missing, 0.0, values)
        q25, median, q75 = np.quantile(values, (0.25, 0.5, 0.75))
        summary[metric] = {
            "median": float(median),
            "mean": float(values.mean()),
            "std": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
            "q25": float(q25),
            "q75": float(q75),
            "iqr": float(q75 - q25),
            "undefined": int(missing.sum()),
        }
        if found is not None:
            summary[metric] |= {"ci_low": found[metric][0], "ci_high": found[metric][1]}
    if "chosen_read_out" in records[0]:
        names, counts = np.unique([record["chosen_read_out"] for record in records], return_counts=True)
        summary["chosen_read_outs"] = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    summary["chosen_on"] = sorted({record["chosen_folds"] for record in records})
    return summary


def summarise_on(
    records: Sequence[Mapping[str, Any]], tests: Sequence[Index], table: ScoreTable, seed: int
) -> dict[str, Any]:
    """``summarise`` with bootstrap intervals and, where the table has them, the metrics by distortion and by level.

    tests: the test part of each split.  seed: of the resamples, one for every method so that they are paired.
    """
    summary = summarise(records, intervals(records, tests, table.mos, table.groups, seed))
    for name, labels in (("by_kind", table.kinds), ("by_level", table.levels)):
        if labels is not None:
            summary[name] = _by_label(records, tests, table.mos, np.asarray(labels))
    return summary


def _by_label(
    records: Sequence[Mapping[str, Any]], tests: Sequence[Index], mos: Array, labels: NDArray[Any]
) -> dict[str, dict[str, float]]:
    """Of each label the median SRCC, raw PLCC and RMSE among its test images alone, over the splits with enough."""
    result = {}
    for label in np.unique(labels):
        rows = []
        for record, test in zip(records, tests, strict=True):
            mine = labels[test] == label
            if np.count_nonzero(mine) >= MIN_OF_KIND and np.ptp(mos[test][mine]) > 0:
                rows.append(measure_rank_and_error(np.array(record["predictions"])[mine], mos[test][mine]))
        if rows:
            medians = {name: float(np.median([np.nan_to_num(row[name]) for row in rows])) for name in rows[0]}
            result[str(label)] = {"splits": len(rows), **medians}
    return result


def paired_difference(
    pretrained: Sequence[Sequence[Mapping[str, Any]]],
    untrained: Sequence[Sequence[Mapping[str, Any]]],
    metric: str = "srcc",
) -> dict[str, Any]:
    """Pre-trained minus untrained, split by split: the median over splits for every pair, and the median over pairs.

    pretrained, untrained: one list of split records for each pre-training seed and each random initialisation, all
    over the same splits. A nan counts as 0. Returns per_pair (pre-trained x untrained), median, min and max over
    pairs, and share_positive, the share of all (pair, split) differences above 0.
    """
    first = np.array([[record[metric] for record in records] for records in pretrained], np.float64)
    second = np.array([[record[metric] for record in records] for records in untrained], np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"paired_difference: both must cover the same splits, got {first.shape} and {second.shape}")
    difference = np.nan_to_num(first)[:, None] - np.nan_to_num(second)[None]
    per_pair = np.median(difference, axis=2)
    return {
        "metric": metric,
        "splits": first.shape[1],
        "per_pair": per_pair.tolist(),
        "median": float(np.median(per_pair)),
        "min": float(per_pair.min()),
        "max": float(per_pair.max()),
        "share_positive": float(np.mean(difference > 0)),
    }
