"""Every op against its oracle on photographs: the worst share of pixels within one grey level, by op.

``python -m tests.agreement [FOLDER] [--count N] [--side PX]`` prints the table, on crops of the folder's photographs
and of those in the wheels of scikit-image and scikit-learn; tests/test_ops_photographs.py asserts it. An op without a
library call is compared with its NumPy definition, and the table says so.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from qpt.data.crops import cut_crops
from qpt.data.images import load_rgb
from qpt.data.sample_images import sample_images
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from tests import test_ops, test_ops_by_source, test_ops_library
from tests.engine import run_one
from tests.reference.degradations import REFERENCE

Picture = np.ndarray  # uint8 [H, W, 3]
Oracle = Callable[[Picture, tuple[float, ...], int], np.ndarray]  # image, parameters, seed -> grey levels
ENOUGH = 0.999  # of a photograph's pixels

# Compared by rate and distortion, in test_ops_jpeg2000.py.
OTHERWISE = {"jpeg2000"}


def _without_seed(oracle: Callable[[Picture, tuple[float, ...]], np.ndarray]) -> Oracle:
    return lambda image, params, seed: oracle(image, params)


def _enhanced(enhance: type[ImageEnhance.Brightness] | type[ImageEnhance.Contrast]) -> Oracle:
    return lambda image, params, seed: np.asarray(enhance(Image.fromarray(image)).enhance(params[0]))


LIBRARY: dict[str, Oracle] = {
    **{name: _without_seed(oracle) for name, oracle in test_ops.ORACLES.items()},
    **test_ops_library.ORACLES,
    **test_ops_by_source.ORACLES,
    "brightness": _enhanced(ImageEnhance.Brightness),
    "contrast": _enhanced(ImageEnhance.Contrast),
}


def oracle_of(name: str) -> Oracle:
    """The library call of an op, or else its NumPy definition."""
    return LIBRARY.get(name) or (lambda image, params, seed: REFERENCE[name](image, params, seed, 0))


@functools.cache
def crops(count: int, side: int, folder: Path | None = None) -> list[Picture]:
    """Different crops of side x side: ``count`` of the wheels' photographs, or one of each of them and of ``count``
    of the folder's, evenly spaced by name."""
    found = [load_rgb(path) for path in sample_images()]
    if folder:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        found = [load_rgb(path) for path in files[:: max(len(files) // count, 1)][:count]] + found
        count = len(found)
    return list(cut_crops(found, count, size=side, seed=1))


@dataclass(frozen=True)
class Agreement:
    """The agreement of one op over images and levels: the worst share of an image's pixels within one level in all
    channels, at which level, and the largest difference of any sample."""

    share: float
    level: int
    most: float


def agreement(name: str, images: list[Picture]) -> Agreement:
    """Level by level, each photograph with another of the parameters that the level may draw."""
    row = DEGRADATIONS[NAMES.index(name)]
    oracle = oracle_of(name)
    worst = Agreement(1.0, 1, 0.0)
    for level in range(1, LEVELS + 1):
        settings = test_ops.settings_of(row, level)
        for seed, image in enumerate(images):
            params = settings[seed % len(settings)]
            expected = np.rint(np.clip(np.asarray(oracle(image, params, seed), np.float64), 0, 255))
            difference = np.abs(run_one(image, name, *params, seed=seed) - expected).max(axis=2)
            share, most = float((difference <= 1).mean()), max(worst.most, float(difference.max()))
            worst = Agreement(share, level, most) if share < worst.share else Agreement(worst.share, worst.level, most)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.agreement", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="photographs beside those of the wheels")
    parser.add_argument("--count", type=int, default=20, help="photographs of the folder (default 20)")
    parser.add_argument("--side", type=int, default=256, help="of the crops, px (default 256)")
    options = parser.parse_args()
    images = crops(options.count, options.side, options.folder)
    print(f"{len(images)} crops of {options.side} x {options.side}, levels 1 to {LEVELS}\n")
    print("| op | against | worst share within 1 level | at level | largest difference |\n|---|---|---|---|---|")
    for name in NAMES:
        if name in OTHERWISE:
            continue
        found = agreement(name, images)
        against = "library" if name in LIBRARY else "NumPy definition"
        print(f"| {name} | {against} | {found.share:.5f} | {found.level} | {found.most:g} |", flush=True)


if __name__ == "__main__":
    main()
