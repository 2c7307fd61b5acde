"""The demonstration behind ``qpt demo`` and ``make demo``: images in, scores, an encoder and one page out.

``run_demo`` scores images (``demo_scores``), cuts crops at several scales, pre-trains a small encoder on two thirds of
the images, and measures it on the others with linear probes beside the same encoder untrained. It writes into one
folder, which it clears first.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from qpt.commands.demo_scores import SHOWN, score_sections
from qpt.data.crops import cut_crops
from qpt.data.listing import list_images
from qpt.data.sample_images import sample_images
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.image_crops import read_images
from qpt.evaluate.probe import ProbeResult, probe
from qpt.evaluate.probe_set import ProbeSet, probe_set
from qpt.evaluate.progress import progress
from qpt.evaluate.scorer import Scorer
from qpt.io import shown
from qpt.models import load_encoder
from qpt.models.encoder import untrained_encoder
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.engine import pretrain
from qpt.report.curves import training_loss, training_similarity
from qpt.report.degradation_grid import draw_degradations
from qpt.report.page import Picture, Section, write_page
from qpt.runs.log import read_log

CROP = 208  # side of a crop in pixels: room for two 96-pixel patches at any allowed overlap
SCALES = (1.0, 0.75, 0.5)  # a crop covers CROP / scale pixels of the image, antialiased down to CROP
CROPS = 360
PROBE_CROP = 128  # side of a crop that is probed, each under every op at every level: most of the time after training
PROBE_CROPS = {"fit": 36, "measure": 18}
MAX_IMAGES = 400  # taken from a folder, evenly spaced
SEED = 0
MARKER = ".qpt-demo"  # in every folder this module made: only such a folder is ever cleared


def _clear(out: Path) -> None:
    """Remove an earlier demonstration; refuse to touch any other folder that holds something."""
    if out.exists():
        if not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"demo: out must be a new folder or an earlier demonstration, got {out}")
        shutil.rmtree(out)


def run_demo(out: Path, data: Path | None, console: Console) -> bool:
    """Run the whole demonstration; return whether the trained encoder beats the untrained one on both probes."""
    started = time.monotonic()
    if data is not None:
        place, source = out.resolve(), data.resolve()
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise InputError(f"demo: out is cleared and filled, so it must lie apart from data, got {out} and {data}")
    files = sample_images() if data is None else list_images(data)
    named, left_out = read_images(files, 1, most=MAX_IMAGES)
    images = list(named.values())
    for name, reason in left_out.items():
        console.print(f"skipped {shown(name)}: {reason}", highlight=False, markup=False)
    held_out, kept = images[::3], [image for i, image in enumerate(images) if i % 3]
    if len(kept) < 2:
        raise InputError(f"demo: data must hold at least 3 readable photographs, got {len(images)}")
    _clear(out)
    crops = _write_crops(out, kept)
    sections = score_sections(named, Scorer.load())
    console.print(f"{min(len(named), SHOWN)} photographs scored, and five of them under degradation", highlight=False)
    console.print(f"{len(kept)} photographs to learn from ({CROPS} crops), {len(held_out)} held out", highlight=False)

    space = DegradationSpace.preset("qpt")
    grid = out / "degradations.png"
    draw_degradations(held_out[0], space, seed=SEED).image.save(grid)
    console.print(f"degradation space: {space.size():,} compositions; picture in {grid}", highlight=False)

    config = PretrainConfig(
        data=str(crops),
        out=str(out / "run"),
        arch="resnet18",
        width=32,
        mode="in_batch",
        patch_size=96,
        region_size=CROP,
        batch_images=32,
        steps=300,
        optimizer="adamw",
        lr=1e-3,
        warmup_steps=20,
        log_every=5,
        checkpoint_every=100,
    )
    if not pretrain(config).finished:
        raise KeyboardInterrupt

    sets = {"fit": _probe_crops(kept, "fit", space), "measure": _probe_crops(held_out, "measure", space)}
    encoders = {
        "trained": load_encoder(config.out),
        "untrained": untrained_encoder(config.arch, config.width, config.seed),
    }
    results = {
        name: probe(encoder, sets["fit"], sets["measure"], label=f"probing, {name}", quiet=False)
        for name, encoder in encoders.items()
    }
    better = all(
        getattr(results["trained"], key) > getattr(results["untrained"], key) for key in ("op_accuracy", "level_srcc")
    )
    seconds = time.monotonic() - started
    metrics = {
        "trained_is_better": better,
        **{name: asdict(value) for name, value in results.items()},
        "ops": len(space.names),
        "held_out_images": len(sets["measure"].program),
        "seconds": round(seconds, 1),
        "config": asdict(config),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(config.out) / "checkpoint.pt", out / "checkpoint.pt")
    _write_page(out, sections, config, results, space, seconds, grid)
    for name, value in results.items():
        console.print(
            f"{name:>9}: predicts the op of {value.op_accuracy:.1%} of held-out images "
            f"(chance {1 / len(space.names):.1%}), SRCC of the predicted level {value.level_srcc:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"done in {seconds:.0f} s; open {out / 'index.html'}", highlight=False)
    return better


def _write_crops(out: Path, images: Sequence[NDArray[np.uint8]]) -> Path:
    """Make the folder of the demonstration; write crops of several scales into it as PNG files."""
    folder = out / "photographs"
    folder.mkdir(parents=True)
    (out / MARKER).touch()
    crops = list(cut_crops(images, CROPS, size=CROP, seed=SEED, scales=SCALES))
    for index, crop in enumerate(progress(crops, "writing crops", quiet=False)):
        Image.fromarray(crop).save(folder / f"{index:04d}.png", compress_level=1)
    return folder


def _probe_crops(images: Sequence[NDArray[np.uint8]], part: str, space: DegradationSpace) -> ProbeSet:
    """Cut the crops of one part of the images and put them under every op at every level."""
    crops = cut_crops(images, PROBE_CROPS[part], size=PROBE_CROP, seed=SEED + 1, scales=SCALES)
    return probe_set(torch.from_numpy(crops), np.arange(len(crops)) % len(images), space, SEED + 2)


def _write_page(
    out: Path,
    scores: Sequence[Section],
    config: PretrainConfig,
    results: dict[str, ProbeResult],
    space: DegradationSpace,
    seconds: float,
    grid: Path,
) -> None:
    trained, untrained = results["trained"], results["untrained"]
    summary = [
        ["op accuracy of a linear probe", f"{trained.op_accuracy:.1%}", f"{untrained.op_accuracy:.1%}"],
        ["SRCC of the predicted level, mean over ops", f"{trained.level_srcc:.3f}", f"{untrained.level_srcc:.3f}"],
        [
            "SRCC of the distance to pristine and the level",
            f"{trained.distance_srcc:.3f}",
            f"{untrained.distance_srcc:.3f}",
        ],
    ]
    per_op = [
        [name, f"{value:.3f}", f"{untrained.level_srcc_per_op[name]:.3f}"]
        for name, value in trained.level_srcc_per_op.items()
    ]
    columns = ["", "pre-trained", "untrained"]
    log = {"": read_log(Path(config.out))}
    caption = f"{config.steps} steps of {config.batch_images} photographs × {config.compositions} compositions"
    sections = [
        *scores,
        Section(
            "Pre-training an encoder",
            f"A small encoder, pre-trained for {config.steps} steps from random weights, and the same one untrained, "
            "on photographs that it never saw, each under every op at every level; linear probes on statistics of its "
            "stages (mean and standard deviation over positions). "
            f"Chance is {1 / len(space.names):.1%} for the op and 0 for the level.",
            columns,
            summary,
        ),
        Section(
            "Its training",
            "The loss falls as patches of one composition become more alike than the same photograph under another "
            "composition.",
            pictures=[Picture(draw(log), caption) for draw in (training_loss, training_similarity)],
            size="medium",
            part=True,
        ),
        Section(
            "Level by op", "SRCC between predicted and true level, held-out photographs.", columns, per_op, part=True
        ),
        Section(
            "What it learned from",
            f"{len(space.names)} degradations at five levels; {space.size():,} compositions by type.",
            pictures=[Picture(grid.read_bytes(), "every degradation at every level, and random compositions")],
            part=True,
        ),
        Section("Settings", part=True, code=(Path(config.out) / "config.yaml").read_text(encoding="utf-8")),
    ]
    lead = (
        "Photographs scored by the scorer that comes with qpt, and an encoder pre-trained on this machine. No label "
        f"was used. It took {seconds:.0f} s altogether."
    )
    write_page(out / "index.html", "Blind image quality, without opinions: a demonstration", lead, sections)
