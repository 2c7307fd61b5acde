"""Pre-training in several processes, compared with one: batch norm, gradients, loss curves, resume and signals."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpt import InputError, PretrainConfig, pretrain
from qpt.data.sample_images import sample_images
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining.process_group import ProcessGroup, join_process_group
from tests.conftest import LONG
from tests.test_contrastive_distributed import run
from tests.test_pretrain import assert_same_bytes, flags, image_folder, log_rows, tensors, tiny  # noqa: F401

SETTINGS = {"boxes": "shared", "batch_images": 8, "checkpoint_every": 4, "log_every": 1, "lr": 1e-3, "width": 8}


def start(config: PretrainConfig, size: int, *extra: str) -> subprocess.Popen[bytes]:
    """``qpt pretrain`` in ``size`` processes, as a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}", "-m", "qpt"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "pretrain", *flags(config), *extra], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def finish(config: PretrainConfig, size: int, *extra: str) -> None:
    child = start(config, size, *extra)
    _, stderr = child.communicate(timeout=300)
    assert child.returncode == 0, stderr.decode()


def losses(run_folder: str) -> np.ndarray:
    return np.array([float(row["loss"]) for row in log_rows(Path(run_folder))])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batch_norm_over_processes_is_that_of_one(size: int, tmp_path: Path) -> None:
    run(size, tmp_path, "normalise_together")


def test_processes_tell_each_other_rows_sums_gradients_and_errors(tmp_path: Path) -> None:
    run(3, tmp_path, "tell_each_other")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs of scikit-image's wheel in one folder."""
    folder = tmp_path_factory.mktemp("real")
    for path in sample_images():
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("size", "options"),
    [
        *([(2, {"mode": "moco"}), (4, {"mode": "moco"})] if LONG else []),
        # whole steps in the pool: shards forget the same keys as one pool does
        (2, {"mode": "moco", "pool_layout": "sharded", "pool_size": 32, "key_exchange": "ring", "symmetric": True}),
        (2, {"mode": "in_batch", "key_exchange": "ring", "optimizer": "adamw"}),
        (2, {"mode": "moco", "patches": 3, "positives": "image"}),
        (4, {"mode": "in_batch"}),
    ],
    ids=str,
)
def test_processes_follow_the_curve_of_one(real: Path, tmp_path: Path, size: int, options: dict[str, Any]) -> None:
    """Same batches, batch norm over all: the loss of 20 steps within 1e-4 of the single process's, relatively, and at
    the end the optimiser's running mean of the gradients within 3 %. A network that moves faster than this one
    magnifies roundings within a few steps; a gradient that is wrong shows in the mean however slowly it moves."""
    config = tiny(real, tmp_path / "one", **{**SETTINGS, "patch_size": 48, "lr": 1e-7, "steps": 20, **options})
    pretrain(config)
    many = dataclasses.replace(config, out=str(tmp_path / "many"))
    finish(many, size)
    assert len(losses(many.out)) == 20
    np.testing.assert_allclose(losses(many.out), losses(config.out), rtol=1e-4)
    assert read_checkpoint(Path(many.out))["processes"] == size
    ours, wanted = mean_gradient(many.out), mean_gradient(config.out)
    assert (ours - wanted).norm() <= 0.03 * wanted.norm()


def mean_gradient(run_folder: str) -> torch.Tensor:
    """Momentum of SGD, first moment of AdamW, of all weights."""
    states = read_checkpoint(Path(run_folder))["learner"]["optimizer"]["state"].values()
    kinds = ("momentum_buffer", "exp_avg")
    return torch.cat([state[kind].double().flatten() for state in states for kind in kinds if kind in state])


@pytest.mark.parametrize("size", [2, 4])
def test_shuffled_batch_norm_trains_and_embeds_every_key_once(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    size: int,
) -> None:
    """Keys travel to other processes and back: with frozen statistics (eval) they would be those of one process."""
    run(size, tmp_path, "shuffle_keys")
    config = tiny(
        image_folder, tmp_path / "run", **{**SETTINGS, "steps": 3, "batch_norm": "shuffled", "chunk_images": 2}
    )
    finish(config, size)
    assert np.isfinite(losses(config.out)).all()


