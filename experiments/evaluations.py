"""Evaluations as records: ``python -m experiments evaluate`` runs ``qpt evaluate`` and keeps what the tables need.

The whole result, every split and prediction, is what ``qpt evaluate --out`` writes; the command in the record makes it
again. ``docs/results.py`` puts the tables of this module into the README and docs/results.md.
"""

import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import table, write_record
from experiments.study_tables import REGIMES
from qpt import cli
from qpt.runs.files import FREE_ON_RESUME

HELP = "qpt evaluate, its result kept as a record in experiments/results"
FORMAT = "qpt-evaluation-summary-1"
RESULTS = Path(__file__).parent / "results"
SETS = ("pcuid", "sr4k")
METRICS = {"srcc": "SRCC", "plcc_raw": "PLCC raw", "plcc_logistic": "PLCC logistic", "krcc": "KRCC"}


def main(arguments: Sequence[str]) -> int:
    """Run ``qpt evaluate`` with these arguments and write ``results/evaluation-SET.json``, or the file of ``--out``.

    Returns the exit status of ``qpt evaluate``.
    """
    words, out = list(arguments), None
    if "--out" in words[:-1]:
        place = words.index("--out")
        out = Path(words[place + 1])
        del words[place : place + 2]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "result.json")
        status = cli.main(["evaluate", *words, *([] if {"-h", "--help"} & set(words) else ["--out", str(whole)])])
        if status == 0 and whole.is_file():
            result = json.loads(whole.read_text(encoding="utf-8"))
            out = out or RESULTS / f"evaluation-{result['data']['name']}.json"
            write_record(reduce(result, command_line("evaluate", words)), out)
            print(f"written: {out}", file=sys.stderr)
    return status


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return a command as records keep it: of a path, the last two parts."""
    words = ["/".join(Path(word).parts[-2:]) if "/" in word else word for word in arguments]
    return shlex.join(["python", "-m", "experiments", name, *words])


def reduce(result: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Reduce a result of ``qpt evaluate`` to a record: how it was made, and medians and quartile ranges over splits.

    Settings that all pre-trained encoders share stand once; a method has those in which it differs.
    """
    configs = [method["config"] for method in result["methods"] if "config" in method]
    shared = {key: value for key, value in configs[0].items() if all(config.get(key) == value for config in configs)}
    protocol = {key: value for key, value in result["protocol"].items() if key != "settings"}
    data = ("name", "images", "groups", "split_by", "sha256")
    return {
        "format": FORMAT,
        "command": command,
        "data": {key: result["data"][key] for key in data},
        "protocol": protocol,
        "versions": result["versions"],
        "config": shared,
        "methods": [_reduce_method(method, shared) for method in result["methods"]],
        "paired": [
            {key: pair[key] for key in ("regime", "metric", "pretrained", "untrained", "per_pair")}
            for pair in result["paired"]
        ],
    }


def _reduce_method(method: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    config = method.get("config", {})
    settings = {key: value for key, value in config.items() if key not in shared and key not in FREE_ON_RESUME}
    if "init_seed" in method:
        settings = {"seed": method["init_seed"]}
    kept = ("name", "kind", "arch", "width", "checkpoint_sha256", "weights_sha256")
    return {
        **{key: method[key] for key in kept if key in method},
        "settings": settings,
        "regimes": {
            name: {
                "splits": regime["summary"]["splits"],
                **{metric: {key: regime["summary"][metric][key] for key in ("median", "iqr")} for metric in METRICS},
            }
            for name, regime in method["regimes"].items()
        },
    }


def load(name: str) -> dict[str, Any]:
    """Read the record of the evaluation on a set."""
    content: dict[str, Any] = json.loads((RESULTS / f"evaluation-{name}.json").read_text())
    return content


def groups(record: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the methods of a record under the label of their row: methods that differ in the seed alone share one."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for method in record["methods"]:
        settings = {key: value for key, value in method["settings"].items() if key != "seed"}
        shown = [f"{value:,} steps" if key == "steps" else f"{key} {value}" for key, value in settings.items()]
        name = {"pretrained": "pre-trained", "untrained": "untrained"}.get(method["kind"], method["name"])
        found.setdefault(", ".join([name, *shown]), []).append(method)
    return {
        f"{label} ({len(methods)} seeds)" if len(methods) > 1 else label.replace("laplacian", "Laplacian"): methods
        for label, methods in found.items()
    }


def means() -> str:
    """Return a table of SRCC by group: the mean over seeds [smallest, largest] of the median over splits."""
    rows = {name: groups(load(name)) for name in SETS}
    for name in SETS[1:]:
        if list(rows[name]) != list(rows[SETS[0]]):
            raise ValueError(f"evaluation-{name}.json: methods must be those of {SETS[0]}, got {list(rows[name])}")
    columns = [(name, regime) for name in SETS for regime in REGIMES]
    header = ["encoder", *(f"{name}, {REGIMES[regime]}" for name, regime in columns)]
    lines = [
        [label, *(_mean(rows[name][label], regime, "srcc") for name, regime in columns)] for label in rows[SETS[0]]
    ]
    return table(header, lines, others="---:")


def coefficients() -> str:
    """Return a table of the other coefficients, a row for each set and group."""
    columns = [(regime, metric) for regime in REGIMES for metric in list(METRICS)[1:]]
    header = ["set, encoder", *(f"{REGIMES[regime]}, {METRICS[metric]}" for regime, metric in columns)]
    lines = [
        [f"{name}, {label}", *(_mean(methods, *column) for column in columns)]
        for name in SETS
        for label, methods in groups(load(name)).items()
    ]
    return table(header, lines, others="---:")


def _mean(methods: Sequence[Mapping[str, Any]], regime: str, metric: str) -> str:
    values = [method["regimes"][regime][metric]["median"] for method in methods]
    spread = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def each_run() -> str:
    """Return a table of SRCC of every encoder: the median over splits (inter-quartile range)."""
    rows: dict[str, list[str]] = {}
    for name in SETS:
        for label, methods in groups(load(name)).items():
            for method in methods:
                seed = f", seed {method['settings']['seed']}" if "seed" in method["settings"] else ""
                cells = rows.setdefault(label.split(" (")[0] + seed, [])
                found = [method["regimes"][regime]["srcc"] for regime in REGIMES]
                cells += [f"{value['median']:.3f} ({value['iqr']:.3f})" for value in found]
    header = ["encoder", *(f"{name}, {label}" for name in SETS for label in REGIMES.values())]
    return table(header, [[label, *cells] for label, cells in rows.items()], others="---:")


def paired() -> str:
    """Return, as a list, pre-trained minus untrained SRCC on the same splits: the median over pairs and their range.

    The pairs are those of the runs that differ in the seed alone, if there are several, with every initialisation.
    """
    lines = []
    for name in SETS:
        record = load(name)
        runs = max((m for m in groups(record).values() if m[0]["kind"] == "pretrained"), key=len)
        for pair in record["paired"]:
            rows = [pair["per_pair"][pair["pretrained"].index(run["name"])] for run in runs]
            values = [value for row in rows for value in row]
            lines.append(
                f"- {name}, {REGIMES[pair['regime']]}: {statistics.median(values):+.3f} ({min(values):+.3f} to "
                f"{max(values):+.3f} over {len(rows)} seeds × {len(rows[0])} initialisations)"
            )
    return "\n".join(lines)
