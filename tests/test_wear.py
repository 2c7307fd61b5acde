"""What a run keeps so that it can go on, and what the command line says of arguments that cannot be used."""

import shutil
from pathlib import Path

import pytest

from qpt import InputError, pretrain
from qpt.cli import main
from qpt.pretraining import engine
from qpt.pretraining.checkpoint import INITIAL
from tests.test_durable import assert_same_state
from tests.test_pretrain import image_folder, tiny

__all__ = ["image_folder"]


@pytest.mark.parametrize("settings", [{}, {"mode": "in_batch", "two_trunks": True}, {"distillation": 1.0}])
def test_a_run_with_init_that_was_killed_before_its_first_checkpoint_needs_its_own_folder_alone(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    first = pretrain(tiny(image_folder, tmp_path / "first", steps=2))
    config = tiny(image_folder, tmp_path / "run", steps=4, seed=3, init=str(first.run / "checkpoint.pt"), **settings)
    whole = pretrain(tiny(image_folder, tmp_path / "whole", steps=4, seed=3, init=config.init, **settings)).run
    assert not (whole / INITIAL).exists()

    take_step = engine._TrainingLoop._train_step

    def killed(self, batch, log):  # type: ignore[no-untyped-def]
        if self.step == 1:
            raise KeyboardInterrupt
        take_step(self, batch, log)

    with monkeypatch.context() as patched:
        patched.setattr(engine._TrainingLoop, "_train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    shutil.rmtree(first.run)
    assert pretrain(config, resume=True).finished
    assert_same_state(whole, tmp_path / "run")
    assert not (tmp_path / "run" / INITIAL).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("new", "12 images then, 13 now; the first difference: 03b.png is new"),
        ("missing", "12 images then, 11 now; the first difference: 03.png is missing"),
        ("last", "12 images then, 11 now; the first difference: nested/07.png is missing"),
        ("renamed", "12 images then, 12 now; the first difference: 03.png is missing"),
        ("size", r"12 images then, 12 now; the first difference: 03.png has \d+ bytes in place of \d+"),
    ],
)
def test_resume_says_how_the_photographs_differ(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    data = shutil.copytree(image_folder, tmp_path / "data")
    config = tiny(data, tmp_path / "run", steps=2, checkpoint_every=1)
    assert pretrain(config).finished
    one = data / "03.png"
    if change == "new":
        shutil.copy(one, data / "03b.png")
    elif change == "size":
        one.write_bytes(one.read_bytes() + b"\0")
    elif change == "renamed":
        one.rename(data / "04b.png")
    else:
        (data / "nested/07.png" if change == "last" else one).unlink()
    with pytest.raises(InputError, match=said):
        pretrain(config, resume=True)
    (tmp_path / "run" / "images.txt.gz").unlink()  # as of an older version
    with pytest.raises(InputError, match="file list is not the one the run was started on$"):
        pretrain(config, resume=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "got --steps too"),
        (["--page", "false", "--resume"], "got --page, --resume too"),
        (["--config", "{config}"], "got --config too"),
        (["--recipe", "laptop"], "got --recipe too"),
        (["--batch_images=4"], "got --batch-images too"),
    ],
)
def test_replay_takes_no_settings(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("steps: 3\nlr: 0.1\n")
    words = [word.format(config=tmp_path / "c.yaml") for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--replay", str(tmp_path), *words])
    assert ended.value.code == 2
    assert (
        f"qpt pretrain: error: --replay must be given alone or with --device (the step has its settings), {said}"
        in (capsys.readouterr().err)
    )
