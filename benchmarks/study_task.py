"""One arm of the study with one seed: make its encoder, evaluate it on every table. A process of its own.

``python -m benchmarks.study_task FOLDER`` does what ``FOLDER/task.json`` says, which ``benchmarks.study`` writes, as it
starts this. What is there already is not done again: pre-training resumes at its last checkpoint, a table that was
evaluated stays so. Files are written whole or not at all, so it may be killed at any moment and started again.
"""

import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import circumstances
from qpt.data.crops import cut_crops
from qpt.data.images import list_images, load_rgb
from qpt.data.normalise import normalise
from qpt.evaluate.features import READ_OUTS, FeatureProtocol, read_out_features, weights_hash
from qpt.evaluate.protocol import evaluate_splits
from qpt.evaluate.regimes import EvaluationConfig, make_regimes
from qpt.evaluate.table import read_table
from qpt.io import write_whole
from qpt.models import ResNet, load_encoder
from qpt.models.encoder import untrained_encoder
from qpt.pretraining.checkpoint import save_checkpoint
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.engine import pretrain

SPLIT_SEED = 0  # as qpt evaluate's default: every arm and seed meets the same splits
CLEAN_CROPS, CLEAN_BATCH = 1024, 64
KEPT = ("srcc", "plcc_raw", "plcc_logistic", "krcc")
STOPPED = 130


def main(folder: Path) -> int:
    """Exit status: 0 when all is done, 130 when a signal stopped pre-training after a step."""
    task = json.loads((folder / "task.json").read_text())
    with _alone(folder):
        torch.set_num_threads(int(task["config"]["threads"]) or torch.get_num_threads())
        if not make_encoder(task, folder / "run"):
            return STOPPED
        for csv in task["tables"]:
            evaluate_on(folder, csv, FeatureProtocol(task["crop_px"], task["crops"]))
    return 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works on this arm and seed: one may have outlived the study that started it."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_encoder(task: dict[str, Any], run: Path) -> bool:
    """Leave a checkpoint and ``summary.json`` in ``run``; False if stopped before the end."""
    if (run / "summary.json").is_file():
        return True
    config = PretrainConfig.from_dict({**task["config"], "out": str(run)})
    if task["kind"] == "pretrained":
        if run.exists() and not any(run.rglob("*.pt")):
            run.rename(run.with_name(f"run-killed-{time.time_ns()}"))  # before its first checkpoint: begin again
        return pretrain(config, resume=run.exists()).finished
    begun = time.monotonic()
    encoder = untrained_encoder(config.arch, config.width, config.seed)
    if task["kind"] == "recalibrated":
        encoder = recalibrate(load_encoder(task["of"]), Path(config.data), config)
    run.mkdir(exist_ok=True)
    fields = {"arch": config.arch, "width": config.width, "seed": config.seed}
    save_checkpoint(run, {"config": fields, "step": 0, "encoder": encoder.state_dict()})
    write(run / "summary.json", {"steps": 0, "seconds": round(time.monotonic() - begun, 1)})
    return True


@torch.no_grad()
def recalibrate(encoder: ResNet, photographs: Path, config: PretrainConfig) -> ResNet:
    """Replace running batch-norm statistics by their mean over batches of clean crops, of the size of patches."""
    files = list_images(photographs)
    chosen = np.random.default_rng(config.seed).choice(len(files), min(len(files), CLEAN_CROPS // 4), replace=False)
    pixels = cut_crops(
        [load_rgb(files[index]) for index in chosen], CLEAN_CROPS, size=config.patch_size, seed=config.seed
    )
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what follows
    encoder.train()
    for part in torch.from_numpy(pixels).permute(0, 3, 1, 2).split(CLEAN_BATCH):
        encoder(normalise(part))
    return encoder.eval()


def evaluate_on(folder: Path, csv: str, protocol: FeatureProtocol) -> None:
    """Write ``evaluation-TABLE.json``: the protocol of ``qpt evaluate``, and every read-out by itself beside the chosen
    one."""
    table = read_table(csv)
    file = folder / f"evaluation-{table.name}.json"
    if file.is_file():
        return
    begun = time.monotonic()
    encoder = load_encoder(folder / "run")
    views = read_out_features(encoder, table, protocol, label=folder.parent.name, cache=folder / "features", quiet=True)
    _, regimes = make_regimes(EvaluationConfig(), (table,), SPLIT_SEED)
    found: dict[str, Any] = {}
    for name, splits in regimes.items():
        records = evaluate_splits(views, table.mos, table.groups, splits)
        found[name] = {metric: [plain(record[metric]) for record in records] for metric in KEPT}
        found[name]["chosen_read_out"] = [record["chosen_read_out"] for record in records]
        found[name]["srcc_of_read_out"] = {
            str(read_out): [
                plain(record["srcc"])
                for record in evaluate_splits({"": views[str(read_out)]}, table.mos, table.groups, splits)
            ]
            for read_out in READ_OUTS
        }
    data = {"name": table.name, "images": len(table), "sha256": table.fingerprint}
    content = {
        "data": data,
        "features": protocol.describe(),
        "split_seed": SPLIT_SEED,
        "weights_sha256": weights_hash(encoder),
        "regimes": found,
        "seconds": round(time.monotonic() - begun, 1),
    }
    write(file, content)


def collect(folder: Path) -> dict[str, Any] | None:
    """The row of results of a finished arm and seed, without any path; None if it is not finished."""
    task = json.loads((folder / "task.json").read_text())
    files = [folder / f"evaluation-{read_name(csv)}.json" for csv in task["tables"]]
    if not (folder / "run" / "summary.json").is_file() or not all(file.is_file() for file in files):
        return None
    summary = json.loads((folder / "run" / "summary.json").read_text())
    evaluations = [json.loads(file.read_text()) for file in files]
    checkpoint = folder / "run" / "checkpoint.pt"
    named = ("data_fingerprint", "op_table", "space", "versions", "unreadable", "photographs")
    return {
        "arm": task["arm"],
        "seed": task["config"]["seed"],
        "kind": task["kind"],
        "config": without_folders(task["config"]),
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "run": {key: summary[key] for key in named if key in summary},
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "circumstances": task["circumstances"],
        "tables": {evaluation["data"]["name"]: evaluation for evaluation in evaluations},
    }


PATHS = ("data", "out", "init", "space")


def without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Settings as results have them: of a path, the name alone."""
    return {key: Path(value).name if key in PATHS else value for key, value in config.items()}


def read_name(csv: str | Path) -> str:
    """What results call a table: its folder's name, as ``read_table`` has it."""
    return Path(csv).resolve().parent.name


def plain(value: float) -> float | None:
    """For JSON: nan, of constant predictions, is null; six digits."""
    return None if value != value else float(f"{value:.6g}")


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    write_whole(path, lambda aside: aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n"))


def describe() -> dict[str, Any]:
    """Where and with what a task is run: commit, machine, versions, time."""
    found = circumstances()
    found.pop("threads")  # of the study, not of the run: that is in the config
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
