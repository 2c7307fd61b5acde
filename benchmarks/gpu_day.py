"""A day with a GPU in ten minutes: build, check every kernel, time it beside its peers, and write one page of results.

``make gpu`` runs it, on a bare machine too: it imports the standard library alone, and its steps import what is there.
Each step is a process of its own with a time limit of its own (``gpu_checks.py``, ``gpu_times.py``); ``gpu_day.json``
and ``gpu_day.md`` are written again after each, with what a step had recorded before it died. ``--dry-run`` replaces
every call of CUDA by the CPU's (``fake_gpu.py``), to see that nothing ends in a typing error.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = 1
BUDGET_S = 590  # of ten minutes; a step that does not fit any more is not started
_LEAST_S = 5  # of time left, to start a step
_SHOWN = 4000  # characters of a step's output that are kept


@dataclass(frozen=True)
class Step:
    """One step: a function of ``benchmarks.gpu_steps``, or a command.

    limit_s: seconds after which it is ended.  tool: of compute-sanitizer, which then runs the step.
    """

    name: str
    title: str
    limit_s: int
    tool: str = ""
    command: tuple[str, ...] = ()


_TOOLS = {"memcheck": 30, "racecheck": 30, "initcheck": 15, "synccheck": 15}  # of compute-sanitizer: seconds
_GPU_TESTS = (
    "tests/test_degrade.py",
    "tests/test_contrastive_op.py",
    "tests/test_loader.py",
    "tests/test_throughput.py",
)
STEPS = (
    Step("machine", "Versions, limits and measured ceilings", 30),
    Step("build", "Build", 105, command=("setup.py", "-q", "build_ext", "--inplace")),
    Step("one_op", "One op", 45),
    Step("all_ops", "All ops and levels, and 512 rows of photographs, against the CPU", 60),
    *(Step("small_rows", f"compute-sanitizer {tool}", limit, tool) for tool, limit in _TOOLS.items()),
    Step("loss", "The loss against float64", 60),
    Step("degrade_times", "Times of degradations", 60),
    Step("loss_times", "Times and peaks of the loss", 60),
    Step("learner_step", "One step of pre-training", 45),
    Step("tests", "Tests that are marked gpu", 30, command=("-m", "pytest", "-q", "-n", "0", "-m", "gpu", *_GPU_TESTS)),
)


@dataclass
class Outcome:
    """What came of a step.  status: ok, failed, timeout or skipped.  reason: of any but ok.

    rows: what the step recorded, each with the name of its table.  output: the end of what it printed.
    """

    title: str
    status: str
    seconds: float
    limit_s: float
    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""


def run_step(step: Step, limit_s: float, dry_run: bool) -> Outcome:
    """Run one step in a process of its own for at most ``limit_s`` seconds."""
    if dry_run and (step.command or step.tool not in ("", "memcheck")):
        return Outcome(step.title, "skipped", 0.0, limit_s, "left out of a dry run")
    sanitizer = find_sanitizer()
    if step.tool and sanitizer is None and not dry_run:
        return Outcome(step.title, "skipped", 0.0, limit_s, "there is no compute-sanitizer on $PATH or in $CUDA_HOME")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        rows, output = Path(folder, "rows.jsonl"), Path(folder, "output")
        command = [sys.executable, *(step.command or ("-m", "benchmarks.gpu_steps", step.name, "--out", str(rows)))]
        if dry_run:
            command.append("--dry-run")
            environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        elif step.tool:
            assert sanitizer is not None
            command = [sanitizer, "--tool", step.tool, "--error-exitcode", "9", *command]
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # one block of memory would hide what runs over
        if step.name == "build":
            environment |= _architecture()
        started = time.monotonic()
        with output.open("wb") as stream:
            child = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if child.poll() is None:
                    _end(child)
        text = output.read_text(encoding="utf-8", errors="replace")[-_SHOWN:].strip()
        found = _read_rows(rows)
    seconds = round(time.monotonic() - started, 1)
    if code == 0:
        return Outcome(step.title, "ok", seconds, limit_s, rows=found, output=text)
    status, reason = ("timeout", "ended at its limit") if code is None else ("failed", _last_line(text, code))
    return Outcome(step.title, status, seconds, limit_s, reason, found, text)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a step and what it started, which share a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what a step recorded; its last line may be a part of one."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _last_line(text: str, code: int) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{lines[-1].strip() if lines else 'no output'} (exit status {code})"


def find_sanitizer() -> str | None:
    """Return the path of compute-sanitizer; None where there is none."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("compute-sanitizer") or next(
        (path for home in homes if (path := shutil.which("compute-sanitizer", path=f"{home}/bin"))), None
    )


