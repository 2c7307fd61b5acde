"""A run that is killed, signalled, restarted or out of disk space ends, once resumed, in the same bytes."""

import dataclasses
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpt import InputError, pretrain
from qpt.cli import main
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining.checkpoint import verify_checkpoint
from qpt.pretraining.learner import Learner
from qpt.pretraining.log import RunLog
from qpt.runs.log import FIELDS
from tests.durable_workers import Writer, run_slowly
from tests.test_pretrain import COMMAND, assert_same_bytes, flags, image_folder, log_rows, tiny

__all__ = ["image_folder"]  # a fixture


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """``at_step(n, action)``: call it when the n-th step of this process begins, n from 1."""
    actions: dict[int, Callable[[], object]] = {}
    step, count = Learner.step, 0

    def acting(self: Learner, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count in actions:
            actions[count]()
        return step(self, *args, **options)

    monkeypatch.setattr(Learner, "step", acting)
    return actions.__setitem__


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def interrupt() -> None:
    raise KeyboardInterrupt


def state_of(run: Path) -> dict[str, Any]:
    """Return a checkpoint without what may differ between two runs: its time and its folder."""
    state = read_checkpoint(run)
    del state["seconds"], state["config"]
    return state


def assert_same_state(a: Path, b: Path) -> None:
    """Every number in the checkpoints, tensors by their bytes."""
    assert_same_bytes(a, b)

    def plain(state: Any) -> Any:
        if isinstance(state, torch.Tensor):
            return None
        if isinstance(state, dict):
            return {key: plain(value) for key, value in state.items()}
        return [plain(value) for value in state] if isinstance(state, (list, tuple)) else state

    assert plain(state_of(a)) == plain(state_of(b))


def assert_same_log(a: Path, b: Path) -> None:
    """Every step once, with the same numbers but for the timings; and the same observations."""
    rows = [
        [{k: v for k, v in row.items() if not k.endswith(("_per_s", "_share"))} for row in log_rows(r)] for r in (a, b)
    ]
    assert rows[0] == rows[1]
    observed = [(run / "observations.jsonl").read_bytes() for run in (a, b)]
    assert observed[0] == observed[1] and observed[0]


@pytest.fixture
def whole(image_folder: Path, tmp_path: Path) -> Path:
    """An uninterrupted run of 8 steps."""
    return pretrain(tiny(image_folder, tmp_path / "whole", log_every=1)).run


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_sigusr1_saves_and_continues(image_folder: Path, tmp_path: Path, at_step: Any) -> None:
    at_step(3, send(signal.SIGUSR1))
    result = pretrain(tiny(image_folder, tmp_path / "run", checkpoint_every=1000))
    assert result.finished
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000003.pt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(
    image_folder: Path, tmp_path: Path, whole: Path, at_step: Any, number: int
) -> None:
    config = tiny(image_folder, tmp_path / "run", log_every=1, checkpoint_every=1000)
    at_step(3, send(number))
    result = pretrain(config)
    assert (result.step, result.finished) == (3, False) and read_checkpoint(result.run)["step"] == 3
    assert pretrain(config, resume=True).finished
    assert_same_state(whole, result.run)
    assert_same_log(whole, result.run)


def test_a_second_interrupt_ends_at_once(image_folder: Path, tmp_path: Path, whole: Path, at_step: Any) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    config = tiny(image_folder, tmp_path / "run", log_every=1)
    at_step(5, twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    assert signal.getsignal(signal.SIGINT) is before
    assert read_checkpoint(tmp_path / "run")["step"] == 3 and len(log_rows(tmp_path / "run")) == 4
    assert pretrain(config, resume=True).finished
    assert_same_state(whole, tmp_path / "run")
    assert_same_log(whole, tmp_path / "run")


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_signals_during_a_save_damage_nothing(
    image_folder: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[int]
) -> None:
    """In the second save: one lets it finish and then stops the run; two interrupt it, and the first one stays."""
    config = tiny(image_folder, tmp_path / "run", log_every=1)
    save, writes = torch.save, 0

    def signalling(data: memoryview) -> None:
        nonlocal writes
        writes += (tmp_path / "run" / "checkpoint.pt").exists()
        if writes == 100:
            assert list((tmp_path / "run").glob("checkpoint.pt.*.part"))
            for number in numbers:
                send(number)()

    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Writer(file, signalling)))
    if len(numbers) == 1:
        assert pretrain(config).step == 6
    else:
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    assert verify_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == (6 if len(numbers) == 1 else 3)
    assert not list((tmp_path / "run").glob("*.part"))
    assert pretrain(config, resume=True).finished
    assert_same_state(whole, tmp_path / "run")


