"""Scoring images beside BRISQUE (Mittal et al., IEEE TIP 2012; the PyPI package): images per second.

Run by ``python -m benchmarks score [--table CSV ...] [--scorer FILE]``. Both decode the same files in the same way, and
get as many threads: ours as ``qpt score`` uses them, an image in each, and also all of them on one image after another,
which is what one photograph takes; BRISQUE, whose code runs on one, a pool over files. Timed are photographs of the
scikit-image wheel, or of tables of scores, and a folder of small images. Before timing, ours must give the same scores
in another order.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks.harness import Case, Contender, Disagreement, Report, Settings, measure
from qpt.data.sample_images import sample_images
from qpt.evaluate.features import image_threads
from qpt.evaluate.image_crops import load_image, map_in_threads
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table

HELP = "images per second of the score that comes with qpt, or of another scorer, beside BRISQUE"
TIMED = 8  # files of a set; BRISQUE takes seconds for a photograph of 8 megapixels
SMALL, SMALL_SIDE = 64, 256  # small images: their number, and pixels of a side
SAME = 1e-5  # of the range of the scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=Path, action="append", default=[], help="score: a CSV image,mos[,ref], or more")
    parser.add_argument("--scorer", type=Path, help="score: a scorer's file (default: the score that comes with qpt)")


def brisque() -> Any:
    """Return the metric of the package ``brisque``."""
    # Version 0.2.0 leaves some features as arrays of one element, which NumPy 2.4 does not convert to numbers.
    from brisque import BRISQUE

    class Unpacked(BRISQUE):
        def scale_features(self, features: Any) -> Any:
            return super().scale_features([np.asarray(value, np.float64).item() for value in features])

    return Unpacked(url=False)


def run(settings: Settings, options: argparse.Namespace) -> Report:
    """Time both on every set."""
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    scorer, peer = Scorer.load(options.scorer), brisque()
    scorer.encoder.to(settings.device)
    sets = {table.name: list(table.paths) for table in map(read_table, options.table)}
    sets = sets or {"scikit-image": sample_images()}
    # No teams of OpenMP for BRISQUE's threads: with more of them than cores, torch's sleep between its short steps.
    alone = partial(threadpool_limits, 1, user_api="openmp")
    with ThreadPoolExecutor(threads, initializer=alone) as pool, tempfile.TemporaryDirectory() as folder:
        small = _small_images(next(iter(sets.values())), Path(folder), 4 if settings.quick else SMALL)
        chosen = {name: files[:: max(1, len(files) // TIMED)][:TIMED] for name, files in sets.items()}
        cases = [
            _case(name, files[:2] if settings.quick else files, scorer, peer, pool) for name, files in chosen.items()
        ]
        cases.append(_case("small images", small, scorer, peer, pool))
        rows = measure(cases, settings.rounds, warmup=1, device=settings.device)
    remarks = [
        f"{threads} threads each. Times include decoding. BRISQUE is the package's own model; ours is "
        f"{'the score that comes with qpt' if options.scorer is None else options.scorer.name} "
        f"({scorer.encoder.description}). 'Alone' is an image at a time on all threads: what one photograph takes.",
        "BRISQUE's package gets a one-line adapter for NumPy 2.4 (features of one element unpacked).",
    ]
    return Report("score", rows, remarks=remarks)


def _small_images(files: list[Path], folder: Path, count: int) -> list[Path]:
    """Write PNG files, cut from photographs."""
    written = []
    for number in range(count):
        pixels = load_image(files[number % len(files)])
        rng = np.random.default_rng(number)
        top, left = (int(rng.integers(0, max(1, side - SMALL_SIDE))) for side in pixels.shape[:2])
        written.append(folder / f"{number:03d}.png")
        Image.fromarray(pixels[top : top + SMALL_SIDE, left : left + SMALL_SIDE]).save(written[-1])
    return written


def _case(name: str, files: list[Path], scorer: Scorer, peer: Any, pool: ThreadPoolExecutor) -> Case:
    pixels = sum(width * height for width, height in map(_size, files)) / len(files)

    def together() -> list[float]:
        with image_threads(len(files)) as (workers, start):
            return list(map_in_threads(scorer, files, workers=workers, start=start))

    def alone() -> list[float]:
        return [scorer(file) for file in files]

    def theirs() -> list[float]:
        return list(pool.map(lambda file: float(peer.score(load_image(file))), files))

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        turned = [scorer(file) for file in reversed(files)][::-1]
        scale = scorer.mos_max - scorer.mos_min
        found = {}
        for backend in ("qpt", "qpt, alone"):
            difference = float(np.abs(np.subtract(answers[backend], turned)).max()) / scale
            if not difference <= SAME:
                raise Disagreement(f"score: {name}: another order moves scores by {difference:.3g} of the range")
            found[backend] = {"another_order_share_of_range": difference}
        return found

    contenders = [Contender("qpt", together), Contender("qpt, alone", alone), Contender("brisque", theirs)]
    shape = f"{len(files)} files, {pixels / 1e6:.2f} megapixels on average"
    return Case(op=f"score {name}", shape=shape, items=len(files), contenders=contenders, agree=agree)


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size
