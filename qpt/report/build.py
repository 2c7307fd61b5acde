"""The HTML report: runs, and optionally a score table, in; one page out.

Called by ``qpt report``, and by pre-training for the page of its own run; it reads run directories and images and
writes the page. A section without data names what it needs; all of these stand in one table at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qpt.errors import InputError, check_int
from qpt.evaluate.features import FeatureProtocol, feature_cache, read_out_features, weights_hash
from qpt.evaluate.metrics import measure
from qpt.evaluate.result import read_evaluation
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import ScoreTable
from qpt.io import shown
from qpt.report import figures
from qpt.report.measurements import embedding_map, out_of_fold, srcc_by_kind
from qpt.report.neighbours import neighbour_sections, pick_images
from qpt.report.page import Picture, Section, write_page
from qpt.report.run_records import RunRecord, read_runs
from qpt.report.severity import degrade_images, degraded_sections
from qpt.report.thumbnails import thumbnail
from qpt.report.training import last_values, record_section, training_sections
from qpt.runs.files import FREE_ON_RESUME

THUMBNAILS = 6  # of each kind
_METRIC_NAMES = {
    "srcc": "SRCC",
    "plcc_raw": "PLCC, raw",
    "plcc_logistic": "PLCC after the logistic",
    "plcc_logistic5": "PLCC after the 5-parameter logistic",
    "krcc": "KRCC",
    "rmse": "RMSE",
}
_ABSENT = "Not shown:"
_DIFFERENCES = "What the runs differ in"
_LATER = "Not shown: `qpt report` looks for them; the page that a run writes of itself does at the end."
_NO_TABLE = "Not shown: it needs photographs with mean opinion scores; none were given (--csv)."


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
    neighbours: bool = True,
    quiet: bool = False,
) -> list[str]:
    """Write the page about one or several runs (run directories, checkpoint files or named encoders).

    table: images with scores, for everything about predictions.  scorer: a file made from the one run, for the severity
    curves; without it one is fitted on the table.  evaluation: a result of ``qpt evaluate --out``.  photographs: a
    folder of images to degrade; without it the best rated of the table are.  protocol, cache: of the table's features,
    as for ``evaluate``; each run's cache is its own by default.  seed: of folds, maps, crops.  neighbours: look for
    nearest neighbours, without photographs or table among the images that the first run learned from.  quiet: no
    progress bars. Returns sentences on records of the runs that could not be read; the page has them too. Raises
    InputError for no runs or too many, for what ``load_encoder``, ``Scorer.load`` or the reading of images refuses, a
    scorer of another encoder or with several runs, or another kind of JSON.
    """
    records = read_runs(runs)
    seed = check_int("report", "seed", seed, 0)
    if scorer is not None:
        records[0].scorer = _read_scorer(scorer, records)
    result = read_evaluation("report", "evaluation", evaluation) if evaluation is not None else None
    protocol = protocol or FeatureProtocol()
    if table is not None:
        for run in records:
            folder = Path(cache) if cache is not None else feature_cache(run.place)
            label = f"features of {run.name}"
            run.features = read_out_features(run.encoder, table, protocol, label=label, cache=folder, quiet=quiet)
            run.predictions = out_of_fold(run.features, table.mos, table.groups, seed)
            if run.scorer is None:
                run.scorer = Scorer.fit(run.encoder, table, protocol=protocol, cache=folder, quiet=True)
    *severity, map_of_patches = degraded_sections(
        {run.name: run.encoder for run in records},
        {run.name: run.scorer for run in records if run.scorer is not None},
        degrade_images(photographs, table, seed=seed, quiet=quiet),
        seed=seed,
        quiet=quiet,
    )
    picked = pick_images(photographs, table, records, quiet=quiet) if neighbours else _LATER
    sections = [
        _summary(records, table),
        *_differences(records),
        _predictions(records, table),
        _by_kind(records, table),
        *_thumbnails(records, table),
        *training_sections(records),
        *neighbour_sections(records, picked, seed=seed),
        *severity,
        _map_of_table(records, table, seed),
        map_of_patches,
        *_evaluation_sections(result),
        *record_section(records),
        *_settings(records),
    ]
    names = ", ".join(run.name for run in records)
    write_page(Path(out), f"Report of {names}", _lead(records, table), _absent_last(sections))
    return [fault for run in records for fault in run.faults]


def _absent_last(sections: Sequence[Section]) -> list[Section]:
    """Return the sections that have content, then one table of those that have none, and what they need."""
    absent = [section for section in sections if section.text.startswith(_ABSENT) and not section.part]
    rows = [[section.title, section.text.removeprefix(_ABSENT).strip()] for section in absent]
    shown = [section for section in sections if section not in absent]
    return [*shown, Section("Not shown", header=["section", "why"], rows=rows, words=True)] if rows else shown


def _read_scorer(path: str | Path, records: Sequence[RunRecord]) -> Scorer:
    if len(records) > 1:
        raise InputError(f"report: scorer goes with one run, got {len(records)} runs; with --csv each run gets its own")
    scorer = Scorer.load(path)
    if weights_hash(scorer.encoder) != weights_hash(records[0].encoder):
        raise InputError(f"report: scorer must be made from {records[0].name}, got one with other encoder weights")
    return scorer


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
    """Return settings and values of a run by name; settings that an older checkpoint lacks are left out."""
    facts = {"encoder": run.encoder.description}
    if run.predictions is not None and table is not None:
        for metric, value in measure(run.predictions.predictions, table.mos).items():
            facts[f"{_METRIC_NAMES.get(metric, metric)}, out of fold"] = f"{value:.3f}"
    if "step" in run.checkpoint:
        facts["steps"] = f"{run.checkpoint['step']:,}"
    if "seconds" in run.checkpoint:
        facts["time in training"] = f"{run.checkpoint['seconds'] / 60:.1f} min"
    facts |= last_values(run)
    templates = {
        "batch": "{batch_images} photographs × {compositions} compositions",
        "patches": "{patch_size} px, overlap {iou_min:g}–{iou_max:g}",
        "method": "{mode}, temperature {temperature:g}",
        "degradations": "{space}",
        "optimiser": "{optimizer}, peak rate {lr:g}",
        "seed": "{seed}",
    }
    for name, text in templates.items():
        try:
            facts[name] = text.format(**run.config)
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
    # As many digits as tell labels in a narrow range apart.
    digits = 4 + max(0, math.floor(math.log10(np.abs(table.mos).max() / np.ptp(table.mos))))
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
                    f"{shown(Path(table.images[row]).name)}: predicted {predicted[row]:.{digits}g}, "
                    f"MOS {table.mos[row]:.{digits}g}",
                )
                for row in rows
            ]
            sections.append(Section(f"{run.name}: {name}", pictures=pictures, size="small", part=True))
    return sections


def _map_of_table(records: Sequence[RunRecord], table: ScoreTable | None, seed: int) -> Section:
    title = "Map of the images, by MOS"
    if table is None:
        return Section(title, _NO_TABLE)
    pictures, method, shown = [], "", 0
    for run in records:
        cloud = embedding_map(run.features["all, mean+std"], seed)
        method, shown = cloud.method, len(cloud.kept)
        pictures.append(Picture(figures.map_by_value(cloud, table.mos[cloud.kept], "MOS"), run.name))
    text = (
        f"{method} of the encoder's features (all stages, mean and deviation, two scales) of {shown} images. "
        "Neighbours have similar features; where colours change smoothly, quality is easy to read from them."
    )
    return Section(title, text, pictures=pictures, size="medium")


def _evaluation_sections(result: dict[str, Any] | None) -> list[Section]:
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


def _plain_configs(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Return settings by run name; paths stay out of the page."""
    configs = {}
    for run in records:
        configs[run.name] = {key: value for key, value in run.config.items() if key not in ("data", "out")}
        if configs[run.name].get("init"):
            configs[run.name]["init"] = Path(configs[run.name]["init"]).name
    return configs


def _differences(records: Sequence[RunRecord]) -> list[Section]:
    """Return a table of the settings in which several runs differ, without those that touch no result."""
    if len(records) == 1:
        return []
    configs = _plain_configs(records)
    keys = dict.fromkeys(key for config in configs.values() for key in config if key not in FREE_ON_RESUME)
    values = {key: [str(config.get(key, "–")) for config in configs.values()] for key in keys}
    rows = [[key, *shown] for key, shown in values.items() if len(set(shown)) > 1]
    if not rows:
        return [Section(_DIFFERENCES, "Nothing that touches the result: these settings are the same.")]
    return [Section(_DIFFERENCES, header=["", *configs], rows=rows)]


def _settings(records: Sequence[RunRecord]) -> list[Section]:
    """Return all settings of each run, folded."""
    return [
        Section("Settings"),
        *(
            Section(name, code=yaml.safe_dump(config, sort_keys=False), part=True)
            for name, config in _plain_configs(records).items()
        ),
    ]
