"""Regressors from frozen features to scores: ridge (the default) and support vector regression.

Called by ``qpt.evaluate.protocol``, which chooses one of a regressor's settings by inner cross-validation; they touch
nothing but their arguments. A regressor fits every setting at once, so that ridge needs a single decomposition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qpt.evaluate.ridge import PENALTIES, fit_ridge

Array = NDArray[np.float64]


class Regressor(Protocol):
    """A regressor. description: for the result.  settings: the grid that inner cross-validation chooses from."""

    @property
    def description(self) -> str: ...

    @property
    def settings(self) -> Sequence[Mapping[str, float]]: ...

    def predict(self, features: Array, targets: Array, test: Array, settings: Sequence[int]) -> Array:
        """Fit on (n, d) features and (n,) targets, and predict (m, d) test features.

        settings: indices into ``self.settings``, s of them. Returns (s, m).
        """


class RidgeRegressor:
    """Ridge regression (``ridge.fit_ridge``) with its 15 penalties."""

    description = "ridge on standardised features"
    settings: Sequence[Mapping[str, float]] = tuple({"penalty": penalty} for penalty in PENALTIES)

    def predict(self, features: Array, targets: Array, test: Array, settings: Sequence[int]) -> Array:
        return fit_ridge(features, targets, [PENALTIES[i] for i in settings]).predict(test)


class SupportVectorRegressor:
    """Epsilon-insensitive regression with a Gaussian kernel, exp(-gamma |a - b|^2 / d), on standardised features.

    Targets are standardised too, so C and epsilon (0.1) mean the same on every MOS scale. A feature that is constant
    over the training set is left at 0. Source: scikit-learn's SVR (libsvm).
    """

    description = "support vector regression, RBF kernel, epsilon 0.1, on standardised features and targets"
    settings: Sequence[Mapping[str, float]] = tuple(
        {"C": c, "gamma_times_d": gamma} for c in (0.1, 1.0, 10.0, 100.0) for gamma in (0.1, 1.0)
    )

    def predict(self, features: Array, targets: Array, test: Array, settings: Sequence[int]) -> Array:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR

        scaler = StandardScaler().fit(features)
        x, x_test = scaler.transform(features), scaler.transform(test)
        mean, std = float(targets.mean()), float(targets.std()) or 1.0
        rows = []
        for index in settings:
            setting = self.settings[index]
            model = SVR(C=setting["C"], gamma=setting["gamma_times_d"] / features.shape[1], epsilon=0.1)
            rows.append(model.fit(x, (targets - mean) / std).predict(x_test) * std + mean)
        return np.stack(rows)


REGRESSORS: Mapping[str, type[Regressor]] = {"ridge": RidgeRegressor, "svr": SupportVectorRegressor}
