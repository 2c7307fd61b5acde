"""Summaries of split records: median, mean, spread and interval of every metric, by distortion, and paired.

Called by ``qpt.evaluate.run``; it touches nothing but its arguments. Intervals come from ``bootstrap``.
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

MIN_OF_KIND = 5  # test images of a distortion that a split needs to be counted for it


def summarise(
    records: Sequence[Mapping[str, Any]], confidence: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, Any]:
    """Return median, mean, quartiles and standard deviation of each metric over splits, and its interval.

    confidence: the interval of each metric (``bootstrap.intervals``); None leaves it out. The standard deviation is
    the sample's (n - 1), nan for one split; splits share images, so it is no standard error. A coefficient that is nan
    counts as 0; ``undefined`` is their number.
    """
    summary: dict[str, Any] = {"splits": len(records)}
    for metric in METRICS:
        values = np.array([record[metric] for record in records], np.float64)
        missing = np.isnan(values)
        values = np.where(missing, 0.0, values)  # predictions are constant there (labels never are): no order
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
        if confidence is not None:
            summary[metric] |= {"ci_low": confidence[metric][0], "ci_high": confidence[metric][1]}
    if "chosen_read_out" in records[0]:
        names, counts = np.unique([record["chosen_read_out"] for record in records], return_counts=True)
        summary["chosen_read_outs"] = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    summary["chosen_on"] = sorted({record["chosen_folds"] for record in records})
    return summary


def summarise_on(
    records: Sequence[Mapping[str, Any]], tests: Sequence[Index], table: ScoreTable, seed: int
) -> dict[str, Any]:
    """Return ``summarise`` with bootstrap intervals and, where the table has them, metrics by distortion and level.

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
    """Return for each label the median over splits of SRCC, raw PLCC and RMSE among its test images alone.

    Splits with fewer than MIN_OF_KIND such images, or of one MOS, are left out.
    """
    result = {}
    for label in np.unique(labels):
        rows = []
        for record, test in zip(records, tests, strict=True):
            of_label = labels[test] == label
            predictions, targets = np.array(record["predictions"])[of_label], mos[test][of_label]
            if len(targets) >= MIN_OF_KIND and np.ptp(targets) > 0:
                rows.append(measure_rank_and_error(predictions, targets))
        if rows:
            medians = {name: float(np.median([np.nan_to_num(row[name]) for row in rows])) for name in rows[0]}
            result[str(label)] = {"splits": len(rows), **medians}
    return result


def paired_difference(
    pretrained: Sequence[Sequence[Mapping[str, Any]]],
    untrained: Sequence[Sequence[Mapping[str, Any]]],
    metric: str = "srcc",
) -> dict[str, Any]:
    """Subtract untrained from pre-trained, split by split: the median over splits of every pair, and over pairs.

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
