"""The throughput that a run reports, and its end when the loader stalls."""

import csv
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpt import pretrain
from qpt.cli import main
from qpt.data.regions import RegionDataset, StepSampler
from qpt.errors import StalledError
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining.loader import LoadTimes
from qpt.pretraining.throughput import StageTimer, Throughput
from tests.test_pretrain import assert_same_bytes, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def sleep_at(monkeypatch: pytest.MonkeyPatch, key: tuple[int, int], seconds: float) -> None:
    plain = RegionDataset.__getitem__

    def slow(self: RegionDataset, asked: tuple[int, int]) -> object:
        if asked == key:
            time.sleep(seconds)
        return plain(self, asked)

    monkeypatch.setattr(RegionDataset, "__getitem__", slow)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stalled_run_is_saved_and_resumes(
    folder: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(folder, tmp_path / "run", stall_seconds=1, workers=workers, checkpoint_every=1000)
    stuck = list(StepSampler(8, 4, 0, 0, 8))[5][2]
    with monkeypatch.context() as patch:
        sleep_at(patch, stuck, 90)
        with pytest.raises(StalledError, match=rf"{stuck[1]}\.png for .*; step \d is saved, continue with --resume"):
            pretrain(config)
    saved = read_checkpoint(tmp_path / "run")["step"]
    assert 0 <= saved <= 5 if workers else saved == 5  # a process may be stuck at what is still to come
    assert pretrain(config, resume=True).finished
    pretrain(tiny(folder, tmp_path / "whole"))
    assert_same_bytes(tmp_path / "run", tmp_path / "whole")


def test_the_command_reports_a_stall_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sleep_at(monkeypatch, next(iter(StepSampler(8, 4, 0, 0, 1)))[0], 90)
    flags = ["--patch_size=24", "--batch_images=4", "--steps=2", "--stall_seconds=1", "--arch=resnet18", "--width=4"]
    assert main(["pretrain", str(folder), "--out", str(tmp_path / "run"), "--pool_size=8", *flags]) == 1
    assert "qpt pretrain: error: the loader gave nothing for 1 s" in capsys.readouterr().err.replace("\n", " ")


def test_without_a_limit_the_loader_waits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep_at(monkeypatch, next(iter(StepSampler(8, 4, 0, 0, 1)))[1], 1.5)
    assert pretrain(tiny(folder, tmp_path / "run", stall_seconds=0, steps=1)).finished


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_reports_the_rate_of_each_stage(
    folder: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    result = pretrain(tiny(folder, tmp_path / "run", workers=workers))
    found = json.loads((result.run / "summary.json").read_text())["throughput"]
    stages = found["stages_images_per_s"]
    assert stages["copy"] is None  # there is none on the CPU
    assert min(stages[name] for name in ("decode", "degrade", "step")) > 0
    assert 0 < found["images_per_s"] <= stages["step"]
    assert 0 < found["decoding_on_the_processor"] <= 1.1 and 0 <= found["waiting_for_photographs"] <= 1
    assert "images/s by stage: decode" in capsys.readouterr().err
    with open(result.run / "log.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            assert float(row["images_per_s"]) <= float(row["step_images_per_s"])
            assert float(row["decode_images_per_s"]) > 0 and float(row["copy_images_per_s"]) == 0


@pytest.mark.parametrize(
    ("wait", "decode", "cpu", "copy", "workers", "slowest", "words"),
    [
        (0.1, 2.0, 2.0, 0.0, 2, "step", "keeps up: the step waits for images 1% of the time"),
        (4.0, 18.0, 17.0, 0.0, 2, "decode", r"data-bound by decoding \(94% of it on the processor\); try more workers"),
        (4.0, 18.0, 3.0, 0.0, 2, "decode", "try a faster disk"),
        (4.0, 4.0, 4.0, 0.0, 0, "decode", "in the main process: the step waits for images 40%"),
        (4.0, 2.0, 2.0, 9.0, 4, "copy", "data-bound by the copy to the device"),
    ],
)
def test_what_limits_a_run(
    wait: float, decode: float, cpu: float, copy: float, workers: int, slowest: str, words: str
) -> None:
    done = Throughput(workers, images=500, seconds=10.0, decode_cpu=cpu, wait=wait)
    done.stages.update(decode=decode, copy=copy, degrade=1.0, step=4.0)
    assert done.slowest == done.summary()["slowest"] == slowest
    text = done.text()
    assert re.search(words, text), text
    assert done.rate("decode") == pytest.approx(500 * max(1, workers) / decode)
    assert done.rate("step") == 125 and done.images_per_s == 50
    assert (done.rate("copy") is None) == (copy == 0)


def test_readings_add_up() -> None:
    timer = StageTimer(torch.device("cpu"), workers=2, processes=3)
    for _ in range(2):
        for _ in range(3):
            timer.add_load(LoadTimes(images=4, decode_s=0.5, decode_cpu_s=0.25, copy_s=0.125, wait_s=0.0625))
            with timer.stage("degrade"):
                time.sleep(0.01)
        read = timer.read()
        assert (read.images, read.stages["decode"], read.decode_cpu, read.stages["copy"]) == (12, 1.5, 0.75, 0.375)
        assert read.wait == 0.1875 and 0.03 <= read.stages["degrade"] <= read.seconds
        assert read.images_per_s == pytest.approx(3 * 12 / read.seconds)
    total = timer.total
    assert (total.images, total.stages["decode"], total.wait) == (24, 3.0, 0.375)
    assert timer.read().images == 0 and timer.total.images == 24
    assert "each of 3 processes; all together" in total.text()


@pytest.mark.gpu
def test_stages_on_a_gpu_are_timed_there() -> None:
    timer = StageTimer(torch.device("cuda"), workers=0)
    matrix = torch.rand(4096, 4096, device="cuda")
    with timer.stage("step"):  # returns before the product is there
        for _ in range(20):
            matrix = matrix @ matrix
    started = time.monotonic()
    torch.cuda.synchronize()
    assert timer.read().stages["step"] > 0.5 * (time.monotonic() - started)
