"""Pre-training end to end on tiny images: it lowers the loss, resumes to the same bytes and refuses bad settings."""

import csv
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpt import InputError, PretrainConfig, load_encoder, pretrain
from qpt.cli import main
from qpt.degradations.space import DegradationSpace
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining import checkpoint
from qpt.pretraining.learner import Learner, learning_rate


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve smooth random images, one of them nested, one tiny."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "nested").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        size = (20, 17) if index == 5 else (80, 64)
        coarse.resize(size, Image.Resampling.BICUBIC).save(
            folder / ("nested" if index == 7 else "") / f"{index:02d}.png"
        )
    return folder


def tiny(image_folder: Path, out: Path, **options: object) -> PretrainConfig:
    settings: dict[str, object] = {
        "arch": "resnet18",
        "width": 4,
        "projection_dim": 8,
        "patch_size": 24,
        "batch_images": 4,
        "steps": 8,
        "pool_size": 24,
        "momentum": 0.9,
        "threads": 1,
        "log_every": 2,
        "checkpoint_every": 3,
        "tensorboard": False,
        "observe_every": 5,
        "page": False,
        "precision": "float32",
        **options,
    }
    return PretrainConfig(str(image_folder), str(out), **settings)  # type: ignore[arg-type]


def log_rows(run: Path) -> list[dict[str, str]]:
    with open(run / "log.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def tensors(state: object, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested checkpoint by its path."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {key: value for name, part in pairs for key, value in tensors(part, f"{path}/{name}").items()}


def assert_same_bytes(a: Path, b: Path) -> None:
    left, right = (tensors(read_checkpoint(run)) for run in (a, b))
    assert left.keys() == right.keys() and len(left) > 100
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_run_writes_every_documented_file(image_folder: Path, tmp_path: Path, mode: str, symmetric: bool) -> None:
    config = tiny(image_folder, tmp_path / "run", mode=mode, symmetric=symmetric, tensorboard=True)
    result = pretrain(config)
    assert result.finished and result.step == 8
    assert PretrainConfig.load(result.run / "config.yaml", data=config.data, out=config.out) == config
    rows = log_rows(result.run)
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert all(np.isfinite([float(value) for value in row.values()]).all() for row in rows)
    assert int(rows[-1]["pool_rows"]) == (24 if mode == "moco" else 0)
    assert int(rows[-1]["valid_rows"]) == (8 if mode == "moco" else 16)
    assert json.loads((result.run / "summary.json").read_text())["photographs"] == 12
    assert any((result.run / "tensorboard").iterdir())
    assert load_encoder(result.run)(torch.zeros(1, 3, 24, 24)).shape == (1, 32)


def test_training_lowers_the_loss(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(
        image_folder,
        tmp_path / "run",
        mode="in_batch",
        steps=60,
        optimizer="adamw",
        lr=3e-3,
        width=8,
        batch_images=8,
        log_every=1,
    )
    pretrain(config)
    losses = [float(row["loss"]) for row in log_rows(tmp_path / "run")]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
def test_same_config_same_bytes_and_seed_matters(image_folder: Path, tmp_path: Path, mode: str) -> None:
    runs = {
        name: pretrain(tiny(image_folder, tmp_path / name, mode=mode, steps=4, **options)).run
        for name, options in {"a": {}, "b": {"workers": 2, "cache_mib": 0}, "c": {"seed": 1}}.items()
    }
    assert_same_bytes(runs["a"], runs["b"])
    other = read_checkpoint(runs["c"])["encoder"]["conv1.weight"]
    assert not torch.equal(read_checkpoint(runs["a"])["encoder"]["conv1.weight"], other)


def test_pretrain_leaves_the_global_generator_alone(image_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pretrain(tiny(image_folder, tmp_path / "run", steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_the_key_encoder_is_an_ema_and_the_pool_is_filled_in_order(image_folder: Path, tmp_path: Path) -> None:
    """One step by hand: keys move by 1 - momentum toward the new queries; the pool holds the step's keys."""
    learner = Learner(tiny(image_folder, tmp_path / "run"), torch.device("cpu"))
    assert learner.key is not None and learner.pool is not None
    before = [p.clone() for p in learner.key.parameters()]
    patches = torch.randn(4, 2, 3, 24, 24)
    learner.step(patches, torch.arange(4), torch.tensor([0, 0, 1, 1]), lr=0.1)
    for old, new, query in zip(before, learner.key.parameters(), learner.query.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * query)
    assert len(learner.pool) == 4 and learner.pool.groups.tolist() == [0, 1, 2, 3]
    assert learner.pool.images.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(learner.pool.keys.norm(dim=1), torch.ones(4))


def test_learning_rate_warms_up_and_ends_at_zero(tmp_path: Path) -> None:
    config = PretrainConfig("a", "b", lr=2.0, warmup_steps=4)
    rates = [learning_rate(config, step, 24) for step in range(25)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[14] == pytest.approx(1.0) and rates[24] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


COMMAND = (sys.executable, "-m", "qpt", "pretrain")


def flags(config: PretrainConfig) -> list[str]:
    values = dataclasses.asdict(config)
    out = [values.pop("data"), "--out", values.pop("out")]
    return out + [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()
    ]


def kill_at_row(config: PretrainConfig, rows: int, number: int, *extra: str) -> int:
    """Run in a child process and send it a signal once its log has so many rows; its exit status."""
    log = Path(config.out) / "log.csv"
    child = subprocess.Popen([*COMMAND, *flags(config), *extra], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_text().count("\n") > rows:
            os.kill(child.pid, number)
            break
        time.sleep(0.002)
    return child.wait(timeout=60)


def test_sigterm_saves_and_resume_needs_no_flags(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=60, log_every=1, checkpoint_every=1000)
    assert kill_at_row(config, 5, signal.SIGTERM) == 130
    stopped = read_checkpoint(tmp_path / "run")["step"]
    assert 5 <= stopped < 60
    assert main(["pretrain", str(image_folder), "--out", str(tmp_path / "run"), "--resume"]) == 0
    pretrain(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert_same_bytes(tmp_path / "whole", tmp_path / "run")


def test_unreadable_files_are_skipped_and_listed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(image_folder.glob("*.png")):
        (data / path.name).write_bytes(path.read_bytes())
    (data / "00.png").write_bytes((data / "00.png").read_bytes()[:60])
    (data / "text.jpg").write_text("not an image")
    pretrain(tiny(data, tmp_path / "run", steps=9))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [each["file"] for each in summary["unreadable"]] == ["00.png", "text.jpg"]
    assert "skipped" in capsys.readouterr().err


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        (data / f"{index}.jpg").write_text("not an image")
    with pytest.raises(InputError, match="readable"):
        pretrain(tiny(data, tmp_path / "run"))


def test_existing_run_is_not_overwritten(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=2)
    pretrain(config)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="out must be a new or empty folder"):
        pretrain(config)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_resume_refuses_another_run(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=2)
    pretrain(config)
    with pytest.raises(InputError, match=r"temperature: 0\.2 -> 0\.5"):
        pretrain(dataclasses.replace(config, temperature=0.5), resume=True)
    other = tmp_path / "other"
    other.mkdir()
    for index, path in enumerate(sorted(image_folder.glob("*.png"))[:8]):
        (other / f"x{index}.png").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="file list"):
        pretrain(dataclasses.replace(config, data=str(other)), resume=True)


def test_resume_refuses_a_space_file_that_changed(image_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("ops: [jpeg, hue]\nmax_ops: 2\n")
    config = tiny(image_folder, tmp_path / "run", steps=2, space=str(file))
    pretrain(config)
    assert DegradationSpace.from_yaml(tmp_path / "run" / "space.yaml") == DegradationSpace(("jpeg", "hue"), max_ops=2)
    file.write_text("ops: [jpeg, hue]\nmax_ops: 2 # the same, differently written\nmin_ops: 0\n")
    pretrain(config, resume=True)
    file.write_text("ops: [jpeg, hue]\nmax_ops: 3\n")
    with pytest.raises(InputError, match="space: its rules or numbers are not those"):
        pretrain(config, resume=True)


def test_resume_says_when_the_thread_count_changed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(image_folder, tmp_path / "run", steps=2)
    pretrain(config)
    state = read_checkpoint(tmp_path / "run")
    checkpoint.save_checkpoint(tmp_path / "run", {**state, "threads": 7})
    pretrain(config, resume=True)
    assert "started with 7 threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_images": 13}, "batch_images"),
        ({"device": "cuda"}, "device"),
        ({"device": "gpu?"}, "device"),
        ({"space": "no"}, "space must be one of qpt"),
    ],
)
def test_bad_settings(image_folder: Path, tmp_path: Path, options: dict[str, object], named: str) -> None:
    if options == {"device": "cuda"} and torch.cuda.is_available():
        options = {"device": "cuda:99"}
    with pytest.raises(InputError, match=named):
        pretrain(tiny(image_folder, tmp_path / "run", **options))


def test_unwritable_out(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="out must be"):
        pretrain(tiny(image_folder, tmp_path / "file" / "run"))


def test_command_reports_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(tmp_path / "absent"), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("qpt pretrain: error: ") and err.count("\n") == 1


def test_yaml_and_flags(image_folder: Path, tmp_path: Path) -> None:
    base = tiny(image_folder, tmp_path / "a", steps=2)
    base.save(tmp_path / "base.yaml")
    arguments = [
        str(image_folder),
        "--out",
        str(tmp_path / "b"),
        "--config",
        str(tmp_path / "base.yaml"),
        "--lr",
        "0.5",
    ]
    assert main(["pretrain", *arguments]) == 0
    expected = dataclasses.replace(base, out=str(tmp_path / "b"), lr=0.5)
    assert PretrainConfig.load(tmp_path / "b" / "config.yaml", data=expected.data, out=expected.out) == expected
