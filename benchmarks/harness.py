"""Timing for all benchmarks: equality before time, interleaved rounds, median and spread, and records in JSON.

A benchmark module makes ``Case`` objects and calls ``measure``; ``python -m benchmarks`` writes the ``Report`` and
prints its table. ``experiments`` uses the records, the description of the environment and the Markdown tables.
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

from qpt.build import processor_features
from qpt.io import write_whole

SCHEMA = 2
LINE_LIMIT = 320  # characters
CPUINFO = Path("/proc/cpuinfo")
RESULTS = Path(__file__).parent / "results"
# Instruction sets on which speed here depends, as Linux names them: x86, then Arm.
INSTRUCTIONS = frozenset(
    (
        *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8"),
        *("neon", "asimd", "bf16", "sve"),
    )
)
# Packages whose versions a record names, if they are installed.
_PACKAGES = (
    *("torch", "triton", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "nvidia-nvimgcodec-cu13", "scipy"),
    *("brisque", "albumentations", "variopinta", "kornia"),
    *("cupy-cuda12x", "cupy-cuda13x", "qpt"),
)


class Disagreement(AssertionError):
    """Contenders that should give the same answer do not; raised before anything is timed."""


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark: the number of timed rounds, ``quick`` for sizes that only show that it runs, and the
    device that tensors are on, "cpu" or "cuda:N"."""

    rounds: int = 9
    quick: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Contender:
    """One implementation of what a case computes. ``call`` returns its answer; ``note`` is printed beside its times."""

    backend: str
    call: Callable[[], Any]
    note: str = ""


@dataclass(frozen=True)
class Case:
    """An op at a shape, computed by several contenders.

    items: number of images (queries, ...) that one call handles.  agree: takes the answers by backend; returns, by
    backend, named differences to record, or raises ``Disagreement``.  peak: also measure the peak of tensor memory.
    """

    op: str
    shape: str
    items: int
    contenders: Sequence[Contender]
    agree: Callable[[dict[str, Any]], dict[str, dict[str, float]]]
    peak: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a record. Times are milliseconds of one call; iqr_ms is the third minus the first quartile."""

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
    """Result of a benchmark: measured rows, predictions (computed, not measured), compile reports and remarks."""

    name: str
    rows: list[Row] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    compiled: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def measure(cases: Sequence[Case], rounds: int = 9, warmup: int = 2, device: str = "cpu") -> list[Row]:
    """Check that contenders agree, then time them in ``rounds`` rounds, >= 1, over all cases.

    Each contender is first called ``warmup`` times without being timed.  device: what their tensors are on; a GPU is
    waited for before and after each timed call. Raises Disagreement before anything is timed.
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
            peaks[id(case), contender.backend] = tensor_peak(contender.call, device) / 2**20
    times: list[list[float]] = [[] for _ in jobs]
    # Rounds are interleaved, so that a busy machine slows all contenders alike, and each starts with another contender,
    # so that none always follows the same one. Times of different runs are not comparable.
    for turn in range(rounds):
        for place in range(len(jobs)):
            job = (place + turn) % len(jobs)
            times[job].append(_milliseconds(jobs[job][1].call, device))

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
                differences=differences[cases.index(case)].get(contender.backend, {}),
                note=contender.note,
            )
        )
    return rows


def _milliseconds(call: Callable[[], Any], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    answer = call()
    _synchronise(device)
    elapsed = (time.perf_counter() - start) * 1000
    del answer  # freed outside the measured time
    return elapsed


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[2] - quartiles[0]


def tensor_peak(call: Callable[[], Any], device: str = "cpu") -> int:
    """Return the peak of tensor memory of ``call`` on a device in bytes, its result included, beyond what was held.

    On the CPU this replays every allocation and release that the allocator reports to the profiler: memory that NumPy
    or a C++ library allocates by itself is not counted. On CUDA it is the allocator's own peak.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        answer = call()
        torch.cuda.synchronize(device)
        del answer
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        answer = call()
    del answer
    held = highest = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def environment() -> dict[str, Any]:
    """Describe the environment of a run: time, commit, machine, versions and threads; no host name, no paths."""
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
            "instructions": _instructions(),
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
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _instructions() -> list[str] | None:
    """Return those of INSTRUCTIONS that the processor has; None where the system does not list them."""
    found = processor_features(CPUINFO)
    return None if found is None else sorted(INSTRUCTIONS & found)


def write_json(report: Report, settings: Settings, path: Path) -> dict[str, Any]:
    """Write a report with its environment as a record, and return it."""
    content = {"schema": SCHEMA, "settings": asdict(settings), "environment": environment(), **asdict(report)}
    return write_record(content, path)


def write_record(content: Any, path: Path) -> Any:
    """Write a record whole or not at all, floats with six significant digits, and return it as it is written.

    Raises ValueError for NaN and infinity.
    """
    content = rounded(content)
    text = _encoded(content, "\n") + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    return content


def rounded(value: Any) -> Any:
    """Return a JSON value with its floats rounded to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _encoded(value: Any, newline: str) -> str:
    """Encode as JSON; whatever fits stands on one line, so that a measurement is one line of a diff."""
    line = json.dumps(value, allow_nan=False)
    if len(line) <= LINE_LIMIT or not isinstance(value, (dict, list)):
        return line
    deeper = newline + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_encoded(item, deeper)}" for key, item in value.items()]
        return "{" + deeper + f",{deeper}".join(items) + newline + "}"
    return "[" + deeper + f",{deeper}".join(_encoded(item, deeper) for item in value) + newline + "]"


def markdown(report: Report) -> str:
    """Return the rows as a Markdown table, followed by predictions, compile reports and remarks."""
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
        shown = [place for place in range(len(header)) if any(line[place] for line in lines)]
        parts.append(table([header[place] for place in shown], [[line[place] for place in shown] for line in lines]))
    for title, entries in (("Predictions, not measurements", report.predictions), ("Compiled", report.compiled)):
        if entries:
            header = list(entries[0])
            parts.append(f"{title}:\n\n" + table(header, [[str(entry[name]) for name in header] for entry in entries]))
    parts += report.remarks
    return "\n\n".join(parts)


def table(header: Sequence[str], lines: Iterable[Sequence[str]], *, first: str = "---", others: str = "---") -> str:
    """Return a Markdown table of text cells.  first, others: alignment of the first column and of the others."""
    rule = [first, *[others] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
