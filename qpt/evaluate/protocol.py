"""The protocol: splits by group, a ridge whose read-out and penalty are chosen inside the training part, and summaries.

Called by ``qpt.evaluate.run`` for encoders and classical features alike, and by ``Scorer.fit`` for the choice. All
methods meet the same splits, so their scores can be compared split by split. Relies on ``ridge``, ``metrics`` and
scikit-learn's GroupKFold. Every random number comes from a generator seeded by (seed, regime, split).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import GroupKFold

from qpt.errors import InputError
from qpt.evaluate.metrics import METRICS, measure
from qpt.evaluate.ridge import PENALTIES, fit_ridge

Array = NDArray[np.float64]
Index = NDArray[np.int64]

INNER_FOLDS = 5
_DRAWS = 200  # attempts at a usable, new split before repeats are accepted


@dataclass(frozen=True)
class Regime:
    """A kind of split. name: "all" or "few".  splits: how many.  train_share: of the groups, at least 2 of them."""

    name: str
    splits: int
    train_share: float


REGIMES = (Regime("all", splits=10, train_share=0.8), Regime("few", splits=20, train_share=0.1))
_REGIME_IDS = {regime.name: index for index, regime in enumerate(REGIMES)}


@dataclass(frozen=True)
class Split:
    """train, test: indices into the table, disjoint in groups.  seed: what ``numpy.random.default_rng`` was given."""

    train: Index
    test: Index
    seed: tuple[int, int, int, int]


@dataclass(frozen=True)
class Choice:
    """What inner cross-validation chose. read_out: its name.  penalty: per feature.  folds: what it was chosen on.
    srcc, rmse: of the pooled held-out predictions; rmse in MOS units."""

    read_out: str
    penalty: float
    folds: str
    srcc: float
    rmse: float


def make_splits(mos: Array, groups: Index, regime: Regime, seed: int) -> list[Split]:
    """Random splits by group, different from each other while the set is large enough to have different ones.

    The training part gets max(2, round(train_share x groups)) groups. Both parts hold at least two images with
    different MOS; a draw without that, or one that came up before, is drawn again. Raises InputError if no draw
    qualifies.
    """
    names = np.unique(groups)
    count = max(2, round(regime.train_share * len(names)))
    if count >= len(names):
        raise InputError(
            f"evaluate: groups must be at least {count + 1} for the regime {regime.name!r}, got {len(names)}"
        )
    splits: list[Split] = []
    seen: set[tuple[int, ...]] = set()
    for number in range(regime.splits):
        usable = None
        for attempt in range(_DRAWS):
            key = (seed, _REGIME_IDS[regime.name], number, attempt)
            chosen = np.sort(np.random.default_rng(key).choice(names, count, replace=False))
            inside = np.isin(groups, chosen)
            split = Split(np.flatnonzero(inside), np.flatnonzero(~inside), key)
            if len(np.unique(mos[split.train])) < 2 or len(np.unique(mos[split.test])) < 2:
                continue
            usable = split
            if tuple(chosen) not in seen:
                break
        if usable is None:
            raise InputError(f"evaluate: mos must differ within both parts of a split; {_DRAWS} draws gave none")
        splits.append(usable)
        seen.add(tuple(np.unique(groups[usable.train])))
    return splits


def inner_folds(groups: Index, seed: Sequence[int]) -> tuple[list[tuple[Index, Index]], str]:
    """Folds inside a training part, and their name: GroupKFold(min(5, groups)); one image out below 3 groups."""
    number = len(np.unique(groups))
    if number < 3:
        everything = np.arange(len(groups))
        return [(np.delete(everything, i), everything[[i]]) for i in everything], "leave one image out"
    folds = min(INNER_FOLDS, number)
    state = int(np.random.default_rng([*seed, 1]).integers(2**31))
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=state)
    return list(splitter.split(groups, groups=groups)), f"GroupKFold({folds})"


def choose(views: Mapping[str, Array], mos: Array, groups: Index, seed: Sequence[int]) -> Choice:
    """Read-out and penalty with the highest SRCC of the pooled held-out predictions; ties go to the smaller error.

    SRCC, not squared error: where groups differ in level (scenes), squared error favours penalties so large that the
    order within a group is lost. Compared on random encoders only. views: read-out name -> (n, d) features of the
    training part alone.  mos, groups: (n,).  seed: shuffles the folds.
    """
    folds, name = inner_folds(groups, seed)
    best: tuple[float, float, str, float] | None = None
    for read_out, features in views.items():
        held_out = np.empty((len(PENALTIES), len(mos)))
        for fitted, held in folds:
            held_out[:, held] = fit_ridge(features[fitted], mos[fitted]).predict(features[held])
        errors = np.sqrt(np.mean((held_out - mos) ** 2, axis=1))
        for penalty, srcc, error in zip(PENALTIES, _rank_correlations(held_out, mos), errors, strict=True):
            if best is None or (srcc, -error) > (best[0], -best[1]):
                best = (float(srcc), float(error), read_out, penalty)
    if best is None:
        raise InputError("choose: views must hold at least one read-out, got none")
    srcc, error, read_out, penalty = best
    return Choice(read_out, penalty, name, srcc, error)


def _rank_correlations(predictions: Array, mos: Array) -> Array:
    """SRCC of each row of (m, n) predictions with (n,) mos; 0 for a constant row."""
    x = stats.rankdata(predictions, axis=1)
    x -= x.mean(axis=1, keepdims=True)
    y = stats.rankdata(mos)
    y -= y.mean()
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum())
    return np.divide(x @ y, size, out=np.zeros(len(x)), where=size > 0)


def evaluate_splits(
    views: Mapping[str, Array], mos: Array, groups: Index, splits: Sequence[Split]
) -> list[dict[str, Any]]:
    """One record per split: its seed, sizes, the metrics on the test part, and the choice made on the training part."""
    records = []
    for split in splits:
        train = {name: features[split.train] for name, features in views.items()}
        choice = choose(train, mos[split.train], groups[split.train], split.seed)
        fit = fit_ridge(train[choice.read_out], mos[split.train], (choice.penalty,))
        predicted = fit.predict(views[choice.read_out][split.test])[0]
        records.append(
            {
                "seed": list(split.seed),
                "train_images": len(split.train),
                "test_images": len(split.test),
                **measure(predicted, mos[split.test]),
                **{f"chosen_{key}": value for key, value in asdict(choice).items()},
            }
        )
    return records


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, quartiles and inter-quartile range of each metric over splits.

    A coefficient that is nan (constant predictions: labels of a split never are) counts as 0, since such predictions
    order nothing; ``undefined`` says how many did.
    """
    summary: dict[str, Any] = {"splits": len(records)}
    for metric in METRICS:
        values = np.array([record[metric] for record in records], np.float64)
        missing = np.isnan(values)
        q25, median, q75 = np.quantile(np.where(missing, 0.0, values), (0.25, 0.5, 0.75))
        summary[metric] = {
            "median": float(median),
            "q25": float(q25),
            "q75": float(q75),
            "iqr": float(q75 - q25),
            "undefined": int(missing.sum()),
        }
    names, counts = np.unique([record["chosen_read_out"] for record in records], return_counts=True)
    summary["chosen_read_outs"] = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    summary["chosen_on"] = sorted({record["chosen_folds"] for record in records})
    return summary


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
