"""The section of a report about nearest neighbours of degraded crops.

Every image goes through the same compositions of the run's own space, so for each crop the right answer among crops of
other images is known: the same composition. Called by ``qpt.report.build``; it reads images and degrades crops of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.data.crops import cut_crops
from qpt.data.faults import ReadError
from qpt.data.listing import list_images
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import BackendError, InputError
from qpt.evaluate.features import prepare
from qpt.evaluate.image_crops import MIN_SIDE, read_images
from qpt.evaluate.probe_set import degraded_batches
from qpt.evaluate.table import ScoreTable
from qpt.models import Encoder
from qpt.ops.degrade.api import degrade
from qpt.report.page import Picture, Section
from qpt.report.run_records import RunRecord
from qpt.report.severity import given_images
from qpt.report.thumbnails import patches_in_a_row

IMAGES, COMPOSITIONS = 8, 20
NEAREST, QUERIES = 5, 6
_BATCH = 32
_TITLE = "Nearest neighbours by quality"


@dataclass(frozen=True)
class Gallery:
    """Crops (n, s, s, 3) uint8 of different images and a program of the same compositions for each.

    Row r of the program is composition r % compositions of crop r // compositions.
    """

    crops: Tensor
    program: Program
    compositions: int

    @property
    def image_of_row(self) -> NDArray[np.int64]:
        return self.program.source.numpy().astype(np.int64)


def make_gallery(pixels: Sequence[NDArray[np.uint8]], space: DegradationSpace, size: int, seed: int) -> Gallery:
    """Cut a crop of ``size`` px (less for small images) of each image, under up to COMPOSITIONS of the space."""
    size = min(size, *(min(p.shape[:2]) for p in pixels))
    crops = torch.from_numpy(cut_crops(pixels, len(pixels), size=size, seed=seed))
    views = min(COMPOSITIONS, space.size(levels=True))
    drawn = space.sample_seeded(torch.tensor([seed], dtype=torch.int64, device="cpu"), views=views)
    program = Program.concat([drawn] * len(pixels), source_offsets=range(len(pixels)))
    rng = np.random.default_rng(seed)  # every row gets noise of its own: neighbours must not share its pattern
    seeds = torch.from_numpy(rng.integers(0, 2**63, len(program)))
    return Gallery(crops, dataclasses.replace(program, seeds=seeds), views)


@torch.no_grad()
def gallery_features(encoder: Encoder, gallery: Gallery) -> NDArray[np.float64]:
    """Return the encoder's output, standardised over the gallery, of unit length: (rows, feature_dim)."""
    encoder = prepare(encoder)
    batches = degraded_batches(gallery.crops, gallery.program, _BATCH)
    x = torch.cat([encoder(batch) for batch in batches]).double().numpy()
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(features: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each row the rows of other groups with the greatest inner product, best first: (n, count).

    There are fewer columns if there are fewer such rows.
    """
    similarity = features @ features.T
    similarity[groups[:, None] == groups] = -np.inf
    count = min(count, int((groups[:, None] != groups).sum(1).min()))
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def pick_images(
    folder: str | Path | None, table: ScoreTable | None, records: Sequence[RunRecord], *, quiet: bool
) -> tuple[list[NDArray[np.uint8]], str] | str:
    """Read images of ``folder``, else of the table, else those that the first run learned from if they are still there.

    Returns the images and their origin in words; without any, the reason.
    """
    given = given_images(folder, table, IMAGES)
    if given is None:
        try:
            given = list_images(records[0].config["data"], most=IMAGES), "of the photographs that the run learned from"
        except (InputError, BackendError, ReadError, KeyError):
            return "Not shown: it needs photographs (--photographs); those the run learned from are not there as files."
    files, origin = given
    found, _ = read_images(files, MIN_SIDE, most=IMAGES, quiet=quiet)
    pixels = list(found.values())
    if len(pixels) < 2:
        return "Not shown: it needs two readable photographs."
    return pixels, f"{len(pixels)} {origin}"


def neighbour_sections(
    records: Sequence[RunRecord], picked: tuple[list[NDArray[np.uint8]], str] | str, *, seed: int
) -> list[Section]:
    """Show for each run a few crops with their nearest ones, and the share of these with the same composition."""
    if isinstance(picked, str):
        return [Section(_TITLE, picked)]
    pixels, origin = picked
    parts, rows = [], []
    for run in records:
        try:
            space = run.space()
        except (InputError, OSError):
            why = "Not shown: the run's degradation space is not at hand."
            parts.append(Section(run.name, why, part=True))
            continue
        gallery = make_gallery(pixels, space, int(run.config.get("patch_size", 160)), seed)
        features = gallery_features(run.encoder, gallery)
        found = nearest(features, gallery.image_of_row, NEAREST)
        rows.append([run.name, *_shares(features, found, gallery)])
        parts.append(Section(run.name, pictures=_pictures(found, gallery), size="small", part=True))
    text = (
        f"{origin}, each through the same compositions, up to {COMPOSITIONS}, of the run's own degradations. A row is "
        f"a crop and the {NEAREST} nearest to it among crops of other photographs, by cosine similarity of the "
        "encoder's standardised output. An encoder of quality finds the same composition there; one of content finds "
        "what looks like the same things, and its own photograph first where that is allowed."
    )
    header = ["", f"same composition among the {NEAREST} nearest", "by chance", "nearest of all is its own photograph"]
    return [Section(_TITLE, text, header=header, rows=rows), *parts]


def _shares(features: NDArray[np.float64], found: NDArray[np.int64], gallery: Gallery) -> list[str]:
    """Return shares over all crops, as text.

    They are those of neighbours with the same composition, the same by chance, and those of crops whose nearest of all
    others shows the same image.
    """
    rows = np.arange(len(features))
    composition = rows % gallery.compositions
    same = float((composition[found] == composition[:, None]).mean())
    closest = nearest(features, rows, 1)[:, 0]
    own = float((gallery.image_of_row[closest] == gallery.image_of_row).mean())
    return [f"{same:.0%}", f"{1 / gallery.compositions:.0%}", f"{own:.0%}"]


def _pictures(found: NDArray[np.int64], gallery: Gallery) -> list[Picture]:
    images, views = len(gallery.crops), gallery.compositions
    count = min(QUERIES, images * views)
    # One image after the other, compositions far apart.
    queries = [(i % images) * views + (i * views // count) % views for i in range(count)]
    shown = [row for query in queries for row in (query, *found[query])]
    pixels = degrade(gallery.crops, gallery.program.select(shown)).numpy()
    pictures = []
    for place, row in enumerate(shown):
        rank = place % (1 + found.shape[1])
        query = shown[place - rank]
        label = "query" if rank == 0 else f"{rank}, the same" if row % views == query % views else str(rank)
        pictures.append(Picture(patches_in_a_row([pixels[place]]), f"{label}: {gallery.program[row]}"))
    return pictures
