"""Which code walks the pairs of the contrastive loss: plain torch, C++ (CPU) or Triton (CUDA).

``choose`` is called by the custom op and by the distributed form. A backend is two functions with the signatures of
``backend_torch.py``, where they are documented; it is loaded at its first use.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from qpt.errors import BackendError, InputError
from qpt.ops import extension as native

_DEVICE = {"cpp": "cpu", "triton": "cuda"}


@dataclass(frozen=True)
class Queries:
    """vectors [N, D]; groups int64 [N] (-1: left out of the mean); images int64 [N] or None (no same-image pairs)."""

    vectors: Tensor
    groups: Tensor
    images: Tensor | None


@dataclass(frozen=True)
class KeySet:
    """Keys of one origin (the batch, another process, the pool) and which pairs with them count.

    vectors [M, D]; groups int64 [M] (-1: ignored); images int64 [M] or None. Pair (i, i + self_offset) is taken out;
    ``negatives=False`` keeps only the keys of the row's own group.
    """

    vectors: Tensor
    groups: Tensor
    images: Tensor | None
    self_offset: int | None = None
    negatives: bool = True


class LossTerms(NamedTuple):
    """Results of the whole loss. loss, valid_rows (int64): 0-d. lse [N]: +inf for rows left out. positives int64 [N]: 0
    there. gradient: d loss / d queries [N, D], or [0, D] when it was not wanted. similarity [2]: of the positives, and
    a place for that of the negatives."""

    loss: Tensor
    valid_rows: Tensor
    lse: Tensor
    positives: Tensor
    gradient: Tensor
    similarity: Tensor


class Attend(Protocol):
    """See ``contrastive_torch.attend``."""

    def __call__(
        self, *tensors: Any, self_offset: int | None, negatives: bool, weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


class SoftmaxKeyGradient(Protocol):
    """See ``contrastive_torch.softmax_key_gradient``."""

    def __call__(self, *tensors: Any, self_offset: int | None, negatives: bool, both_roles: bool = False) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """The two passes over pairs, by the name that the public argument ``backend`` has for them; and, where a backend
    has them, faster forms of what ``loss.py`` does with torch operations."""

    name: str
    attend: Attend
    softmax_key_gradient: SoftmaxKeyGradient
    add_positives: Callable[..., None] | None = None
    forward: Callable[..., LossTerms] | None = None  # the whole loss; it looks for nan and infinity in the pool


def choose(name: str, temperature: Tensor) -> Backend:
    """The backend for the public argument ``backend``, where ``temperature`` is and in its (the accumulation) dtype.

    "auto": C++ on the CPU, Triton on CUDA; plain torch for float64, on other devices, and with one warning where the
    native code cannot be used. Raises InputError for a device or dtype that does not fit, BackendError for what is
    missing.
    """
    device, double = temperature.device, temperature.dtype == torch.float64
    if name == "auto":
        native_name = next((key for key, kind in _DEVICE.items() if kind == device.type), None)
        if native_name is None or double:
            return _load("torch")
        reason = _reason_unusable(native_name)
        if reason is None:
            return _load(native_name)
        _warn_once(f"contrastive_loss: {reason}; the slower torch form is used (backend='torch' silences this)")
        return _load("torch")
    if name != "torch":
        if device.type != _DEVICE[name]:
            raise InputError(f"contrastive_loss: backend={name!r} needs tensors on {_DEVICE[name]}, got {device}")
        if double:
            raise InputError(f"contrastive_loss: backend={name!r} accumulates in float32, got float64 embeddings")
        reason = _reason_unusable(name)
        if reason is not None:
            raise BackendError(f"contrastive_loss: {reason}")
    return _load(name)


def _reason_unusable(name: str) -> str | None:
    if name == "triton":
        missing = importlib.util.find_spec("triton") is None
        return "Triton is needed on CUDA and is not installed; run: pip install triton" if missing else None
    if native.is_forked_worker():
        return "called in a forked worker process, where C++ threads hang"
    return native.available()


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


@cache
def _load(name: str) -> Backend:
    places = {
        "cpp": "qpt.ops.contrastive.backend_cpp",
        "triton": "qpt.kernels.contrastive",
        "torch": "qpt.ops.contrastive.backend_torch",
    }
    module = importlib.import_module(places[name])
    faster = (getattr(module, form, None) for form in ("add_positives", "forward"))
    return Backend(name, module.attend, module.softmax_key_gradient, *faster)
