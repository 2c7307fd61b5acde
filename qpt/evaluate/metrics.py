"""Agreement between predicted scores and mean opinion scores (MOS): SRCC, PLCC (raw, after a logistic), KRCC, RMSE.

Called by ``qpt.evaluate.protocol`` once per split, by the bootstrap and by reports. Every coefficient is SciPy's, so
ties get average ranks in SRCC and count as in tau-b in KRCC. A coefficient that is not defined (constant predictions or
constant labels) is nan, without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy  # which imports its parts, where they are first used: together they take a second
from numpy.typing import ArrayLike, NDArray

from qpt.errors import InputError
from qpt.evaluate.logistic import fit_logistic, fit_logistic5, logistic, logistic5

METRICS = ("srcc", "plcc_raw", "plcc_logistic", "plcc_logistic5", "krcc", "rmse")

Array = NDArray[np.float64]

# Metric after a fit -> (the fit, the curve, the fewest images: one more than parameters).
_LOGISTIC: dict[str, tuple[Callable[..., tuple[float, ...]], Callable[..., Array], int]] = {
    "plcc_logistic": (fit_logistic, logistic, 5),
    "plcc_logistic5": (fit_logistic5, logistic5, 6),
}

#: Metric after a fit -> the number of parameters of its curve.
FIT_PARAMETERS = {name: least - 1 for name, (_, _, least) in _LOGISTIC.items()}

#: Values whose spread is below this share of their size are constant: only rounding separates them.
_CONSTANT = 1e-10


def measure(predictions: ArrayLike, mos: ArrayLike) -> dict[str, float]:
    """Return all metrics of one set of predictions, in the order of ``METRICS``.

    predictions, mos: (n,) finite numbers, n >= 2, same length; higher is better in both.
    Returns srcc, plcc_raw, plcc_logistic (4 parameters), plcc_logistic5, krcc in [-1, 1] and rmse in the units of
    mos. The coefficients are nan when predictions or mos are constant; plcc_logistic is nan too with fewer than 5
    images and plcc_logistic5 with fewer than 6: one more than the parameters to fit.
    Raises InputError when lengths differ, n < 2 or a value is not finite.
    """
    return measure_and_fit(predictions, mos)[0]


def measure_rank_and_error(predictions: ArrayLike, mos: ArrayLike) -> dict[str, float]:
    """Return srcc, plcc_raw and rmse alone, without a fit; arguments and nan are those of ``measure``."""
    x, y = _checked(predictions, mos)
    rmse = float(np.sqrt(np.mean((x - y) ** 2)))
    if is_constant(x) or is_constant(y):
        return {"srcc": float("nan"), "plcc_raw": float("nan"), "rmse": rmse}
    srcc, plcc = float(scipy.stats.spearmanr(x, y).statistic), float(scipy.stats.pearsonr(x, y).statistic)
    return {"srcc": srcc, "plcc_raw": plcc, "rmse": rmse}


def measure_and_fit(predictions: ArrayLike, mos: ArrayLike) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """Return ``measure`` and the parameters of the fitted curves by their metric; one not defined is absent."""
    x, y = _checked(predictions, mos)
    values = dict.fromkeys(METRICS, float("nan")) | measure_rank_and_error(x, y)
    if is_constant(x) or is_constant(y):
        return values, {}
    fits = {name: fit(x, y) for name, (fit, _, least) in _LOGISTIC.items() if len(x) >= least}
    values |= {name: _correlation(curve, y) for name, curve in curves(x, y, fits).items()}
    return values | {"krcc": float(scipy.stats.kendalltau(x, y).statistic)}, fits


def curves(x: Array, y: Array, fits: Mapping[str, tuple[float, ...]]) -> dict[str, Array]:
    """Return the fitted curves at the predictions x by their metric, which is their Pearson correlation with y.

    x, y: (n,).  fits: as ``measure_and_fit`` returns them. The curve of a negative metric is multiplied by -1.
    """
    found = {}
    for name, b in fits.items():
        # A 4-parameter curve that falls gets a negative value, not the credit of a right order. The 5-parameter one
        # need not be monotone; the line within it makes it correlate with the predictions exactly as MOS does, so its
        # sign is that of the raw PLCC.
        falls = b[0] < b[1] if name == "plcc_logistic" else np.mean((x - x.mean()) * (y - y.mean())) < 0
        found[name] = _LOGISTIC[name][1](x, *b) * (-1.0 if falls else 1.0)
    return found


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return Spearman's correlation of two (n,) arrays; 0 where one is constant, since it orders nothing."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(first, second).statistic)


def is_constant(values: Array) -> bool:
    """Return whether only rounding separates the values (n,)."""
    return bool(np.ptp(values) <= _CONSTANT * max(1e-300, float(np.abs(values).max())))


def decimals(low: float, high: float) -> int:
    """Return the decimals, at least 3, with which values in low..high are printed so that they can be told apart."""
    return max(3, 3 - math.floor(math.log10(high - low))) if high > low else 3


def _correlation(curve: Array, y: Array) -> float:
    return float("nan") if is_constant(curve) else float(scipy.stats.pearsonr(curve, y).statistic)


def _checked(predictions: ArrayLike, mos: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(predictions, np.float64), np.asarray(mos, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise InputError(
            f"measure: predictions and mos must be (n,) with the same n >= 2, got shapes {x.shape} and {y.shape}"
        )
    for name, values in (("predictions", x), ("mos", y)):
        if not np.isfinite(values).all():
            raise InputError(
                f"measure: {name} must be finite, got {np.count_nonzero(~np.isfinite(values))} that are not"
            )
    return x, y
