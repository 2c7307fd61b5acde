"""Ridge regression for all penalties from one eigen-decomposition.

Called by ``qpt.evaluate.protocol``, ``Scorer.fit``, calibration, probe and reports; it touches nothing but its
arguments. Formula: Z = (X - mean) / std, w = (Z'Z + p d I)^-1 Z'(y - mean y) for d features and the penalty p per
feature; the intercept is not penalised. In the dual, w = Z'(ZZ' + p d I)^-1 (y - mean y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Penalties per feature. Multiplied by the number of features they mean the same for read-outs of any length: with
#: standardised features the Gram matrix of n images has trace n d.
PENALTIES: tuple[float, ...] = tuple(float(p) for p in np.logspace(-5, 2, 15))


@dataclass(frozen=True)
class RidgePath:
    """A fit for several penalties. mean, scale: (d,) of the training features.  weights: (penalties, d)."""

    mean: Array
    scale: Array
    weights: Array
    intercept: float

    def predict(self, features: Array) -> Array:
        """Predict (m, d) features with every penalty: (penalties, m)."""
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
    # scikit-learn's StandardScaler + Ridge gives the same (tested), but for several penalties it takes an SVD of Z,
    # which costs several times the decomposition of the smaller of the two Gram matrices.
    if n <= d:
        values, vectors = np.linalg.eigh(z @ z.T)
        dual = (vectors.T @ centred) / (np.maximum(values, 0) + shrink)
        weights = dual @ vectors.T @ z
    else:
        values, vectors = np.linalg.eigh(z.T @ z)
        primal = (vectors.T @ (z.T @ centred)) / (np.maximum(values, 0) + shrink)
        weights = primal @ vectors.T
    return RidgePath(mean, scale, weights, float(targets.mean()))
