"""Figures of the training of runs: each function returns the bytes of a PNG file.

Called by ``qpt.report.training`` and ``qpt.commands.demo_run``. Curves of several runs are in one plot, a colour each.
Values of single batches are noisy: a thin line shows them as logged, a thick one their moving average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from qpt.report.canvas import COLOURS, GREY, MEDIUM, as_png, new_axes
from qpt.runs.observations import BINS, KINDS, Observation, bin_edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Log = Mapping[str, Sequence[float]]
_SIMILARITIES: dict[str, tuple[str, Literal["-", "--", ":"]]] = {
    "positive_similarity": ("positives (same composition)", "-"),
    "same_image_similarity": ("same photograph, other composition", "--"),
    "negative_similarity": ("all negatives", ":"),
}
_PAIRS = {
    "positive": "positives (same composition)",
    "same_image": "negatives of the same photograph",
    "other_image": "negatives of other photographs",
}
_PAIR_COLOURS = dict(zip(KINDS, COLOURS, strict=False))
_STAGES = {"load_share": "waiting for photographs", "degrade_share": "degrading"}
_RIDGES = 9  # histograms in the figure of histograms over training
_SMOOTH_FROM = 40  # rows of a log from which on a moving average is drawn over it


def over_steps(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str, *, noisy: bool = True
) -> bytes:
    """Draw a quantity over steps.

    series: run name -> (steps, values), both empty for a run without any.  noisy: draw a moving average of many values.
    """
    figure, axes = new_axes(MEDIUM)
    for (name, (steps, values)), colour in zip(series.items(), COLOURS, strict=False):
        if not len(steps):
            continue
        smooth = moving_average(np.asarray(values, float)) if noisy else None
        if smooth is None:
            axes.plot(steps, values, color=colour, linewidth=1.4, label=name, marker="o" if len(steps) == 1 else "")
        else:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
            axes.plot(steps, smooth, color=colour, linewidth=1.8, label=name)
    axes.set(xlabel="step", ylabel=label)
    if len(series) > 1:
        axes.legend(frameon=False)
    return as_png(figure)


def moving_average(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return (n,) centred means over a twentieth of the values, fewer at the ends; None below _SMOOTH_FROM values."""
    if len(values) < _SMOOTH_FROM:
        return None
    half = len(values) // 40
    padded = np.pad(values, half, constant_values=np.nan)
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)


def training_loss(logs: Mapping[str, Log]) -> bytes:
    """Draw the loss over steps. logs: run name -> columns of log.csv, none for a run without one."""
    return over_steps(columns(logs, "loss"), "contrastive loss")


def columns(logs: Mapping[str, Log], column: str) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return (steps, values) of a column by run name; both empty for a run whose log has no such column."""
    return {name: (log["step"], log[column]) if column in log else ((), ()) for name, log in logs.items()}


def training_similarity(logs: Mapping[str, Log]) -> bytes:
    """Draw mean cosine similarities over steps: a line style for each kind of pair, a colour for each run."""
    from matplotlib.lines import Line2D

    figure, axes = new_axes(MEDIUM)
    alone = len(logs) == 1
    for log, run_colour in zip(logs.values(), COLOURS, strict=False):
        for number, (column, (_, style)) in enumerate(_SIMILARITIES.items() if log else ()):
            colour, line = (COLOURS[number], "-") if alone else (run_colour, style)
            if column not in log:
                continue
            values = np.asarray(log[column], float)
            smooth = moving_average(values)
            axes.plot(log["step"], values if smooth is None else smooth, color=colour, linestyle=line, linewidth=1.4)
    axes.set(xlabel="step", ylabel="mean cosine similarity")
    keys = [
        Line2D([], [], color=COLOURS[i] if alone else GREY, linestyle="-" if alone else style, label=label)
        for i, (label, style) in enumerate(_SIMILARITIES.values())
    ]
    if not alone:
        keys += [Line2D([], [], color=colour, label=name) for name, colour in zip(logs, COLOURS, strict=False)]
    figure.legend(handles=keys, frameon=False, loc="outside lower center", ncols=1 if alone else 2, fontsize=8.5)
    return as_png(figure)


def stage_shares(log: Log) -> bytes:
    """Draw the shares of the time over steps: the logged stages, and the encoder's step as the rest."""
    figure, axes = new_axes(MEDIUM)
    names = [name for name in log if name.endswith("_share")]
    shares = np.array([log[name] for name in names]).reshape(len(names), -1)
    rest = np.clip(1 - shares.sum(0), 0, 1)
    labels = [_STAGES.get(name, name.removesuffix("_share").replace("_", " ")) for name in names]
    colours = (*COLOURS[1 : 1 + len(names)], COLOURS[0])
    axes.stackplot(log["step"], *shares, rest, labels=[*labels, "encoder and loss"], colors=colours, alpha=0.75)
    axes.set(xlabel="step", ylabel="share of the time", ylim=(0, 1))
    axes.margins(x=0)
    figure.legend(loc="outside lower center", frameon=False, ncols=len(names) + 1, fontsize=8.5)
    return as_png(figure)


def similarity_ridges(observations: Mapping[int, Observation]) -> bytes:
    """Draw histograms of similarities over training, the first step at the top, for a few evenly spaced observations.

    Each kind of pair has a colour. Each curve has a scale of its own: its position is shown, not its number of pairs.
    """
    figure, axes = new_axes((MEDIUM[0], 4.9))
    steps = list(observations)
    chosen = [steps[i] for i in sorted({round(k) for k in np.linspace(0, len(steps) - 1, _RIDGES)})]
    x = (np.array(bin_edges()[:-1]) + np.array(bin_edges()[1:])) / 2
    for row, step in enumerate(chosen):
        base = len(chosen) - 1 - row
        for kind in reversed(KINDS):  # positives in front
            height = np.convolve(getattr(observations[step], kind), (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), "same")
            if height.max() > 0:
                height = base + 0.92 * height / height.max()
                axes.fill_between(x, base, height, color=_PAIR_COLOURS[kind], alpha=0.35, linewidth=0)
                axes.plot(x, height, color=_PAIR_COLOURS[kind], linewidth=0.9)
        axes.axhline(base, color="#d7dce2", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(chosen)), [f"{step:,}" for step in reversed(chosen)])
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="cosine similarity of a query and a key", ylabel="step", xlim=(-1, 1), ylim=(-0.05, len(chosen)))
    _pair_legend(figure)
    return as_png(figure)


def similarity_histogram(step: int, observation: Observation) -> bytes:
    """Draw the histograms of one step as densities: the area of each kind of pair is one."""
    figure, axes = new_axes((MEDIUM[0], 4.9))
    edges = np.array(bin_edges())
    for kind in reversed(KINDS):
        counts = np.array(getattr(observation, kind))
        if counts.sum():
            density = counts / counts.sum() * BINS / 2
            axes.stairs(density, edges, fill=True, color=_PAIR_COLOURS[kind], alpha=0.35)
            axes.stairs(density, edges, color=_PAIR_COLOURS[kind], linewidth=1)
    axes.set(xlabel="cosine similarity of a query and a key", ylabel=f"density at step {step:,}", xlim=(-1, 1))
    _pair_legend(figure)
    return as_png(figure)


def _pair_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    keys = [Patch(color=_PAIR_COLOURS[kind], alpha=0.6, label=label) for kind, label in _PAIRS.items()]
    figure.legend(handles=keys, loc="outside lower center", frameon=False, fontsize=8.5)
