"""The protocol: splits, and a regressor whose read-out and setting are chosen inside the training part of each.

Called by ``qpt.evaluate.run`` for encoders and classical features alike, and by ``Scorer.fit`` for the choice. All
methods meet the same splits, so their scores can be compared split by split. Relies on ``regressors``, ``metrics`` and
scikit-learn's GroupKFold. Every random number comes from a generator seeded by (seed, regime, split).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import GroupKFold

from qpt.errors import InputError
from qpt.evaluate.metrics import measure_and_fit
from qpt.evaluate.regressors import Regressor, RidgeRegressor
from qpt.evaluate.table import ScoreTable

Array = NDArray[np.float64]
Index = NDArray[np.int64]

INNER_FOLDS = 5
_DRAWS = 200  # attempts at a usable, new split before repeats are accepted
_OFFICIAL, _SHARES = 100, 101  # parts of seeds, apart from the numbers of the regimes


@dataclass(frozen=True)
class Regime:
    """A kind of split. name: "all" or "few".  splits: how many.  train_share: of the groups, at least 2 of them."""

    name: str
    splits: int
    train_share: float


REGIMES = (Regime("all", splits=10, train_share=0.8), Regime("few", splits=20, train_share=0.1))
_REGIME_IDS = {regime.name: index for index, regime in enumerate(REGIMES)}


def _nothing() -> Index:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Split:
    """train, test, val: indices into the table, disjoint; the choice is made on val if it is not empty.  seed: what
    ``numpy.random.default_rng`` was given, or of a split that was not drawn, what draws on it start from.  name: of an
    imported split."""

    train: Index
    test: Index
    seed: tuple[int, ...]
    val: Index = field(default_factory=_nothing)
    name: str = ""


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


def official_splits(table: ScoreTable, seed: int) -> list[Split]:
    """The splits that came with a table. Raises InputError if there are none, or if one cannot be used: parts that
    overlap, rows that do not exist, a training or test part with fewer than two different MOS."""
    if not table.splits:
        raise InputError(f"evaluate: protocol must be random, since {table.name} has no official or imported splits")
    splits = []
    for number, given in enumerate(table.splits):
        rows = np.concatenate([given.train, given.val, given.test])
        if len(rows) and (rows.min() < 0 or rows.max() >= len(table)):
            raise InputError(f"evaluate: split {given.name!r} must name rows 0 to {len(table) - 1}, got {rows.max()}")
        if len(np.unique(rows)) != len(rows):
            raise InputError(f"evaluate: parts of split {given.name!r} must be disjoint, got rows in two of them")
        for part, index in (("training", given.train), ("test", given.test)):
            if len(np.unique(table.mos[index])) < 2:
                raise InputError(
                    f"evaluate: the {part} part of split {given.name!r} must have images of different MOS, "
                    f"got {len(index)} image(s)"
                )
        splits.append(Split(given.train, given.test, (seed, _OFFICIAL, number), given.val, given.name))
    return splits


def label_share(splits: Sequence[Split], mos: Array, groups: Index, share: float) -> list[Split]:
    """The same splits with part of their training labels: the test parts stay, so that shares form a curve.

    share: of the groups of the training part, 0 < share < 1; at least two are kept, and so many that two MOS differ.
    A smaller share of a split is within every larger one.
    """
    if not 0 < share < 1:
        raise InputError(f"evaluate: label_shares must be above 0 and below 1, got {share:g}")
    kept = []
    for split in splits:
        order = np.random.default_rng([*split.seed, _SHARES]).permutation(np.unique(groups[split.train]))
        count = max(2, round(share * len(order)))
        while True:
            train = split.train[np.isin(groups[split.train], order[:count])]
            if count >= len(order) or len(np.unique(mos[train])) > 1:
                break
            count += 1
        kept.append(Split(train, split.test, split.seed, split.val, split.name))
    return kept


def choose(views: Mapping[str, Array], mos: Array, groups: Index, seed: Sequence[int]) -> Choice:
    """``search`` for the ridge over ``inner_folds``. views: read-out name -> (n, d) features of the training part
    alone.  mos, groups: (n,).  seed: shuffles the folds."""
    folds, name = inner_folds(groups, seed)
    regressor = RidgeRegressor()
    read_out, setting, srcc, rmse = search(views, mos, folds, regressor)
    return Choice(read_out, regressor.settings[setting]["penalty"], name, srcc, rmse)


def search(
    views: Mapping[str, Array], mos: Array, folds: Sequence[tuple[Index, Index]], regressor: Regressor
) -> tuple[str, int, float, float]:
    """Read-out and setting with the highest SRCC of the pooled held-out predictions; ties go to the smaller error.

    SRCC, not squared error: where groups differ in level (scenes), squared error favours penalties so large that the
    order within a group is lost. Compared on random encoders only. views: read-out name -> (n, d).  folds: pairs
    (fitted on, held out).  Returns (read-out, number of the setting, SRCC, RMSE).
    """
    every = range(len(regressor.settings))
    held_all = np.sort(np.concatenate([held for _, held in folds]))
    best: tuple[float, float, str, int] | None = None
    for read_out, features in views.items():
        held_out = np.empty((len(every), len(mos)))
        for fitted, held in folds:
            held_out[:, held] = regressor.predict(features[fitted], mos[fitted], features[held], every)
        predicted, wanted = held_out[:, held_all], mos[held_all]
        errors = np.sqrt(np.mean((predicted - wanted) ** 2, axis=1))
        correlations = _rank_correlations(predicted, wanted)
        for setting, srcc, error in zip(every, correlations, errors, strict=True):
            if best is None or (srcc, -error) > (best[0], -best[1]):
                best = (float(srcc), float(error), read_out, setting)
    if best is None:
        raise InputError("choose: views must hold at least one read-out, got none")
    srcc, error, read_out, setting = best
    return read_out, setting, srcc, error


def _rank_correlations(predictions: Array, mos: Array) -> Array:
    """SRCC of each row of (m, n) predictions with (n,) mos; 0 for a constant row."""
    x = stats.rankdata(predictions, axis=1)
    x -= x.mean(axis=1, keepdims=True)
    y = stats.rankdata(mos)
    y -= y.mean()
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum())
    return np.divide(x @ y, size, out=np.zeros(len(x)), where=size > 0)


def evaluate_splits(
    views: Mapping[str, Array],
    mos: Array,
    groups: Index,
    splits: Sequence[Split],
    regressor: Regressor | None = None,
) -> list[dict[str, Any]]:
    """One record per split: its seed, sizes, the metrics on the test part, the choice, and the test predictions.

    The choice is made by cross-validation inside the training part, or on the validation part where the split has
    one; the fit is on the training part alone either way.
    """
    regressor = regressor or RidgeRegressor()
    records = []
    for split in splits:
        if len(split.val):
            rows = np.concatenate([split.train, split.val])
            everything = np.arange(len(rows))
            folds, name = [(everything[: len(split.train)], everything[len(split.train) :])], "validation part"
        else:
            rows = split.train
            folds, name = inner_folds(groups[rows], split.seed)
        inside = {read_out: features[rows] for read_out, features in views.items()}
        read_out, setting, srcc, rmse = search(inside, mos[rows], folds, regressor)
        view = views[read_out]
        predicted = regressor.predict(view[split.train], mos[split.train], view[split.test], [setting])[0]
        chosen = {"read_out": read_out, **regressor.settings[setting], "folds": name, "srcc": srcc, "rmse": rmse}
        records.append(split_record(split, predicted, mos, {f"chosen_{key}": value for key, value in chosen.items()}))
    return records


def split_record(split: Split, predicted: Array, mos: Array, more: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one split: seed, sizes, metrics, ``more``, and what it takes to measure again: the predictions of
    its test part, to 7 digits, and the parameters of the logistic curves fitted to them."""
    kept = [float(f"{value:.7g}") for value in predicted]
    metrics, fits = measure_and_fit(kept, mos[split.test])
    return {
        "seed": list(split.seed),
        "train_images": len(split.train),
        "test_images": len(split.test),
        **metrics,
        **more,
        "fits": {name: list(parameters) for name, parameters in fits.items()},
        "predictions": kept,
    }
