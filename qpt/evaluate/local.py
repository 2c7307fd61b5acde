"""Local quality: the score of every tile of a photograph, and a picture of it.

Called by ``qpt score --heatmap``. Relies on ``Scorer`` for the score of a tile and on matplotlib for the picture.

Definition. Square tiles of side t start every t/2 px along both axes, the last ones touching the far borders, so that a
pixel away from the border lies in four tiles. A tile is scored as a photograph of its own, by the same scorer. The
local quality of a pixel is the mean of the scores of the tiles that cover it. It is no decomposition: the mean over the
map is not the score of the photograph, and what a scorer learned from whole photographs holds for tiles only in
so far as they look like photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.errors import InputError
from qpt.evaluate.image_crops import MIN_SIDE, check_pixels

if TYPE_CHECKING:
    from qpt.evaluate.scorer import Scorer

MIN_TILE = 128  # px: the last stage of an encoder of stride 32 still has 4 x 4 positions
MOST_TILES = 8  # of MIN_TILE or more along the longer side, not counting the overlapping ones between them
_SHOWN_PX = 1600  # longer side of a photograph in the picture


@dataclass(frozen=True)
class LocalQuality:
    """scores: (rows, columns) of the tiles.  tops, lefts: (rows,) and (columns,) their first pixels.  tile: (height,
    width) of each, in px.  size: (height, width) of the photograph."""

    scores: NDArray[np.float64]
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    tile: tuple[int, int]
    size: tuple[int, int]

    def at(self, ys: NDArray[np.int64], xs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Local quality at the pixels of a grid: (len(ys), len(xs)), the mean over the tiles that cover each."""
        down = ((ys[:, None] >= self.tops) & (ys[:, None] < self.tops + self.tile[0])).astype(np.float64)
        across = ((xs[:, None] >= self.lefts) & (xs[:, None] < self.lefts + self.tile[1])).astype(np.float64)
        return (down @ self.scores @ across.T) / (down.sum(1)[:, None] * across.sum(1))


def local_quality(scorer: Scorer, pixels: NDArray[np.uint8], *, tile_px: int | None = None) -> LocalQuality:
    """Score every tile of a photograph. pixels: (H, W, 3) uint8.

    tile_px: side of a tile, >= 32; by default an eighth of the longer side, at least 128. A side of the photograph
    that is shorter than this is the tile's. Raises InputError as ``Scorer`` does.
    """
    check_pixels(pixels, max_pixels=scorer.max_pixels)
    if tile_px is not None and tile_px < MIN_SIDE:
        raise InputError(f"local_quality: tile_px must be >= {MIN_SIDE}, got {tile_px}")
    side = tile_px or max(MIN_TILE, -(-max(pixels.shape[:2]) // MOST_TILES))
    (height, tops), (width, lefts) = (_starts(length, side) for length in pixels.shape[:2])
    scores = [
        [scorer(np.ascontiguousarray(pixels[top : top + height, left : left + width])) for left in lefts]
        for top in tops
    ]
    return LocalQuality(np.array(scores), tops, lefts, (height, width), (pixels.shape[0], pixels.shape[1]))


def _starts(length: int, side: int) -> tuple[int, NDArray[np.int64]]:
    """The extent of tiles along an axis and where they start."""
    if length <= side:
        return length, np.array([0])
    starts = list(range(0, length - side, max(1, side // 2)))
    return side, np.array([*starts, length - side])


def draw_local_quality(local: LocalQuality, pixels: NDArray[np.uint8], scorer: Scorer, path: Path, title: str) -> None:
    """Write a PNG: the photograph, and beside it the map over its grey version.

    Colours span the range of the scores found, so that differences within the photograph show; the bar beside it gives
    their values on the scale of the scorer. Longer sides than 1600 px are drawn smaller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = local.size
    shrink = max(1.0, max(height, width) / _SHOWN_PX)
    shown = Image.fromarray(pixels).resize((max(1, round(width / shrink)), max(1, round(height / shrink))))
    ys = np.minimum((np.arange(shown.height) * shrink).astype(np.int64), height - 1)
    xs = np.minimum((np.arange(shown.width) * shrink).astype(np.int64), width - 1)
    values = local.at(ys, xs)

    tall = height > 1.2 * width
    figure = Figure(figsize=(10, 7) if tall else (11, 0.8 + 5.0 * max(0.25, height / width)), layout="constrained")
    FigureCanvasAgg(figure)
    photograph, overlay = figure.subplots(1, 2)
    photograph.imshow(shown)
    overlay.imshow(shown.convert("L"), cmap="gray", vmin=0, vmax=255)
    drawn = overlay.imshow(values, cmap="RdYlBu", alpha=0.6)
    for axes, text in ((photograph, title), (overlay, f"quality of tiles of {local.tile[1]}x{local.tile[0]} px")):
        axes.set_title(text, fontsize=10, parse_math=False)  # a file name may hold a $
        axes.set_axis_off()
    bar = figure.colorbar(drawn, ax=overlay, shrink=0.9)
    bar.set_label(f"score (labels: {scorer.mos_min:g} worst to {scorer.mos_max:g} best)")
    figure.savefig(path, dpi=110, format="png")
