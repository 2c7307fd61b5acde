"""Agreement between predicted scores and mean opinion scores (MOS): SRCC, PLCC (raw, after a logistic), KRCC, RMSE.

Called by ``qpt.evaluate.protocol`` once per split. Relies on SciPy for every coefficient, so ties are treated as SciPy
treats them: average ranks in SRCC, tau-b in KRCC. A coefficient that is not defined (constant predictions or constant
labels) is nan and no warning is shown: what a nan means for a summary is decided in ``summary.summarise``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qpt.errors import InputError
from qpt.evaluate.logistic import fit_logistic, fit_logistic5, logistic, logistic5

METRICS = ("srcc", "plcc_raw", "plcc_logistic", "plcc_logistic5", "krcc", "rmse")

Array = NDArray[np.float64]

# Of each metric after a fit: the fit, the curve, and the fewest images, one more than parameters.
_LOGISTIC: dict[str, tuple[Callable[..., tuple[float, ...]], Callable[..., Array], int]] = {
    "plcc_logistic": (fit_logistic, logistic, 5),
    "plcc_logistic5": (fit_logistic5, logistic5, 6),
}

# Predictions whose spread is below this share of their size are constant: only rounding separates them.
_CONSTANT = 1e-10


def measure(predictions: ArrayLike, mos: ArrayLike) -> dict[str, float]:
    """All metrics of one set of predictions, in the order of ``METRICS``.

    predictions, mos: (n,) finite numbers, n >= 2, same length; higher is better in both.
    Returns srcc, plcc_raw, plcc_logistic (4 parameters), plcc_logistic5, krcc in [-1, 1] and rmse in the units of
    mos. The coefficients are nan when predictions or mos are constant; plcc_logistic is nan too with fewer than 5
    images and plcc_logistic5 with fewer than 6: one more than the parameters to fit.
    Raises InputError when lengths differ, n < 2 or a value is not finite.
    """
    return measure_and_fit(predictions, mos)[0]


def measure_rank_and_error(predictions: ArrayLike, mos: ArrayLike) -> dict[str, float]:
    """srcc, plcc_raw and rmse alone, without a fit; arguments and nan as of ``measure``."""
    x, y = _checked(predictions, mos)
    rmse = float(np.sqrt(np.mean((x - y) ** 2)))
    if is_constant(x) or is_constant(y):
        return {"srcc": float("nan"), "plcc_raw": float("nan"), "rmse": rmse}
    srcc, plcc = float(stats.spearmanr(x, y).statistic), float(stats.pearsonr(x, y).statistic)
    return {"srcc": srcc, "plcc_raw": plcc, "rmse": rmse}


def measure_and_fit(predictions: ArrayLike, mos: ArrayLike) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """``measure``, and the parameters of the fitted curves by the name of their metric; one not defined is absent."""
    x, y = _checked(predictions, mos)
    values = dict.fromkeys(METRICS, float("nan")) | measure_rank_and_error(x, y)
    if is_constant(x) or is_constant(y):
        return values, {}
    fits = {name: fit(x, y) for name, (fit, _, least) in _LOGISTIC.items() if len(x) >= least}
    values |= {name: _correlation(curve, y) for name, curve in curves(x, y, fits).items()}
    return values | {"krcc": float(stats.kendalltau(x, y).statistic)}, fits


def curves(x: Array, y: Array, fits: Mapping[str, tuple[float, ...]]) -> dict[str, Array]:
    """Fitted curves at the predictions x, (n,) each, turned where the metric's sign is: their correlation with y is the
    metric. fits: as ``measure_and_fit`` returns them."""
    found = {}
    for name, b in fits.items():
        # A falling 4-parameter curve; of the 5-parameter one, see plcc_logistic5.
        falls = b[0] < b[1] if name == "plcc_logistic" else np.mean((x - x.mean()) * (y - y.mean())) < 0
        found[name] = _LOGISTIC[name][1](x, *b) * (-1.0 if falls else 1.0)
    return found


def plcc_logistic(predictions: ArrayLike, mos: ArrayLike) -> float:
    """PLCC after the 4-parameter logistic (``logistic.logistic``) fitted on these same images, by least squares.

    The curve may fall; then the sign of the result is turned, so that predictions in the wrong order get a negative
    figure and not the credit of a right order. predictions, mos: (n,) finite numbers. Returns a value in [-1, 1]; nan
    when either is constant or when n < 5.
    """
    return measure(predictions, mos)["plcc_logistic"]


def plcc_logistic5(predictions: ArrayLike, mos: ArrayLike) -> float:
    """PLCC after the 5-parameter logistic (``logistic.logistic5``) fitted on these same images, by least squares.

    This curve need not be monotone, as in its source. Its sign is that of the raw PLCC: the line within the model makes
    the fitted curve correlate with the predictions exactly as MOS does. predictions, mos: (n,) finite numbers. Returns
    a value in [-1, 1]; nan when either is constant or when n < 6.
    """
    return measure(predictions, mos)["plcc_logistic5"]


def is_constant(values: Array) -> bool:
    """Whether only rounding separates the values (n,)."""
    return bool(np.ptp(values) <= _CONSTANT * max(1e-300, float(np.abs(values).max())))


def _correlation(curve: Array, y: Array) -> float:
    return float("nan") if is_constant(curve) else float(stats.pearsonr(curve, y).statistic)


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
