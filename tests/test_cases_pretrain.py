"""Pre-training where its users are: odd environments, file systems, starts that fail, folders in use, moved files."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qpt import BackendError, InputError, PretrainConfig, pretrain
from qpt.cli import main
from qpt.data.sources import open_source
from qpt.degradations.space import DegradationSpace
from qpt.io import flush_to_disk, remedy
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining import engine
from qpt.pretraining.checkpoint import LOCK
from qpt.pretraining.learner import Learner
from qpt.pretraining.notes import note_settings
from qpt.pretraining.run_folder import open_run
from tests.test_pretrain import assert_same_bytes, flags, image_folder, tiny

__all__ = ["image_folder"]  # a fixture


def broken_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.jpg").write_text("not an image")
    return folder


# A start that failed


@pytest.mark.parametrize(("images", "steps"), [(4, 8), (40, 20), (40, 2)], ids=["first", "saved", "short"])
def test_a_start_without_readable_images_leaves_nothing(
    image_folder: Path, tmp_path: Path, images: int, steps: int
) -> None:
    config = tiny(broken_images(tmp_path / "data", images), tmp_path / "run", steps=steps, checkpoint_every=1)
    with pytest.raises(InputError, match="data must hold readable images"):
        pretrain(config)
    assert not (tmp_path / "run").exists()
    assert pretrain(tiny(image_folder, tmp_path / "run", steps=1)).finished


def test_a_start_that_was_killed_does_not_stand_in_the_way(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=1, tensorboard=True)
    with monkeypatch.context() as patch:
        patch.setattr("qpt.pretraining.run_folder._clear", lambda *_: None)  # SIGKILL leaves no time to
        patch.setattr(engine._TrainingLoop, "_next_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    assert {"config.yaml", "log.csv", "history.jsonl"} <= {path.name for path in (tmp_path / "run").iterdir()}
    (tmp_path / "run" / "config.yaml.1.part").touch()
    assert pretrain(dataclasses.replace(config, lr=0.01)).finished
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 1


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["config.yaml", "log.csv", "checkpoint.pt", "notes.txt"])
def test_a_file_of_the_user_is_never_cleared(image_folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(InputError, match="out must be a new or empty folder"):
        pretrain(tiny(image_folder, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_run_that_took_a_step_is_not_cleared(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._TrainingLoop, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(image_folder, tmp_path / "run", log_every=100))
    assert (tmp_path / "run" / "seen.npz").exists()
    with pytest.raises(InputError, match="out must be a new or empty folder"):
        pretrain(tiny(image_folder, tmp_path / "run"))


# One process in a folder


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(image_folder: Path, tmp_path: Path) -> None:
    run, held = tmp_path / "run", tmp_path / "held"
    code = f"""
import pathlib, subprocess, sys, time
from qpt import PretrainConfig
from qpt.pretraining.notes import note_settings
from qpt.pretraining.run_folder import open_run
import os
with open_run(PretrainConfig("data", {str(run)!r}), False):
    if os.fork() == 0:  # as a loader process does, it outlives its parent
        time.sleep(60)
        os._exit(0)
    pathlib.Path({str(held)!r}).touch()
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while not held.exists():
            assert child.poll() is None
            time.sleep(0.05)
        for resume in (False, True):
            with pytest.raises(InputError, match=f"out must not be in use .* process {child.pid} on "):
                pretrain(tiny(image_folder, run, steps=1), resume=resume)
        child.kill()
        child.wait()
        assert (run / LOCK).exists()
        assert pretrain(tiny(image_folder, run, steps=1)).finished
        assert not (run / LOCK).exists()
    finally:
        os.killpg(child.pid, signal.SIGKILL)


def test_two_threads_do_not_share_a_folder(tmp_path: Path) -> None:
    config, refused = PretrainConfig("data", str(tmp_path / "run")), []

    def enter() -> None:
        try:
            with open_run(config, False):
                pass
        except InputError as error:
            refused.append(str(error))

    with open_run(config, False):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    fail = raising(OSError(number, os.strerror(number)))
    monkeypatch.setattr("qpt.pretraining.run_folder.fcntl.flock", fail)
    with open_run(PretrainConfig("data", str(tmp_path / "run")), False):
        assert "cannot be locked" in capsys.readouterr().err


def raising(error: BaseException) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


