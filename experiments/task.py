"""One arm of the study with one seed, in a process of its own: make its encoder and evaluate it on every table.

``python -m experiments.task FOLDER`` does what ``FOLDER/task.json`` says, which ``experiments.study`` writes. It may be
killed at any moment and started again: files are written whole or not at all, pre-training resumes at its last
checkpoint, and a table that was evaluated is not evaluated again.
"""

import fcntl
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.harness import environment
from qpt.data.crops import cut_crops
from qpt.data.images import load_rgb
from qpt.data.listing import list_images
from qpt.data.normalise import normalise
from qpt.evaluate.classical import classical_features
from qpt.evaluate.clean_distance import CleanReference
from qpt.evaluate.features import READ_OUTS, FeatureProtocol, extract, hash_of, images_key, weights_hash
from qpt.evaluate.protocol import evaluate_splits
from qpt.evaluate.regimes import EvaluationConfig, make_regimes
from qpt.evaluate.table import ScoreTable, read_table
from qpt.io import write_json
from qpt.models import Encoder, load_encoder
from qpt.models.encoder import untrained_encoder
from qpt.models.two_trunks import TwoTrunks
from qpt.pretraining.checkpoint import save_checkpoint
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.engine import pretrain

SPLIT_SEED = 0  # the default of `qpt evaluate`: all arms and seeds are evaluated on the same splits
CLEAN_CROPS, CLEAN_BATCH = 1024, 64
STOPPED = 130
PATHS = ("data", "out", "init", "space")
METRICS = ("srcc", "plcc_logistic")
SHRINKAGES = (1.0, 0.9)


def main(folder: Path) -> int:
    """Return the exit status: 0 when all is done, 130 when a signal stopped pre-training after a step."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    with _lock(folder):
        torch.set_num_threads(int(task["config"]["threads"]) or torch.get_num_threads())
        if not make_encoder(task, folder / "run"):
            return STOPPED
        for csv in task["tables"]:
            evaluate_on(task, folder, csv)
    return 0


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait until no other process works in the folder: one may have outlived the study that started it."""
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_encoder(task: dict[str, Any], run: Path) -> bool:
    """Leave a checkpoint and ``summary.json`` in ``run``; return False if stopped before the end."""
    if (run / "summary.json").is_file():
        return True
    config = PretrainConfig.from_dict({**task["config"], "out": str(run)})
    if task["kind"] == "classical":
        run.mkdir(exist_ok=True)
        write_json({"steps": 0, "seconds": 0.0}, run / "summary.json")
        return True
    if task["kind"] == "pretrained":
        if run.exists() and not any(run.rglob("*.pt")):
            run.rename(run.with_name(f"run-killed-{time.time_ns()}"))  # before its first checkpoint: begin again
        return pretrain(config, resume=run.exists()).finished
    begun = time.monotonic()
    encoder: Encoder
    if task["kind"] == "untrained":
        encoder = untrained_encoder(config.arch, config.width, config.seed)
    elif task["kind"] == "recalibrated":
        encoder = recalibrate(load_encoder(task["of"]), Path(config.data), config)
    else:
        named = bool(config.init)
        encoder = load_encoder(config.init) if named else untrained_encoder(config.arch, config.width, config.seed)
        if task["kind"] == "beside":
            encoder = TwoTrunks(encoder, load_encoder(task["of"]))
    run.mkdir(exist_ok=True)
    trunks = {"two_trunks": True} if task["kind"] == "beside" else {}
    fields = {"arch": config.arch, "width": config.width, "seed": config.seed, **trunks}
    save_checkpoint(run, {"config": fields, "step": 0, "encoder": encoder.state_dict()})
    write_json({"steps": 0, "seconds": round(time.monotonic() - begun, 1)}, run / "summary.json")
    return True


