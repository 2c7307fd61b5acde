"""Hours of use in one process: pre-training with workers, evaluation and scoring of a folder that changes.

``tests/test_soak.py`` starts it as ``python -m tests.soak SECONDS FOLDER``. It prints what the process holds after each
round of the three (memory, descriptors, threads and children) as JSON, a row for each round.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import qpt
from qpt.cli import main
from qpt.data.images import load_rgb
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.regimes import EvaluationConfig
from qpt.evaluate.run import evaluate
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table
from qpt.models import load_encoder


def holdings() -> dict[str, float]:
    """Return the memory (MiB, anonymous pages), descriptors, threads and children of this process."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what the allocator keeps for the next call counts too
    status = Path("/proc/self/status").read_text(encoding="ascii")
    anonymous = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    children = sum(
        len(Path(f"/proc/self/task/{task}/children").read_text(encoding="ascii").split())
        for task in os.listdir("/proc/self/task")
    )
    return {
        "memory_mib": anonymous / 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": children,
    }


def add_images(folder: Path, numbers: range) -> None:
    """Write images of several formats and sizes, one of them damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64 + number % 5 * 8, 64))
        image.save(folder / f"{number:05d}.{('png', 'jpg', 'webp', 'tif')[number % 4]}")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(number % 50))


def pretraining(data: Path, out: Path, number: int) -> None:
    """Pre-train with workers into a new folder, and resume once."""
    settings = {
        "arch": "resnet18",
        "width": 4,
        "projection_dim": 8,
        "patch_size": 24,
        "batch_images": 4,
        "pool_size": 24,
        "threads": 1,
        "workers": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "seed": number,
    }
    shutil.rmtree(out, ignore_errors=True)
    qpt.pretrain(qpt.PretrainConfig(str(data), str(out), steps=4, **settings))  # type: ignore[arg-type]
    qpt.pretrain(qpt.PretrainConfig(str(data), str(out), steps=4, **settings), resume=True)  # type: ignore[arg-type]


def evaluation(data: Path, run: Path) -> Scorer:
    """Evaluate the run's encoder on a table of the images, and fit a scorer."""
    images = sorted(path.name for path in data.iterdir() if path.name != "damaged.jpg")[:12]
    rows = [f"{name},{1 + number * 0.3}" for number, name in enumerate(images)]
    (data / "scores.csv").write_text("\n".join(["image,mos", *rows]))
    table, protocol = read_table(data / "scores.csv"), FeatureProtocol(crop_px=32, crops=1)
    config = EvaluationConfig(splits=2, label_shares=())
    evaluate([run], table, config=config, untrained=0, supervised=False, protocol=protocol, quiet=True)
    return Scorer.fit(load_encoder(run), table, protocol=protocol, quiet=True)


def round_of_use(folder: Path, number: int) -> None:
    """Do all of it once; of the folder of images the oldest are removed and as many added."""
    data, run = folder / "data", folder / "run"
    for path in sorted(data.glob("0*"))[:3]:
        path.unlink()
    add_images(data, range(16 + 3 * number, 19 + 3 * number))
    pretraining(data, run, number)
    scorer = evaluation(data, run)
    for path in sorted(data.glob("0*")):
        scorer(path), scorer(load_rgb(path))
    scorer.save(folder / "scorer.pt")
    main(
        [
            "score",
            str(data),
            "--scorer",
            str(folder / "scorer.pt"),
            "--heatmap",
            str(folder / "maps"),
            "--format",
            "csv",
        ]
    )


def soak(seconds: float, folder: Path) -> list[dict[str, float]]:
    """Return what the process held after each round, of which there are at least five."""
    add_images(folder / "data", range(16))
    started, rows = time.monotonic(), []
    while len(rows) < 5 or time.monotonic() - started < seconds:
        round_of_use(folder, len(rows))
        rows.append({"seconds": round(time.monotonic() - started, 1), **holdings()})
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    real, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - of the commands
    found = soak(float(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(found), file=real)
