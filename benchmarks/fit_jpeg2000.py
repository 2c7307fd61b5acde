"""The fit of the three constants of csrc/ops/jpeg2000.h: the bits of a coefficient in OpenJPEG's files.

``python -m benchmarks.fit_jpeg2000 FOLDER [--photos N] [--out JSON]``: on N photographs of the folder it seeks, per
ratio, the step at which the op's error is OpenJPEG's, counts the coefficients left, and fits the file's bits to
header + n (value + place log2(all / n)); on N others it measures how far the op with the constants it was built with is
from OpenJPEG. Relies on the NumPy definition (tests/reference/jpeg2000.py) and on Pillow with OpenJPEG.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from benchmarks.degrade_baselines import Pixels, openjpeg
from qpt.data.images import load_rgb
from qpt.degradations.program import Program
from qpt.ops.degrade.api import degrade
from tests.reference import jpeg2000

FIT_RATIOS = (8, 16, 24, 32, 45, 64, 90, 120, 170, 240)
CHECK_RATIOS = (16, 32, 45, 90, 170)
SIDE = 256


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the decibels of 255 over the root mean square difference."""
    return float(10 * np.log10(255**2 / max(np.square(a.astype(np.float64) - b).mean(), 1e-3)))


def crops(paths: list[Path]) -> list[Pixels]:
    """Return the middle SIDE x SIDE pixels of every image that is as large."""
    found = []
    for path in paths:
        image = load_rgb(path)
        top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
        if min(top, left) >= 0:
            found.append(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]))
    return found


def paid(image: Pixels, ratio: float) -> int:
    """Return the number of coefficients left when the op's error is OpenJPEG's at this ratio; 0 if it never is."""
    planes, goal = jpeg2000.coefficients(image), psnr(image, openjpeg(image, ratio))

    def error(log_step: float) -> float:
        return psnr(image, np.rint(jpeg2000.restored(jpeg2000.quantised(planes, 2**log_step))))

    low, high = 0.0, 12.0
    if error(low) < goal:
        return 0
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > goal else (low, middle)
    return int((np.abs(planes) >= 2**low).sum())


def fit(images: list[Pixels]) -> dict[str, float]:
    """Fit header, value and place bits: least squares of relative errors, reweighted towards least absolute ones."""
    counted = [(8.0 * image.size / ratio, paid(image, ratio)) for image in images for ratio in FIT_RATIOS]
    bits, n = np.array([pair for pair in counted if pair[1] > 0]).T
    every = 3.0 * SIDE * SIDE
    terms = np.stack([np.ones_like(n), n, n * np.log2(every / n)], axis=1) / bits[:, None]
    weight = np.ones_like(n)
    for _ in range(40):
        cost = np.linalg.lstsq(terms * weight[:, None], weight, rcond=None)[0]
        weight = 1 / np.sqrt(np.maximum(np.abs(terms @ cost - 1), 0.02))
    return {**dict(zip(("header", "value", "place"), cost.tolist(), strict=True)), "pairs": len(n)}


def check(images: list[Pixels]) -> dict[str, Any]:
    """Compare PSNR to the original, the op's minus OpenJPEG's: median and spread in decibels, all and per ratio."""
    off = np.empty((len(images), len(CHECK_RATIOS)))
    for column, ratio in enumerate(CHECK_RATIOS):
        rows = range(len(images))
        program = Program.from_chains([[("jpeg2000", [float(ratio)])]] * len(images), seeds=rows, source=rows)
        ours = degrade(torch.from_numpy(np.stack(images)), program).numpy()
        off[:, column] = [
            psnr(image, mine) - psnr(image, openjpeg(image, ratio)) for image, mine in zip(images, ours, strict=True)
        ]
    return {
        "median_abs_db": float(np.median(np.abs(off))),
        "p90_abs_db": float(np.percentile(np.abs(off), 90)),
        "median_db_by_ratio": {str(r): float(np.median(off[:, i])) for i, r in enumerate(CHECK_RATIOS)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_jpeg2000", description=__doc__)
    parser.add_argument("folder", type=Path, help="photographs, at least 256 x 256 pixels each")
    parser.add_argument("--photos", type=int, default=50, help="to fit on, and as many others to check on (default 50)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "fits" / "jpeg2000.json")
    options = parser.parse_args()
    files = sorted(path for path in options.folder.iterdir() if path.is_file())
    step = max(len(files) // (2 * options.photos), 1)
    chosen = files[::step][: 2 * options.photos]
    fitted, checked = crops(chosen[0::2]), crops(chosen[1::2])
    result = {
        "photographs": {"fitted": len(fitted), "checked": len(checked), "side": SIDE},
        "openjpeg": features.version("jpg_2000"),
        "pillow": PIL.__version__,
        "fit_bits": fit(fitted),
        "built_bits": {"header": jpeg2000.HEADER_BITS, "value": jpeg2000.VALUE_BITS, "place": jpeg2000.PLACE_BITS},
        "check": check(checked),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
