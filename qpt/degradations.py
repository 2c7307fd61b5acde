"""The op table: every degradation QPT knows, as data. The row's place in ``DEGRADATIONS`` is the op's id.

Read by ``qpt.space`` (sampling), ``qpt.program`` (printing, checking), ``qpt.pictures`` and the tests. The rows are in
``qpt/optable/``, a file per family; ``csrc/ops/table.h`` lists the same names in the same order and ``qpt.ops.backend``
compares the two. A new op is one row there, one function in its family's file in ``csrc/ops/``, one line in
``csrc/ops/table.h`` and one NumPy definition in ``tests/reference/``.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from dataclasses import dataclass

import numpy as np

from qpt.errors import InputError
from qpt.optable.colour import COLOUR
from qpt.optable.geometry import GEOMETRY
from qpt.optable.row import LEVELS, SLOTS, Degradation, Parameter, Values
from qpt.optable.texture import TEXTURE

__all__ = [
    "DEGRADATIONS",
    "LEVELS",
    "NAMES",
    "SLOTS",
    "Arrays",
    "Degradation",
    "Parameter",
    "Values",
    "arrays",
    "draw_params",
    "fingerprint",
    "op_id",
]

DEGRADATIONS: tuple[Degradation, ...] = (*TEXTURE, *GEOMETRY, *COLOUR)
NAMES: tuple[str, ...] = tuple(row.name for row in DEGRADATIONS)
_IDS = {name: index for index, name in enumerate(NAMES)}


def op_id(name: str, caller: str = "op_id") -> int:
    """The id of a named op. Raises InputError with the nearest names for an unknown one."""
    if name not in _IDS:
        near = difflib.get_close_matches(str(name), NAMES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMES)}"
        raise InputError(f"{caller}: op must be a name of the op table, got {name!r}; {hint}")
    return _IDS[name]


@functools.cache
def fingerprint() -> str:
    """16 hex digits that change whenever the meaning of an op id, a level or a parameter changes."""
    canonical = [
        [
            row.name,
            row.revision,
            [
                [p.name, p.unit, p.low, p.high, p.integer, [p.alternatives(v + 1) for v in range(len(p.levels))]]
                for p in row.parameters
            ],
        ]
        for row in DEGRADATIONS
    ]
    return hashlib.sha256(json.dumps(canonical, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Arrays:
    """The table as arrays, indexed by op id (and level - 1, parameter slot, alternative)."""

    low: np.ndarray  # float32 [n, SLOTS]; -inf for an unused slot
    high: np.ndarray  # float32 [n, SLOTS]; +inf for an unused slot
    integer: np.ndarray  # bool [n, SLOTS]
    uniform: np.ndarray  # bool [n, SLOTS]; drawn from [low, high)
    values: np.ndarray  # float64 [n, LEVELS, SLOTS, most alternatives]
    counts: np.ndarray  # int64 [n, LEVELS, SLOTS]; alternatives at that level, at least 1
    cost: np.ndarray  # float64 [n, LEVELS + 1], by level; of level 0, parameters given by hand, that of the middle one


@functools.cache
def arrays() -> Arrays:
    """The table as arrays, made once."""
    n = len(DEGRADATIONS)
    most = max(len(p.alternatives(v)) for row in DEGRADATIONS for p in row.parameters for v in range(1, LEVELS + 1))
    low = np.full((n, SLOTS), -np.inf, np.float32)
    high = np.full((n, SLOTS), np.inf, np.float32)
    integer = np.zeros((n, SLOTS), bool)
    uniform = np.zeros((n, SLOTS), bool)
    values = np.zeros((n, LEVELS, SLOTS, most))
    counts = np.ones((n, LEVELS, SLOTS), np.int64)
    cost = np.zeros((n, LEVELS + 1))
    for op, row in enumerate(DEGRADATIONS):
        cost[op, 1:] = row.cost
        cost[op, 0] = cost[op, (LEVELS + 1) // 2]
        for slot, p in enumerate(row.parameters):
            low[op, slot], high[op, slot] = p.low, p.high
            integer[op, slot], uniform[op, slot] = p.integer, not p.levels
            for v in range(LEVELS if p.levels else 0):
                drawn = p.alternatives(v + 1)
                values[op, v, slot, : len(drawn)] = drawn
                counts[op, v, slot] = len(drawn)
    return Arrays(low, high, integer, uniform, values, counts, cost)


def draw_params(ops: np.ndarray, levels: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Parameters of each (op, level), given one uniform number in [0, 1) per slot.

    ops, levels: integers of one shape [...]; an op of -1 gets zeros.  u: float64 [..., SLOTS].
    Returns float32 [..., SLOTS].
    """
    table = arrays()
    op, level = np.maximum(ops, 0), np.maximum(levels, 1) - 1
    pick = (u * table.counts[op, level]).astype(np.int64)
    value = np.take_along_axis(table.values[op, level], pick[..., None], axis=-1)[..., 0]
    uniform = table.uniform[op]
    low, high = (np.where(uniform, bound[op], 0.0).astype(np.float64) for bound in (table.low, table.high))
    value = np.where(uniform, low + u * (high - low), value)
    return np.where(ops[..., None] < 0, 0.0, value).astype(np.float32)
