"""Agreement between predicted scores and mean opinion scores (MOS): SRCC, PLCC (raw, after a logistic), KRCC, RMSE.

Called by ``qpt.evaluate.protocol`` once per split. Relies on SciPy for every coefficient, so ties are treated as SciPy
treats them: average ranks in SRCC, tau-b in KRCC. A coefficient that is not defined (constant predictions or constant
labels) is nan and no warning is shown: what a nan means for a summary is decided in ``protocol.summarise``.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from qpt.errors import InputError

METRICS = ("srcc", "plcc_raw", "plcc_logistic", "krcc", "rmse")

# Predictions whose spread is below this share of their size are constant: only rounding separates them.
_CONSTANT = 1e-10


def measure(predictions: ArrayLike, mos: ArrayLike) -> dict[str, float]:
    """All metrics of one set of predictions, in the order of ``METRICS``.

    predictions, mos: (n,) finite numbers, n >= 2, same length; higher is better in both.
    Returns srcc, plcc_raw, plcc_logistic, krcc in [-1, 1] and rmse in the units of mos. The four coefficients are nan
    when predictions or mos are constant; plcc_logistic is nan too with fewer than 5 images (4 parameters to fit).
    Raises InputError when lengths differ, n < 2 or a value is not finite.
    """
    x, y = _checked(predictions, mos)
    rmse = float(np.sqrt(np.mean((x - y) ** 2)))
    if _is_constant(x) or _is_constant(y):
        return {"srcc": np.nan, "plcc_raw": np.nan, "plcc_logistic": np.nan, "krcc": np.nan, "rmse": rmse}
    return {
        "srcc": float(stats.spearmanr(x, y).statistic),
        "plcc_raw": float(stats.pearsonr(x, y).statistic),
        "plcc_logistic": plcc_logistic(x, y),
        "krcc": float(stats.kendalltau(x, y).statistic),
        "rmse": rmse,
    }


def plcc_logistic(predictions: ArrayLike, mos: ArrayLike) -> float:
    """PLCC after the 4-parameter logistic fitted on these same images, the convention of the field.

    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)), least squares. The curve may fall; then the sign of the result
    is turned, so that predictions in the wrong order get a negative figure and not the credit of a right order.
    predictions, mos: (n,) finite numbers. Returns a value in [-1, 1]; nan when either is constant, when n < 5, or when
    the fit does not converge from any of three starting points.
    Source: VQEG final report on the validation of objective models of video quality assessment, phase I (2000).
    """
    x, y = _checked(predictions, mos)
    if len(x) < 5 or _is_constant(x) or _is_constant(y):
        return float("nan")
    # Both are put on a unit scale: the same starting points then suit any MOS scale.
    x = (x - x.mean()) / x.std()
    y = (y - y.mean()) / y.std()
    rising = 1.0 if np.corrcoef(x, y)[0, 1] >= 0 else -1.0
    best_error, best = np.inf, None
    for width in (1.0, 0.3, 3.0):  # 3.0 is nearly a straight line over the data, 0.3 nearly a step
        height = 2.0 + width
        start = (rising * height, -rising * height, 0.0, width)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optimize.OptimizeWarning)  # the covariance, which is not used
                fitted, _ = optimize.curve_fit(logistic, x, y, p0=start, maxfev=4000)
        except RuntimeError:  # no convergence from this start
            continue
        error = float(np.sum((logistic(x, *fitted) - y) ** 2))
        if np.isfinite(error) and error < best_error:
            best_error, best = error, fitted
    if best is None:
        return float("nan")
    curve = logistic(x, *best)
    if _is_constant(curve):
        return float("nan")
    sign = 1.0 if best[0] >= best[1] else -1.0
    return sign * float(stats.pearsonr(curve, y).statistic)


def logistic(x: NDArray[np.float64], b1: float, b2: float, b3: float, b4: float) -> NDArray[np.float64]:
    """The 4-parameter logistic of ``plcc_logistic``: b1 and b2 its two ends, b3 its centre, |b4| its width."""
    scaled = (np.asarray(x, np.float64) - b3) / max(abs(b4), 1e-12)
    return b2 + (b1 - b2) * special.expit(scaled)


def _checked(predictions: ArrayLike, mos: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= _CONSTANT * max(1e-300, float(np.abs(values).max())))
