"""``MemoryTracker``: the tensor bytes that are alive at the peak of a traced step, by category.

A dispatch mode that sees every operation of the step. ``qpt.planning.trace`` runs the step under it with fake tensors,
so nothing is computed.
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

# torch's own MemTracker counts per module; it knows neither the parts of a pre-training step nor the workspace of a
# custom op, and copies its statistics at every module.

#: Part of a step, a custom op or "step" for the rest -> its peak.
Peaks = dict[str, "Peak"]


@dataclass
class Peak:
    """The peak of one part of the step: bytes in all, and by category."""

    bytes: int = 0
    by_category: dict[str, int] = field(default_factory=dict)


class MemoryTracker(TorchDispatchMode):
    """Counts the storages that operations allocate until they are freed.

    workspace: (op's name, its arguments) -> bytes that an op of the ``qpt`` namespace allocates while it runs, beyond
    its outputs, and their category. ``peaks`` has an entry for each such op, and "step" for everything else.
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
            return 1  # the host reads a value of a tensor; a fake one has none, and no shape depends on it
        out = func(*args, **(kwargs or {}))
        if func.namespace == "qpt":
            name = func._schema.name.removeprefix("qpt::")
            extra, category = self._workspace(name, args)
            for tensor in tree_leaves(out):
                self._add(tensor, category)
            self._update_peak(name, extra, category)
        else:
            for tensor in tree_leaves(out):
                self._add(tensor, self._category)
            self._update_peak("step")
        return out

    @contextmanager
    def category(self, name: str) -> Iterator[None]:
        """Count tensors made inside the block as ``name``."""
        before, self._category = self._category, name
        try:
            yield
        finally:
            self._category = before

    def assign(self, tensor: Tensor, category: str) -> None:
        """Count a tensor, counted before or not, as ``category`` from now on."""
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

    def _update_peak(self, part: str, extra: int = 0, category: str = "") -> None:
        """Keep the bytes alive now, and ``extra`` of ``category``, if they are more than the part's peak."""
        peak = self.peaks.setdefault(part, Peak())
        if self._total + extra > peak.bytes:
            peak.bytes = self._total + extra
            peak.by_category = dict(self._bytes)
            if extra:
                peak.by_category[category] = peak.by_category.get(category, 0) + extra
