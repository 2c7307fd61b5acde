"""Least-squares fits of the two logistic curves of the field, 4 and 5 parameters, by variable projection.

Called by ``qpt.evaluate.metrics`` for PLCC after a fit. For a fixed centre c and width s both curves are linear in
what remains: 4 parameters: span{1, g}, 5 parameters: span{1, x, g}, with g(x) = 1 / (1 + exp(-(x - c) / s)). So the
search is over (c, s) alone: a grid first (every gap of the data is a possible step), then a climb from its best
places. A fit from one starting point, as usually done, ends in whatever optimum is near. Relies on NumPy and SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

_WIDTHS = np.geomspace(1e-3, 20.0, 16)  # of standardised predictions: from a step to what looks like a parabola
_LEAST = np.log(1e-6)  # log width, same units
_BESIDE = np.array([-1.5, 0.0, 1.5])  # centres beside a point, in widths: a step that leaves the point in between
_OUTSIDE = np.array([0.5, 1.5, 4.0, 9.0])  # centres beyond the data, in widths: there the curve is an exponential
_CELLS = 80  # the grid sees at most as many points: means of neighbours
_ENDS = 16  # of which so many at either end are the data's own: outliers are places for a step
_FINISHERS = 4
_AROUND = np.array([(i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0) if i or j])


def logistic(x: Array, b1: float, b2: float, b3: float, b4: float) -> Array:
    """b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)): b1 and b2 its two ends, b3 its centre, |b4| its width.

    Source: VQEG final report on the validation of objective models of video quality assessment, phase I (2000).
    """
    return b2 + (b1 - b2) * special.expit((np.asarray(x, np.float64) - b3) / max(abs(b4), 1e-300))


def logistic5(x: Array, b1: float, b2: float, b3: float, b4: float, b5: float) -> Array:
    """b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5.

    Source: Sheikh, Sabir and Bovik, A statistical evaluation of recent full reference image quality assessment
    algorithms, IEEE TIP 15(11), 2006, equation 10.
    """
    x = np.asarray(x, np.float64)
    return b1 * (0.5 - special.expit(-b2 * (x - b3))) + b4 * x + b5


def fit_logistic(x: Array, y: Array) -> tuple[float, float, float, float]:
    """b1..b4 of ``logistic`` with the least squared error found. x, y: (n,) float64, n >= 5, neither constant."""
    (shift, scale), centre, width, (base, height) = _fit(x, y, line=False)
    return base + height, base, shift + scale * centre, scale * width


def fit_logistic5(x: Array, y: Array) -> tuple[float, float, float, float, float]:
    """b1..b5 of ``logistic5`` with the least squared error found. x, y: (n,) float64, n >= 6, neither constant."""
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
    """Standardised predictions z, targets y and how many images each stands for; q: orthonormal basis of the constant
    (and the line), rest: what y has outside it, total: the size of y about its mean."""

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

    def gain(self, places: Array) -> Array:
        """Share of the variance of y that the curve of each (centre, log width) explains beyond q: (m, 2) -> (m,)."""
        u = (self.z - places[:, :1]) / np.exp(places[:, 1:])
        # The side of the curve that is near 0 over most of the data: the other one loses digits there.
        g = special.expit(np.where(places[:, :1] >= 0, u, -u)) * self.root
        left = g - (g @ self.q) @ self.q.T
        size = np.linalg.norm(left, axis=1)
        usable = size > 1e-8 * np.linalg.norm(g, axis=1)  # below, rounding alone tells it from the span
        # Further out nothing changes (it is an exponential), nor when steeper, but the parameters lose their digits.
        room = 12 * np.exp(places[:, 1])
        usable &= (places[:, 0] > self.z.min() - room) & (places[:, 0] < self.z.max() + room) & (places[:, 1] > _LEAST)
        inner = np.divide(left @ self.rest, size * self.total, out=np.zeros(len(g)), where=usable)
        return inner**2


def _fit(x: Array, y: Array, *, line: bool) -> tuple[tuple[float, float], float, float, Array]:
    """((mean, std) of x, centre, width, coefficients of 1, g and, with ``line``, x) in standardised x."""
    shift, scale = float(x.mean()), float(x.std())
    z = (x - shift) / scale
    points, values, counts, exact = _thinned(z, y)
    few = _Points.of(points, values, counts, line=line)
    gaps = (points[1:] + points[:-1]) / 2
    columns = [
        np.concatenate(
            [gaps, (points[:, None] + s * _BESIDE).ravel(), points[0] - s * _OUTSIDE, points[-1] + s * _OUTSIDE]
        )
        for s in _WIDTHS
    ]
    centres = np.stack(columns)  # (widths, centres)
    grid = np.stack([centres, np.broadcast_to(np.log(_WIDTHS)[:, None], centres.shape)], axis=-1)
    gains = few.gain(grid.reshape(-1, 2)).reshape(centres.shape)
    # The best place of each width is one candidate: the next best of a width would mostly lead to the same optimum.
    starts = grid[np.arange(len(_WIDTHS)), gains.argmax(axis=1)]
    steps = np.stack([0.5 * _WIDTHS, np.full(len(_WIDTHS), 0.4)], axis=1)
    places, steps, reached = _climb(few, starts, steps, rounds=12)
    kept = np.argsort(-reached, kind="stable")[:_FINISHERS]
    places, _, reached = _climb(few, places[kept], steps[kept], rounds=30)
    best = places[[reached.argmax()]]
    if not exact:
        steps = np.stack([0.1 * np.exp(best[:, 1]), np.full(1, 0.1)], axis=1)
        best = _climb(_Points.of(z, y, np.ones(len(z)), line=line), best, steps, rounds=25)[0]
    centre, width = float(best[0, 0]), float(np.exp(best[0, 1]))
    g = special.expit((z - centre) / width)
    level = float(g.mean())
    size = float(np.linalg.norm(g - level)) or 1.0  # a step beyond the data is constant there: it gets no height
    design = np.stack([np.ones(len(z)), (g - level) / size] + ([z] if line else []), axis=1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    coefficients[1] /= size
    coefficients[0] -= coefficients[1] * level
    return (shift, scale), centre, width, coefficients


def _climb(points: _Points, places: Array, steps: Array, *, rounds: int) -> tuple[Array, Array, Array]:
    """Compass search from several places at once: go to the best of ten neighbours, or halve the step.

    Returns places, steps and gains reached."""
    values = points.gain(places)
    each = np.arange(len(places))
    for _ in range(rounds):
        trials = places[:, None] + steps[:, None] * _AROUND
        # Two more, with centre / width kept: far outside the data the curve is an exponential, which has a width alone.
        wider = np.exp(steps[:, 1])[:, None] ** [1.0, -1.0]
        kept = np.stack([places[:, :1] * wider, places[:, 1:] + np.log(wider)], axis=2)
        trials = np.concatenate([trials, kept], axis=1)
        gains = points.gain(trials.reshape(-1, 2)).reshape(len(places), -1)
        nearest = gains.argmax(axis=1)
        better = gains[each, nearest] > values
        places = np.where(better[:, None], trials[each, nearest], places)
        values = np.where(better, gains[each, nearest], values)
        steps = np.where(better[:, None], 1.4 * steps, 0.5 * steps)
        steps[:, 1] = np.minimum(steps[:, 1], 3.0)  # twentyfold: a width may go on growing for ever
    return places, steps, values


def _thinned(z: Array, y: Array) -> tuple[Array, Array, Array, bool]:
    """Increasing points, their mean values and counts, and whether nothing was lost by it.

    Equal predictions become one point, which changes no fit; neighbours are merged beyond ``_CELLS`` points.
    """
    points, inverse, number = np.unique(z, return_inverse=True, return_counts=True)
    counts = number.astype(np.float64)
    sums = np.bincount(inverse, weights=y)
    if len(points) <= _CELLS:
        return points, sums / counts, counts, True
    inner = np.linspace(_ENDS, len(points) - _ENDS, _CELLS - 2 * _ENDS + 1).astype(np.int64)
    edges = np.concatenate([np.arange(_ENDS), inner, np.arange(len(points) - _ENDS + 1, len(points))])
    merged = np.add.reduceat(counts, edges)
    return np.add.reduceat(points * counts, edges) / merged, np.add.reduceat(sums, edges) / merged, merged, False