def test_workers_ignore_a_signal_to_the_whole_job(image_folder: Path, tmp_path: Path) -> None:
    """Schedulers and terminals signal every process; a loader's worker that died of it would take the run along."""
    config = tiny(image_folder, tmp_path / "run", steps=4000, log_every=1, checkpoint_every=10000, workers=2)
    child = subprocess.Popen([*COMMAND, *flags(config)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    log, deadline = tmp_path / "run" / "log.csv", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 5):
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGTERM)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and "stopped after step" in said, said
    assert read_checkpoint(tmp_path / "run")["step"] == int(log_rows(tmp_path / "run")[-1]["step"])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which a file cannot grow beyond so many bytes: writing fails as on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_tried_again(
    image_folder: Path, tmp_path: Path, whole: Path, at_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = largest_file(50_000)
    at_step(3, lambda: disk.__enter__())
    at_step(5, lambda: disk.__exit__(None, None, None))
    config = tiny(image_folder, tmp_path / "run", log_every=1, checkpoint_every=2, keep_checkpoints=9)
    assert pretrain(config).finished
    said = " ".join(capsys.readouterr().err.split())
    assert "the checkpoint of step 4 could not be saved, any earlier one is kept: [Errno 27] File too large" in said
    assert "next attempt in 2 steps" in said
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002.pt", "step-00000006.pt"]
    assert not list((tmp_path / "run").glob("*.part"))
    assert_same_state(whole, tmp_path / "run")
    assert_same_log(whole, tmp_path / "run")


def test_a_disk_that_is_full_at_the_end_is_an_error(
    image_folder: Path, tmp_path: Path, whole: Path, at_step: Any
) -> None:
    config = tiny(image_folder, tmp_path / "run", log_every=1, checkpoint_every=3)
    disk = largest_file(50_000)
    at_step(8, lambda: disk.__enter__())
    with pytest.raises(InputError, match=r"step 8 could not be saved.*--resume"):
        pretrain(config)
    disk.__exit__(None, None, None)
    assert read_checkpoint(tmp_path / "run")["step"] == 6
    assert pretrain(config, resume=True).finished
    assert_same_state(whole, tmp_path / "run")
    assert_same_log(whole, tmp_path / "run")


def test_a_damaged_checkpoint_costs_steps_and_no_bytes(
    image_folder: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(image_folder, tmp_path / "run", log_every=1)
    pretrain(config)
    with open(tmp_path / "run" / "checkpoint.pt", "r+b") as stream:
        stream.truncate(stream.seek(0, os.SEEK_END) // 2)
    assert main(["pretrain", config.data, "--out", config.out, "--resume"]) == 0
    assert "Going on from checkpoints/step-00000006.pt, step 6: 2 steps are done again" in capsys.readouterr().err
    assert_same_state(whole, tmp_path / "run")
    assert_same_log(whole, tmp_path / "run")


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "config and log", "half a checkpoint"])
def test_resume_starts_a_run_that_had_saved_nothing(
    image_folder: Path, tmp_path: Path, whole: Path, at_step: Any, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command for a job's first start and for all later ones."""
    run = tmp_path / "run"
    config = tiny(image_folder, run, log_every=1)
    if left == "an empty folder":
        run.mkdir()
    elif left != "nothing":
        at_step(3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
        assert len(log_rows(run)) == 2
        if left == "half a checkpoint":
            (run / "checkpoint.pt.part").write_bytes(b"PK")
    assert pretrain(config, resume=True).finished
    assert "holds no checkpoint yet: starting at step 0" in capsys.readouterr().err
    assert not list(run.glob("*.part"))
    assert_same_state(whole, run)
    assert_same_log(whole, run)


def test_resume_starts_nothing_over_in_a_folder_of_something_else(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"checkpoint\.pt for --resume.*thesis\.tex"):
        pretrain(config, resume=True)
    (tmp_path / "run" / "thesis.tex").unlink()
    dataclasses.replace(config, lr=0.5).save(tmp_path / "run" / "config.yaml")
    with pytest.raises(InputError, match=r"lr: 0\.5 -> 0\.03"):
        pretrain(config, resume=True)


def test_a_log_on_a_full_disk_waits_for_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = dict.fromkeys(FIELDS, 1.0)
    with RunLog(tmp_path, first_step=0, steps=9, tensorboard=False) as log:
        log.write({**row, "step": 1})
        with largest_file((tmp_path / "log.csv").stat().st_size):
            log.write({**row, "step": 2})
            log.write({**row, "step": 3})
        log.write({**row, "step": 4})
    assert [row["step"] for row in log_rows(tmp_path)] == ["1", "2", "3", "4"]
    assert capsys.readouterr().err.count("cannot write the log") == 1


def test_fifty_kills_lose_no_saved_step_and_corrupt_nothing(image_folder: Path, tmp_path: Path, long: bool) -> None:
    """SIGKILL at random moments of runs on a slow disk, many of them within a save; what follows resumes.

    The quick form kills three times.
    """
    every, steps, wanted = 3, 30, 50 if long else 3
    whole = tiny(image_folder, tmp_path / "whole", steps=steps, log_every=1, checkpoint_every=every, tensorboard=True)
    pretrain(whole)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.durable_workers", "torch.utils.tensorboard"])
    rng = np.random.default_rng()
    kills, within_a_save, runs = 0, 0, 0
    while kills < wanted:
        runs += 1
        config = dataclasses.replace(whole, out=str(tmp_path / f"run{runs}"))
        run, finished = Path(config.out), False
        while not finished:
            time.sleep(1.01 - time.time() % 1)  # TensorBoard orders files by the second
            started = context.Event()
            child = context.Process(target=run_slowly, args=(dataclasses.asdict(config), started, 0.0002))
            child.start()
            assert started.wait(60)
            if kills < wanted:
                wait_a_while(child, run, rng)
                child.kill()
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL), Path(f"{run}.stderr").read_text()
            finished = child.exitcode == 0
            if finished:
                break
            kills += 1
            within_a_save += any(run.glob("checkpoint.pt.*.part"))
            logged = [int(row["step"]) for row in log_rows(run)] if (run / "log.csv").exists() else []
            saved = verify_checkpoint(run / "checkpoint.pt")["step"] if (run / "checkpoint.pt").exists() else 0
            assert logged == list(range(1, len(logged) + 1))
            assert saved - every <= len(logged) <= saved + every, (
                "more than the steps since the last checkpoint is lost"
            )
        assert_same_state(Path(whole.out), run)
        assert_same_log(Path(whole.out), run)
        assert logged_to_tensorboard(run) == list(range(1, steps + 1))
        for kept in (run / "checkpoints").iterdir():
            verify_checkpoint(kept)
    print(f"{kills} kills, {within_a_save} of them within a save, {runs} runs")
    assert not long or within_a_save >= 5


def wait_a_while(child: BaseProcess, run: Path, rng: np.random.Generator) -> None:
    """Once in four times any moment of the start, else some time after up to ten more steps."""
    if rng.random() < 0.25:
        child.join(rng.uniform(0, 0.5))
        return
    log = run / "log.csv"
    rows = rng.integers(1, 11) + len(log_rows(run) if log.exists() else [])
    while child.is_alive() and not (log.exists() and log.read_text().count("\n") > rows):
        time.sleep(0.002)
    child.join(rng.uniform(0, 0.2))


def logged_to_tensorboard(run: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("loss")]
