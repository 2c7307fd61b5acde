"""Timing for all benchmarks: equality first, interleaved rounds, median and spread, JSON with its circumstances.

A benchmark module makes ``Case`` objects and calls ``measure``; ``python -m benchmarks`` writes the ``Report`` and
prints its table. Results are compared only within one run: the rounds of all contenders are interleaved, so that a busy
machine slows all of them alike.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
# Packages whose versions a result names, when they are installed.
_PACKAGES = (
    *("torch", "triton", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "scipy", "cupy-cuda13x", "brisque"),
    "qpt",
)


class Disagreement(AssertionError):
    """Contenders that should give the same answer do not; nothing was timed."""


@dataclass(frozen=True)
class Settings:
    """How a benchmark is to run: timed rounds, and ``quick`` for sizes that only show that it runs."""

    rounds: int = 9
    quick: bool = False


@dataclass(frozen=True)
class Contender:
    """One way to do a case's job. ``call`` returns its answer; ``note`` says what a reader must know about it."""

    backend: str
    call: Callable[[], Any]
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One row group of the table: an op at a shape, done by several contenders.

    items: how many images (queries, ...) one call handles. agree: given each contender's answer by backend, returns
    named differences to record, or raises ``Disagreement``. peak: also measure the peak of tensor memory.
    """

    op: str
    shape: str
    items: int
    contenders: Sequence[Contender]
    agree: Callable[[dict[str, Any]], dict[str, float]]
    peak: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the result. Times are milliseconds of one call; iqr_ms is the third minus the first quartile."""

    op: str
    backend: str
    shape: str
    median_ms: float
    iqr_ms: float
    min_ms: float
    items_per_s: float
    peak_mib: float | None
    rounds: int
    differences: dict[str, float]
    note: str


@dataclass(frozen=True)
class Report:
    """What a benchmark gives: rows, figures computed rather than measured (labelled so), and free remarks."""

    name: str
    rows: list[Row] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    compiled: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def measure(cases: Sequence[Case], rounds: int = 9, warmup: int = 2) -> list[Row]:
    """Checks that contenders agree, then times them: ``rounds`` rounds over all cases, each starting elsewhere.

    Raises Disagreement before anything is timed. At least one round; the first ``warmup`` calls are not counted.
    """
    if rounds < 1:
        raise ValueError(f"measure: rounds must be >= 1, got {rounds}")
    differences, peaks = [], {}
    for case in cases:
        answers = {contender.backend: contender.call() for contender in case.contenders}
        if len(answers) != len(case.contenders):
            raise ValueError(f"measure: {case.op} {case.shape}: two contenders have one backend name")
        differences.append(case.agree(answers))
        del answers

    jobs = [(case, contender) for case in cases for contender in case.contenders]
    for case, contender in jobs:
        for _ in range(warmup):
            contender.call()
        if case.peak:
            peaks[id(case), contender.backend] = tensor_peak(contender.call) / 2**20
    times: list[list[float]] = [[] for _ in jobs]
    for turn in range(rounds):
        for place in range(len(jobs)):
            job = (place + turn) % len(jobs)
            times[job].append(_milliseconds(jobs[job][1].call))

    rows = []
    for (case, contender), values in zip(jobs, times, strict=True):
        median = statistics.median(values)
        rows.append(
            Row(
                op=case.op,
                backend=contender.backend,
                shape=case.shape,
                median_ms=median,
                iqr_ms=_spread(values),
                min_ms=min(values),
                items_per_s=case.items / median * 1000,
                peak_mib=peaks.get((id(case), contender.backend)),
                rounds=rounds,
                differences=differences[cases.index(case)],
                note=contender.note,
            )
        )
    return rows


def _milliseconds(call: Callable[[], Any]) -> float:
    _synchronise()
    start = time.perf_counter()
    answer = call()
    _synchronise()
    elapsed = (time.perf_counter() - start) * 1000
    del answer  # freed outside the measured time
    return elapsed


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[2] - quartiles[0]


def tensor_peak(call: Callable[[], Any]) -> int:
    """Bytes of tensor memory that ``call`` held at its highest, beyond what was held before it; its result included.

    On the CPU a replay of every allocation and release the allocator reports to the profiler (so memory that NumPy or
    a C++ library takes by itself is not seen); on CUDA the allocator's own high-water mark.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        answer = call()
    del answer
    held = highest = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def circumstances() -> dict[str, Any]:
    """Commit, machine, versions, threads and time of a run; no host name, no paths."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "modified_files": len((_git("status", "--porcelain") or "").splitlines()),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "architecture": platform.machine(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": versions,
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked archive, or a repository without a commit


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_json(report: Report, settings: Settings, path: Path) -> dict[str, Any]:
    """Writes a report with its circumstances, whole or not at all, and returns it. NaN and infinity are refused."""
    content = {"schema": SCHEMA, "settings": asdict(settings), "circumstances": circumstances(), **asdict(report)}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
    return content


def markdown(report: Report) -> str:
    """The rows as a Markdown table, in the order measured, followed by predictions, compile report and remarks."""
    parts = []
    if report.rows:
        header = ["op", "backend", "shape", "median_ms", "iqr_ms", "per_s", "peak_mib", "note"]
        lines = [
            [
                row.op,
                row.backend,
                row.shape,
                f"{row.median_ms:.2f}",
                f"{row.iqr_ms:.2f}",
                f"{row.items_per_s:.{0 if row.items_per_s >= 10 else 2}f}",
                "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
                row.note,
            ]
            for row in report.rows
        ]
        parts.append(table(header, lines))
    for title, entries in (("Predictions, not measurements", report.predictions), ("Compiled", report.compiled)):
        if entries:
            header = list(entries[0])
            parts.append(f"{title}:\n\n" + table(header, [[str(entry[name]) for name in header] for entry in entries]))
    parts += report.remarks
    return "\n\n".join(parts)


def table(header: Sequence[str], lines: Iterable[Sequence[str]], *, first: str = "---", others: str = "---") -> str:
    """A Markdown table of cells that are text. first, others: how the first column and the others are aligned."""
    rule = [first, *[others] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
