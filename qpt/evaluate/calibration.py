"""A monotone map from raw scores to the scale of the labels, fitted on out-of-fold predictions.

Called by ``Scorer.fit`` when calibration is asked for; it touches nothing but its arguments. The map is strictly
increasing, so it changes no rank correlation: it bends and bounds the scale where a linear score is off at its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # which imports its parts, where they are first used: together they take a second
from numpy.typing import NDArray

from qpt.evaluate.protocol import inner_folds
from qpt.evaluate.ridge import fit_ridge

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticCalibration:
    """The map low + (high - low) / (1 + exp(-(raw - centre) / width)), with high > low, width > 0, in units of MOS.

    Source: the 4-parameter logistic of the Video Quality Experts Group's reports, here with its sign fixed.
    """

    low: float
    high: float
    centre: float
    width: float

    def __call__(self, raw: Array) -> Array:
        """Map raw scores of any shape to calibrated ones, between low and high."""
        return self.low + (self.high - self.low) * scipy.special.expit((raw - self.centre) / self.width)


def fit_calibration(raw: Array, mos: Array) -> LogisticCalibration:
    """Fit by least squares within bounds. raw, mos: (n,), n >= 4, mos not constant.

    low and high stay on their side of the middle of the labels and within one range beyond them; width is 0.02 to 5
    ranges.
    """
    # On an exactly linear relation the logistic has no optimum: the bounds keep its ends from running away.
    least, most = float(mos.min()), float(mos.max())
    span, middle = most - least, (least + most) / 2
    bounds = np.array(
        [[least - span, middle, raw.min() - span, 0.02 * span], [middle, most + span, raw.max() + span, 5 * span]]
    )
    start = np.array([least - 0.1 * span, most + 0.1 * span, np.median(raw), 0.3 * span])

    def residuals(parameters: Array) -> Array:
        return LogisticCalibration(*parameters)(raw) - mos

    found = scipy.optimize.least_squares(residuals, start, bounds=bounds, x_scale=span)
    return LogisticCalibration(*(float(value) for value in found.x))


def calibrate(
    features: Array, mos: Array, groups: NDArray[np.int64], penalty: float, seed: Sequence[int]
) -> tuple[LogisticCalibration, dict[str, Any]]:
    """Fit on out-of-fold predictions of the ridge, and measure the error with and without the map.

    features: (n, d) of the chosen read-out.  penalty, seed: those of ``protocol.choose_read_out``. Returns the
    calibration and {"folds", "rmse_raw", "rmse_calibrated"} in units of mos. For rmse_calibrated each fold is mapped by
    a logistic fitted on the other folds' predictions.
    """
    folds, name = inner_folds(groups, seed)
    raw = np.empty(len(mos))
    for fitted, held in folds:
        raw[held] = fit_ridge(features[fitted], mos[fitted], (penalty,)).predict(features[held])[0]
    mapped = np.empty(len(mos))
    for fitted, held in folds:
        mapped[held] = fit_calibration(raw[fitted], mos[fitted])(raw[held])
    errors = {
        "rmse_raw": float(np.sqrt(np.mean((raw - mos) ** 2))),
        "rmse_calibrated": float(np.sqrt(np.mean((mapped - mos) ** 2))),
    }
    return fit_calibration(raw, mos), {"folds": name, **errors}
