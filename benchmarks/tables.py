"""The measured tables of the README and of docs/results.md, rendered from the JSON files in benchmarks/results.

``python -m benchmarks.tables`` rewrites both between their markers; a test fails when they have drifted apart. It also
draws docs/images/contrastive.png. Nothing is computed here beyond choosing figures and rounding them.
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import speed_table, study_tables
from benchmarks.bench_contrastive import SWEEP
from benchmarks.harness import RESULTS, Report, Row, markdown, table
from benchmarks.study_tables import REGIMES

ROOT = Path(__file__).resolve().parent.parent
PLOT = ROOT / "docs" / "images" / "contrastive.png"
SETS = ("pcuid", "sr4k")
TABLES = ("score", "step", "loader", "degrade", "roofline_degrade", "contrastive", "resources")  # of results.md
METRICS = {"srcc": "SRCC", "plcc_raw": "PLCC raw", "plcc_logistic": "PLCC logistic", "krcc": "KRCC"}
START, END = "<!-- begin measured: {} -->", "<!-- end measured: {} -->"


def load(name: str) -> dict[str, Any]:
    """One JSON file of benchmarks/results, by name."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def evaluation_table(metrics: tuple[str, ...]) -> str:
    """Markdown: a row for each method; median over splits (inter-quartile range) by set, regime and metric."""
    results = {name: load(f"evaluation-{name}") for name in SETS}
    names = [[method["name"] for method in results[name]["methods"]] for name in SETS]
    if names[0] != names[1]:
        raise ValueError(f"evaluation-{SETS[1]}.json: methods must be those of {SETS[0]}, got {names[1]}")
    header = ["encoder"] + [
        f"{name}, {label}" + (f", {METRICS[metric]}" if len(metrics) > 1 else "")
        for name in SETS
        for label in REGIMES.values()
        for metric in metrics
    ]
    lines = []
    for position, method in enumerate(results[SETS[0]]["methods"]):
        cells = [method["name"]]
        for name in SETS:
            other = results[name]["methods"][position]
            for regime in REGIMES:
                for metric in metrics:
                    value = other["regimes"][regime]["summary"][metric]
                    cells.append(f"{value['median']:.3f} ({value['iqr']:.3f})")
        lines.append(cells)
    return table(header, lines, others="---:")


def paired_lines(runs: tuple[str, ...]) -> str:
    """Pre-trained minus untrained SRCC over the same splits: the median over pairs of `runs` and initialisations."""
    lines = []
    for name in SETS:
        for record in load(f"evaluation-{name}")["paired"]:
            rows = [record["per_pair"][record["pretrained"].index(run)] for run in runs]
            values = sorted(value for row in rows for value in row)
            middle = len(values) // 2
            median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
            lines.append(
                f"- {name}, {REGIMES[record['regime']]}: {median:+.3f} ({values[0]:+.3f} to {values[-1]:+.3f} over "
                f"{len(rows)} seeds × {len(rows[0])} initialisations)"
            )
    return "\n".join(lines)


def benchmark_table(name: str) -> str:
    """The table of a benchmark as its run printed it, after a line about where it was run; a sweep has its plot."""
    content = load(name)
    where = content["circumstances"]
    machine = f"{where['machine']['cpu']}, {where['threads']} threads, {content['settings']['rounds']} rounds"
    rows = [Row(**row) for row in content["rows"] if row["op"] != SWEEP]
    report = Report(name, rows, content["predictions"], content["compiled"], content["remarks"])
    return f"{machine}, {where['time'][:10]}, torch {where['versions']['torch']}.\n\n{markdown(report)}"


def sweep_lines(content: dict[str, Any]) -> dict[str, list[tuple[int, Row]]]:
    """Rows of the sweep in a contrastive.json by contender, each with its number of keys, in increasing order."""
    lines: dict[str, list[tuple[int, Row]]] = {}
    for row in content["rows"]:
        if row["op"] == SWEEP:
            keys = re.search(r"\bK=(\d+)", row["shape"])
            if keys is None:
                raise ValueError(f"contrastive.json: shape of a row of the sweep must have K=..., got {row['shape']!r}")
            lines.setdefault(row["backend"], []).append((int(keys[1]), Row(**row)))
    return {backend: sorted(points, key=lambda point: point[0]) for backend, points in lines.items()}


def plot_sweep(content: dict[str, Any], path: Path) -> None:
    """Draws time and peak memory over the number of pool keys into a PNG. ValueError if there is no sweep."""
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
    where, (_, first) = content["circumstances"], next(iter(lines.values()))[0]
    queries, dim = (re.search(rf"\b{name}=(\d+)", first.shape) for name in "ND")
    size = " ".join(match[0] for match in (queries, dim) if match)
    figure.suptitle(
        f"Contrastive loss, forward + gradient: {size} float32, {where['threads']} threads, {where['machine']['cpu']}",
        fontsize=10,
    )
    panels[0].legend(fontsize=8)
    panels[1].set_title("beyond inputs and gradients, fresh process", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def replace_block(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced by `content`."""
    start, end = START.format(name), END.format(name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the markers of {name!r} must stand once each")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def render() -> dict[Path, str]:
    """Every file with measured blocks, as it should be."""
    seeds = tuple(
        method["name"]
        for method in load("evaluation-pcuid")["methods"]
        if method["kind"] == "pretrained" and "seed" in method["name"]
    )
    blocks = {
        ROOT / "README.md": {
            "evaluation": evaluation_table(("srcc",)),
            "paired": paired_lines(seeds),
            "speed": speed_table.markdown(load),
        },
        ROOT / "docs" / "results.md": {
            "evaluation": evaluation_table(("srcc",)),
            "coefficients": evaluation_table(("plcc_raw", "plcc_logistic", "krcc")),
            "paired": paired_lines(seeds),
            **{name: benchmark_table(name) for name in TABLES},
            **({"study": study_tables.markdown(load("study"))} if (RESULTS / "study.json").is_file() else {}),
        },
    }
    files = {}
    for path, named in blocks.items():
        text = path.read_text()
        for name, content in named.items():
            text = replace_block(text, name, content)
        files[path] = text
    return files


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")
    try:
        plot_sweep(load("contrastive"), PLOT)
        print(f"written: {PLOT.relative_to(ROOT)}")
    except ValueError as error:  # recorded without the sweep
        print(f"no plot: {error}")
