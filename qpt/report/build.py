"""A report: runs, and optionally a table of scores, in; one HTML page out.

Called by ``qpt report``. Relies on ``measurements`` for the numbers, ``severity`` for what needs degraded photographs,
``figures`` for the drawings and ``page`` for the HTML. Every section is there every time: one without data
says in a line what it needs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol, weights_hash
from qpt.evaluate.metrics import measure
from qpt.evaluate.photograph import load_photograph
from qpt.evaluate.run import encoder_views, feature_cache, run_name
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import ScoreTable
from qpt.models import ResNet, load_encoder
from qpt.models.encoder import read_checkpoint
from qpt.report import figures
from qpt.report.measurements import OutOfFold, embedding_map, out_of_fold, read_log, srcc_by_kind
from qpt.report.page import Picture, Section, write_page
from qpt.report.severity import degraded_photographs, degraded_sections

THUMBNAIL_PX = 304
THUMBNAILS = 6  # of each kind
_METRIC_NAMES = {
    "srcc": "SRCC",
    "plcc_raw": "PLCC, raw",
    "plcc_logistic": "PLCC after the logistic",
    "plcc_logistic5": "PLCC after the 5-parameter logistic",
    "krcc": "KRCC",
    "rmse": "RMSE",
}
_NO_TABLE = "Not shown: it needs photographs with mean opinion scores; none were given (--csv)."


@dataclass
class RunRecord:
    """What a report knows of a run. log: columns of log.csv, empty without one.  views, predictions: on the table."""

    name: str
    place: Path
    checkpoint: dict[str, Any]
    encoder: ResNet
    colour: str
    log: dict[str, list[float]]
    views: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    predictions: OutOfFold | None = None
    scorer: Scorer | None = None


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    table: ScoreTable | None = None,
    scorer: str | Path | None = None,
    evaluation: str | Path | None = None,
    photographs: str | Path | None = None,
    protocol: FeatureProtocol | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """Write the page about one or several runs (run directories or checkpoint files).

    table: photographs with scores, for everything about predictions.  scorer: a file made from the one run, for the
    severity curves; without it one is fitted on the table.  evaluation: a result of ``qpt evaluate --out``.
    photographs: a folder to degrade; without it the best rated of the table are.  protocol, cache: of the table's
    features, as for ``evaluate``; each run's cache is its own by default.  seed: of folds, maps, crops.  quiet: no
    progress bars. Raises InputError for no runs or too many, for what ``load_encoder``, ``Scorer.load`` or the
    photographs refuse, a scorer of another encoder or with several runs, or another kind of JSON.
    """
    records = _read_runs(runs)
    if seed < 0:
        raise InputError(f"report: seed must be >= 0, got {seed}")
    if scorer is not None:
        records[0].scorer = _read_scorer(scorer, records)
    result = _read_evaluation(evaluation) if evaluation is not None else None
    protocol = protocol or FeatureProtocol()
    if table is not None:
        for run in records:
            folder = Path(cache) if cache is not None else feature_cache(run.place)
            label = f"features of {run.name}"
            run.views = encoder_views(run.encoder, table, protocol, label=label, cache=folder, quiet=quiet)
            run.predictions = out_of_fold(run.views, table.mos, table.groups, seed)
            if run.scorer is None:
                run.scorer = Scorer.fit(run.encoder, table, protocol=protocol, cache=folder, quiet=True)
    *severity, map_of_patches = degraded_sections(
        {run.name: run.encoder for run in records},
        {run.name: run.scorer for run in records if run.scorer is not None},
        degraded_photographs(photographs, table, seed=seed, quiet=quiet),
        seed=seed,
        quiet=quiet,
    )
    sections = [
        _summary(records, table),
        _predictions(records, table),
        _by_kind(records, table),
        *_thumbnails(records, table),
        *severity,
        _map_of_table(records, table, seed),
        map_of_patches,
        _training(records),
        *_evaluation(result),
        *_settings(records),
    ]
    names = ", ".join(run.name for run in records)
    write_page(Path(out), f"Report of {names}", _lead(records, table), sections)


def _read_runs(runs: Sequence[str | Path]) -> list[RunRecord]:
    if not 1 <= len(runs) <= len(figures.COLOURS):
        raise InputError(f"report: runs must be 1 to {len(figures.COLOURS)} runs, got {len(runs)}")
    names = [run_name(run) for run in runs]
    records = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        name = name if names.count(name) == 1 else f"{name} #{number + 1}"
        place = Path(run)
        log = read_log(place) if (place / "log.csv").is_file() else {}
        records.append(RunRecord(name, place, read_checkpoint(run), load_encoder(run), figures.COLOURS[number], log))
    return records


def _read_scorer(path: str | Path, records: Sequence[RunRecord]) -> Scorer:
    if len(records) > 1:
        raise InputError(f"report: scorer goes with one run, got {len(records)} runs; with --csv each run gets its own")
    scorer = Scorer.load(path)
    if weights_hash(scorer.encoder) != weights_hash(records[0].encoder):
        raise InputError(f"report: scorer must be made from {records[0].name}, got one with other encoder weights")
    return scorer


def _read_evaluation(path: str | Path) -> dict[str, Any]:
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"report: evaluation must be a JSON file, got {path}: {error}") from None
    if not isinstance(result, dict) or not str(result.get("format")).startswith("qpt-evaluation-"):
        raise InputError(f"report: evaluation must be a result of `qpt evaluate --out`, got another file: {path}")
    return result


def _lead(records: Sequence[RunRecord], table: ScoreTable | None) -> str:
    what = "One pre-training run" if len(records) == 1 else f"{len(records)} pre-training runs, compared"
    if table is None or records[0].predictions is None:
        return f"{what}. No opinion scores were given, so nothing here says how well scores are predicted."
    groups = len(np.unique(table.groups))
    return (
        f"{what}, on {table.name}: {len(table)} images in {groups} groups. Every prediction on this page is out of "
        "fold: its regressor saw neither the image nor any other of its group."
    )


def _summary(records: Sequence[RunRecord], table: ScoreTable | None) -> Section:
    columns = [_facts(run, table) for run in records]
    rows = [
        [name, *(column.get(name, "–") for column in columns)] for name in dict.fromkeys(k for c in columns for k in c)
    ]
    return Section("Summary", header=["", *(run.name for run in records)], rows=rows)


def _facts(run: RunRecord, table: ScoreTable | None) -> dict[str, str]:
    """What identifies a run and its figures; settings that an older checkpoint lacks are left out."""
    config = run.checkpoint["config"]
    facts = {"encoder": f"{run.encoder.arch}, width {run.encoder.width}"}
    if run.predictions is not None and table is not None:
        for metric, value in measure(run.predictions.predictions, table.mos).items():
            facts[f"{_METRIC_NAMES.get(metric, metric)}, out of fold"] = f"{value:.3f}"
    if "step" in run.checkpoint:
        facts["steps"] = f"{run.checkpoint['step']:,}"
    if "seconds" in run.checkpoint:
        facts["time in training"] = f"{run.checkpoint['seconds'] / 60:.1f} min"
    if run.log.get("loss"):
        facts["last loss"] = f"{run.log['loss'][-1]:.3f}"
    wanted = {
        "batch": "{batch_images} photographs × {compositions} compositions",
        "patches": "{patch_size} px, overlap {iou_min:g}–{iou_max:g}",
        "method": "{mode}, temperature {temperature:g}",
        "degradations": "{space}",
        "optimiser": "{optimizer}, peak rate {lr:g}",
        "seed": "{seed}",
    }
    for name, text in wanted.items():
        try:
            facts[name] = text.format(**config)
        except KeyError:
            continue
    return {**facts, "weights (sha256)": weights_hash(run.encoder)[:12]}


def _predictions(records: Sequence[RunRecord], table: ScoreTable | None) -> Section:
    found = [(run, run.predictions.predictions) for run in records if run.predictions is not None]
    if table is None or not found or records[0].predictions is None:
        return Section("Predictions and MOS", _NO_TABLE)
    text = (
        f"One out-of-fold prediction for each of the {len(table)} images of {table.name} "
        f"({records[0].predictions.folds} by {'ref' if table.grouped else 'image'}; read-out and penalty are "
        "chosen inside the training folds). The curve is the 4-parameter logistic through these points."
    )
    pictures = [
        picture
        for run, p in found
        for picture in (
            Picture(figures.prediction_scatter(p, table.mos, run.colour), f"{run.name}: by value"),
            Picture(figures.rank_scatter(p, table.mos, run.colour), f"{run.name}: by rank, all that SRCC looks at"),
        )
    ]
    return Section("Predictions and MOS", text, pictures=pictures, size="medium")


def _by_kind(records: Sequence[RunRecord], table: ScoreTable | None) -> Section:
    title = "By distortion"
    if table is None:
        return Section(title, _NO_TABLE)
    kinds = table.kinds
    if kinds is None:
        return Section(title, f"Not shown: {table.name} does not say which distortion each image has.")
    srcc: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for run in records:
        if run.predictions is not None:
            srcc[run.name], counts = srcc_by_kind(run.predictions.predictions, table.mos, kinds)
    if not counts:
        return Section(title, f"Not shown: no distortion type of {table.name} has five images or more.")
    text = "Out-of-fold SRCC within each distortion type; the number of images of the type is in brackets."
    return Section(title, text, pictures=[Picture(figures.kind_bars(srcc, counts))], size="medium")


def _thumbnails(records: Sequence[RunRecord], table: ScoreTable | None) -> list[Section]:
    title = "Best and worst predictions"
    if table is None:
        return [Section(title, _NO_TABLE)]
    sections = [Section(title, "By the distance between out-of-fold prediction and MOS.")]
    for run in records:
        if run.predictions is None:
            continue
        predicted = run.predictions.predictions
        order = np.argsort(np.abs(predicted - table.mos), kind="stable")
        count = min(THUMBNAILS, len(order) // 2)
        for name, rows in (("closest", order[:count]), ("farthest", order[::-1][:count])):
            pictures = [
                Picture(
                    thumbnail(table.paths[row]),
                    f"{Path(table.images[row]).name}: predicted {predicted[row]:.4g}, MOS {table.mos[row]:.4g}",
                )
                for row in rows
            ]
            sections.append(Section(f"{run.name}: {name}", pictures=pictures, size="small", part=True))
    return sections


def thumbnail(path: Path) -> bytes:
    """A photograph as a JPEG of at most THUMBNAIL_PX px a side."""
    picture = Image.fromarray(load_photograph(path))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82)
    return out.getvalue()


def _map_of_table(records: Sequence[RunRecord], table: ScoreTable | None, seed: int) -> Section:
    title = "Map of the images, by MOS"
    if table is None:
        return Section(title, _NO_TABLE)
    pictures, method, shown = [], "", 0
    for run in records:
        cloud = embedding_map(run.views["all, mean+std"], seed)
        method, shown = cloud.method, len(cloud.kept)
        pictures.append(Picture(figures.map_by_value(cloud, table.mos[cloud.kept], "MOS"), run.name))
    text = (
        f"{method} of the encoder's features (all stages, mean and deviation, two scales) of {shown} images. "
        "Neighbours have similar features; where colours change smoothly, quality is easy to read from them."
    )
    return Section(title, text, pictures=pictures, size="medium")


def _training(records: Sequence[RunRecord]) -> Section:
    logs = {run.name: run.log for run in records}
    if not any(logs.values()):
        return Section("Training", "Not shown: no run directory with a log.csv was given.")
    without = [run.name for run in records if not run.log]
    text = (
        "The loss falls while patches of one composition move together and the same photograph under another "
        "composition stays apart." + (f" Without a log: {', '.join(without)}." if without else "")
    )
    pictures = [Picture(figures.training_loss(logs)), Picture(figures.training_similarity(logs))]
    return Section("Training", text, pictures=pictures, size="medium")


def _evaluation(result: dict[str, Any] | None) -> list[Section]:
    title = "Evaluation over splits"
    if result is None:
        return [Section(title, "Not shown: no result of `qpt evaluate --out` was given (--evaluation).")]
    try:
        data = result["data"]
        text = f"On {data['name']}: {data['images']} images. Median over splits (and inter-quartile range)."
        sections = [Section(title, text)]
        for regime in result["methods"][0]["regimes"]:
            summaries = {m["name"]: m["regimes"][regime]["summary"] for m in result["methods"]}
            metrics = [k for k, v in next(iter(summaries.values())).items() if isinstance(v, dict) and "median" in v]
            rows = [
                [name, *(f"{summary[m]['median']:.3f} ({summary[m]['iqr']:.3f})" for m in metrics)]
                for name, summary in summaries.items()
            ]
            header = ["", *(_METRIC_NAMES.get(metric, metric) for metric in metrics)]
            sections.append(Section(f"{regime} labels", header=header, rows=rows, part=True))
    except (KeyError, TypeError, IndexError, StopIteration) as error:
        raise InputError(f"report: evaluation lacks what a result holds ({type(error).__name__}: {error})") from None
    return sections


def _settings(records: Sequence[RunRecord]) -> list[Section]:
    """Where several runs differ, as a table; then everything each was run with. Paths stay out of the page."""
    configs = {
        run.name: {k: v for k, v in run.checkpoint["config"].items() if k not in ("data", "out")} for run in records
    }
    for config in configs.values():
        if config.get("init"):
            config["init"] = Path(config["init"]).name
    sections = [Section("Settings")]
    if len(configs) > 1:
        keys = dict.fromkeys(key for config in configs.values() for key in config)
        values = {key: [str(config.get(key, "–")) for config in configs.values()] for key in keys}
        rows = [[key, *shown] for key, shown in values.items() if len(set(shown)) > 1]
        text = "What the runs differ in." if rows else "The runs have the same settings."
        sections = [Section("Settings", text, header=["", *configs] if rows else (), rows=rows)]
    return sections + [
        Section(name, code=yaml.safe_dump(config, sort_keys=False), part=True) for name, config in configs.items()
    ]
