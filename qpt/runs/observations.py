"""``RUN/observations.jsonl``: alignment, uniformity and histograms of similarities of the embeddings of some steps.

``observe`` measures, ``ObservationWriter`` keeps one JSON line per measurement for ``qpt.pretraining.log``, and reports
read them. Nothing here draws a random number or touches a weight, so a run ends in the same bytes with and without it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from qpt.errors import InputError
from qpt.io import parse_json, whole_lines, write_lines
from qpt.runs.files import note_unread_lines

OBSERVATIONS = "observations.jsonl"
BINS = 80  # of equal width over [-1, 1]
MAX_ROWS = 512  # measured of a larger batch, its first: they make a quarter of a million pairs
#: The kinds of pair, as the histograms are named: one composition; one image under two compositions; two images.
KINDS = ("positive", "same_image", "other_image")
_POSITIVE, _SAME_IMAGE, _OTHER_IMAGE = range(len(KINDS))


@dataclass(frozen=True)
class Observation:
    """The measurements of one step.

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
    """Return the BINS + 1 edges of the histograms; a bin holds its lower edge, the last one both."""
    return [2 * i / BINS - 1 for i in range(BINS + 1)]


def bin_centres() -> list[float]:
    """Return the centre of each of the BINS bins."""
    return [2 * (i + 0.5) / BINS - 1 for i in range(BINS)]


def mean_similarity(histogram: list[int]) -> float:
    """Return the mean similarity of a histogram, exact to half a bin; nan without pairs."""
    total = sum(histogram)
    weighted = zip(histogram, bin_centres(), strict=True)
    return sum(count * centre for count, centre in weighted) / total if total else math.nan


@torch.no_grad()
def observe(queries: Tensor, keys: Tensor, groups: Tensor, images: Tensor) -> Observation:
    """Measure (n, D) queries and keys of unit length; groups, images: (n,) int64 ids, of both. Row i is a pair.

    A pair (i, j) of a query and a key is positive where the groups are equal, else a negative of the same image or of
    another one. Of more than MAX_ROWS rows the first are measured.
    Alignment and uniformity are those of Wang and Isola, "Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere" (ICML 2020, arXiv 2005.10242), with their alpha = 2 and t = 2:
    mean ||q - k||^2 over positive pairs, and log mean exp(-2 ||x - y||^2) over pairs x, y of different queries.
    """
    rows = min(len(queries), MAX_ROWS)
    queries, keys = queries[:rows].detach().float(), keys[:rows].detach().float()
    groups, images = groups[:rows], images[:rows]
    kind = torch.where(images[:, None] == images, _SAME_IMAGE, _OTHER_IMAGE)
    kind[groups[:, None] == groups] = _POSITIVE
    similarity = queries @ keys.T
    # The clamp puts 1 into the last bin, and with it what rounding takes beyond [-1, 1].
    bins = ((similarity + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
    # One count for all three histograms: bins of kind k start at k * BINS.
    counts = torch.bincount((kind * BINS + bins).flatten(), minlength=len(KINDS) * BINS).view(len(KINDS), BINS)
    first, second = (kind == _POSITIVE).nonzero(as_tuple=True)
    alignment = (queries[first] - keys[second]).square().sum(1).mean()
    uniformity = torch.pdist(queries).square().mul(-2).exp().mean().log()
    return Observation(rows, float(alignment), float(uniformity), *counts.tolist())


class ObservationWriter:
    """Appends measurements to a run's file; those after ``first_step``, from which a resumed run continues, are removed
    first. ``last``: the latest measurement, None without any."""

    def __init__(self, run: Path, first_step: int) -> None:
        found = read_observations(run, []).items() if first_step else ()  # damaged lines are dropped here
        kept = {step: observation for step, observation in found if step <= first_step}
        self.last = list(kept.values())[-1] if kept else None
        write_lines(run / OBSERVATIONS, (_line(step, observation) for step, observation in kept.items()))
        self.stream = open(run / OBSERVATIONS, "a", encoding="utf-8")  # noqa: SIM115 - closed by ``close``

    def write(self, step: int, observation: Observation) -> None:
        self.last = observation
        self.stream.write(_line(step, observation))
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def read_observations(run: Path, faults: list[str] | None = None) -> dict[int, Observation]:
    """Return step -> measurements, in order; empty without a file. A line cut short by a crash is left out.

    faults: gets a sentence on lines that are no measurements; without it whole ones raise InputError.
    """
    found: dict[int, Observation] = {}
    lines, used = whole_lines(run / OBSERVATIONS), 0
    for line in lines:
        try:
            fields = parse_json(line)
            step = int(fields.pop("step"))
            observation = Observation(**fields)
            if any(len(getattr(observation, kind)) != BINS for kind in KINDS):
                raise ValueError(f"a histogram must have {BINS} bins")
            if not math.isfinite(observation.alignment + sum(sum(getattr(observation, kind)) for kind in KINDS)):
                raise ValueError("alignment and counts must be finite")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if faults is not None:
                continue
            raise InputError(
                f"observations: {OBSERVATIONS} of {run.name} must hold measurements, got: {error}"
            ) from None
        found[step], used = observation, used + 1
    note_unread_lines(faults, run, OBSERVATIONS, lines, used)
    return found


def _line(step: int, observation: Observation) -> str:
    # Numbers in full precision: a resumed run reads them back and logs the latest again.
    return json.dumps({"step": step, **asdict(observation)}, separators=(",", ":")) + "\n"