@torch.no_grad()
def recalibrate(encoder: Encoder, folder: Path, config: PretrainConfig) -> Encoder:
    """Replace running batch-norm statistics by their mean over batches of clean crops, of the size of patches."""
    files = list_images(folder)
    chosen = np.random.default_rng(config.seed).choice(len(files), min(len(files), CLEAN_CROPS // 4), replace=False)
    pixels = cut_crops(
        [load_rgb(files[index]) for index in chosen], CLEAN_CROPS, size=config.patch_size, seed=config.seed
    )
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the plain mean over all batches
    encoder.train()
    for part in torch.from_numpy(pixels).permute(0, 3, 1, 2).split(CLEAN_BATCH):
        encoder(normalise(part))
    return encoder.eval()


def evaluate_on(task: Mapping[str, Any], folder: Path, csv: str) -> None:
    """Write ``evaluation-TABLE.json``: SRCC and PLCC of each split by the protocol of ``qpt evaluate``."""
    table = read_table(csv)
    file = folder / f"evaluation-{table.name}.json"
    if file.is_file():
        return
    protocol, cache = FeatureProtocol(task["crop_px"], task["crops"]), folder.parent.parent / "features"
    weights, distance = "", {}
    if task["kind"] == "classical":
        found = classical_features(table.paths, cache=cache, images_key=images_key(table), quiet=True)
        feature = task["arm"].removeprefix("classical-")
        views = {feature: found[feature]}
    else:
        encoder = load_encoder(folder / "run")
        features = features_of(encoder, table.paths, images_key(table), protocol, cache)
        weights, distance = weights_hash(encoder), agreement_of_distance(task, encoder, features, table, cache)
        views = {str(read_out): read_out.select(features, encoder.stage_dims) for read_out in READ_OUTS}
    _, regimes = make_regimes(EvaluationConfig(), (table,), SPLIT_SEED)
    records = {name: evaluate_splits(views, table.mos, table.groups, splits) for name, splits in regimes.items()}
    content = {
        "data": {"name": table.name, "images": len(table), "sha256": table.fingerprint},
        "features": protocol.describe(),
        "split_seed": SPLIT_SEED,
        "weights_sha256": weights,
        "clean_distance": distance,
        "regimes": {name: {m: [split[m] for split in splits] for m in METRICS} for name, splits in records.items()},
    }
    write_json(content, file)


def features_of(
    encoder: Encoder, paths: Sequence[Path], key: str, protocol: FeatureProtocol, cache: Path
) -> NDArray[np.float32]:
    """Return the features of an encoder, those of two trunks joined from the trunks' own, which other arms share."""
    if not isinstance(encoder, TwoTrunks):
        return extract(encoder, paths, protocol=protocol, label="study", cache=cache, images_key=key, quiet=True)
    frozen, tuned = (features_of(trunk, paths, key, protocol, cache) for trunk in (encoder.frozen, encoder.tuned))
    ends = np.cumsum(encoder.frozen.stage_dims)[:-1]
    pairs = zip(np.split(frozen, ends, axis=-1), np.split(tuned, ends, axis=-1), strict=True)
    return np.concatenate([part for pair in pairs for part in pair], axis=-1)


def agreement_of_distance(
    task: Mapping[str, Any], encoder: Encoder, features: NDArray[np.float32], table: ScoreTable, cache: Path
) -> dict[str, float]:
    """Return, by shrinkage, the SRCC of MOS with minus the distance to the photographs of pre-training."""
    clean = list_images(Path(task["config"]["data"]))
    key = hash_of(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in clean))
    known = features_of(encoder, clean, key, FeatureProtocol(task["crop_px"], task["crops"]), cache)
    found = {}
    for shrinkage in SHRINKAGES:
        reference = CleanReference.fit(known, encoder.stage_dims, shrinkage=shrinkage)
        found[f"{shrinkage:g}"] = float(spearmanr(-reference.distances(features), table.mos)[0])
    return found


def collect(folder: Path, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row of a finished arm and seed, without any path; None if it is not finished.  base: see make_row."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    files = [folder / f"evaluation-{table_name(csv)}.json" for csv in task["tables"]]
    if not (folder / "run" / "summary.json").is_file() or not all(file.is_file() for file in files):
        return None
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    file = folder / "run" / "checkpoint.pt"
    checkpoint = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return make_row(task, base, summary, checkpoint, [json.loads(file.read_text(encoding="utf-8")) for file in files])


def make_row(
    task: Mapping[str, Any],
    base: Mapping[str, Any],
    summary: Mapping[str, Any],
    checkpoint: str,
    evaluations: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Reduce what a finished arm and seed left to what tables, claims and a repetition need.

    base: settings of the recipe; the row holds those that differ.  A coefficient is the median over splits; an
    undefined one, of constant predictions, counts as 0.
    """
    where = task["environment"]
    named = ("data_fingerprint", "op_table", "space", "photographs")
    return {
        "arm": task["arm"],
        "seed": task["config"]["seed"],
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "settings": settings_over(base, task["config"]),
        "run": {key: summary[key] for key in named if key in summary},
        "environment": {
            **{key: where[key] for key in ("time", "commit", "modified_files")},
            "cpu": where["machine"]["cpu"],
            **{key: where["versions"][key] for key in ("python", "torch", "numpy", "qpt") if key in where["versions"]},
        },
        "checkpoint_sha256": checkpoint,
        "weights_sha256": evaluations[0]["weights_sha256"],
        "tables": {
            found["data"]["name"]: {
                **{key: found["data"][key] for key in ("images", "sha256")},
                **{key: found["features"][key] for key in ("crops", "crop_px")},
                **{
                    metric: {
                        name: statistics.median(0.0 if value is None else value for value in regime[metric])
                        for name, regime in found["regimes"].items()
                    }
                    for metric in METRICS
                },
                "clean_distance": found["clean_distance"],
            }
            for found in evaluations
        },
    }


def settings_over(base: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config sets otherwise than the base, but for seed and output; of a path, the name alone."""
    named = {key: Path(value).name if key in PATHS else value for key, value in config.items()}
    return {key: value for key, value in named.items() if key not in ("seed", "out") and base.get(key) != value}


def table_name(csv: str | Path) -> str:
    """Return the name of a table in records, as ``read_table`` has it: that of its folder."""
    return Path(csv).resolve().parent.name


def describe() -> dict[str, Any]:
    """Describe the environment of a task, without the threads of the study: those of the run are in its config."""
    found = environment()
    found.pop("threads")
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
