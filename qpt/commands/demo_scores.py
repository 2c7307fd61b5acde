"""The part of the demonstration that needs no training: what the scorer that comes with the package says of images.

Called by ``qpt.commands.demo_run``; it touches its arguments and temporary files.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from qpt.data.crops import cut_crops
from qpt.data.listing import evenly_spaced
from qpt.degradations.op_table import LEVELS
from qpt.degradations.program import Program
from qpt.evaluate.progress import progress
from qpt.evaluate.quality_map import draw_quality_map, quality_map
from qpt.evaluate.scorer import Scorer
from qpt.ops.degrade.api import degrade
from qpt.report.canvas import COLOURS, MEDIUM, as_png, new_axes
from qpt.report.page import Picture, Section

Pixels = NDArray[np.uint8]

#: Op -> what the page calls it. One strip of pictures each.
OPS = {
    "gaussian_blur": "blur",
    "gaussian_noise": "noise",
    "jpeg": "JPEG compression",
    "rescale_bilinear": "shrunk and enlarged",
    "contrast": "contrast",
}
CROP_PX = 320
_LARGEST_PX = 640  # of an image that is scored whole and mapped
SHOWN = 12  # images at the head of the page


def score_sections(images: Mapping[str, Pixels], scorer: Scorer) -> list[Section]:
    """Return the sections: images as they are, under ops by level, the curves of these, and a map of local quality.

    images: name -> (H, W, 3), one at least.
    """
    names = list(images)
    names = [names[place] for place in evenly_spaced(len(names), SHOWN)]
    shown = {name: _small(images[name]) for name in names}
    scored = {name: scorer(pixels) for name, pixels in progress(list(shown.items()), "scoring", quiet=False)}
    best_first = sorted(scored, key=lambda name: -scored[name])
    pictures = [Picture(_jpeg(shown[name]), f"{Path(name).name}: {scored[name]:.0f}") for name in best_first]

    # The best ones: what a degradation does shows on an image that had something to lose.
    chosen = best_first[: len(OPS)]
    # A crop is the most detailed part: a plain sky loses nothing by blur.
    crops = np.stack([_detailed_crop(images[name]) for name in chosen])
    strips, curves = [], {}
    for number, (op, words) in enumerate(progress(list(OPS.items()), "scoring by level", quiet=False)):
        rows = (
            degrade(torch.from_numpy(crops), _levels(op, len(crops)))
            .numpy()
            .reshape(len(crops), LEVELS, *crops.shape[1:])
        )
        scores = np.array([[scorer(pixels) for pixels in (crop, *row)] for crop, row in zip(crops, rows, strict=True)])
        curves[words] = scores.mean(0)
        this = number % len(crops)
        captions = ["as it was", *(f"level {level}" for level in range(1, LEVELS + 1))]
        strip = [
            Picture(_jpeg(pixels), f"{caption}: {score:.0f}")
            for pixels, caption, score in zip((crops[this], *rows[this]), captions, scores[this], strict=True)
        ]
        strips.append(Section(words[0].upper() + words[1:], pictures=strip, size="small", part=True))
    count = f"{len(crops)} photograph{'s' * (len(crops) > 1)}"
    return [
        Section(
            "Scores",
            "0 is the worst and 100 the best. The score comes with the package. It was learnt without any opinion of "
            "people, from what known degradations do to photographs, and no photograph on this page was among them. "
            "Fine texture without a subject, such as gravel, bricks or a starry sky, scores low however sharp it is.",
            pictures=pictures,
            size="small",
        ),
        Section("Scores under degradation", "The most detailed part of a photograph, degraded level by level."),
        *strips,
        Section(
            "Score by level",
            f"The mean over {count}.",
            pictures=[Picture(_curves(curves), "score by level of degradation")],
            size="medium",
            part=True,
        ),
        Section(
            "Where quality is lost",
            "The right half of this photograph was blurred. Each tile is scored as an image of its own.",
            pictures=[
                Picture(_half_blurred_map(shown[chosen[0]], scorer), "the photograph and the map of its quality")
            ],
        ),
    ]


def _levels(op: str, images: int) -> Program:
    chains = [[(op, level)] for _ in range(images) for level in range(1, LEVELS + 1)]
    source = np.arange(images).repeat(LEVELS)
    return Program.from_chains(chains, seeds=source.tolist(), source=source.tolist())


def _detailed_crop(pixels: Pixels) -> Pixels:
    """Return the crop of the largest local variation among eight."""
    crops = cut_crops([pixels], 8, size=CROP_PX, seed=0)
    detail = [np.abs(np.diff(crop.astype(np.int16), axis=1)).mean() for crop in crops]
    return crops[int(np.argmax(detail))]


def _half_blurred_map(pixels: Pixels, scorer: Scorer) -> bytes:
    blurred = degrade(torch.from_numpy(pixels)[None], Program.from_chains([[("gaussian_blur", 4)]], seeds=[0]))[
        0
    ].numpy()
    middle = pixels.shape[1] // 2
    halves = np.concatenate([pixels[:, :middle], blurred[:, middle:]], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "map.png"
        draw_quality_map(quality_map(scorer, halves), halves, scorer, file, title="right half blurred")
        return file.read_bytes()


def _curves(curves: Mapping[str, NDArray[np.float64]]) -> bytes:
    figure, axes = new_axes(MEDIUM)
    for (words, scores), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(range(len(scores)), scores, marker="o", color=colour, label=words)
    axes.set(xlabel="level (0: as it was)", ylabel="score", ylim=(0, 100))
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8.5)
    return as_png(figure)


def _small(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST_PX, _LARGEST_PX), Image.Resampling.LANCZOS)
    return np.array(picture)


def _jpeg(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92, subsampling=0)
    return out.getvalue()
