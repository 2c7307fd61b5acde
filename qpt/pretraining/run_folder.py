"""A run's folder: held by one process, new or resumable at the start, and without traces of a start that failed.

``qpt.pretraining.engine`` opens the folder with it, in the process that writes the files; ``qpt.commands.pretrain``
asks it what a run was started with.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from qpt.degradations import presets
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.pretraining.checkpoint import BEFORE_FIRST, INITIAL, LOCK, make_resumable
from qpt.pretraining.config import PretrainConfig
from qpt.runs.first_batch import FIRST_BATCH
from qpt.runs.history import HISTORY, read_history
from qpt.runs.log import last_logged_step

try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

CONFIG, SPACE = "config.yaml", "space.yaml"
_held: set[int] = set()  # descriptors of locks


def as_started(config: PretrainConfig) -> tuple[PretrainConfig, DegradationSpace]:
    """Return the settings for resuming the run in ``config.out``, and its degradation space.

    The run has a copy of its space. It serves where the file that the run was started with is gone, and where the name
    is that of a preset, which may have had another revision then; and a space equal to it, from whatever file, has the
    name that it was started with.
    """
    run = Path(config.out)
    if not ((run / SPACE).is_file() and (run / CONFIG).is_file()):
        return config, DegradationSpace.named(config.space)
    started = PretrainConfig.load(run / CONFIG, data=config.data, out=config.out)
    if config.precision == "auto":
        config = replace(config, precision=started.precision)
    name = started.space
    own = DegradationSpace.from_yaml(run / SPACE)
    kept = config.space == name and (presets.is_preset(name) or not os.path.exists(name))
    space = own if kept else DegradationSpace.named(config.space)
    return replace(config, space=name) if space.fingerprint() == own.fingerprint() else config, space


def resuming_arguments(run: Path, data: str | None) -> list[str]:
    """Return the arguments of the command line that a run was started with, as its folder knows them.

    data: as given, None for the photographs of the run's last start.
    """
    arguments = ["--config", str(run / CONFIG)] if (run / CONFIG).is_file() else []
    if (run / SPACE).is_file():
        arguments += ["--space", str(run / SPACE)]
    history = read_history(run)
    return [*arguments, *([history[-1]["data"]] if data is None and history and history[-1].get("data") else [])]


@contextmanager
def open_run(config: PretrainConfig, resume: bool) -> Iterator[None]:
    """Make the folder of a run, or check that the run in it can be resumed, and keep other processes out of it.

    A start that ends in an error before its first step leaves nothing behind.  Raises InputError for a folder that
    another process uses, that holds something else, or that cannot be made or written to.
    """
    run = Path(config.out)
    existed = run.exists()
    refusal = f"pretrain: out must be a new or empty folder (or use --resume), got {run}"
    if existed and not run.is_dir():
        raise InputError(refusal)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"pretrain: out must be a folder that can be created, got {run}: {error.strerror}") from error
    try:
        with _locked(run):
            if _is_unused(run):
                _clear(run, {INITIAL} if resume else set())
            elif not resume:
                raise InputError(refusal)
            if resume:
                make_resumable(run, config)
            try:
                yield
            except BaseException:
                if _is_unused(run):
                    _clear(run, {INITIAL} if resume else set())
                raise
    finally:
        if not existed:
            with suppress(OSError):  # it is not empty
                run.rmdir()


def _is_unused(run: Path) -> bool:
    """Return True for a folder that holds nothing but what a start wrote that ended before its first step."""
    names = {path.name for path in run.iterdir()} - {LOCK}
    # Every start writes its history first; a config.yaml without one is the user's.
    ours = HISTORY in names and all(_written_at_start(name) for name in names - {HISTORY})
    return not names or (ours and last_logged_step(run) == 0)


def _written_at_start(name: str) -> bool:
    return re.sub(r"\.\d+\.part$", "", name) in BEFORE_FIRST - {FIRST_BATCH}


def _clear(run: Path, but: set[str]) -> None:
    """Remove what an unused folder holds, but for these names and the lock."""
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in {LOCK, *but}:
            path.unlink()


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process, however that ends.

    Raises InputError, which names the process that holds it.
    """
    try:
        descriptor = _lock(run / LOCK)
    except OSError as error:
        raise InputError(f"pretrain: out must be writable, got {run}: {error.strerror}") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder is gone
            (run / LOCK).unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise InputError(
                    f"pretrain: out must not be in use by another process, got {path.parent}, which {holder} holds"
                ) from None
            # Some network and FUSE file systems have no locks.
            print(
                f"pretrain: {path.parent} cannot be locked ({error.strerror}): start no second process there",
                file=sys.stderr,
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # its holder ended, and removed it, after it was opened here
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _close_inherited() -> None:
    """Close the locks in a forked process, where they would outlive the process that holds them."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
