"""Two processes of which one dies or fails: restarted they end in the same bytes; a failed step is replayed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from qpt.cli import main
from tests.test_pretrain import assert_same_bytes, flags, image_folder, log_rows, tiny

__all__ = ["image_folder"]  # a fixture


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Two processes of qpt."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max_restarts={restarts}", "-m", "qpt", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_a_killed_process_is_started_again_with_the_others(image_folder: Path, tmp_path: Path) -> None:
    whole = tiny(image_folder, tmp_path / "whole", steps=16, log_every=1, checkpoint_every=4, tensorboard=True)
    child = torchrun("pretrain", *flags(whole))
    assert child.communicate(timeout=300) and child.returncode == 0
    config = dataclasses.replace(whole, out=str(tmp_path / "run"))
    child = torchrun("pretrain", *flags(config), "--resume", restarts=1)
    log, deadline = tmp_path / "run" / "log.csv", time.monotonic() + 200
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 5):
        time.sleep(0.01)
    processes = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    assert len(processes) == 2
    os.kill(int(processes[1]), signal.SIGKILL)
    said = child.communicate(timeout=300)[1]
    assert child.returncode == 0, said
    assert "holds no checkpoint yet" in said and "exitcode: -9" in said
    assert_same_bytes(tmp_path / "whole", tmp_path / "run")
    assert [int(row["step"]) for row in log_rows(tmp_path / "run")] == list(range(1, 17))
    assert not list((tmp_path / "run").glob("failed_step_*"))  # the loss of a process is no failed step


def test_a_failed_step_of_two_processes_is_replayed_by_two(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", lr=1e30)
    child = torchrun("pretrain", *flags(config))
    said = child.communicate(timeout=300)[1]
    assert child.returncode != 0 and "the step is kept: qpt pretrain --replay" in said
    folder = next((tmp_path / "run").glob("failed_step_*"))
    assert {"batch-0.pt", "batch-1.pt", "checkpoint.pt"} <= {path.name for path in folder.iterdir()}
    assert main(["pretrain", "--replay", str(folder)]) == 2  # one process is not enough
    child = torchrun("pretrain", "--replay", str(folder))
    said, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert "process 0 of 2" in said and "process 1 of 2" in said and said.count("\nreproduced: ") == 2


ENDS = """
import os
from pathlib import Path
from qpt.pretraining.process_group import join_process_group
with join_process_group("cpu") as (processes, device):
    import torch.distributed.nn.functional
    processes.gather(processes.rank)
names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
print([name for name in names if "gloo" in name])
"""


def test_no_thread_outlives_the_process_group(tmp_path: Path) -> None:
    """A thread of gloo that drops a tensor after the end of the interpreter would abort the process."""
    script = tmp_path / "ends.py"
    script.write_text(ENDS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "".join(done.stdout.split()) == "[][]"  # two processes, whose line ends may come after both
