"""Every public entry under every habit of its callers: the plain call's result, or one error that says what to do.

A habit is a default of torch, a mode, a fork, a thread, or a form in which arguments come. What single habits do in
depth is in ``test_defaults``, ``test_process`` and ``test_numbers``.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qpt
from qpt.compat import torch_version
from qpt.errors import BackendError, InputError
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.table import read_table
from tests.entries import BATCH, ENTRIES, IDS, KEYS, ArraysForTensors, Given, NumPyScalars, Paths, ReadOnly
from tests.labelled import one_thread, write_run, write_set  # noqa: F401 - a fixture


@contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("meta")  # stands for "cuda": nothing that is made there has values
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _called(entry: Callable[[Given], object], given: Given) -> object:
    try:
        return entry(given)
    except (InputError, BackendError) as error:
        return error


def _in_thread(entry: Callable[[Given], object], given: Given) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(_called(entry, given)))
    thread.start()
    thread.join()
    return found[0]


def _in_fork(entry: Callable[[Given], object], given: Given) -> object:
    file = given.out / "result"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.save(_called(entry, given), file)
            status = 0
        except BaseException as error:
            (given.out / "error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        finally:
            os._exit(status)
    for _ in range(2000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            error = (given.out / "error").read_text(encoding="utf-8") if status != 0 else ""
            if "Autograd-and-Fork" in error and torch_version() > (2, 13):
                pytest.skip("torch 2.15 forbids autograd in a fork of a process that has used fake tensors")
            assert status == 0, error
            return torch.load(file, weights_only=False)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked process hangs")


Habit = tuple[type[Given], Callable[[], AbstractContextManager[object]], Callable[..., object]]
HABITS: dict[str, Habit] = {
    "default device": (Given, _default_device, _called),
    "default dtype float64": (Given, lambda: _default_dtype(torch.float64), _called),
    "default dtype float16": (Given, lambda: _default_dtype(torch.float16), _called),
    "inference mode": (Given, torch.inference_mode, _called),
    "fork": (Given, nullcontext, _in_fork),
    "thread": (Given, nullcontext, _in_thread),
    "read-only": (ReadOnly, nullcontext, _called),
    "array for tensor": (ArraysForTensors, nullcontext, _called),
    "NumPy scalar": (NumPyScalars, nullcontext, _called),
    "Path": (Paths, nullcontext, _called),
}
#: The habits under which an entry says what to do instead -> the message.
REFUSED: dict[tuple[str, str], str] = {
    (name, "array for tensor"): "torch.from_numpy(...) makes a tensor of it"
    for name in (
        *("degrade", "degrade_patches", "degrade_pairs", "DegradationSpace.sample", "contrastive_loss"),
        *("QualityContrastiveLoss", "distributed_contrastive_loss", "info_nce", "nt_xent", "supcon", "NegativePool"),
    )
}
REFUSED["Scorer", "array for tensor"] = "an (H, W, 3) uint8 array goes to the scorer itself"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    table = read_table(write_set(folder / "set", levels=2))
    encoder = qpt.load_encoder(write_run(folder / "run"))
    qpt.Scorer.fit(encoder, table, protocol=FeatureProtocol(64, 4), quiet=True).save(folder / "scorer.pt")
    return folder


@pytest.fixture(scope="module")
def plain(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], object]:
    """Return the result of an entry's plain call, made once."""
    results: dict[str, object] = {}

    def result(name: str) -> object:
        if name not in results:
            results[name] = ENTRIES[name](Given(files, tmp_path_factory.mktemp("plain")))
        return results[name]

    return result


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        # A tensor made in inference mode is none outside it.
        return found.dtype == expected.dtype and found.device == expected.device and torch.equal(found, expected)
    if isinstance(expected, np.ndarray):
        return bool(found.dtype == expected.dtype and np.array_equal(found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and (found == expected or found != found)


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_under_every_habit(
    name: str, habit: str, files: Path, plain: Callable[[str], object], tmp_path: Path
) -> None:
    expected = plain(name)
    arguments, context, call = HABITS[habit]
    given = arguments(files, tmp_path)
    with context():
        found = call(ENTRIES[name], given)
    for before, after in given.tensors:
        assert torch.equal(before, after), "an input was written to"
    if message := REFUSED.get((name, habit)):
        assert isinstance(found, (InputError, BackendError)) and message in str(found)
        return
    if isinstance(found, Exception):
        raise found
    if habit == "inference mode":
        assert isinstance(expected, list) and isinstance(found, list)
        expected = expected[: len(found)]  # without gradients
    assert same(found, expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_is_made_without_gradients_is_trained_with_them(mode: Callable[[], Any], files: Path) -> None:
    with mode():
        encoder = qpt.load_encoder(files / "run")
        loss = qpt.QualityContrastiveLoss(learn_temperature=True)
        scorer = qpt.Scorer.load(files / "scorer.pt")
    for network in (encoder, scorer.encoder):
        features = network.requires_grad_()(BATCH.repeat(4, 1, 1, 1))
        loss(features, KEYS[:, :1].expand(features.shape), query_groups=IDS, key_groups=IDS).backward()
        assert all(weight.grad is not None for weight in network.parameters())
    assert loss.log_temperature is not None and loss.log_temperature.grad is not None


def test_every_public_name_is_an_entry() -> None:
    entries = {name.partition(".")[0] for name in ENTRIES}
    assert set(qpt.__all__) - entries == {"BackendError", "InputError", "__version__"}