def _architecture() -> dict[str, str]:
    """Return the variable that builds the fat binary for this machine's GPU alone; nothing if it is unknown."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"QPT_CUDA_ARCHS": ";".join(sorted({cap.replace(".", "") for cap in found}))} if found else {}


def markdown(record: dict[str, Any]) -> str:
    """Return a record as a page: the steps, then the tables of each."""
    steps = record["steps"]
    lines = ["# A day with a GPU", ""]
    if record["dry_run"]:
        lines += ["**A dry run: every call of CUDA was replaced. Nothing here was measured on a GPU.**", ""]
    header = ["step", "status", "seconds", "limit", "reason"]
    lines += _table(header, [[s["title"], s["status"], s["seconds"], s["limit_s"], s["reason"]] for s in steps])
    for step in steps:
        lines += [
            "",
            f"## {step['title']}",
            "",
            f"{step['status']} after {step['seconds']} s. {step['reason']}".strip(),
        ]
        tables: dict[str, list[dict[str, Any]]] = {}
        for row in step["rows"]:
            tables.setdefault(row["table"], []).append({name: v for name, v in row.items() if name != "table"})
        for name, rows in tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines += [
                "",
                f"### {name}",
                "",
                *_table(columns, [[row.get(column, "") for column in columns] for row in rows]),
            ]
        if step["status"] in ("failed", "timeout") and step["output"]:
            lines += ["", "```", *step["output"].splitlines()[-20:], "```"]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    return [f"| {' | '.join(map(cell, line))} |" for line in [header, ["---"] * len(header), *rows]]


def run_day(out: Path, *, dry_run: bool, budget_s: float = BUDGET_S, steps: Sequence[Step] = STEPS) -> dict[str, Any]:
    """Run all steps in order, write ``gpu_day.json`` and ``gpu_day.md`` into ``out`` after each, return the record."""
    started = time.monotonic()
    record: dict[str, Any] = {"schema": SCHEMA, "dry_run": dry_run, "budget_s": budget_s, "steps": []}
    for step in steps:
        left = budget_s - (time.monotonic() - started)
        # Nothing is timed in a dry run, which may be on a busy machine.
        limit = 10.0 * step.limit_s if dry_run else round(min(step.limit_s, left), 1)
        if left < _LEAST_S and not dry_run:
            outcome = Outcome(step.title, "skipped", 0.0, step.limit_s, f"no time is left of {budget_s:.0f} s")
        else:
            print(f"gpu_day: {step.title}, at most {limit:.0f} s", file=sys.stderr, flush=True)
            outcome = run_step(step, limit, dry_run)
        print(f"gpu_day: {outcome.status} {outcome.reason}".rstrip(), file=sys.stderr, flush=True)
        record["steps"].append(asdict(outcome))
        _write(out / "gpu_day.json", json.dumps(record, indent=1) + "\n")
        _write(out / "gpu_day.md", markdown(record))
    return record


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return 0 if no step has failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_day"), help="folder of the two files")
    parser.add_argument("--dry-run", action="store_true", help="replace every call of CUDA by the CPU's")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help=f"time for all steps (default {BUDGET_S})")
    options = parser.parse_args(arguments)
    record = run_day(options.out, dry_run=options.dry_run, budget_s=options.seconds)
    print(f"written: {options.out / 'gpu_day.md'}")
    return int(any(step["status"] in ("failed", "timeout") for step in record["steps"]))


if __name__ == "__main__":
    sys.exit(main())
