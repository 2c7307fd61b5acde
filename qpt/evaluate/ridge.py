"""Ridge regression for all penalties from one eigen-decomposition.

Called by ``qpt.evaluate.protocol`` and ``Scorer.fit``. Relies on NumPy; equal to scikit-learn's StandardScaler +
Ridge (tested), but one decomposition serves a whole grid of penalties, and it is of the smaller of the two Gram
matrices. Formula: Z = (X - mean) / std, w = (Z'Z + p d I)^-1 Z'(y - mean y), where d is the number of features and p
the penalty per feature; the intercept is not penalised. In the dual, w = Z'(ZZ' + p d I)^-1 (y - mean y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Penalties per feature. Multiplied by the number of features they mean the same for read-outs of any length: with
#: standardised features the Gram matrix of n photographs has trace n d.
PENALTIES: tuple[float, ...] = tuple(float(p) for p in np.logspace(-5, 2, 15))


@dataclass(frozen=True)
class RidgePath:
    """A fit for several penalties. mean, scale: (d,) of the training features.  weights: (penalties, d)."""

    mean: Array
    scale: Array
    weights: Array
    intercept: float

    def predict(self, features: Array) -> Array:
        """(m, d) -> (penalties, m)."""
        return self.weights @ ((features - self.mean) / self.scale).T + self.intercept


def fit_ridge(features: Array, targets: Array, penalties: Sequence[float] = PENALTIES) -> RidgePath:
    """Fit every penalty at once. features: (n, d) float64, n >= 1.  targets: (n,).  penalties: per feature, > 0.

    A feature that is constant over the training set gets scale 1, and so no weight.
    """
    mean, scale = features.mean(0), features.std(0)
    # The threshold is scikit-learn's: a spread that rounding alone explains is a constant.
    negligible = 10 * np.finfo(np.float64).eps * np.maximum(np.abs(mean), 1)
    scale = np.where(scale <= negligible, 1.0, scale)
    z = (features - mean) / scale
    centred = targets - targets.mean()
    n, d = z.shape
    shrink = np.asarray(penalties, np.float64)[:, None] * d
    if n <= d:
        values, vectors = np.linalg.eigh(z @ z.T)
        dual = (vectors.T @ centred) / (np.maximum(values, 0) + shrink)
        weights = dual @ vectors.T @ z
    else:
        values, vectors = np.linalg.eigh(z.T @ z)
        primal = (vectors.T @ (z.T @ centred)) / (np.maximum(values, 0) + shrink)
        weights = primal @ vectors.T
    return RidgePath(mean, scale, weights, float(targets.mean()))
