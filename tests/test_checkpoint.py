"""Checkpoints after a crash at any moment, a power cut or a full disk; rotation; the choice of the best."""

import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch

from qpt import InputError
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining import checkpoint
from qpt.pretraining.checkpoint import SmoothedLoss, newest_sound, save_checkpoint, verify_checkpoint
from tests.durable_workers import Writer, save_and_die, tiny_state


def names(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_moment_of_a_save_loses_no_saved_step(tmp_path: Path, links: bool) -> None:
    """Every write, rename, link, unlink and fsync of four saves in turn is the one that is not done any more."""
    operation, killed = 0, True
    while killed:
        operation += 1
        run = tmp_path / "run"
        run.mkdir()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_and_die(run, operation, links, write)
            finally:
                os._exit(0)
        os.close(write)
        killed = os.waitpid(child, 0)[1] != 0
        saved = len(os.read(read, 100))
        os.close(read)
        for part in run.rglob("*.part"):
            part.unlink()
        if saved == 0 and not checkpoint.has_checkpoint(run):
            shutil.rmtree(run)
            continue
        state = newest_sound(run)
        assert state["step"] in (saved, saved + 1), operation
        assert torch.equal(state["w"], torch.full((100,), float(state["step"])))
        assert not [name for name in names(run) if name.endswith((".part", ".damaged"))]
        for kept in (run / "checkpoints").glob("*"):
            step = verify_checkpoint(kept)["step"]
            assert kept.name == "best.pt" or kept.name == f"step-{step:08d}.pt"
        save_checkpoint(run, tiny_state(9), keep=2)  # and the next one is saved as ever
        assert newest_sound(run)["step"] == 9 and verify_checkpoint(run / "checkpoints" / "best.pt")
        shutil.rmtree(run)
    assert operation > 30 and saved == 4  # it got past the last one


@pytest.mark.parametrize("links", [True, False])
def test_older_checkpoints_rotate_and_the_best_is_kept(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(checkpoint, "_link", lambda source, target: False)
    for step in (1, 2, 3, 10, 12):
        save_checkpoint(tmp_path, tiny_state(step), keep=3)
    older = ["checkpoints/step-00000003.pt", "checkpoints/step-00000010.pt"]
    assert names(tmp_path) == ["checkpoint.pt", "checkpoints/best.pt", *older]
    assert verify_checkpoint(tmp_path / "checkpoints" / "best.pt")["step"] == 2
    assert [verify_checkpoint(tmp_path / name)["step"] for name in ["checkpoint.pt", *older]] == [12, 3, 10]
    save_checkpoint(tmp_path, tiny_state(13), keep=1)
    assert names(tmp_path) == ["checkpoint.pt", "checkpoints/best.pt"]


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_state(1), keep=3)
    save_checkpoint(tmp_path, tiny_state(2), keep=3)
    newest, best = tmp_path / "checkpoint.pt", tmp_path / "checkpoints" / "best.pt"
    assert newest.samefile(best) and newest.stat().st_nlink == 2
    assert (tmp_path / "checkpoints" / "step-00000001.pt").stat().st_nlink == 1


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    for _ in range(2):
        save_checkpoint(tmp_path, {"step": 4}, keep=3)
    assert names(tmp_path) == ["checkpoint.pt"]


def test_going_back_by_hand_drops_the_abandoned_future(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, {"step": step}, keep=3)
    shutil.copyfile(tmp_path / "checkpoints" / "step-00000005.pt", tmp_path / "checkpoint.pt")
    assert newest_sound(tmp_path)["step"] == 5
    save_checkpoint(tmp_path, {"step": 6}, keep=3)
    assert names(tmp_path) == ["checkpoint.pt", "checkpoints/step-00000005.pt"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "empty":
        data = bytearray()
    elif how == "truncated":
        data = data[: len(data) // 2]
    elif how == "zeros at the end":
        data[-4096:] = bytes(4096)
    elif how == "one bit":  # of a weight: torch.load reads this without a word
        data[data.index(b"\x00\x00\x40\x40" * 4)] ^= 1
    path.unlink()
    if how != "missing":
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "zeros at the end", "one bit"])
def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, tiny_state(step), keep=3)
    (tmp_path / "log.csv").write_text("step,loss\n1,1\n2,1\n3,1\n4,1\n")
    damage(tmp_path / "checkpoint.pt", how)
    assert newest_sound(tmp_path)["step"] == 2
    said = capsys.readouterr().err
    assert f"checkpoint.pt is {'missing' if how == 'missing' else 'damaged'}" in said
    assert "Going on from checkpoints/step-00000002.pt, step 2: 2 steps are done again" in said
    assert verify_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2
    assert newest_sound(tmp_path)["step"] == 2 and not capsys.readouterr().err  # said once
    kept = [] if how == "missing" else ["checkpoint.pt.damaged"]
    assert names(tmp_path) == [
        "checkpoint.pt", *kept, "checkpoints/best.pt", "checkpoints/step-00000001.pt", "log.csv"
    ]  # fmt: skip


def test_a_damaged_best_is_chosen_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (3, 4, 1, 2):  # the last is the best, and so one file with the newest
        save_checkpoint(tmp_path, {**tiny_state(step), "step": 10 + step if step < 3 else step}, keep=3)
    with open(tmp_path / "checkpoint.pt", "r+b") as stream:
        stream.truncate(500)
    assert newest_sound(tmp_path)["step"] == 11
    assert verify_checkpoint(tmp_path / "checkpoints" / "best.pt")["step"] == 11
    assert "best.pt is damaged" in capsys.readouterr().err


def test_no_sound_checkpoint_is_an_error_that_names_all(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, tiny_state(step), keep=3)
    for path in (tmp_path / "checkpoint.pt", tmp_path / "checkpoints" / "step-00000001.pt"):
        damage(path, "truncated")
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged.*; step-00000001\.pt is damaged"):
        newest_sound(tmp_path)
    assert "checkpoint.pt" in names(tmp_path)  # left as they were


def test_an_interrupted_save_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    save, calls = torch.save, itertools.count()

    def interrupt(data: memoryview) -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Writer(file, interrupt)))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"step": 2})
    assert read_checkpoint(tmp_path)["step"] == 1 and names(tmp_path) == ["checkpoint.pt"]


def test_the_smoothed_loss_is_a_mean_of_recent_steps() -> None:
    loss = SmoothedLoss()
    for value in (1.0, 2.0, 6.0):
        loss.add(value)
    assert loss == SmoothedLoss(3.0, 3)
    for _ in range(2000):
        loss.add(5.0)
    assert loss.steps == 100 and loss.loss == pytest.approx(5.0, abs=1e-6)
