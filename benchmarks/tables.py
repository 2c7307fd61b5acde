"""Tables and the plot of docs/results.md, rendered from the records in ``benchmarks/results``.

Called by ``docs/results.py``. Figures are chosen, arranged and rounded here, and nothing is computed beyond that.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_contrastive import SWEEP
from benchmarks.bench_degrade import CHAIN_OP
from benchmarks.bench_step import TRAINING
from benchmarks.contrastive_baselines import FORMS
from benchmarks.harness import RESULTS, Report, Row, markdown, table

Content = dict[str, Any]
LOSS_GROUPS = (("own keys and pool", "small batch"), ("NT-Xent",), ("dtype of the pool",))


def load(name: str) -> Content:
    """Read a record of ``benchmarks/results`` by name."""
    content: Content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def where(content: Content) -> str:
    """Return the machine, the day, torch's version and the number of rounds of a record."""
    found = content["environment"]
    machine = f"{found['machine']['cpu']}, {found['threads']} threads"
    rounds = content["settings"]["rounds"]
    return f"{machine}, {found['time'][:10]}, torch {found['versions']['torch']}, {rounds} rounds"


def step() -> str:
    """Return the rows and remarks of the step as its benchmark printed them; whole training steps as photographs per
    second by architecture and contender."""
    return step_of(load("step"))


def step_of(content: Content) -> str:
    """Return the same of a record."""
    training = [row for row in content["rows"] if row["op"] == TRAINING]
    rows = markdown(Report("step", [Row(**row) for row in content["rows"] if row["op"] != TRAINING]))
    parts = [f"{where(content)}.", rows]
    if training:  # records of before had none
        photographs = pivot(training, lambda row: _digits(row["items_per_s"]))
        parts += ["Photographs per second of a whole training step:", photographs]
    return "\n\n".join([*parts, bullets(content["remarks"])])


def rates(name: str) -> str:
    """Return a table for each kind of case of a record: images per second by case and contender."""
    content = load(name)
    groups: dict[tuple[str, ...], list[Content]] = {}
    for case, rows in by_case(content["rows"]).items():
        groups.setdefault(tuple(rows), []).extend(row for row in content["rows"] if (row["op"], row["shape"]) == case)
    parts = [pivot(rows, lambda row: _digits(row["items_per_s"])) for rows in groups.values()]
    return "\n\n".join([f"{where(content)}. Images per second:", *parts, bullets(content["remarks"])])


def by_case(rows: Iterable[Content]) -> dict[tuple[str, str], dict[str, Content]]:
    """Return the rows by (op, shape), then by contender."""
    found: dict[tuple[str, str], dict[str, Content]] = {}
    for row in rows:
        found.setdefault((row["op"], row["shape"]), {})[row["backend"]] = row
    return found


def pivot(rows: Sequence[Content], cell: Callable[[Content], str]) -> str:
    """Return a table with a line for each case and a column for each contender."""
    backends = dict.fromkeys(row["backend"] for row in rows)
    lines = [
        [*case, *(cell(found[backend]) if backend in found else "" for backend in backends)]
        for case, found in by_case(rows).items()
    ]
    return table(["case", "shape", *backends], lines)


def bullets(remarks: Iterable[str]) -> str:
    """Return remarks as a list."""
    return "\n".join(f"- {remark}" for remark in remarks)


def degrade() -> str:
    """Return a table with a line for each op: qpt, its baselines, and the predicted milliseconds on each GPU."""
    content, predicted = load("degrade"), load("roofline_degrade")
    gpus = dict.fromkeys(entry["gpu"] for entry in predicted["predictions"])
    on_gpu = {(entry["op"], entry["gpu"]): entry["predicted_ms"] for entry in predicted["predictions"]}
    lines, alone = [], []
    for (op, _), rows in by_case(content["rows"]).items():
        qpt = rows["qpt"]["median_ms"]
        others = sorted((row["median_ms"], name) for name, row in rows.items() if name != "qpt")
        if not others:
            alone.append(f"{op} {qpt:.2f}")
            continue
        baselines = ", ".join(f"{name} {ms:.1f}" for ms, name in others)
        predictions = (f"{on_gpu.get((op, gpu), '')}" for gpu in gpus)
        lines.append([op, f"{qpt:.2f}", baselines, f"{others[0][0] / qpt:.2f}×", *predictions])
    header = [
        "op",
        "qpt, ms",
        "baselines, ms",
        "fastest / qpt",
        *(f"{gpu.split('-')[0]}, predicted ms" for gpu in gpus),
    ]
    notes = dict.fromkeys(
        f"{row['op']}, {row['backend']}: {row['note']}"
        for row in content["rows"]
        if row["note"] and row["op"] != CHAIN_OP and row["backend"] != "qpt"
    )
    chains = ", ".join(f"{gpu.split('-')[0]} {on_gpu['chains of preset qpt', gpu]}" for gpu in gpus)
    remarks = [
        f"Without a baseline, milliseconds: {', '.join(alone)}.",
        f"Definitions that differ: {'; '.join(notes)}.",
        *content["remarks"],
        f"Predicted for chains of preset qpt, milliseconds: {chains}.",
        *predicted["remarks"],
    ]
    return "\n\n".join([f"{where(content)}.", table(header, lines), bullets(remarks)])


