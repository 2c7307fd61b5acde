"""Figures of predictions, severity and embeddings: each function returns the bytes of a PNG file.

Called by ``qpt.report.build`` and ``severity``; ``curves`` draws the training. Each figure holds one plot: the page
puts figures side by side where the screen is wide enough, and text stays legible where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.evaluate.logistic import logistic
from qpt.evaluate.metrics import measure_and_fit
from qpt.report.canvas import COLOURS, MEDIUM, SMALL, as_png, new_axes
from qpt.report.measurements import Cloud, Severity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAMILY_MAPS = ("Blues", "Oranges", "Greens", "Purples", "Reds", "Greys")


def prediction_scatter(predictions: NDArray[np.float64], mos: NDArray[np.float64], colour: str) -> bytes:
    """Draw MOS over prediction, the logistic fit and the line where both are equal."""
    figure, axes = new_axes(MEDIUM)
    ends = np.array([min(predictions.min(), mos.min()), max(predictions.max(), mos.max())])
    axes.plot(ends, ends, color="#8c959f", linewidth=1, linestyle=":", label="prediction = MOS")
    axes.scatter(predictions, mos, s=_dot(len(mos)), color=colour, alpha=0.55, linewidths=0)
    fit = measure_and_fit(predictions, mos)[1].get("plcc_logistic")
    if fit is not None:
        x = np.linspace(predictions.min(), predictions.max(), 200)
        axes.plot(x, logistic(x, *fit), color="#1b1f24", linewidth=1.6, label="4-parameter logistic")
    edge = 0.06 * float(np.ptp(mos))  # the axis is that of MOS: predictions far outside must not squeeze it
    axes.set(xlabel="out-of-fold prediction", ylabel="MOS", ylim=(mos.min() - edge, mos.max() + edge))
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8.5)
    return as_png(figure)


def rank_scatter(predictions: NDArray[np.float64], mos: NDArray[np.float64], colour: str) -> bytes:
    """Draw the rank of MOS over the rank of the prediction, 1 the lowest; ties share their average rank."""
    from scipy.stats import rankdata

    figure, axes = new_axes(MEDIUM)
    axes.plot([1, len(mos)], [1, len(mos)], color="#8c959f", linewidth=1, linestyle=":")
    axes.scatter(rankdata(predictions), rankdata(mos), s=_dot(len(mos)), color=colour, alpha=0.55, linewidths=0)
    axes.set(xlabel="rank of the out-of-fold prediction", ylabel="rank of MOS")
    return as_png(figure)


def kind_bars(srcc: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> bytes:
    """Draw SRCC within each distortion type. srcc: run -> type -> value.  counts: images of each type, in order."""
    height = 0.9 + 0.16 * len(counts) * (1 + len(srcc))
    figure, axes = new_axes((MEDIUM[0], height))
    thick = 0.8 / len(srcc)
    place = np.arange(len(counts))
    for number, ((name, values), colour) in enumerate(zip(srcc.items(), COLOURS, strict=False)):
        offset = (number - (len(srcc) - 1) / 2) * thick
        axes.barh(place + offset, [values[k] for k in counts], height=thick * 0.92, color=colour, label=name)
    axes.set_yticks(place, [f"{kind} ({count})" for kind, count in counts.items()])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    low = min(0.0, *(value for values in srcc.values() for value in values.values()))
    axes.set(xlabel="SRCC within the type (images)", xlim=(low - 0.02 if low else 0, 1))
    if len(srcc) > 1:
        axes.legend(frameon=False, fontsize=8.5, loc="lower left")
    return as_png(figure)


def map_by_value(cloud: Cloud, values: NDArray[np.float64], label: str) -> bytes:
    """Draw the embedding map, each point coloured by a value (n,)."""
    figure, axes = _map_axes(cloud)
    points = axes.scatter(
        cloud.points[:, 0], cloud.points[:, 1], c=values, cmap="viridis", s=_dot(len(values)), alpha=0.85, linewidths=0
    )
    figure.colorbar(points, ax=axes, label=label, shrink=0.85)
    return as_png(figure)


def map_by_op(cloud: Cloud, ops: NDArray[np.int64], levels: NDArray[np.int64]) -> bytes:
    """Draw the embedding map of degraded patches: hue by family, shade by op, size by level."""
    from matplotlib.lines import Line2D

    figure, axes = _map_axes(cloud, height=4.9)
    colours = op_colours(np.unique(ops))
    for op, colour in colours.items():
        rows = ops == op
        sizes = 0.3 * _dot(len(ops)) * levels[rows]
        x, y = cloud.points[rows].T
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.8, linewidths=0)
    columns = 3 if len(colours) > 8 else 2
    keys = [Line2D([], [], marker="o", linestyle="", color=c, label=DEGRADATIONS[op].name) for op, c in colours.items()]
    figure.legend(handles=keys, loc="outside lower center", frameon=False, ncols=columns, fontsize=7.5, handletextpad=0)
    return as_png(figure)


def map_by_level(cloud: Cloud, levels: NDArray[np.int64]) -> bytes:
    """Draw the embedding map of degraded patches coloured by level."""
    figure, axes = _map_axes(cloud)
    from matplotlib import colormaps

    shades = colormaps["magma_r"].resampled(LEVELS + 2)
    for level in range(1, LEVELS + 1):
        rows = levels == level
        axes.scatter(
            cloud.points[rows, 0],
            cloud.points[rows, 1],
            s=_dot(len(levels)),
            color=shades(level),
            linewidths=0,
            label=str(level),
        )
    figure.legend(loc="outside lower center", frameon=False, ncols=LEVELS, title="level", markerscale=2)
    return as_png(figure)


def severity_curve(op: str, curves: Mapping[str, Severity], limits: tuple[float, float]) -> bytes:
    """Draw the change of one op against the pristine image over levels 0 (pristine) to 5: the mean, and each image."""
    figure, axes = new_axes(SMALL)
    levels = np.arange(LEVELS + 1)
    axes.axhline(0, color="#8c959f", linewidth=0.8)
    for (_, severity), colour in zip(curves.items(), COLOURS, strict=False):
        change = severity.changes[op]
        axes.plot(levels, change.T, color=colour, linewidth=0.6, alpha=0.22)
        axes.plot(levels, change.mean(0), color=colour, linewidth=2)
    axes.set_title(op.replace("_", " "), fontsize=9)
    axes.set(xticks=levels, ylim=limits)
    axes.tick_params(labelsize=8)
    return as_png(figure)


def op_colours(ops: Sequence[int] | NDArray[Any]) -> dict[int, Any]:
    """Return a colour for each op id: the hue is its family's, the shade its own."""
    from matplotlib import colormaps

    families = list(dict.fromkeys(row.family for row in DEGRADATIONS))
    found = {}
    for number, family in enumerate(families):
        members = [int(op) for op in ops if DEGRADATIONS[op].family == family]
        shades = colormaps[_FAMILY_MAPS[number % len(_FAMILY_MAPS)]]
        for index, op in enumerate(members):
            found[op] = shades(0.35 + 0.6 * index / max(1, len(members) - 1))
    return found


def _map_axes(cloud: Cloud, height: float = MEDIUM[1]) -> tuple[Figure, Axes]:
    figure, axes = new_axes((MEDIUM[0], height))
    axes.grid(visible=False)
    axes.set(xlabel=f"{cloud.method} 1", ylabel=f"{cloud.method} 2", xticks=[], yticks=[])
    return figure, axes


def _dot(count: int) -> float:
    """Return the area of a point in square points: the more points, the smaller."""
    return float(np.clip(4000 / max(count, 1), 4, 28))
