"""Mean PSNR of every type of a preset at every level, beside that of its source's own code on the same images.

``python -m benchmarks preset_fidelity --photographs FOLDER`` measures the presets on the images of the folder that
``preset_figures.json`` names. The figures of the sources are facts and stand in that file; nothing of the sources runs
here. docs/degradations_fidelity.py writes the page from the record.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Report, Settings
from qpt.data.images import open_image
from qpt.degradations.op_table import LEVELS
from qpt.degradations.space import DegradationSpace
from qpt.ops.degrade.api import degrade

HELP = "PSNR of the presets' types, level by level, beside that of their sources' code"
FIGURES = Path(__file__).with_name("preset_figures.json")
IDENTICAL_DB = 99.0  # of an image that equals the clean one, as in the figures
DRAWS = 16
REMARKS = (
    "PSNR is computed from the degraded images; nothing is timed. Of a type that draws random numbers, ours_db is the "
    "mean over draws and spread_db the standard deviation, from draw to draw, of the mean over the images; official_db "
    "is one draw.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of draws; the folder is ``--photographs``, which bench_loader has too."""
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"preset_fidelity: of random types (default {DRAWS})")


def run(settings: Settings, options: argparse.Namespace) -> Report:
    """Compare every preset that has figures; ``--quick`` draws once. Raises ValueError without the photographs."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    folder = options.photographs
    missing = [name for name in figures["images"] if folder is None or not (folder / name).is_file()]
    if missing or options.draws < 1:
        wrong = f"photographs must be a folder with {', '.join(missing)}, got {folder}"
        raise ValueError(wrong if missing else f"draws must be at least 1, got {options.draws}")
    rows = []
    for name, preset in figures["presets"].items():
        size = preset["shorter_side"], preset["centre_crop"]
        images = np.stack([crop(folder / file, *size) for file in figures["images"]])
        rows += compare(name, preset, images, 1 if settings.quick else options.draws)
    return Report("preset_fidelity", predictions=rows, remarks=[figures["what"], *REMARKS])


def crop(path: Path, shorter_side: int, side: int) -> np.ndarray:
    """Return the (side, side, 3) uint8 middle of an image whose shorter side was resized by Pillow's bicubic filter.

    Its values are taken as they are stored, without its colour profile, as the figures were made.
    """
    with open_image(path) as opened:
        image = opened.convert("RGB")
    scale = shorter_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def psnr(degraded: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return the PSNR in dB over the last three axes of uint8 images; IDENTICAL_DB where they are equal."""
    error = ((degraded.astype(np.float32) - clean) ** 2).mean(axis=(-3, -2, -1), dtype=np.float64)
    return np.where(error > 0, 10 * np.log10(255**2 / np.maximum(error, 1e-12)), IDENTICAL_DB)


def measure(space: DegradationSpace, images: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over ``draws`` of the images' mean PSNR, and its standard deviation: (types, LEVELS) each.

    A type and level that has given the same twice draws no random numbers and is not repeated.
    """
    shape = (len(images), len(space.types), LEVELS)
    found: dict[tuple[int, int], list[float]] = {place: [] for place in np.ndindex(*shape[1:])}
    for draw in range(draws):
        seeds = np.random.default_rng(draw).integers(-(2**62), 2**62, np.prod(shape)).tolist()
        program = space.single_ops(seeds)
        for place, values in found.items():
            if draw > 1 and values[0] == values[1]:
                continue
            rows = [int(np.ravel_multi_index((image, *place), shape)) for image in range(len(images))]
            degraded = degrade(torch.from_numpy(images), program.select(rows)).numpy()
            values.append(float(psnr(degraded, images).mean()))
    means = [np.mean(values) for values in found.values()]
    spreads = [np.std(values) for values in found.values()]
    return np.reshape(means, shape[1:]), np.reshape(spreads, shape[1:])


def compare(name: str, figures: dict[str, Any], images: np.ndarray, draws: int) -> list[dict[str, Any]]:
    """Return the rows of the record of one preset: figures of its source, this project's and differences, by type."""
    space = DegradationSpace.preset(name)
    if len(space.types) != len(figures["rows"]):
        raise ValueError(f"{name}: figures must be of {len(space.types)} types, got {len(figures['rows'])}")
    rows = []
    for kind, row, mean, spread in zip(space.types, figures["rows"], *measure(space, images, draws), strict=True):
        official = row["psnr_db"]
        apart = [None if there is None else round(here - there, 2) for here, there in zip(mean, official, strict=True)]
        ours = {"ours_db": np.round(mean, 2).tolist(), "spread_db": np.round(spread, 2).tolist(), "draws": draws}
        names = {"preset": name, "revision": space.revision, "source_name": row["source_name"], "op": kind.op}
        rows.append({**names, "official_db": official, **ours, "difference_db": apart})
    return rows
