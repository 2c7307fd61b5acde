"""What one step's embeddings look like: alignment, uniformity and histograms of similarities.

``observe`` measures, ``ObservationLog`` keeps one JSON line a measurement in ``RUN/observations.jsonl``; called by
``qpt.pretraining.log``, read back by reports. Nothing here draws a random number or touches a weight, so a run ends in
the same bytes with and without it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from qpt.errors import InputError
from qpt.io import whole_lines, write_lines

BINS = 80  # of equal width over [-1, 1]
MOST_ROWS = 512  # of a larger batch the first rows are measured: they make a quarter of a million pairs
#: The kinds of pair, as the histograms are named: one composition; one photograph under two; two photographs.
KINDS = ("positive", "same_image", "other_image")
_POSITIVE, _SAME_IMAGE, _OTHER_IMAGE = range(len(KINDS))
FILE = "observations.jsonl"


@dataclass(frozen=True)
class Observation:
    """One step's measurements.

    alignment: mean squared distance of positive pairs, 0..4.  uniformity: log of the mean Gaussian potential of pairs
    of queries, <= 0, lower where they spread more evenly.  positive, same_image, other_image: counts of (query, key)
    pairs by cosine similarity, BINS bins from -1 to 1.  rows: queries measured.
    """

    rows: int
    alignment: float
    uniformity: float
    positive: list[int]
    same_image: list[int]
    other_image: list[int]


def bin_edges() -> list[float]:
    """The BINS + 1 edges of the histograms; a bin holds its lower edge, the last one both."""
    return [2 * i / BINS - 1 for i in range(BINS + 1)]


def bin_middles() -> list[float]:
    """The middle of each of the BINS bins."""
    return [2 * (i + 0.5) / BINS - 1 for i in range(BINS)]


@torch.no_grad()
def observe(queries: Tensor, keys: Tensor, groups: Tensor, images: Tensor) -> Observation:
    """Measure (n, D) queries and keys of unit length; groups, images: (n,) int64 ids, of both. Row i is a pair.

    A pair (i, j) of a query and a key is positive where the groups are equal, else a negative of the same image or of
    another one. Of more than MOST_ROWS rows the first are measured.
    Alignment and uniformity are those of Wang and Isola, "Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere" (ICML 2020, arXiv 2005.10242), with their alpha = 2 and t = 2:
    mean ||q - k||^2 over positive pairs, and log mean exp(-2 ||x - y||^2) over pairs x, y of different queries.
    """
    rows = min(len(queries), MOST_ROWS)
    queries, keys = queries[:rows].detach().float(), keys[:rows].detach().float()
    groups, images = groups[:rows], images[:rows]
    kind = torch.where(images[:, None] == images, _SAME_IMAGE, _OTHER_IMAGE)
    kind[groups[:, None] == groups] = _POSITIVE
    similarity = queries @ keys.T
    bins = ((similarity + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
    counts = torch.bincount((kind * BINS + bins).flatten(), minlength=len(KINDS) * BINS).view(len(KINDS), BINS)
    first, second = (kind == _POSITIVE).nonzero(as_tuple=True)
    alignment = (queries[first] - keys[second]).square().sum(1).mean()
    uniformity = torch.pdist(queries).square().mul(-2).exp().mean().log()
    return Observation(rows, float(alignment), float(uniformity), *counts.tolist())


def read_observations(run: Path) -> dict[int, Observation]:
    """Step -> what was measured there, in order; empty without a file. A line cut short by a crash is left out.

    Raises InputError for a line that is whole but not a measurement.
    """
    found: dict[int, Observation] = {}
    for line in whole_lines(run / FILE):
        try:
            fields = json.loads(line)
            step = int(fields.pop("step"))
            observation = Observation(**fields)
            if any(len(getattr(observation, kind)) != BINS for kind in KINDS):
                raise ValueError(f"a histogram must have {BINS} bins")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"observations: {FILE} of {run.name} must hold measurements, got: {error}") from None
        found[step] = observation
    return found


class ObservationLog:
    """Appends measurements to a run's file; what lies after ``first_step``, where a resumed run goes on, is cut off."""

    def __init__(self, run: Path, first_step: int) -> None:
        kept = {step: seen for step, seen in read_observations(run).items() if step <= first_step} if first_step else {}
        self.last = list(kept.values())[-1] if kept else None
        write_lines(run / FILE, (_line(step, observation) for step, observation in kept.items()))
        self.stream = open(run / FILE, "a", encoding="utf-8")  # noqa: SIM115 - closed by ``close``

    def write(self, step: int, observation: Observation) -> None:
        self.last = observation
        self.stream.write(_line(step, observation))
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def _line(step: int, observation: Observation) -> str:
    """Numbers in full: a resumed run goes on from what it reads here."""
    return json.dumps({"step": step, **asdict(observation)}, separators=(",", ":")) + "\n"


def mean_similarity(histogram: list[int]) -> float:
    """The mean similarity that a histogram tells, to half a bin; nan for no pairs."""
    total = sum(histogram)
    weighed = zip(histogram, bin_middles(), strict=True)
    return sum(count * middle for count, middle in weighed) / total if total else math.nan
