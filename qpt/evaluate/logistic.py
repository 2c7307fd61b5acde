"""Least-squares fits of the two logistic curves of the field, 4 and 5 parameters, by variable projection.

Called by ``qpt.evaluate.metrics`` for PLCC after a fit, and by reports. For a fixed centre c and width s both curves
are linear in the other parameters: span{1, g} or span{1, x, g}, with g(x) = 1 / (1 + exp(-(x - c) / s)). The search is
over (c, s) alone, first on a grid, then by a compass search from its best points. ``scipy.optimize.curve_fit`` does
not replace it: from one starting point it ends in whatever local optimum is near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # which imports its parts, where they are first used: together they take a second
from numpy.typing import NDArray

Array = NDArray[np.float64]

_WIDTHS = np.geomspace(1e-3, 20.0, 16)  # of standardised predictions: from a step to what looks like a parabola
_MIN_LOG_WIDTH = np.log(1e-6)  # same units
_BESIDE = np.array([-1.5, 0.0, 1.5])  # centres beside a point, in widths: a step that leaves the point in between
_OUTSIDE = np.array([0.5, 1.5, 4.0, 9.0])  # centres beyond the data, in widths: there the curve is an exponential
_MAX_POINTS = 80  # of the grid search; more points are merged with their neighbours
_UNMERGED = 16  # points at either end that are never merged: outliers are centres of possible steps
_FINALISTS = 4
_DIRECTIONS = np.array([(i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0) if i or j])


def logistic(x: Array, b1: float, b2: float, b3: float, b4: float) -> Array:
    """Return b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)): b1 and b2 are its ends, b3 its centre, |b4| its width.

    Source: VQEG final report on the validation of objective models of video quality assessment, phase I (2000).
    """
    return b2 + (b1 - b2) * scipy.special.expit((np.asarray(x, np.float64) - b3) / max(abs(b4), 1e-300))


def logistic5(x: Array, b1: float, b2: float, b3: float, b4: float, b5: float) -> Array:
    """Return b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5.

    Source: Sheikh, Sabir and Bovik, A statistical evaluation of recent full reference image quality assessment
    algorithms, IEEE TIP 15(11), 2006, equation 10.
    """
    x = np.asarray(x, np.float64)
    return b1 * (0.5 - scipy.special.expit(-b2 * (x - b3))) + b4 * x + b5


def fit_logistic(x: Array, y: Array) -> tuple[float, float, float, float]:
    """Return b1..b4 of ``logistic`` with the least squared error found. x, y: (n,), n >= 5, neither constant."""
    (shift, scale), centre, width, (base, height) = _fit(x, y, line=False)
    return base + height, base, shift + scale * centre, scale * width


def fit_logistic5(x: Array, y: Array) -> tuple[float, float, float, float, float]:
    """Return b1..b5 of ``logistic5`` with the least squared error found. x, y: (n,), n >= 6, neither constant."""
    (shift, scale), centre, width, (base, height, slope) = _fit(x, y, line=True)
    # height expit(u) = height (1/2 - expit(-u)) + height / 2, and the line is in standardised x.
    return (
        height,
        1.0 / (scale * width),
        shift + scale * centre,
        slope / scale,
        base + height / 2 - slope * shift / scale,
    )


@dataclass(frozen=True)
class _Points:
    """Weighted points to fit a curve to.

    z: standardised predictions.  root: square roots of the weights.  q: orthonormal basis of the constant (and the
    line).  rest: the part of y outside its span.  total: norm of y about its mean.
    """

    z: Array
    root: Array
    q: Array
    rest: Array
    total: float

    @classmethod
    def of(cls, z: Array, y: Array, counts: Array, *, line: bool) -> _Points:
        root = np.sqrt(counts)
        q = np.linalg.qr(np.stack([root, z * root] if line else [root], axis=1))[0]
        weighted = (y - np.average(y, weights=counts)) * root
        return cls(z, root, q, weighted - q @ (q.T @ weighted), float(np.linalg.norm(weighted)) or 1.0)

    def gain(self, curves: Array) -> Array:
        """Return the share of the variance of y that each curve explains beyond q.

        curves: (m, 2) pairs of centre and log width; the result is (m,).
        """
        centre, log_width = curves[:, 0], curves[:, 1]
        u = (self.z - curves[:, :1]) / np.exp(curves[:, 1:])
        # Of g and 1 - g, which span the same, take the one near 0 over most of the data: the other loses digits there.
        g = scipy.special.expit(np.where(curves[:, :1] >= 0, u, -u)) * self.root
        residual = g - (g @ self.q) @ self.q.T
        size = np.linalg.norm(residual, axis=1)
        usable = size > 1e-8 * np.linalg.norm(g, axis=1)  # below, rounding alone tells it from the span
        # Further out nothing changes (it is an exponential), nor when steeper, but the parameters lose their digits.
        margin = 12 * np.exp(log_width)
        usable &= (centre > self.z.min() - margin) & (centre < self.z.max() + margin) & (log_width > _MIN_LOG_WIDTH)
        cosine = np.divide(residual @ self.rest, size * self.total, out=np.zeros(len(g)), where=usable)
        return cosine**2


def _fit(x: Array, y: Array, *, line: bool) -> tuple[tuple[float, float], float, float, Array]:
    """Return (mean, std) of x and, in standardised x, centre, width and coefficients of 1, g and (with ``line``) x."""
    shift, scale = float(x.mean()), float(x.std())
    z = (x - shift) / scale
    points, values, counts, exact = _merged(z, y)
    few = _Points.of(points, values, counts, line=line)
    gaps = (points[1:] + points[:-1]) / 2  # every gap of the data is a possible step
    columns = [
        np.concatenate(
            [gaps, (points[:, None] + s * _BESIDE).ravel(), points[0] - s * _OUTSIDE, points[-1] + s * _OUTSIDE]
        )
        for s in _WIDTHS
    ]
    centres = np.stack(columns)  # (widths, centres)
    grid = np.stack([centres, np.broadcast_to(np.log(_WIDTHS)[:, None], centres.shape)], axis=-1)
    gains = few.gain(grid.reshape(-1, 2)).reshape(centres.shape)
    # One start for each width: its next best centre would mostly lead to the same optimum.
    starts = grid[np.arange(len(_WIDTHS)), gains.argmax(axis=1)]
    steps = np.stack([0.5 * _WIDTHS, np.full(len(_WIDTHS), 0.4)], axis=1)
    curves, steps, reached = _compass_search(few, starts, steps, rounds=12)
    kept = np.argsort(-reached, kind="stable")[:_FINALISTS]
    curves, _, reached = _compass_search(few, curves[kept], steps[kept], rounds=30)
    best = curves[[reached.argmax()]]
    if not exact:
        steps = np.stack([0.1 * np.exp(best[:, 1]), np.full(1, 0.1)], axis=1)
        best = _compass_search(_Points.of(z, y, np.ones(len(z)), line=line), best, steps, rounds=25)[0]
    centre, width = float(best[0, 0]), float(np.exp(best[0, 1]))
    g = scipy.special.expit((z - centre) / width)
    level = float(g.mean())
    size = float(np.linalg.norm(g - level)) or 1.0  # a step beyond the data is constant there: it gets no height
    design = np.stack([np.ones(len(z)), (g - level) / size] + ([z] if line else []), axis=1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    coefficients[1] /= size
    coefficients[0] -= coefficients[1] * level
    return (shift, scale), centre, width, coefficients


def _compass_search(points: _Points, curves: Array, steps: Array, *, rounds: int) -> tuple[Array, Array, Array]:
    """Search from several curves at once: each moves to the best of ten neighbours, or halves its step.

    curves, steps: (m, 2) in centre and log width. Returns the curves, steps and gains (m,) reached.
    """
    values = points.gain(curves)
    each = np.arange(len(curves))
    for _ in range(rounds):
        trials = curves[:, None] + steps[:, None] * _DIRECTIONS
        # Two more, with centre / width kept: far outside the data the curve is an exponential, which has a width alone.
        wider = np.exp(steps[:, 1])[:, None] ** [1.0, -1.0]
        kept = np.stack([curves[:, :1] * wider, curves[:, 1:] + np.log(wider)], axis=2)
        trials = np.concatenate([trials, kept], axis=1)
        gains = points.gain(trials.reshape(-1, 2)).reshape(len(curves), -1)
        best = gains.argmax(axis=1)
        better = gains[each, best] > values
        curves = np.where(better[:, None], trials[each, best], curves)
        values = np.where(better, gains[each, best], values)
        steps = np.where(better[:, None], 1.4 * steps, 0.5 * steps)
        steps[:, 1] = np.minimum(steps[:, 1], 3.0)  # twentyfold: a width may go on growing for ever
    return curves, steps, values


def _merged(z: Array, y: Array) -> tuple[Array, Array, Array, bool]:
    """Return increasing points, their mean values, their counts, and whether these lose nothing.

    Equal predictions become one point, which changes no fit; neighbours are merged beyond ``_MAX_POINTS`` points.
    """
    points, inverse, number = np.unique(z, return_inverse=True, return_counts=True)
    counts = number.astype(np.float64)
    sums = np.bincount(inverse, weights=y)
    if len(points) <= _MAX_POINTS:
        return points, sums / counts, counts, True
    last = len(points) - _UNMERGED
    inner = np.linspace(_UNMERGED, last, _MAX_POINTS - 2 * _UNMERGED + 1).astype(np.int64)
    edges = np.concatenate([np.arange(_UNMERGED), inner, np.arange(last + 1, len(points))])
    merged = np.add.reduceat(counts, edges)
    return np.add.reduceat(points * counts, edges) / merged, np.add.reduceat(sums, edges) / merged, merged, False
