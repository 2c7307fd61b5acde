"""The evaluation protocol: splits, and a regressor whose read-out and setting are chosen inside the training part.

Called by ``qpt.evaluate.run`` for encoders and classical features alike, and by ``Scorer.fit`` for the choice. All
methods get the same splits, so their scores can be compared split by split. Every random number comes from a generator
seeded by (seed, regime, split).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # which imports its parts, where they are first used: together they take a second
from numpy.typing import NDArray

from qpt.errors import InputError
from qpt.evaluate.metrics import measure_and_fit
from qpt.evaluate.regressors import Regressor, RidgeRegressor
from qpt.evaluate.table import ScoreTable, Split, check_splits

Array = NDArray[np.float64]
Index = NDArray[np.int64]

INNER_FOLDS = 5
_DRAWS = 200  # attempts at a usable, new split before repeats are accepted
_OFFICIAL, _SHARES = 100, 101  # parts of seeds, apart from the numbers of the regimes


@dataclass(frozen=True)
class Regime:
    """A kind of random split. name: "all" or "few".  splits: their number.  train_share: of the groups, at least 2."""

    name: str
    splits: int
    train_share: float


REGIMES = (Regime("all", splits=10, train_share=0.8), Regime("few", splits=20, train_share=0.1))
_REGIME_IDS = {regime.name: index for index, regime in enumerate(REGIMES)}


@dataclass(frozen=True)
class ChosenReadOut:
    """The result of inner cross-validation.

    read_out: name.  penalty: per feature.  folds: name of the folds.  srcc, rmse: of the pooled held-out predictions;
    rmse in MOS units.
    """

    read_out: str
    penalty: float
    folds: str
    srcc: float
    rmse: float


def make_splits(mos: Array, groups: Index, regime: Regime, seed: int) -> list[Split]:
    """Draw random splits by group, different from each other while the set is large enough to have different ones.

    The training part gets max(2, round(train_share x groups)) groups. Both parts hold at least two images with
    different MOS. Raises InputError if no draw qualifies.
    """
    names = np.unique(groups)
    count = max(2, round(regime.train_share * len(names)))
    if count >= len(names):
        raise InputError(
            f"evaluate: groups must be at least {count + 1} for the regime {regime.name!r}, got {len(names)}"
        )
    splits: list[Split] = []
    drawn: set[tuple[int, ...]] = set()
    for number in range(regime.splits):
        usable = None
        for attempt in range(_DRAWS):
            key = (seed, _REGIME_IDS[regime.name], number, attempt)
            chosen = np.sort(np.random.default_rng(key).choice(names, count, replace=False))
            inside = np.isin(groups, chosen)
            split = Split(np.flatnonzero(inside), np.flatnonzero(~inside), seed=key)
            if len(np.unique(mos[split.train])) < 2 or len(np.unique(mos[split.test])) < 2:
                continue
            usable = split
            if tuple(chosen) not in drawn:
                break
        if usable is None:
            raise InputError(f"evaluate: mos must differ within both parts of a split; {_DRAWS} draws gave none")
        splits.append(usable)
        drawn.add(tuple(np.unique(groups[usable.train])))
    return splits


def inner_folds(groups: Index, seed: Sequence[int]) -> tuple[list[tuple[Index, Index]], str]:
    """Return folds inside a training part and their name: GroupKFold(min(5, groups)).

    Below three groups they leave one image out. A fold is a pair (rows fitted on, rows held out).
    """
    number = len(np.unique(groups))
    if number < 3:
        rows = np.arange(len(groups))
        return [(np.delete(rows, i), rows[[i]]) for i in rows], "leave one image out"
    folds = min(INNER_FOLDS, number)
    state = int(np.random.default_rng([*seed, 1]).integers(2**31))
    from sklearn.model_selection import GroupKFold  # nobody who only scores needs it

    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=state)
    return list(splitter.split(groups, groups=groups)), f"GroupKFold({folds})"


def official_splits(table: ScoreTable, seed: int) -> list[Split]:
    """Return the splits that came with a table.

    Raises InputError if there are none, for what ``check_splits`` refuses, or for a training or test part with fewer
    than two different MOS.
    """
    if not table.splits:
        raise InputError(f"evaluate: protocol must be random, since {table.name} has no official or imported splits")
    check_splits(table.splits, table.images, table.groups)
    for given in table.splits:
        for part, index in (("training", given.train), ("test", given.test)):
            if len(np.unique(table.mos[index])) < 2:
                raise InputError(
                    f"evaluate: the {part} part of split {given.name!r} must have images of different MOS, "
                    f"got {len(index)} image(s)"
                )
    return [replace(given, seed=(seed, _OFFICIAL, number)) for number, given in enumerate(table.splits)]


def label_share(splits: Sequence[Split], mos: Array, groups: Index, share: float) -> list[Split]:
    """Return the same splits with part of their training labels; the test parts stay, so that shares form a curve.

    share: of the groups of the training part, 0 < share < 1; at least two are kept, and so many that two MOS differ.
    A smaller share of a split is within every larger one.
    """
    if not 0 < share < 1:
        raise InputError(f"evaluate: label_shares must be above 0 and below 1, got {share:g}")
    kept = []
    for split in splits:
        # The order of the groups does not depend on the share, so the shares are nested.
        order = np.random.default_rng([*split.seed, _SHARES]).permutation(np.unique(groups[split.train]))
        count = max(2, round(share * len(order)))
        while True:
            train = split.train[np.isin(groups[split.train], order[:count])]
            if count >= len(order) or len(np.unique(mos[train])) > 1:
                break
            count += 1
        kept.append(replace(split, train=train))
    return kept


def choose_read_out(features: Mapping[str, Array], mos: Array, groups: Index, seed: Sequence[int]) -> ChosenReadOut:
    """Choose read-out and ridge penalty by ``grid_search`` over ``inner_folds``.

    features: read-out name -> (n, d) of the training part alone, preferred read-outs first.  mos, groups: (n,).
    seed: shuffles the folds.
    """
    folds, name = inner_folds(groups, seed)
    regressor = RidgeRegressor()
    read_out, setting, srcc, rmse = grid_search(features, mos, groups, folds, regressor)
    return ChosenReadOut(read_out, regressor.settings[setting]["penalty"], name, srcc, rmse)


def grid_search(
    features: Mapping[str, Array],
    mos: Array,
    groups: Index,
    folds: Sequence[tuple[Index, Index]],
    regressor: Regressor,
) -> tuple[str, int, float, float]:
    """Find the first read-out whose SRCC is within one standard error of the highest, and its best setting.

    The SRCC is that of the pooled held-out predictions, with the setting in which it is highest; ties between settings
    go to the smaller error. The standard error of the highest SRCC r over g held-out groups is (1 - r^2) / sqrt(g - 1).
    features: read-out name -> (n, d), preferred read-outs first.  mos, groups: (n,).  folds: pairs (rows fitted on,
    rows held out). Returns (read-out, index of the setting, SRCC, RMSE).
    """
    # SRCC, not squared error: where groups differ in level (scenes), squared error favours penalties so large that the
    # order within a group is lost. Compared on random encoders only.
    settings = range(len(regressor.settings))
    held_out = np.sort(np.concatenate([held for _, held in folds]))
    found: list[tuple[str, int, float, float]] = []
    for read_out, x in features.items():
        predictions = np.empty((len(settings), len(mos)))
        for fitted, held in folds:
            predictions[:, held] = regressor.predict(x[fitted], mos[fitted], x[held], settings)
        predicted, targets = predictions[:, held_out], mos[held_out]
        errors = np.sqrt(np.mean((predicted - targets) ** 2, axis=1))
        correlations = _rank_correlations(predicted, targets)
        best = max(settings, key=lambda setting: (correlations[setting], -errors[setting]))
        found.append((read_out, best, float(correlations[best]), float(errors[best])))
    if not found:
        raise InputError("grid_search: features must hold at least one read-out, got none")
    # Few groups cannot tell read-outs apart: with two scenes of training labels the highest SRCC, mostly of memorised
    # scenes, took a read-out of .50 where .84 was there. Images of a group do not count as independent.
    highest = max(srcc for _, _, srcc, _ in found)
    error = (1 - highest**2) / math.sqrt(max(1, len(np.unique(groups[held_out])) - 1))
    return next(choice for choice in found if choice[2] >= highest - error)


def _rank_correlations(predictions: Array, mos: Array) -> Array:
    """Return the SRCC of each row of (m, n) predictions with (n,) mos; 0 for a constant row."""
    # Sums of multiples of 1/4 are exact: equal orders give equal values, so that ties between settings are seen as
    # ties. SciPy's spearmanr rounds before it sums, and warns of constant rows.
    x = scipy.stats.rankdata(predictions, axis=1)
    x -= x.mean(axis=1, keepdims=True)
    y = scipy.stats.rankdata(mos)
    y -= y.mean()
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum())
    return np.divide(x @ y, size, out=np.zeros(len(x)), where=size > 0)


def evaluate_splits(
    features: Mapping[str, Array],
    mos: Array,
    groups: Index,
    splits: Sequence[Split],
    regressor: Regressor | None = None,
) -> list[dict[str, Any]]:
    """Return one record for each split: seed, sizes, metrics on the test part, the choice, the test predictions.

    The choice is made by cross-validation inside the training part, or on the validation part where the split has
    one; the fit is on the training part alone either way. features: read-out name -> (n, d) of the whole table,
    preferred read-outs first.
    """
    regressor = regressor or RidgeRegressor()
    records = []
    for split in splits:
        if len(split.val):
            rows = np.concatenate([split.train, split.val])
            places = np.arange(len(rows))
            folds, name = [(places[: len(split.train)], places[len(split.train) :])], "validation part"
        else:
            rows = split.train
            folds, name = inner_folds(groups[rows], split.seed)
        inside = {read_out: x[rows] for read_out, x in features.items()}
        read_out, setting, srcc, rmse = grid_search(inside, mos[rows], groups[rows], folds, regressor)
        x = features[read_out]
        predicted = regressor.predict(x[split.train], mos[split.train], x[split.test], [setting])[0]
        chosen = {"read_out": read_out, **regressor.settings[setting], "folds": name, "srcc": srcc, "rmse": rmse}
        records.append(split_record(split, predicted, mos, {f"chosen_{key}": value for key, value in chosen.items()}))
    return records


def split_record(split: Split, predicted: Array, mos: Array, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of one split: seed, sizes, metrics, ``more``, fitted curves and predictions.

    The predictions of the test part, to 7 digits of what labels differ in, and the parameters of the logistic curves
    fitted to them are what it takes to measure again.
    """
    # Labels in a narrow range, such as 50.0001 to 50.0009, have as many leading digits in common.
    common = math.floor(math.log10(max(1.0, np.abs(mos).max() / (np.ptp(mos) or np.inf))))
    kept = [float(f"{value:.{7 + common}g}") for value in predicted]
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
