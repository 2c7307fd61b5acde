"""Data for an example report, made from the images inside the scikit-image wheel: crops and a labelled set.

``python docs/report_example.py FOLDER`` writes FOLDER/crops to pre-train on, FOLDER/images and FOLDER/scores.csv. No
person rated these images: the score is made up and falls with the level of the degradation, with some noise. Used by
docs/report.md.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qpt import DegradationSpace, degrade
from qpt.data.crops import cut_crops
from qpt.data.images import load_rgb
from qpt.data.sample_images import sample_images
from qpt.degradations.program import Program

SIZE, SEED = 224, 0
CROPS, SCALES = 360, (1.0, 0.75, 0.5)


def main(folder: Path) -> None:
    for name in ("images", "crops"):
        (folder / name).mkdir(parents=True)
    files = [path for path in sample_images() if "skimage" in path.parts]
    images = [load_rgb(path) for path in files]
    for index, crop in enumerate(cut_crops(images, CROPS, size=SIZE, seed=SEED, scales=SCALES)):
        Image.fromarray(crop).save(folder / "crops" / f"{index:03d}.png")
    crops = torch.from_numpy(cut_crops(images, len(files), size=SIZE, seed=SEED))
    rng = np.random.default_rng(SEED)
    ops = DegradationSpace.preset("qpt").ops
    rows = []
    for index, path in enumerate(files):
        chosen = rng.choice(len(ops), 5, replace=False)
        chains = [[], *([(ops[op], level)] for level, op in enumerate(chosen, start=1))]
        program = Program.from_chains(chains, seeds=list(range(len(chains))), source=[index] * len(chains))
        for level, (chain, pixels) in enumerate(zip(chains, degrade(crops, program).numpy(), strict=True)):
            kind = chain[0][0] if chain else "pristine"
            name = f"images/{path.stem}-{level}-{kind}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append((name, f"{90 - 14 * level + rng.normal(0, 5):.1f}", path.stem, kind))
    with open(folder / "scores.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "mos", "ref", "kind"), *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
