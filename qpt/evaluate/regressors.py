"""What stands between frozen features and a score: ridge (the default) or a support vector regression.

Called by ``qpt.evaluate.protocol``, which chooses one of a regressor's settings by inner cross-validation. A regressor
fits every setting at once, so that ridge can use its single decomposition. Relies on ``ridge`` and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qpt.errors import InputError
from qpt.evaluate.ridge import PENALTIES, fit_ridge

Array = NDArray[np.float64]


class Regressor(Protocol):
    """description: for the record.  settings: what inner cross-validation chooses from."""

    @property
    def description(self) -> str: ...

    @property
    def settings(self) -> Sequence[Mapping[str, float]]: ...

    def predict(self, features: Array, targets: Array, asked: Array, settings: Sequence[int]) -> Array:
        """Fit on (n, d) features and (n,) targets; predict (m, d) asked with the settings of these numbers: (s, m)."""


class RidgeRegressor:
    """``ridge.fit_ridge`` with its 15 penalties."""

    description = "ridge on standardised features"
    settings: Sequence[Mapping[str, float]] = tuple({"penalty": penalty} for penalty in PENALTIES)

    def predict(self, features: Array, targets: Array, asked: Array, settings: Sequence[int]) -> Array:
        return fit_ridge(features, targets, [PENALTIES[i] for i in settings]).predict(asked)


class SupportVectorRegressor:
    """Epsilon-insensitive regression with a Gaussian kernel, exp(-gamma |a - b|^2 / d), on standardised features.

    Targets are standardised too, so C and epsilon (0.1) mean the same on every MOS scale. A feature that is constant
    over the training set is left at 0. Source: scikit-learn's SVR (libsvm).
    """

    description = "support vector regression, RBF kernel, epsilon 0.1, on standardised features and targets"
    settings: Sequence[Mapping[str, float]] = tuple(
        {"C": c, "gamma_times_d": gamma} for c in (0.1, 1.0, 10.0, 100.0) for gamma in (0.1, 1.0)
    )

    def predict(self, features: Array, targets: Array, asked: Array, settings: Sequence[int]) -> Array:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR

        scaler = StandardScaler().fit(features)
        known, unknown = scaler.transform(features), scaler.transform(asked)
        level, spread = float(targets.mean()), float(targets.std()) or 1.0
        rows = []
        for number in settings:
            chosen = self.settings[number]
            model = SVR(C=chosen["C"], gamma=chosen["gamma_times_d"] / features.shape[1], epsilon=0.1)
            rows.append(model.fit(known, (targets - level) / spread).predict(unknown) * spread + level)
        return np.stack(rows)


REGRESSORS: Mapping[str, type[Regressor]] = {"ridge": RidgeRegressor, "svr": SupportVectorRegressor}


def regressor(name: str) -> Regressor:
    """The regressor of this name, "ridge" or "svr"."""
    if name not in REGRESSORS:
        raise InputError(f"evaluate: regressor must be one of {', '.join(REGRESSORS)}, got {name!r}")
    return REGRESSORS[name]()
