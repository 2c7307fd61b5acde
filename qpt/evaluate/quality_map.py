"""The quality map of an image: the score of every tile, and a heat map drawn from it.

Called by ``qpt score --heatmap``; it writes the PNG. Square tiles of side t start every t/2 px along both axes, the
last ones touching the far borders. A tile is scored as an image of its own by the same scorer, and the local quality of
a pixel is the mean of the scores of the tiles that cover it. This is no decomposition: the mean over the map is not the
score of the image, and a scorer fitted on whole images is valid for tiles only as far as tiles look like images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.errors import check_int
from qpt.evaluate.image_crops import MIN_SIDE, check_pixels
from qpt.io import write_whole

if TYPE_CHECKING:
    from qpt.evaluate.scorer import Scorer

MIN_TILE = 128  # px: the last stage of an encoder of stride 32 still has 4 x 4 positions
MOST_TILES = 8  # of MIN_TILE or more along the longer side, not counting the overlapping ones between them
_SHOWN_PX = 1600  # longer side of the image as drawn
_SOFTWARE = "QPT quality map"  # in the PNG, so that no map is taken for a photograph or written over one


@dataclass(frozen=True)
class QualityMap:
    """The scores of the tiles of an image.

    scores: (rows, columns).  tops, lefts: (rows,) and (columns,) first pixels of the tiles.  tile: (height, width) of
    each, in px.  size: (height, width) of the image.
    """

    scores: NDArray[np.float64]
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    tile: tuple[int, int]
    size: tuple[int, int]

    def at(self, ys: NDArray[np.int64], xs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return local quality at the pixels of a grid: (len(ys), len(xs)), the mean over the tiles that cover each."""
        down = ((ys[:, None] >= self.tops) & (ys[:, None] < self.tops + self.tile[0])).astype(np.float64)
        across = ((xs[:, None] >= self.lefts) & (xs[:, None] < self.lefts + self.tile[1])).astype(np.float64)
        return (down @ self.scores @ across.T) / (down.sum(1)[:, None] * across.sum(1))


def quality_map(scorer: Scorer, pixels: NDArray[np.uint8], *, tile_px: int | None = None) -> QualityMap:
    """Score every tile of an image. pixels: (H, W, 3) uint8.

    tile_px: side of a tile, >= 32; by default an eighth of the longer side, at least 128. A side of the image that is
    shorter than this is the tile's. Raises InputError as ``Scorer`` does.
    """
    check_pixels(pixels, max_pixels=scorer.max_pixels)
    if tile_px is not None:
        tile_px = check_int("quality_map", "tile_px", tile_px, MIN_SIDE)
    side = tile_px or max(MIN_TILE, -(-max(pixels.shape[:2]) // MOST_TILES))
    (height, tops), (width, lefts) = (_starts(length, side) for length in pixels.shape[:2])
    scores = [
        [scorer(np.ascontiguousarray(pixels[top : top + height, left : left + width])) for left in lefts]
        for top in tops
    ]
    return QualityMap(np.array(scores), tops, lefts, (height, width), (pixels.shape[0], pixels.shape[1]))


def _starts(length: int, side: int) -> tuple[int, NDArray[np.int64]]:
    """Return the extent of tiles along an axis and their first pixels."""
    if length <= side:
        return length, np.array([0])
    starts = list(range(0, length - side, max(1, side // 2)))
    return side, np.array([*starts, length - side])


def is_quality_map(path: str | Path) -> bool:
    """Return whether a file is a PNG that ``draw_quality_map`` wrote."""
    try:
        if not Path(path).is_file():  # opening a pipe would wait for who writes to it
            return False
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start.startswith(b"\x89PNG\r\n") and f"tEXtSoftware\0{_SOFTWARE}".encode() in start


def draw_quality_map(found: QualityMap, pixels: NDArray[np.uint8], scorer: Scorer, path: Path, title: str) -> None:
    """Write a PNG: the image, and beside it the map over its grey version, with a bar of the scorer's scale.

    Images of a longer side than 1600 px are drawn smaller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = found.size
    shrink = max(1.0, max(height, width) / _SHOWN_PX)
    shown = Image.fromarray(pixels).resize((max(1, round(width / shrink)), max(1, round(height / shrink))))
    ys = np.minimum((np.arange(shown.height) * shrink).astype(np.int64), height - 1)
    xs = np.minimum((np.arange(shown.width) * shrink).astype(np.int64), width - 1)
    values = found.at(ys, xs)

    tall = height > 1.2 * width
    figure = Figure(figsize=(10, 7) if tall else (11, 0.8 + 5.0 * max(0.25, height / width)), layout="constrained")
    FigureCanvasAgg(figure)
    image, overlay = figure.subplots(1, 2)
    image.imshow(shown)
    overlay.imshow(shown.convert("L"), cmap="gray", vmin=0, vmax=255)
    # Colours span the range of the scores found, not that of the labels: differences within the image must show.
    drawn = overlay.imshow(values, cmap="RdYlBu", alpha=0.6)
    for axes, text in ((image, title), (overlay, f"quality of tiles of {found.tile[1]}x{found.tile[0]} px")):
        axes.set_title(text, fontsize=10, parse_math=False)  # a file name may hold a $
        axes.set_axis_off()
    bar = figure.colorbar(drawn, ax=overlay, shrink=0.9)
    scale = f"{'labels: ' if scorer.opinions else ''}{scorer.mos_min:g} worst to {scorer.mos_max:g} best"
    bar.set_label(f"score ({scale}); colours span this image")
    write_whole(
        path, lambda unfinished: figure.savefig(unfinished, dpi=110, format="png", metadata={"Software": _SOFTWARE})
    )
