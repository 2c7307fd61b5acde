"""Sizes, colours, empty axes and PNG bytes: the common parts of a report's figures.

Called by ``figures`` and ``curves``. It uses matplotlib without pyplot, and so without global state. A figure has twice
its size on the page.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of runs, in order; ``run_records`` refuses more runs than there are colours.
COLOURS = ("#0b62a4", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#57606a")
GREY = "#57606a"
MEDIUM, SMALL = (5.2, 3.9), (2.3, 1.9)  # inches


def new_axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160)
    return out.getvalue()
