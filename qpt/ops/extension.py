"""The compiled CPU module ``qpt._C``: loaded once, at first use, or one explained error.

Used by every op in ``qpt/ops/`` with C++ code and by ``qpt doctor``. Importing this file needs no compiled module;
``qpt.build`` says whether the module was compiled for this processor.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch  # before qpt._C: torch ships libgomp, and the extension then shares its thread pool
from torch import Tensor

from qpt import build
from qpt.degradations.op_table import NAMES
from qpt.errors import BackendError

_REBUILD = "rebuild it: pip install -e . (or, in a checkout: python setup.py build_ext --inplace)"
_loaded: ModuleType | BackendError | None = None


def _import_module(level: Mapping[str, Any] | None) -> ModuleType:
    """Import qpt._C, in a portable build from the file of the widest level that this processor has."""
    if level is None or "qpt._C" in sys.modules:
        return importlib.import_module("qpt._C")
    spec = importlib.util.spec_from_file_location("qpt._C", build.PACKAGE / level["file"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["qpt._C"] = module
    vars(sys.modules["qpt"])["_C"] = module  # as an import statement does
    return module


def _import() -> ModuleType:
    facts = build.build_facts()
    mismatch = build.instruction_set_mismatch(facts)
    if mismatch is not None:  # loading it would end the process with SIGILL
        raise BackendError(f"the compiled module qpt._C cannot run here: {mismatch}")
    try:
        module = _import_module(build.level_of_processor(facts))
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


def buffer(tensor: Tensor | None, dtype: torch.dtype) -> tuple[int, int]:
    """Return (address, bytes) of a dense tensor on the CPU, as ``qpt._C`` takes it; (0, 0) for None.

    Raises TypeError for any other tensor: native code must not see a buffer of another dtype or device.
    """
    if tensor is None:
        return 0, 0
    if tensor.dtype is not dtype or not tensor.is_cpu:
        raise TypeError(f"qpt._C: a buffer must be {dtype} on the CPU, got {tensor.dtype} on {tensor.device}")
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if not (channels_last or tensor.is_contiguous()):
        raise TypeError(f"qpt._C: a buffer must be contiguous, got strides {tensor.stride()} of {tuple(tensor.shape)}")
    return tensor.data_ptr(), tensor.numel() * tensor.itemsize


def available() -> str | None:
    """Return None when ``qpt._C`` works, else the reason why it does not."""
    try:
        load()
    except BackendError as error:
        return str(error)
    return None
