"""The encoder and scorer that come with the package: made anew, and measured.

``python -m experiments model PHOTOS --out DIR`` pre-trains by the recipe ``imagenet-laptop``, rounds the weights as the
shipped file keeps them, learns the score without opinions, and writes ``qpt/models/shipped``. It may be killed at any
moment: the same command continues it. With ``--table`` it measures the file instead, beside NIQE and the
package ``brisque``, and writes the record that docs/model-card.md reads.
"""

import argparse
import hashlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.harness import write_record
from experiments.opinion_unaware import peer_scores
from qpt.cli import main as qpt
from qpt.data.crops import cut_crops
from qpt.data.listing import list_images
from qpt.data.sample_images import sample_images
from qpt.degradations.space import DegradationSpace
from qpt.evaluate.classical import contrast, luminance
from qpt.evaluate.features import READ_OUTS, FeatureProtocol, extract, images_key
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.probe_set import probe_set
from qpt.evaluate.protocol import evaluate_splits
from qpt.evaluate.regimes import EvaluationConfig, make_regimes
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import ScoreTable, read_table
from qpt.models import load_encoder
from qpt.models.checkpoint_file import run_record
from qpt.models.shipped import FILE, rounded, write_shipped
from qpt.ops.degrade.api import degrade
from qpt.report.measurements import score_severity

HELP = "the encoder and scorer that come with the package: make them, or measure them"
RESULTS = Path(__file__).parent / "results" / "model.json"
FORMAT = "qpt-model-1"
RECIPE = "imagenet-laptop"
SPLIT_SEED = 0
SEVERITY_PX = 320


def make(photos: Path, out: Path, file: Path, seed: int) -> None:
    """Pre-train, round, learn the score, and write the file."""
    run = out / "run"
    arguments = ["pretrain", str(photos), "--out", str(run), "--recipe", RECIPE, "--seed", str(seed)]
    if not (run / "summary.json").is_file() and qpt([*arguments, *(["--resume"] if run.is_dir() else [])]):
        raise SystemExit("model: pre-training has not finished; the same command continues it")
    encoder = load_encoder(run)
    state = rounded(encoder.state_dict())
    encoder.load_state_dict(state)
    scorer = Scorer.fit_unlabelled(encoder, photos, seed=seed, pretraining=run_record(run), cache=out / "features")
    plain = scorer.plain_state()
    plain["made"] = {
        "photographs": len(list_images(photos)),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    write_shipped(file, {**encoder.state_dict(), "scorer.weights": torch.from_numpy(scorer.weights)}, plain)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, SRCC with held-out damage {scorer.fitted_on['srcc']:.3f}")


def measure(tables: Sequence[Path], clean: Path, cache: Path, file: Path, again: Sequence[Path], results: Path) -> None:
    """Compare a file's score and its peers with each table of scores, and write the record.

    again: files made by the same command from other seeds, for how much chance moves the figures.
    """
    scorer = Scorer.load(file)
    record: dict[str, Any] = {
        "format": FORMAT,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "megabytes": round(file.stat().st_size / 1e6, 2),
        "tables": [_on_table(scorer, path, list_images(clean), cache) for path in tables],
        "severity": _falls_with_level(scorer),
        "again": [_without_labels(Scorer.load(other), tables, cache) for other in again],
    }
    write_record(record, results)


def _table_features(scorer: Scorer, table: ScoreTable, cache: Path) -> np.ndarray:
    return extract(
        scorer.encoder,
        table.paths,
        protocol=FeatureProtocol(),
        label=table.name,
        cache=cache,
        images_key=images_key(table),
    )


def _without_labels(scorer: Scorer, tables: Sequence[Path], cache: Path) -> dict[str, Any]:
    """Return the seed of a scorer and its SRCC over each whole table."""
    srcc = {}
    for table in map(read_table, tables):
        scores = [scorer.head(row) for row in _table_features(scorer, table, cache)]
        srcc[table.name] = float(spearmanr(scores, table.mos)[0])
    return {"seed": scorer.fitted_on["seed"], "without_labels": srcc}


def _on_table(scorer: Scorer, path: Path, clean: list[Path], cache: Path) -> dict[str, Any]:
    """Return SRCC over the whole table without labels, and over the splits with them."""
    table = read_table(path)
    key = images_key(table)
    features = _table_features(scorer, table, cache)
    found = {"qpt": np.array([scorer.head(row) for row in features])}
    found |= peer_scores(table.paths, clean, cache=cache, images_key=key)
    found["contrast"] = np.array([contrast(luminance(load_image(image))) for image in table.paths])
    views = {str(read_out): read_out.select(features, scorer.encoder.stage_dims) for read_out in READ_OUTS}
    _, regimes = make_regimes(EvaluationConfig(), (table,), SPLIT_SEED)
    fitted = {name: evaluate_splits(views, table.mos, table.groups, splits) for name, splits in regimes.items()}
    return {
        "name": table.name,
        "images": len(table),
        "sha256": table.fingerprint,
        "without_labels": {name: float(spearmanr(scores, table.mos)[0]) for name, scores in found.items()},
        "with_labels": {name: float(np.median([split["srcc"] for split in splits])) for name, splits in fitted.items()},
        "extrapolated": sum(scorer.extrapolates(score) for score in found["qpt"]),
    }


def _falls_with_level(scorer: Scorer) -> dict[str, Any]:
    """Return, for each op, minus the SRCC of the score with its level, the mean over photographs never trained on."""
    images = [load_image(path) for path in sample_images()]
    size = min(SEVERITY_PX, *(min(image.shape[:2]) for image in images))
    crops = torch.from_numpy(cut_crops(images, len(images), size=size, seed=0))
    data = probe_set(crops, np.arange(len(images)), DegradationSpace.preset("qpt"), 0)
    curves = score_severity(scorer, list(degrade(data.crops, data.program).numpy()), data).changes
    ops = {
        op: float(np.mean([-spearmanr(range(len(curve)), curve)[0] if np.ptp(curve) else 0.0 for curve in changes]))
        for op, changes in curves.items()
    }
    return {"photographs": len(images), "side_px": size, "median": float(np.median(list(ops.values()))), "ops": ops}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m experiments model``; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments model", description=HELP)
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of clean photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and of features")
    parser.add_argument("--file", type=Path, default=FILE, help="the file to write or measure (default: the package's)")
    parser.add_argument("--seed", type=int, default=0, help="of pre-training and of the degradations (default 0)")
    parser.add_argument("--table", type=Path, action="append", default=[], help="measure the file instead")
    parser.add_argument(
        "--again", type=Path, action="append", default=[], help="with --table: a file of another seed, to measure too"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the record to write with --table")
    options = parser.parse_args(arguments)
    if options.table:
        measure(options.table, options.photos, options.out / "features", options.file, options.again, options.results)
    else:
        make(options.photos, options.out, options.file, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
