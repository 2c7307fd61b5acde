"""Writing a result of ``qpt.evaluate.run``: the table for people, strict JSON for programs.

Called by ``qpt evaluate``. Relies on rich for the table. Nothing is computed here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qpt.errors import InputError

_COLUMNS = (("srcc", "SRCC"), ("plcc_raw", "PLCC raw"), ("plcc_logistic", "PLCC logistic"), ("krcc", "KRCC"))


def result_table(result: Mapping[str, Any]) -> RenderableType:
    """The table of a result: a row for each method, four coefficients with all labels and with few; notes below it."""
    data = result["data"]
    methods = result["methods"]
    counts = {
        name: f"{regime['splits'][0]['train_images']} labels in the first of {len(regime['splits'])} splits"
        for name, regime in methods[0]["regimes"].items()
    }
    table = Table(
        title=f"{data['name']}: {data['images']} images, {data['groups']} groups, split by {data['split_by']}",
        caption="median over splits, inter-quartile range below it; higher is better",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("all", "few"):
        for _, title in _COLUMNS:
            table.add_column(f"{name}\n{title}", justify="right")
    for method in methods:
        cells: list[Text] = []
        for name in ("all", "few"):
            summary = method["regimes"][name]["summary"]
            cells += [_cell(summary[metric]) for metric, _ in _COLUMNS]
        table.add_row(Text(method["name"], overflow="ellipsis"), *cells)
    notes = [f"{name} labels: {text}" for name, text in counts.items()]
    for name in ("all", "few"):
        chosen_on = sorted({on for method in methods for on in method["regimes"][name]["summary"]["chosen_on"]})
        notes.append(f"{name} labels: read-out and penalty chosen by {', '.join(chosen_on)} inside the training part")
    for method in methods:
        if method["kind"] != "classical":
            read_outs = [
                f"{name}: " + _counted(method["regimes"][name]["summary"]["chosen_read_outs"])
                for name in ("all", "few")
            ]
            notes.append(f"read-outs of {method['name']}, " + "; ".join(read_outs))
    for pair in result["paired"]:
        notes.append(
            f"pre-trained minus untrained ({pair['arch']}/{pair['width']}), {pair['regime']} labels, SRCC paired over "
            f"{pair['splits']} splits: median {pair['median']:+.3f} of {len(pair['pretrained'])} run(s) x "
            f"{len(pair['untrained'])} initialisation(s), from {pair['min']:+.3f} to {pair['max']:+.3f}"
        )
    repeated = data["repeated_across_groups"]
    if repeated:
        first, second = repeated[0]
        notes.append(
            f"warning: {len(repeated)} photograph(s) appear in two groups (first: {first} and {second}); "
            "give them the same ref, or splits leak"
        )
    return Group(table, *(Text(note) for note in notes))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def _cell(summary: Mapping[str, Any]) -> Text:
    text = Text(f"{summary['median']:.3f}")
    text.append(f"\n({summary['iqr']:.3f})", style="dim")
    if summary["undefined"]:
        text.append(f"\n{summary['undefined']} const", style="red")
    return text


def to_json(result: Any) -> str:
    """Strict JSON: nan becomes null."""
    return json.dumps(_strict(result), indent=1, allow_nan=False)


def check_writable(path: str | Path, command: str) -> Path:
    """Refuse, before the work starts, a place that an output file cannot be written to; makes its folder."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        probe = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{command}: out must be a writable file, got {target} ({error.strerror})") from None
    return target


def write_json(result: Any, path: str | Path) -> None:
    """Write whole or not at all."""
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    unfinished.write_text(to_json(result) + "\n", encoding="utf-8")
    os.replace(unfinished, target)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
