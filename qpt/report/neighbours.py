"""The section of a report that asks what an encoder thinks is alike: nearest neighbours of degraded crops.

Every photograph goes through the same compositions of the run's own space, so for each crop the one right answer among
other photographs is known: the same composition. Called by ``qpt.report.build``; relies on ``qpt.degrade`` for the
pixels and on the probe's reading of photographs.
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
from qpt.data.images import list_images
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.features import prepare
from qpt.evaluate.image_crops import MIN_SIDE
from qpt.evaluate.probe import read_photographs
from qpt.evaluate.table import ScoreTable
from qpt.models import ResNet
from qpt.ops.degrade.api import degrade, degrade_patches
from qpt.report.page import Picture, Section
from qpt.report.run_records import RunRecord
from qpt.report.severity import given_photographs
from qpt.report.thumbnails import patches_in_a_row

PHOTOGRAPHS, COMPOSITIONS = 8, 20
NEAREST, QUERIES = 5, 6
_BATCH = 32
_TITLE = "Nearest neighbours by quality"


@dataclass(frozen=True)
class Gallery:
    """Crops (n, s, s, 3) uint8 of photographs and a program that takes each through the same compositions.

    Row r of the program is composition r % compositions of crop r // compositions.
    """

    crops: Tensor
    program: Program
    compositions: int

    @property
    def photographs(self) -> NDArray[np.int64]:
        return self.program.source.numpy().astype(np.int64)


def make_gallery(pixels: Sequence[NDArray[np.uint8]], space: DegradationSpace, size: int, seed: int) -> Gallery:
    """One crop of ``size`` px (less for small photographs) of each under up to COMPOSITIONS of the space."""
    size = min(size, *(min(p.shape[:2]) for p in pixels))
    crops = torch.from_numpy(cut_crops(pixels, len(pixels), size=size, seed=seed))
    views = min(COMPOSITIONS, space.size(levels=True))
    drawn = space.sample_seeded(torch.tensor([seed]), views=views)
    program = Program.concat([drawn] * len(pixels), source_offsets=range(len(pixels)))
    rng = np.random.default_rng(seed)  # noise of its own for every row: neighbours must not share its pattern
    seeds = torch.from_numpy(rng.integers(0, 2**63, len(program)))
    return Gallery(crops, dataclasses.replace(program, seeds=seeds), views)


@torch.no_grad()
def gallery_features(encoder: ResNet, gallery: Gallery) -> NDArray[np.float64]:
    """(rows, feature_dim): the encoder's output, standardised over the gallery, of unit length."""
    encoder = prepare(encoder)
    out = []
    for start in range(0, len(gallery.program), _BATCH):
        part = gallery.program[start : start + _BATCH]
        corners = torch.zeros(len(part), 1, 2, dtype=torch.int32)
        out.append(encoder(degrade_patches(gallery.crops, part, corners, gallery.crops.shape[1])[:, 0]))
    x = torch.cat(out).double().numpy()
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(features: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(n, count): for each row the rows of other groups with the greatest inner product, best first; fewer columns if
    there are fewer such rows."""
    similarity = features @ features.T
    similarity[groups[:, None] == groups] = -np.inf
    count = min(count, int((groups[:, None] != groups).sum(1).min()))
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def pick_photographs(
    folder: str | Path | None, table: ScoreTable | None, records: Sequence[RunRecord], *, quiet: bool
) -> tuple[list[NDArray[np.uint8]], str] | str:
    """Photographs and in words where they come from: of ``folder``, of the table, or what the first run learned from
    if that is a folder of files and still where it was; without any, why."""
    given = given_photographs(folder, table, PHOTOGRAPHS)
    if given is None:
        try:
            given = list_images(records[0].config["data"]), "of the photographs that the run learned from"
        except (InputError, KeyError):
            return "Not shown: it needs photographs (--photographs); those the run learned from are not there as files."
    files, origin = given
    pixels, _ = read_photographs(files, MIN_SIDE, most=PHOTOGRAPHS, quiet=quiet)
    if len(pixels) < 2:
        return "Not shown: it needs two readable photographs."
    return pixels, f"{len(pixels)} {origin}"


def neighbour_sections(
    records: Sequence[RunRecord], picked: tuple[list[NDArray[np.uint8]], str] | str, *, seed: int
) -> list[Section]:
    """For each run a few crops with their nearest ones, and how often the nearest have the same composition."""
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
        found = nearest(features, gallery.photographs, NEAREST)
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
    """Over all crops: share of neighbours of the same composition, by chance, and of nearest crops (of all others)
    that show the same photograph."""
    number = np.arange(len(features)) % gallery.compositions
    same = float((number[found] == number[:, None]).mean())
    alone = np.arange(len(features))
    own = nearest(features, alone, 1)[:, 0]
    photographs = gallery.photographs
    return [f"{same:.0%}", f"{1 / gallery.compositions:.0%}", f"{float((photographs[own] == photographs).mean()):.0%}"]


def _pictures(found: NDArray[np.int64], gallery: Gallery) -> list[Picture]:
    photographs, views = len(gallery.crops), gallery.compositions
    count = min(QUERIES, photographs * views)
    # One photograph after the other, compositions far apart.
    queries = [(i % photographs) * views + (i * views // count) % views for i in range(count)]
    shown = [row for query in queries for row in (query, *found[query])]
    pixels = degrade(gallery.crops, gallery.program.select(shown)).numpy()
    pictures = []
    for place, row in enumerate(shown):
        rank = place % (1 + found.shape[1])
        query = shown[place - rank]
        label = "query" if rank == 0 else f"{rank}, the same" if row % views == query % views else str(rank)
        pictures.append(Picture(patches_in_a_row([pixels[place]]), f"{label}: {gallery.program[row]}"))
    return pictures
