"""Signals of a run: stop after this step (SIGTERM, SIGINT), save now and continue (SIGUSR1).

A handler only sets a flag, which ``qpt.pretraining.engine`` reads between two steps, so that neither a step nor a save
is interrupted. Schedulers send signals to every process of a job; the loader's workers must ignore them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_STOP = (signal.SIGTERM, signal.SIGINT)
_SAVE = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))  # not on Windows


class SignalFlags:
    """stop: end after this step.  save: save after this step; the reader sets it back."""

    stop = False
    save = False


@contextmanager
def capture_signals() -> Iterator[SignalFlags]:
    """Set flags for the signals that arrive while the block runs. A second SIGINT raises KeyboardInterrupt at once."""
    flags = SignalFlags()

    def set_flag(number: int, frame: object) -> None:
        if flags.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        flags.stop = flags.stop or number in _STOP
        flags.save = flags.save or number in _SAVE

    try:
        before = {number: signal.signal(number, set_flag) for number in (*_STOP, *_SAVE)}
    except ValueError:  # Python allows handlers in the main thread alone; elsewhere signals are left to the caller
        yield flags
        return
    try:
        yield flags
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_in_worker(worker: int = 0) -> None:
    """Ignore the signals in a loader process, which ends when the run does; the loader's ``worker_init_fn``."""
    for number in (*_STOP, *_SAVE):
        signal.signal(number, signal.SIG_IGN)
