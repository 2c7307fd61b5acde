"""``make gpu``: its dry run on the CPU, steps that die, and the limits of time that make ten minutes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_day, gpu_steps, gpu_times, roofline, roofline_degrade
from benchmarks.gpu_day import Step
from qpt.degradations.op_table import LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.ops.degrade import cuda, order


def test_the_dry_run_goes_through_every_step(tmp_path: Path) -> None:
    """Every line that the steps run on a GPU but for the commands, with CUDA and CuPy replaced, and tiny sizes."""
    assert gpu_day.main(["--dry-run", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "gpu_day.json").read_text())
    statuses = {step["title"]: step["status"] for step in record["steps"]}
    assert list(statuses) == [step.title for step in gpu_day.STEPS]
    for step, found in zip(gpu_day.STEPS, record["steps"], strict=True):
        left_out = bool(step.command) or step.tool not in ("", "memcheck")
        assert found["status"] == ("skipped" if left_out else "ok"), found
        assert bool(found["rows"]) != left_out
    page = (tmp_path / "gpu_day.md").read_text()
    assert "Nothing here was measured on a GPU" in page
    for table in ("ceilings", "rows of the CPU's bytes", "relative errors", "degradations", "largest kernels"):
        assert f"### {table}\n" in page
    assert str(tmp_path) not in page
    times = [row for step in record["steps"] for row in step["rows"] if row["table"] == "loss and gradient"]
    assert times and not any("note" in row for row in times)  # a form that cannot run is a note
    assert all("predicted_ms" in row for row in times)


FAKE_STEPS = """
import json, subprocess, sys, time
name, rows = sys.argv[1], sys.argv[3]
open(rows, "a").write(json.dumps({"table": "t", "a": 1.0}) + "\\n" + '{"table": "t", "a"')
print("before it died")
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(rows + ".pid", "w").write(str(child.pid))
    print(child.pid, flush=True)
    time.sleep(600)
sys.exit("RuntimeError: an illegal | memory access") if name == "dies" else None
"""


@pytest.fixture
def fake_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``benchmarks.gpu_steps`` be a program that ends well, dies or hangs, by the name of the step."""
    folder = tmp_path / "root" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "gpu_steps.py").write_text(FAKE_STEPS)
    monkeypatch.setattr(gpu_day, "ROOT", folder.parent)
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.usefixtures("fake_steps")
def test_a_step_that_dies_or_hangs_leaves_what_it_recorded_and_the_others(tmp_path: Path) -> None:
    steps = [Step("dies", "One that dies", 60), Step("hangs", "One that hangs", 3), Step("works", "One that works", 60)]
    record = gpu_day.run_day(tmp_path / "out", dry_run=False, steps=steps)
    assert json.loads((tmp_path / "out" / "gpu_day.json").read_text()) == record
    dies, hangs, works = record["steps"]
    assert [step["status"] for step in record["steps"]] == ["failed", "timeout", "ok"]
    assert dies["reason"] == "RuntimeError: an illegal | memory access (exit status 1)"
    assert hangs["reason"] == "ended at its limit" and 3 <= hangs["seconds"] < 60
    for step in (dies, hangs, works):
        assert step["rows"] == [{"table": "t", "a": 1.0}] and "before it died" in step["output"]
    deadline = time.monotonic() + 10
    while is_alive(int(hangs["output"].split()[-1])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(hangs["output"].split()[-1]))
    page = (tmp_path / "out" / "gpu_day.md").read_text()
    assert re.search(r"\| One that dies \| failed \| .* illegal \\\| memory access", page)
    assert page.count("before it died") == 2  # the output of those that failed


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("fake_steps")
def test_what_does_not_fit_the_time_is_left_out(tmp_path: Path) -> None:
    steps = [Step("hangs", "One that hangs", 60), Step("works", "One that works", 60)]
    first, second = gpu_day.run_day(tmp_path, dry_run=False, budget_s=6, steps=steps)["steps"]
    assert first["status"] == "timeout" and first["limit_s"] <= 6
    assert second["status"] == "skipped" and second["reason"] == "no time is left of 6 s"


def test_the_limits_of_all_steps_make_ten_minutes() -> None:
    assert sum(step.limit_s for step in gpu_day.STEPS) <= gpu_day.BUDGET_S <= 600
    assert {step.name for step in gpu_day.STEPS if not step.command} == set(gpu_steps.STEPS)


@pytest.mark.usefixtures("fake_steps")
def test_the_sanitizer_runs_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$1 $2 $3 $4 $PYTORCH_NO_CUDA_MEMORY_CACHING"\nshift 4\nexec "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    outcome = gpu_day.run_step(Step("works", "-", 60, "racecheck"), 60, dry_run=False)
    assert outcome.status == "ok" and outcome.rows == [{"table": "t", "a": 1.0}]
    assert outcome.output.startswith("--tool racecheck --error-exitcode 9 1\n")
    monkeypatch.setattr(gpu_day, "find_sanitizer", lambda: None)
    assert gpu_day.run_step(Step("works", "-", 60, "racecheck"), 60, dry_run=False).status == "skipped"


def test_the_build_is_for_the_gpu_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 9.0\necho 8.0\necho 9.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    step = Step("build", "Build", 60, command=("-c", "import os; print(os.environ['QPT_CUDA_ARCHS'])"))
    assert gpu_day.run_step(step, 60, dry_run=False).output == "80;90"


def test_it_starts_where_nothing_is_installed() -> None:
    code = "import sys; sys.path.insert(0, '.'); import benchmarks.gpu_day; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize("rows", [16, 256])
def test_predictions_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Rows that are alike: the same as benchmarks/roofline_degrade.py gives for an H100, which has the same clock."""
    gpu, program = roofline.GPUS[1], Program.from_chains([[("hue", 3)]] * rows, seeds=range(rows))
    costs = np.full((len(NAMES), LEVELS + 1), 2000.0)
    monkeypatch.setattr(order, "gpu_costs", lambda: costs)
    monkeypatch.setattr(cuda, "gpu_costs", lambda: costs)
    monkeypatch.setattr(order, "gpu_barriers", lambda: np.full_like(costs, 2.0))
    expected = roofline_degrade.predict("hue", program, None, gpu)["predicted_ms"]
    assert gpu_times.predicted_ms(2000.0, rows, roofline_degrade.SIDE) == pytest.approx(expected, rel=0.01)