# What a run is resumed from


def test_a_setting_that_is_given_counts_whatever_its_value(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=2, lr=1e-3)
    pretrain(config)
    command = ["pretrain", config.data, "--out", config.out, "--resume"]
    assert main(command) == 0 and main([*command, "--lr", "1e-3", "--log-every=7"]) == 0
    (tmp_path / "default.yaml").write_text("lr: 0.03\n")
    for given in (["--lr", "0.03"], ["--lr=0.04"], ["--config", str(tmp_path / "default.yaml")]):
        assert main([*command, *given]) == 2
        assert "lr: 0.001 -> 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("before", [True, False])
def test_a_default_wins_over_a_recipe_where_it_is_given(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    taken: list[PretrainConfig] = []
    monkeypatch.setattr(engine, "pretrain", lambda config, resume: taken.append(config) or raising(InputError("end"))())
    flags = ["--optimizer", "sgd", "--patch-size=160"]  # the defaults
    words = [*flags, "--recipe", "laptop"] if before else ["--recipe", "laptop", *flags]
    assert main(["pretrain", str(image_folder), "--out", str(tmp_path / "run"), *words]) == 2
    assert (taken[0].optimizer, taken[0].patch_size, taken[0].width) == ("sgd", 160, 32)


def test_a_folder_is_enough_to_resume(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The space's file and the initial checkpoint are gone, the working folder is another."""
    for name in ("start", "elsewhere"):
        (tmp_path / name).mkdir()
    first = pretrain(tiny(image_folder, tmp_path / "start" / "first", steps=1)).run
    monkeypatch.chdir(tmp_path / "start")
    Path("mine.yaml").write_text("ops: [jpeg, gaussian_blur]\nmax_ops: 2\n")
    settings = {"space": "mine.yaml", "init": str(first), "steps": 4, "checkpoint_every": 2}
    whole = pretrain(tiny(image_folder, tmp_path / "whole", **settings)).run
    config = tiny(image_folder, Path("run"), **settings)
    stop_after(monkeypatch, 3)
    assert not pretrain(config).finished
    monkeypatch.undo()
    (tmp_path / "start" / "mine.yaml").unlink()
    (first / "checkpoint.pt").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("mine.yaml").write_text("ops: [hue]\n")  # of another run
    run = tmp_path / "start" / "run"
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0
    assert_same_bytes(whole, run)
    assert read_checkpoint(run)["config"]["space"] == "mine.yaml"
    assert main(["pretrain", "--out", str(run), "--resume", "--space", "mine.yaml"]) == 2
    assert "space: its rules or numbers are not those" in capsys.readouterr().err
    Path("mine.yaml").unlink()
    assert pretrain(dataclasses.replace(config, out=str(run)), resume=True).finished
    assert main(["pretrain", "--out", str(run), "--resume", "--space", "absent.yaml"]) == 2
    assert main(["pretrain", "--out", str(run), "--resume", "--space", "kadid"]) == 2
    assert "space: 'mine.yaml' -> 'kadid'" in capsys.readouterr().err


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    step, done = Learner.step, []

    def stopping(self: Learner, *args: Any, **options: Any) -> Any:
        done.append(None)
        if len(done) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **options)

    monkeypatch.setattr(Learner, "step", stopping)


def test_a_run_without_a_checkpoint_is_resumed_from_its_own_space(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("ops: [jpeg]\n")
    config = tiny(image_folder, tmp_path / "run", steps=2, space=file)
    with monkeypatch.context() as patch:
        patch.setattr(engine._TrainingLoop, "_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    file.unlink()
    assert main(["pretrain", config.data, "--out", config.out, "--resume"]) == 0
    assert DegradationSpace.from_yaml(tmp_path / "run" / "space.yaml").names == ("jpeg",)
    assert read_checkpoint(tmp_path / "run")["config"]["space"] == str(file)


# File systems


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES])
def test_a_file_system_that_does_not_flush_folders(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    assert pretrain(tiny(image_folder, tmp_path / "run", steps=4, checkpoint_every=1)).finished


def test_a_fault_of_the_disk_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.EIO, "Input/output error")))
    for path in (tmp_path, Path(__file__)):
        with pytest.raises(OSError, match="Input/output"):
            flush_to_disk(path)
    with pytest.raises(FileNotFoundError):
        flush_to_disk(tmp_path / "absent")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room within the quota"),
        (errno.EIO, "check the disk"),
        (errno.EROFS, "mount the file system for writing"),
        (errno.EACCES, "give write permission"),
        (errno.EMFILE, r"ulimit -n"),
        (errno.ESTALE, "reconnect"),
        (errno.EXDEV, "see to its cause"),
    ],
)
def test_each_failure_of_a_save_has_its_own_advice(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setattr(engine, "save_checkpoint", raising(OSError(number, os.strerror(number))))
    with pytest.raises(InputError, match=f"{words}.* and continue with --resume") as caught:
        pretrain(tiny(image_folder, tmp_path / "run", steps=1))
    assert ("make room" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert remedy(OSError(number, "")) in str(caught.value)


# Processes and compilers


def test_a_daemonic_process_is_told_to_use_no_workers(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", workers=2, steps=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(InputError, match=r"workers must be 0 in a daemonic process.* got 2"):
            pool.apply(pretrain, (config,))
        assert not (tmp_path / "run").exists()
        assert pool.apply(pretrain, (dataclasses.replace(config, workers=0),)).finished


def test_a_missing_compiler_is_found_before_the_run_is_made(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", compile=True)
    command = [sys.executable, "-m", "qpt", "pretrain", *flags(config)]
    nowhere = {**os.environ, "PATH": "/nonexistent", "CC": "/nonexistent", "CXX": "/nonexistent"}
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.count("\n") == 1 and "C++ compiler" in done.stderr


def test_a_failure_to_compile_within_the_run_is_one_sentence(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch._dynamo.exc.Unsupported("line one\nline two", case_name="none")
    monkeypatch.setattr(Learner, "step", raising(error))
    with pytest.raises(BackendError, match=r"compile needs what torch\.compile needs") as caught:
        pretrain(tiny(image_folder, tmp_path / "run"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


# Paths


def test_every_path_of_the_settings_is_a_path(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ops: [jpeg]\n")
    first = pretrain(tiny(image_folder, tmp_path / "first", steps=1)).run
    places = {"data": image_folder, "out": tmp_path / "run", "init": first, "space": tmp_path / "mine.yaml"}
    settings = dataclasses.asdict(tiny(image_folder, tmp_path, steps=1))
    config = PretrainConfig(**{**settings, **places})
    assert {name: getattr(config, name) for name in places} == {name: str(path) for name, path in places.items()}
    assert pretrain(config).finished
    json.dumps(dataclasses.asdict(config))
    with pytest.raises(InputError, match="init must be a str"):
        PretrainConfig("a", "b", init=b"bytes")  # type: ignore[arg-type]
    assert len(open_source(image_folder)) and DegradationSpace.named(tmp_path / "mine.yaml").names == ("jpeg",)


# What is said at the start


def test_buffers_that_the_memory_cannot_hold_are_refused_with_their_sum(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qpt.pretraining.loader.available_memory", lambda: 2.0**20)
    config = tiny(image_folder, tmp_path / "run", region_size=512)
    with pytest.raises(
        InputError, match=r"2 batches of 4 regions of 512 x 512 pixels, which take 0\.0 GiB .*; lower batch_images"
    ):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def test_the_memory_that_is_left_is_that_of_the_process() -> None:
    code = """
import resource
from qpt.pretraining.loader import available_memory
before = available_memory()
resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
assert before > available_memory() or available_memory() < 2**35
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**35))
assert 0 < available_memory() < 2**33
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_complete_run_says_so_and_how_to_train_on(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=2)
    pretrain(config)
    assert main(["pretrain", "--out", config.out, "--resume"]) == 0
    said = capsys.readouterr().err
    assert (
        f"nothing left to do: 2 of 2 steps; to train on from its weights: qpt pretrain {config.data} --out NEW" in said
    )


@pytest.mark.parametrize(("flags", "slow"), [("fpu avx2 avx512_bf16", True), ("fpu avx512_fp16", False)])
def test_half_precision_that_is_imitated_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, slow: bool
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : {flags}\n")
    for precision in ("float16", "float32", "bfloat16"):
        note_settings(PretrainConfig("a", "b", precision=precision, pool_size=0), 9, torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.count("imitates") == slow and ("float16" in said) == slow and "bfloat16" not in said
