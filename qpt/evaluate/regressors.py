"""Regressors from frozen features to scores: ridge (the default), support vector regression, and the better of both.

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
        from sklearn.metrics.pairwise import euclidean_distances
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR

        scaler = StandardScaler().fit(features)
        x, x_test = scaler.transform(features), scaler.transform(test)
        # libsvm would compute the distances anew for every setting, without a matrix product: ten times as long for
        # 3,000 features.
        between, to_test = (euclidean_distances(rows, x, squared=True) for rows in (x, x_test))
        mean, std = float(targets.mean()), float(targets.std()) or 1.0
        rows = []
        for index in settings:
            setting = self.settings[index]
            gamma = setting["gamma_times_d"] / features.shape[1]
            model = SVR(kernel="precomputed", C=setting["C"], epsilon=0.1)
            model.fit(np.exp(-gamma * between), (targets - mean) / std)
            rows.append(model.predict(np.exp(-gamma * to_test)) * std + mean)
        return np.stack(rows)


class BestRegressor:
    """Ridge and support vector regression side by side: inner cross-validation chooses one with its setting."""

    description = f"the better of {RidgeRegressor.description}, and {SupportVectorRegressor.description}"
    settings: Sequence[Mapping[str, float]] = (*RidgeRegressor.settings, *SupportVectorRegressor.settings)

    def predict(self, features: Array, targets: Array, test: Array, settings: Sequence[int]) -> Array:
        ridge = len(RidgeRegressor.settings)
        found = np.empty((len(settings), len(test)))
        for regressor, first, last in ((RidgeRegressor, 0, ridge), (SupportVectorRegressor, ridge, len(self.settings))):
            rows = [row for row, index in enumerate(settings) if first <= index < last]
            if rows:
                own = [settings[row] - first for row in rows]
                found[rows] = regressor().predict(features, targets, test, own)
        return found


REGRESSORS: Mapping[str, type[Regressor]] = {
    "ridge": RidgeRegressor,
    "svr": SupportVectorRegressor,
    "best": BestRegressor,
}
