"""MemoryTracker: which tensor bytes are alive at the highest moment of a traced step, and what they are for.

A dispatch mode that sees every operation of the step. ``qpt.planning.trace`` runs the step under it with fake tensors,
so nothing is computed. torch's own ``MemTracker`` does the like per module; it knows neither the parts of a
pre-training step nor what a custom op takes while it runs, and copies its tables at every module.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Part of a step (below) -> bytes by category.
Peaks = dict[str, "Peak"]


@dataclass
class Peak:
    """The highest moment of one part of the step: bytes in all, and by category."""

    bytes: int = 0
    by_category: dict[str, int] = field(default_factory=dict)


class MemoryTracker(TorchDispatchMode):
    """Counts the storages that operations make, from their birth to their end.

    workspace: (op's name, its arguments) -> bytes that it takes while it runs beyond its outputs, and their category;
    asked for ops of the ``qpt`` namespace. ``peaks`` has an entry for each such op, and "step" for everything else.
    """

    def __init__(self, workspace: Callable[[str, tuple[Any, ...]], tuple[int, str]]) -> None:
        super().__init__()
        self.peaks: Peaks = {}
        self._workspace = workspace
        self._category = "activations"
        self._live: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, str]] = {}
        self._bytes: Counter[str] = Counter()
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # a value that the host reads: there is none, and no shape depends on it
        out = func(*args, **(kwargs or {}))
        if func.namespace == "qpt":
            name = func._schema.name.removeprefix("qpt::")
            extra, category = self._workspace(name, args)
            for tensor in tree_leaves(out):
                self._add(tensor, category)
            self._look(name, extra, category)
        else:
            for tensor in tree_leaves(out):
                self._add(tensor, self._category)
            self._look("step")
        return out

    @contextmanager
    def category(self, name: str) -> Iterator[None]:
        """What is made inside is counted as ``name``."""
        before, self._category = self._category, name
        try:
            yield
        finally:
            self._category = before

    def assign(self, tensor: Tensor, category: str) -> None:
        """Count a tensor, known or not, as ``category`` from now on."""
        self._add(tensor, category)
        reference, size, old = self._live[id(tensor.untyped_storage())]
        if old != category:
            self._live[id(tensor.untyped_storage())] = (reference, size, category)
            self._bytes[old] -= size
            self._bytes[category] += size

    def _add(self, tensor: Any, category: str) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live:
            return
        size = storage.nbytes()
        self._live[key] = (weakref.ref(storage, lambda _: self._drop(key)), size, category)
        self._bytes[category] += size
        self._total += size

    def _drop(self, key: int) -> None:
        _, size, category = self._live.pop(key)
        self._bytes[category] -= size
        self._total -= size

    def _look(self, part: str, extra: int = 0, category: str = "") -> None:
        """Remember this moment if it is the highest of its part."""
        peak = self.peaks.setdefault(part, Peak())
        if self._total + extra > peak.bytes:
            peak.bytes = self._total + extra
            peak.by_category = dict(self._bytes)
            if extra:
                peak.by_category[category] = peak.by_category.get(category, 0) + extra
