"""Signals of a run: stop after this step (SIGTERM, SIGINT), save now and go on (SIGUSR1).

A handler only notes what was asked; ``qpt.pretraining.engine`` acts between two steps, so neither a step nor a save is
cut through. Schedulers send signals to every process of a job, so the loader's workers must not die of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_STOP = (signal.SIGTERM, signal.SIGINT)
_SAVE = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))  # not on Windows


class Asked:
    """stop: end after this step.  save: save after this step; whoever does so sets it back."""

    stop = False
    save = False


@contextmanager
def listening() -> Iterator[Asked]:
    """What signals ask for while the block runs. A second SIGINT raises KeyboardInterrupt at once."""
    asked = Asked()

    def note(number: int, frame: object) -> None:
        if asked.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.stop = asked.stop or number in _STOP
        asked.save = asked.save or number in _SAVE

    try:
        before = {number: signal.signal(number, note) for number in (*_STOP, *_SAVE)}
    except ValueError:  # not the main thread: signals are the caller's business
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_in_worker(worker: int = 0) -> None:
    """The ``worker_init_fn`` of the loader: its processes end when the run does, not when the job is signalled."""
    for number in (*_STOP, *_SAVE):
        signal.signal(number, signal.SIG_IGN)