def loss() -> str:
    """Return a table for each group of cases of the loss: milliseconds (and peak MiB) by shape and form."""
    content = load("contrastive")
    parts = [f"{where(content)}. Milliseconds (peak MiB):"]
    for group in LOSS_GROUPS:
        rows = [row for row in content["rows"] if row["op"].startswith(group)]
        parts.append(pivot(rows, _time_and_peak))
    measured = {row["backend"] for row in content["rows"]}
    notes = "; ".join(f"{name}: {form.note}" for name, form in FORMS.items() if form.note and name in measured)
    return "\n\n".join([*parts, bullets([f"{notes}.", *content["remarks"]])])


def _time_and_peak(row: Content) -> str:
    peak = row["peak_mib"]
    return _digits(row["median_ms"]) + ("" if peak is None else f" ({_digits(peak)})")


def _digits(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def loss_predicted() -> str:
    """Return the predicted milliseconds of the loss on each GPU, with the share of the tensor-core roofline."""
    content = load("roofline_loss")
    gpus = dict.fromkeys(entry["gpu"] for entry in content["predictions"])
    cases: dict[tuple[str, str], dict[str, str]] = {}
    for entry in content["predictions"]:
        share = f" ({entry['share_of_roofline']:.0%})" if entry["share_of_roofline"] else ""
        cases.setdefault((entry["form"], entry["shape"]), {})[entry["gpu"]] = _digits(entry["predicted_ms"]) + share
    lines = [[*case, *(found[gpu] for gpu in gpus)] for case, found in cases.items()]
    header = ["queries and pool", "shape", *(gpu.split("-")[0] for gpu in gpus)]
    return "\n\n".join([table(header, lines), bullets(content["remarks"])])


def resources() -> str:
    """Return the compile report: a line for each kernel and dtype, architectures and passes side by side."""
    content = load("resources")
    kernels: dict[str, list[Content]] = {}
    for entry in content["compiled"]:
        kernels.setdefault(
            re.sub(" (log-sum-exp|log-sum-exp over a pool|key gradient),", ",", entry["source"]), []
        ).append(entry)
    header = {
        "registers": lambda entry: entry["registers"],
        "stack + local bytes": lambda entry: entry["stack_bytes"] + entry["local_bytes"],
        "shared bytes at launch": lambda entry: entry["launch_shared_bytes"],
        "blocks per multiprocessor": lambda entry: entry["blocks_per_multiprocessor"],
        "tensor-core instructions": lambda entry: entry["tensor_core"],
    }
    architectures = list(dict.fromkeys(entry["architecture"] for entry in content["compiled"]))
    lines = [
        [source, *(_side_by_side(list(map(value, entries)), len(architectures)) for value in header.values())]
        for source, entries in kernels.items()
    ]
    about = (
        f"{' / '.join(architectures)}; of the loss, the log-sum-exp pass (of float32 first over a pool without image "
        "ids), then the key gradient:"
    )
    return "\n\n".join([about, table(["kernel", *header], lines), bullets(content["remarks"])])


def _side_by_side(values: Sequence[int], count: int) -> str:
    """Return ``count`` values joined by a slash for each pass; passes with the same values once."""
    passes = [values[start : start + count] for start in range(0, len(values), count)]
    return ", ".join(dict.fromkeys(" / ".join(f"{value:,}" for value in one) for one in passes))


def sweep_lines(content: Content) -> dict[str, list[tuple[int, Row]]]:
    """Return the rows of the sweep by contender, each with its number of keys, in increasing order."""
    lines: dict[str, list[tuple[int, Row]]] = {}
    for row in content["rows"]:
        if row["op"] == SWEEP:
            keys = re.search(r"\bK=(\d+)", row["shape"])
            if keys is None:
                raise ValueError(f"contrastive.json: shape of a row of the sweep must have K=..., got {row['shape']!r}")
            lines.setdefault(row["backend"], []).append((int(keys[1]), Row(**row)))
    return {backend: sorted(points, key=lambda point: point[0]) for backend, points in lines.items()}


def plot_sweep(content: Content, path: Path) -> None:
    """Draw time and peak memory over the number of pool keys into a PNG. ValueError if there is no sweep."""
    lines = sweep_lines(content)
    if not lines:
        raise ValueError(
            "contrastive.json: must have rows of the sweep, got none; run: python -m benchmarks contrastive"
        )
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    markers = dict(zip(lines, "ovs^Dxp*", strict=False))
    labels = {"median_ms": "median ms", "peak_mib": "peak MiB (at least 0.1)"}  # a logarithmic axis has no place for 0
    for panel, (field, label) in zip(panels, labels.items(), strict=True):
        for place, (backend, points) in enumerate(lines.items()):
            found = [(keys, getattr(row, field)) for keys, row in points]
            drawn = [(keys, max(value, 0.1)) for keys, value in found if value is not None]
            if drawn:
                style = {"color": f"C{place}", "marker": markers.get(backend, "."), "markersize": 5}
                style |= {"linewidth": 2.5 if backend == "qpt" else 1.2, "zorder": 3 if backend == "qpt" else 2}
                panel.plot(*zip(*drawn, strict=True), label=backend, **style)
        panel.set_xscale("log", base=2)
        panel.set(yscale="log", xlabel="keys in the pool", ylabel=label)
        panel.grid(alpha=0.3)
    found, (_, first) = content["environment"], next(iter(lines.values()))[0]
    queries, dim = (re.search(rf"\b{name}=(\d+)", first.shape) for name in "ND")
    size = " ".join(match[0] for match in (queries, dim) if match)
    figure.suptitle(
        f"Contrastive loss, forward + gradient: {size} float32, {found['threads']} threads, {found['machine']['cpu']}",
        fontsize=10,
    )
    panels[0].legend(fontsize=8)
    panels[1].set_title("beyond inputs and gradients, fresh process", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
