"""The compiled CPU module ``qpt._C``: loaded once, at first use, or one explained error.

Used by every op in ``qpt/ops/`` with C++ code and by ``qpt doctor``. Importing this file needs no compiled module;
``qpt.build`` says whether the module was compiled for this processor.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
from types import ModuleType

import torch  # before qpt._C: torch ships libgomp, and the extension then shares its thread pool

from qpt import build
from qpt.degradations.op_table import NAMES
from qpt.errors import BackendError

_REBUILD = "rebuild it: pip install -e . (or, in a checkout: python setup.py build_ext --inplace)"
_HOME_PID = os.getpid()
_loaded: ModuleType | BackendError | None = None


def _import() -> ModuleType:
    mismatch = build.instruction_set_mismatch(build.build_facts())
    if mismatch is not None:  # loading it would end the process with SIGILL
        raise BackendError(f"the compiled module qpt._C cannot run here: {mismatch}")
    try:
        module = importlib.import_module("qpt._C")
    except ImportError as error:
        raise BackendError(
            f"the compiled module qpt._C is needed and did not import (torch {torch.__version__}): {error}; {_REBUILD}"
        ) from error
    compiled = tuple(module.op_names())
    if compiled != NAMES:
        pairs = enumerate(itertools.zip_longest(compiled, NAMES, fillvalue="nothing"))
        first, (built, listed) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise BackendError(
            f"the compiled module {module.__file__} does not match the op table: op {first} is {built} in the module "
            f"and {listed} in the table; {_REBUILD}"
        )
    return module


def load() -> ModuleType:
    """Return ``qpt._C``, its op names checked against the op table.

    Raises BackendError saying why it is unusable and what fixes it; a failure is remembered, not retried.
    """
    global _loaded
    if _loaded is None:
        try:
            _loaded = _import()
        except BackendError as error:
            _loaded = error
    if isinstance(_loaded, BackendError):
        raise _loaded
    return _loaded


def available() -> str | None:
    """Return None when ``qpt._C`` works, else the reason why it does not."""
    try:
        load()
    except BackendError as error:
        return str(error)
    return None


def is_forked_worker() -> bool:
    """Return True in a process forked from one that may have started threads, where an OpenMP pool hangs or dies."""
    if os.getpid() != _HOME_PID:
        return True
    # This file may have been imported first in the child; spawned children have their start method set.
    child = multiprocessing.parent_process() is not None
    return child and multiprocessing.get_start_method(allow_none=True) in (None, "fork")


def refuse_forked_worker(caller: str) -> None:
    """Raise BackendError in a forked worker (a DataLoader's, say)."""
    if is_forked_worker():
        raise BackendError(
            f"{caller}: called in a forked worker process (pid {os.getpid()}), where the parent's thread pool is gone "
            "and C++ threads hang; load images in the workers and call it on the batch in the main process, "
            "or start the workers with multiprocessing_context='spawn'"
        )
