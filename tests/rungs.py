"""Pytest plugin: which rungs of the no-GPU ladder ran, how many tests were skipped, and the dated summary file.

A test belongs to a rung through `pytest.mark.rung("thread teams")`. The end of the log lists every rung with its
counts; with CI=true a run of the whole suite fails if a rung has no passed test: a rung cannot vanish unnoticed.
Loaded by tests/conftest.py; `--summary FILE` is used by `make verify`.
"""

import datetime
import os
import platform
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

RUNGS = {
    "reference": "NumPy float64 definitions against the C++ engine with a team of one",
    "thread teams": "the same bytes from teams of 1, 2, 7, 32 and 256 threads",
    "ThreadSanitizer": "thread teams without a data race",
    "AddressSanitizer": "every op and random chains without an access outside a buffer or undefined arithmetic",
    "block emulator": "the .cu source itself, one fibre per CUDA thread, poisoned scratch and guard bytes",
    "Triton interpreter": "every Triton kernel against torch, poisoned output and guards",
    "PTX execution": "what nvcc, NVRTC and Triton compile (wgmma aside), instruction by instruction on the CPU",
    "offline compile": "every CUDA and Triton kernel for sm_80 and sm_90 with limits on spills and shared memory",
}


class Ladder:
    """Counts outcomes per rung, of tests in other processes too; an outcome is passed, failed or skipped."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {rung: Counter() for rung in RUNGS}
        self.started = time.time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # One outcome a test: its call, or its set-up where it did not get as far as a call.
        if report.when == "call" or (report.when == "setup" and not report.passed):
            for name, value in report.user_properties:
                if name == "rung":
                    self.outcomes[str(value)][report.outcome] += 1

    def missing(self) -> list[str]:
        return [rung for rung, outcomes in self.outcomes.items() if not outcomes["passed"]]

    def lines(self) -> list[str]:
        width = max(map(len, RUNGS))
        return [
            f"{rung:<{width}}  {'ran' if outcomes['passed'] else 'DID NOT RUN'}: {counts(outcomes)}"
            for rung, outcomes in self.outcomes.items()
        ]


def counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())) or "no tests"


LADDER = pytest.StashKey[Ladder]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--summary", metavar="FILE", help="write a Markdown summary of the run to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rung(name): the rung of the no-GPU ladder a test belongs to")
    config.stash[LADDER] = Ladder()
    config.pluginmanager.register(config.stash[LADDER], "ladder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("rung"):
            if marker.args[0] not in RUNGS:
                raise pytest.UsageError(f"{item.nodeid}: no rung {marker.args[0]!r}; the rungs are {', '.join(RUNGS)}")
            item.user_properties.append(("rung", marker.args[0]))  # goes with the report, from another process too


def whole_suite(config: pytest.Config) -> bool:
    """Return whether this run is of all tests, not of a file, a keyword or a marker."""
    everything = config.args == config.getini("testpaths") or not config.invocation_params.args
    return everything and not config.option.keyword and not config.option.markexpr and not config.option.collectonly


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    must_run = os.environ.get("CI") == "true" and whole_suite(config)
    if must_run and config.stash[LADDER].missing() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if config.option.summary:
        write_summary(Path(config.option.summary), config, session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ladder = config.stash[LADDER]
    terminalreporter.section("no-GPU ladder")
    for line in ladder.lines():
        terminalreporter.line(line)
    terminalreporter.line(f"{len(terminalreporter.stats.get('skipped', []))} tests skipped (reasons above)")
    if ladder.missing() and os.environ.get("CI") == "true" and whole_suite(config):
        terminalreporter.line(f"error: CI=true, and these rungs did not run: {', '.join(ladder.missing())}", red=True)


def write_summary(path: Path, config: pytest.Config, session: pytest.Session) -> None:
    """Write what ran, where and for how long: the file `make verify` leaves under docs/verify/."""
    ladder = config.stash[LADDER]
    stats = config.pluginmanager.getplugin("terminalreporter").stats
    totals = Counter({key: len(stats[key]) for key in ("passed", "failed", "error", "skipped") if stats.get(key)})
    command = ["git", "-C", str(config.rootpath), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    minutes = (time.time() - ladder.started) / 60
    reasons = Counter(skip_reason(report) for report in stats.get("skipped", []))
    text = [
        f"# Verification of {datetime.date.today().isoformat()}",
        "",
        f"- commit: {commit}",
        f"- machine: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        f"- versions: Python {platform.python_version()}, torch {torch.__version__}",
        f"- result: {'passed' if session.exitstatus == 0 else 'FAILED'}: {counts(totals)} in {minutes:.1f} minutes",
        "",
        "| rung | what it shows | tests |",
        "|---|---|---|",
        *[f"| {rung} | {RUNGS[rung]} | {counts(outcomes)} |" for rung, outcomes in ladder.outcomes.items()],
        "",
        *(["Skipped:", "", *[f"- {number} × {reason}" for reason, number in reasons.items()]] if reasons else []),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def skip_reason(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(reason).removeprefix("Skipped: ")


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
