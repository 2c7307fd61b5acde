"""Mean PSNR of every type of a preset at every level, beside that of its source's own code on the same images.

``python -m benchmarks.preset_fidelity PHOTOGRAPHS`` measures the presets on the images of the folder that
``preset_figures.json`` names, writes the record ``results/preset_fidelity.json`` and, from it,
``docs/degradations-fidelity.md``. The figures of the sources are facts and stand in ``preset_figures.json``; nothing of
the sources runs here.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import RESULTS, SCHEMA, environment, table, write_record
from qpt.data.images import load_rgb
from qpt.degradations.op_table import LEVELS
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.ops.degrade.api import degrade

FIGURES = Path(__file__).with_name("preset_figures.json")
RECORD = RESULTS / "preset_fidelity.json"
PAGE = Path(__file__).parents[1] / "docs" / "degradations-fidelity.md"
LIMIT_DB = 0.5
IDENTICAL_DB = 99.0  # of an image that equals the clean one, as in the figures
DRAWS = 16

HEAD = """\
# How close the presets are to their sources

Mean PSNR to the clean image, in dB, over eight photographs of ImageNet classes: by the published code of a preset's
source, and by the preset. The photographs are resized (bicubic) and cropped in the middle. Of a type that draws random
numbers, the preset's figure is the mean of {draws} draws for each photograph, and the number after ± is the standard
deviation, from draw to draw, of the mean over the photographs; the source's figure is one such draw.

**{within} of {compared} figures are within {limit} dB of the source's.** Where a figure of the source is missing, its
code did not run. {others}

The generator of `kadid` is MATLAB code, which was not run; `reiqa`, `bsrgan` and `realesrgan` were compared with their
code by reading alone. `qpt degrade --presets` says what differs from each source.

Written by `python -m benchmarks.preset_fidelity PHOTOGRAPHS` from `benchmarks/preset_figures.json`, the figures of the
sources, and a folder with their photographs; the record is `benchmarks/results/preset_fidelity.json`.
"""
OTHERS = "The others are of types that draw few random numbers for an image, and apart by chance:\n\n{figures}"

SECTION = """
## {name}

Source: {source}. Shorter side {shorter_side} px, crop {centre_crop} px, revision {revision} of the preset. A cell has
the source's figure, the preset's, and the difference.

{table}
"""


def crop(path: Path, shorter_side: int, side: int) -> np.ndarray:
    """Return the (side, side, 3) uint8 middle of an image whose shorter side was resized by Pillow's bicubic filter."""
    image = Image.fromarray(load_rgb(path))
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
        raise InputError(f"{name}: figures must be of {len(space.types)} types, got {len(figures['rows'])}")
    rows = []
    for kind, row, mean, spread in zip(space.types, figures["rows"], *measure(space, images, draws), strict=True):
        official = row["psnr_db"]
        apart = [None if there is None else round(here - there, 2) for here, there in zip(mean, official, strict=True)]
        ours = {"ours_db": np.round(mean, 2).tolist(), "spread_db": np.round(spread, 2).tolist()}
        names = {"preset": name, "source_name": row["source_name"], "op": kind.op}
        rows.append({**names, "official_db": official, **ours, "difference_db": apart})
    return rows


def beyond(record: dict[str, Any]) -> list[str]:
    """Return the figures that differ by more than LIMIT_DB, in words."""
    return [
        f"`{row['preset']}`'s {row['source_name']} at level {level}: {apart:+.2f} dB, ± {row['spread_db'][level - 1]:.2f}"
        for row in record["predictions"]
        for level, apart in enumerate(row["difference_db"], 1)
        if apart is not None and abs(apart) > LIMIT_DB
    ]


def render(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    far = beyond(record)
    every = [apart for row in record["predictions"] for apart in row["difference_db"] if apart is not None]
    others = ""
    if far:
        others = (
            "The others are of types that draw few random numbers for an image, by chance; in dB: "
            + "; ".join(far)
            + ". "
        )
    words = {"within": len(every) - len(far), "compared": len(every), "others": others, "limit": LIMIT_DB}
    parts = [HEAD.format(draws=record["settings"]["draws"], **words)]
    for name, preset in record["figures"]["presets"].items():
        lines = []
        for row in (row for row in record["predictions"] if row["preset"] == name):
            figures = zip(row["official_db"], row["ours_db"], row["spread_db"], row["difference_db"], strict=True)
            lines.append([f"{row['source_name']}, `{row['op']}`", *(_cell(*values) for values in figures)])
        header = ["type", *(f"level {level}" for level in range(1, LEVELS + 1))]
        parts.append(SECTION.format(name=name, table=table(header, lines), **preset))
    return "".join(parts)


def _cell(official: float | None, ours: float, spread: float, apart: float | None) -> str:
    here = f"{ours:.2f}" + (f" ± {spread:.2f}" if spread >= 0.05 else "")
    return here if official is None or apart is None else f"{official:.2f} · {here} · {apart:+.2f}"


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; return the exit status, 2 for an error of the user's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preset_fidelity", description=__doc__)
    parser.add_argument("photographs", type=Path, help="folder that holds the photographs of preset_figures.json")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"of the random types (default {DRAWS})")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record (default: benchmarks/results)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: docs/degradations-fidelity.md)")
    options = parser.parse_args(arguments)
    if options.draws < 1:
        parser.error(f"--draws must be >= 1, got {options.draws}")
    figures = json.loads(FIGURES.read_text())
    missing = [name for name in figures["images"] if not (options.photographs / name).is_file()]
    if missing:
        parser.error(f"photographs must be a folder with {', '.join(missing)}, got {options.photographs}")
    rows, presets = [], {}
    for name, preset in figures["presets"].items():
        size = preset["shorter_side"], preset["centre_crop"]
        images = np.stack([crop(options.photographs / file, *size) for file in figures["images"]])
        rows += compare(name, preset, images, options.draws)
        about = {key: preset[key] for key in ("source", "shorter_side", "centre_crop")}
        presets[name] = {**about, "revision": DegradationSpace.preset(name).revision}
    head = {"schema": SCHEMA, "settings": {"draws": options.draws}, "environment": environment()}
    kinds = {"name": "preset_fidelity", "rows": [], "predictions": rows, "compiled": [], "remarks": [figures["what"]]}
    about_all = {"images": figures["images"], "presets": presets}
    record = write_record({**head, **kinds, "figures": about_all}, options.out)
    options.page.write_text(render(record), encoding="utf-8")
    print(f"{options.out}, {options.page}")
    for words in beyond(record):
        print(f"beyond {LIMIT_DB} dB: {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