@pytest.mark.parametrize(
    ("size", "layout"), [(2, "sharded"), *([(2, "replicated"), (4, "replicated")] if LONG else [])]
)
def test_stopped_and_resumed_processes_end_in_the_same_bytes(
    image_folder: Path,  # noqa: F811
    tmp_path: Path,
    size: int,
    layout: str,
) -> None:
    """SIGTERM to one of them stops all after the same step; the rest is as if nothing had happened."""
    config = tiny(image_folder, tmp_path / "whole", **{**SETTINGS, "steps": 12, "pool_layout": layout})
    finish(config, size)
    stopped = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    child = start(stopped, size)
    log, deadline = Path(stopped.out) / "log.csv", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.01)
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    assert len(workers) == size
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(workers[-1]), signal.SIGTERM)
    child.communicate(timeout=120)
    assert 3 <= read_checkpoint(Path(stopped.out))["step"] <= 12
    finish(stopped, size, "--resume")
    assert_same_bytes(Path(config.out), Path(stopped.out))
    assert [row["step"] for row in log_rows(Path(stopped.out))] == [str(step) for step in range(1, 13)]


def test_a_checkpoint_of_many_is_that_of_one(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tiny(image_folder, tmp_path / "one", **{**SETTINGS, "steps": 2, "lr": 1e-6})
    pretrain(config)
    many = dataclasses.replace(config, out=str(tmp_path / "many"))
    finish(many, 2)
    one, two = (tensors(read_checkpoint(Path(run.out))) for run in (config, many))
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name].double() - two[name]).norm() <= 0.02 * two[name].double().norm() + 1e-6, name


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_images": 10, "accumulate": 5}, "batch_images must be a multiple of 20"),
        ({"pool_layout": "sharded", "pool_size": 30}, "pool_size must be a multiple of the number of processes"),
        ({"mode": "in_batch", "batch_norm": "shuffled"}, "batch_norm must be sync or local in in_batch mode"),
    ],
)
def test_settings_that_need_other_processes(options: dict[str, Any], named: str) -> None:
    config = PretrainConfig("data", "out", **{"batch_images": 8, **options})
    with pytest.raises(InputError, match=named):
        config.check_processes(4)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def test_a_half_set_environment_is_refused() -> None:
    with (
        environment(WORLD_SIZE="2", RANK="0"),
        pytest.raises(InputError, match="LOCAL_RANK"),
        join_process_group("cpu"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("WORLD_SIZE", value) for value in ("two", "0", "-1", "1.0", "-")],
        *[("RANK", value) for value in ("first", "2", "-1", "1e0")],
        *[("LOCAL_RANK", value) for value in ("x", "2")],
        *[("LOCAL_WORLD_SIZE", value) for value in ("x", "0", "3")],
        *[("MASTER_PORT", value) for value in ("http", "70000")],
    ],
)
def test_a_variable_that_does_not_fit_is_named(name: str, value: str) -> None:
    fitting = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    variables = {**fitting, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", name: value}
    with (
        environment(**variables),
        pytest.raises(InputError, match=f"variable {name} must be an integer .* got '{value}'"),
        join_process_group("cpu"),
    ):
        pass


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_rank_without_a_size_is_refused(name: str) -> None:
    with environment(**{name: "1"}), pytest.raises(InputError, match=name), join_process_group("cpu"):
        pass


def test_empty_variables_count_as_unset() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    with environment(**dict.fromkeys(names, "")), join_process_group("cpu") as (processes, _):
        assert processes == ProcessGroup()
    with (
        environment(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_PORT="1", MASTER_ADDR=""),
        pytest.raises(InputError, match="none for MASTER_ADDR"),
        join_process_group("cpu"),
    ):
        pass


def test_processes_that_cannot_meet_are_an_input_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        with (
            environment(**variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            pytest.raises(InputError, match=f"meet at .*MASTER_PORT={port}"),
            join_process_group("cpu"),
        ):
            pass


def test_a_single_process_sends_nothing() -> None:
    with (
        environment(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"),
        join_process_group("cpu") as (processes, device),
    ):
        assert processes == ProcessGroup() and device.type == "cpu" and not torch.distributed.is_initialized()
    assert processes.sum(3, 4) == [3, 4] and processes.gather("x") == ["x"] and processes.share(6) == slice(0, 6)


def test_errors_of_the_first_process_reach_all(image_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    child = start(tiny(image_folder, tmp_path / "run", **SETTINGS), 2)
    _, stderr = child.communicate(timeout=120)
    assert child.returncode != 0 and b"out must be a new or empty folder" in stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
