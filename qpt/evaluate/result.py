"""The result of ``qpt.evaluate.run``: the name of its format, its reader, and its form for a terminal.

Called by ``qpt evaluate``, and by what reads a result from a file (``compare``, reports, model cards). Nothing is
computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qpt.data.tabular import foreign_kind
from qpt.errors import InputError
from qpt.io import parse_json

#: The format of a result; a reader refuses any other.
FORMAT = "qpt-evaluation-2"

_COLUMNS = (
    ("srcc", "SRCC"),
    ("plcc_raw", "PLCC raw"),
    ("plcc_logistic", "PLCC logistic"),
    ("krcc", "KRCC"),
)


def read_evaluation(caller: str, argument: str, path: str | Path) -> dict[str, Any]:
    """Read a file of ``qpt evaluate --out``, of any version. Raises InputError naming ``argument`` for another file."""
    try:
        result = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        with suppress(OSError), open(path, "rb") as file:
            kind = foreign_kind(start := file.read(512))
            if not start or (kind and kind[0] != "JSON"):
                raise InputError(
                    f"{caller}: {argument} must be a JSON file of `qpt evaluate --out`, got {path}, "
                    f"which is {kind[0] if kind else 'empty'}"
                ) from None
        raise InputError(
            f"{caller}: {argument} must be a JSON file of `qpt evaluate --out`, got {path}: {error}"
        ) from None
    if not isinstance(result, dict) or not str(result.get("format")).startswith("qpt-evaluation-"):
        raise InputError(f"{caller}: {argument} must be a result of `qpt evaluate --out`, got another file: {path}")
    return result


def render_result(result: Mapping[str, Any]) -> RenderableType:
    """Lay a result out for a terminal: a row for each method, coefficients for each regime, notes below.

    One or two regimes show four coefficients; of three or more (test sets, shares of labels) SRCC alone is shown.
    Where the images have distortion types or levels, SRCC within each follows.
    """
    data = result["data"]
    methods = result["methods"]
    regimes = list(methods[0]["regimes"])
    columns = _COLUMNS if len(regimes) <= 2 else _COLUMNS[:1]
    table = Table(
        title=f"{data['name']}: {data['images']} images, {data['groups']} groups, split by {data['split_by']}",
        caption="median over splits, inter-quartile range below it; higher is better",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in regimes:
        for _, title in columns:
            table.add_column(f"{name}\n{title}", justify="right")
    for method in methods:
        cells = [_cell(method["regimes"][name]["summary"][metric]) for name in regimes for metric, _ in columns]
        table.add_row(Text(method["name"], overflow="ellipsis"), *cells)
    tables = [table, *(_by_label(methods, regimes[0], *labels) for labels in _LABELS)]
    shown = [part for part in tables if part is not None]
    return Group(*shown, *(Text(note) for note in _notes(result, regimes)))


_LABELS = (("by_kind", "distortion"), ("by_level", "level"))


def _by_label(methods: Sequence[Mapping[str, Any]], regime: str, key: str, title: str) -> Table | None:
    """Lay out SRCC within each distortion type or level, methods side by side; None without such labels."""
    found = [method["regimes"][regime]["summary"].get(key) for method in methods]
    if not all(found):
        return None
    table = Table(title=f"SRCC within each {title}, {regime}: median over splits", box=box.SIMPLE_HEAD)
    table.add_column(title)
    for method in methods:
        table.add_column(method["name"], justify="right")
    for label in found[0]:
        table.add_row(label, *(f"{part[label]['srcc']:.3f}" for part in found))
    return table


def _notes(result: Mapping[str, Any], regimes: Sequence[str]) -> list[str]:
    methods, data = result["methods"], result["data"]
    notes = []
    for name in regimes:
        splits = methods[0]["regimes"][name]["splits"]
        chosen_on = sorted({on for method in methods for on in method["regimes"][name]["summary"]["chosen_on"]})
        notes.append(
            f"{_labels(name)}: {splits[0]['train_images']} labels in the first of {len(splits)} split(s); "
            f"read-out and penalty chosen by {', '.join(chosen_on)}"
        )
    intervals = []
    for method in methods:
        summary = method["regimes"][regimes[0]]["summary"]["srcc"]
        if summary.get("ci_low") is not None and math.isfinite(summary["ci_low"]):
            intervals.append(f"{method['name']} {summary['ci_low']:.3f} to {summary['ci_high']:.3f}")
    if intervals:
        notes.append(f"SRCC, {_labels(regimes[0])}, 95 % bootstrap over groups: {'; '.join(intervals)}")
    for method in methods:
        if method["kind"] in ("pretrained", "supervised", "untrained") and len(regimes) <= 2:
            read_outs = [
                f"{name}: " + _counted(method["regimes"][name]["summary"]["chosen_read_outs"]) for name in regimes
            ]
            notes.append(f"read-outs of {method['name']}, " + "; ".join(read_outs))
    for pair in result["paired"]:
        notes.append(
            f"pre-trained minus untrained ({pair['arch']}/{pair['width']}), {_labels(pair['regime'])}, SRCC paired "
            f"over {pair['splits']} splits: median {pair['median']:+.3f} of {len(pair['pretrained'])} run(s) x "
            f"{len(pair['untrained'])} initialisation(s), from {pair['min']:+.3f} to {pair['max']:+.3f}"
        )
    notes += result.get("notes", [])  # absent from results of earlier versions
    repeated = data["repeated_across_groups"]
    if repeated:
        first, second = repeated[0]
        notes.append(
            f"warning: {len(repeated)} photograph(s) appear in two groups (first: {first} and {second}); "
            "give them the same ref, or splits leak"
        )
    shared = data.get("shared_between_tables")  # absent from results of earlier versions
    if shared:
        first, second = shared[0]
        notes.append(
            f"warning: {len(shared)} photograph(s) are in two tables (first: {first} and {second}); "
            "scores across these tables are no test"
        )
    return notes


def _labels(regime: str) -> str:
    return f"{regime} labels" if regime in ("all", "few") else regime


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def _cell(summary: Mapping[str, Any]) -> Text:
    text = Text(f"{summary['median']:.3f}")
    text.append(f"\n({summary['iqr']:.3f})", style="dim")
    if summary["undefined"]:
        text.append(f"\n{summary['undefined']} const", style="red")
    return text
