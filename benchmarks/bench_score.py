"""Scoring images beside BRISQUE (Mittal et al., IEEE TIP 2012; the PyPI package): images per second, and SRCC.

Run by ``python -m benchmarks score [--table CSV ...] [--encoder RUN]``. Both decode the same files in the same way, and
get as many threads: torch's for ours, a pool over files for BRISQUE, whose code runs on one. Without a table the
photographs of the scikit-image wheel are timed and no SRCC is computed. Before timing, ours must give the same scores
in another order.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Case, Contender, Disagreement, Report, Settings, measure
from qpt.data.sample_images import sample_images
from qpt.evaluate.features import FeatureProtocol, ReadOut, feature_cache, read_out_features
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.metrics import measure as agreement
from qpt.evaluate.protocol import REGIMES, evaluate_splits, make_splits
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import ScoreTable, read_table
from qpt.models import Encoder, load_encoder
from qpt.models.encoder import untrained_encoder
from qpt.runs.files import run_name

HELP = "images per second of a scorer beside BRISQUE, and the SRCC of both on tables of scores"
TIMED = 8  # files of a set; both take seconds for a photograph of 8 megapixels
SAME = 1e-5  # of the range of the labels


@dataclass(frozen=True)
class ScoreReport(Report):
    """A report with the SRCC of both scorers on each table, as ``_agreement`` returns it."""

    agreement: list[dict[str, Any]] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=Path, action="append", default=[], help="score: a CSV image,mos[,ref], or more")
    parser.add_argument("--encoder", type=Path, help="score: a run (default: an untrained ResNet-18 of width 32)")


def brisque() -> Any:
    """Return the metric of the package ``brisque``."""
    # Version 0.2.0 leaves some features as arrays of one element, which NumPy 2.4 does not convert to numbers.
    from brisque import BRISQUE

    class Unpacked(BRISQUE):
        def scale_features(self, features: Any) -> Any:
            return super().scale_features([np.asarray(value, np.float64).item() for value in features])

    return Unpacked(url=False)


def run(settings: Settings, options: argparse.Namespace) -> ScoreReport:
    """Time both on every set, and compare both with the labels of every table."""
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    if options.encoder is None:
        encoder, name = untrained_encoder("resnet18", 32, seed=0), "qpt, untrained ResNet-18 of width 32"
    else:
        encoder = load_encoder(options.encoder)
        name = f"qpt, run {run_name(options.encoder)} ({encoder.description})"
    encoder.to(settings.device)
    peer = brisque()
    remarks = [
        f"{threads} threads each. Times include decoding. BRISQUE is the package's own model; ours is {name}.",
        "BRISQUE's package gets a one-line adapter for NumPy 2.4 (features of one element unpacked).",
    ]
    with ThreadPoolExecutor(threads) as pool, tempfile.TemporaryDirectory() as own:
        cache = Path(own) if options.encoder is None else feature_cache(options.encoder)
        cases, found = [], []
        for path in options.table:
            table = read_table(path)
            scorer = Scorer.fit(encoder, table, cache=cache, quiet=True)
            cases.append(_case(table.name, list(table.paths), scorer, peer, pool, settings))
            found.append(_agreement(table, encoder, peer, pool, cache))
        if not cases:
            weights = np.full(2 * encoder.feature_dim, 1.0)
            plain = ReadOut("last", "mean")
            scorer = Scorer(encoder, plain, FeatureProtocol(), weights, 0.0, 0.0, 100.0, {"name": "none"})
            cases.append(_case("scikit-image", sample_images(), scorer, peer, pool, settings))
        rows = measure(cases, settings.rounds, warmup=1, device=settings.device)
    return ScoreReport("score", rows, remarks=[*remarks, *map(_sentence, found)], agreement=found)


def _case(
    name: str, files: list[Path], scorer: Scorer, peer: Any, pool: ThreadPoolExecutor, settings: Settings
) -> Case:
    files = files[:: max(1, len(files) // TIMED)][: 2 if settings.quick else TIMED]
    pixels = sum(width * height for width, height in map(_size, files)) / len(files)

    def ours() -> list[float]:
        return [scorer(file) for file in files]

    def theirs() -> list[float]:
        return list(pool.map(lambda file: float(peer.score(load_image(file))), files))

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        turned = [scorer(file) for file in reversed(files)][::-1]
        difference = float(np.abs(np.subtract(answers["qpt"], turned)).max()) / (scorer.mos_max - scorer.mos_min)
        if not difference <= SAME:
            raise Disagreement(f"score: {name}: another order moves scores by {difference:.3g} of the range")
        return {"qpt": {"another_order_share_of_range": difference}}

    return Case(
        op=f"score {name}",
        shape=f"{len(files)} files, {pixels / 1e6:.2f} megapixels on average",
        items=len(files),
        contenders=[Contender("qpt", ours), Contender("brisque", theirs)],
        agree=agree,
    )


def _agreement(table: ScoreTable, encoder: Encoder, peer: Any, pool: ThreadPoolExecutor, cache: Path) -> dict[str, Any]:
    """Return the SRCC of both on the same test parts: ours fitted on the training parts, BRISQUE negated."""
    splits = make_splits(table.mos, table.groups, REGIMES[0], seed=0)
    views = read_out_features(encoder, table, FeatureProtocol(), label=table.name, cache=cache, quiet=True)
    scores = -np.array(list(pool.map(lambda file: float(peer.score(load_image(file))), table.paths)))
    return {
        "table": table.name,
        "images": len(table),
        "sha256": table.fingerprint,
        "split": f"{len(splits)} splits that train on {REGIMES[0].train_share:.0%} of the groups",
        "srcc": {
            "qpt": [record["srcc"] for record in evaluate_splits(views, table.mos, table.groups, splits)],
            "brisque": [agreement(scores[split.test], table.mos[split.test])["srcc"] for split in splits],
        },
        "srcc_brisque_on_all": agreement(scores, table.mos)["srcc"],
    }


def _sentence(found: dict[str, Any]) -> str:
    return (
        f"{found['table']} ({found['images']} photographs): SRCC, median over the test parts of {found['split']}: "
        f"qpt, its ridge fitted on the training part, {_median(found['srcc']['qpt'])}; "
        f"brisque {_median(found['srcc']['brisque'])} ({found['srcc_brisque_on_all']:.3f} on all)."
    )


def _median(values: list[float]) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3f} (inter-quartile range {high - low:.3f})"


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size
