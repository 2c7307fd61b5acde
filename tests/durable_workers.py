"""Functions that the tests of crashes run in processes of their own, which are then killed."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from qpt import PretrainConfig, io, pretrain, process
from qpt.pretraining import checkpoint


def run_slowly(settings: dict[str, Any], started: Any, delay_s: float) -> None:
    """Pre-train with --resume on a slow disk: each write of a checkpoint, and each rename, takes ``delay_s``."""
    log = os.open(f"{settings['out']}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())
    process._forked = False  # forked from a process that has imported qpt and never run it: no threads yet
    slow_down(delay_s)
    started.set()
    pretrain(PretrainConfig(**settings), resume=True)


class Writer:
    """A file that calls ``before(data)`` ahead of each write."""

    def __init__(self, stream: IO[bytes], before: Callable[[memoryview], object]) -> None:
        self.stream, self.before = stream, before

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.before(view)
        return self.stream.write(view)

    def flush(self) -> None:
        self.stream.flush()


_save = torch.save


def slow_down(delay_s: float) -> None:
    def after_a_while(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            time.sleep(delay_s)
            return real(*args, **options)

        return call

    torch.save = lambda state, file: _save(state, Writer(file, lambda data: time.sleep(delay_s)))
    checkpoint.flush_to_disk = io.flush_to_disk = after_a_while(io.flush_to_disk)
    checkpoint._link = after_a_while(checkpoint._link)


def save_and_die(run: Path, operation: int, links: bool, report: int) -> None:
    """Save four checkpoints, SIGKILL before the operation-th change of the disk; each completed save sends a byte.

    A write (of the third save, for all are alike) that is cut off has written half.  links: whether the
    file system has hard links.
    """
    left = operation

    def step() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if step():
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    def no_links(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    def deadly_write(data: memoryview) -> None:
        if saving == 3 and step():
            stream.write(data[: len(data) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def save(state: Any, file: IO[bytes]) -> None:
        nonlocal stream
        stream = file
        _save(state, Writer(file, deadly_write))

    saving, stream = 0, sys.stdout.buffer
    torch.save = save
    os.replace = deadly(os.replace)
    os.fsync = deadly(lambda descriptor: None)  # slow, and what a killed process wrote is there without it
    os.link = deadly(os.link if links else no_links)
    os.unlink = deadly(os.unlink)
    Path.unlink = deadly(Path.unlink)  # type: ignore[method-assign]
    for saving in range(1, 5):
        checkpoint.save_checkpoint(run, tiny_state(saving), keep=2)
        os.write(report, bytes([saving]))


def tiny_state(step: int) -> dict[str, Any]:
    """Return a checkpoint's state of ``step``; step 2 is the best."""
    return {"step": step, "smoothed": {"loss": abs(step - 2.0), "steps": step}, "w": torch.full((100,), float(step))}
