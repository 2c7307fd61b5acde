"""The op table: every degradation QPT knows, as data. The row's place in ``DEGRADATIONS`` is the op's id.

Read by ``qpt.degradations.space`` (sampling), ``qpt.degradations.program`` (printing, checking),
``qpt.report.degradation_grid`` and the tests. The rows are in ``qpt/degradations/rows/``, a file per family;
``csrc/ops/table.h`` lists the same names in the same order and ``qpt.ops.extension`` compares the two. A new op is one
row there, one function in its family's file in ``csrc/ops/``, one line in ``csrc/ops/table.h`` and one NumPy definition
in ``tests/reference/``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qpt.degradations.row import LEVELS, SLOTS, Degradation, Parameter, Values
from qpt.degradations.rows.colour import COLOUR
from qpt.degradations.rows.geometry import GEOMETRY
from qpt.degradations.rows.texture import TEXTURE
from qpt.errors import InputError, hint

__all__ = [
    "DEGRADATIONS",
    "LEVELS",
    "NAMES",
    "SLOTS",
    "Arrays",
    "Degradation",
    "Numbers",
    "Parameter",
    "Uniform",
    "Value",
    "Values",
    "arrays",
    "draw_params",
    "fingerprint",
    "levels_in_words",
    "op_id",
    "table_numbers",
]

DEGRADATIONS: tuple[Degradation, ...] = (*TEXTURE, *GEOMETRY, *COLOUR)
NAMES: tuple[str, ...] = tuple(row.name for row in DEGRADATIONS)
_IDS = {name: index for index, name in enumerate(NAMES)}


def op_id(name: str, caller: str = "op_id") -> int:
    """The id of a named op. Raises InputError with the nearest names for an unknown one."""
    if name not in _IDS:
        near = hint(name, NAMES, most=3, cutoff=0.4)
        raise InputError(f"{caller}: op must be a name of the op table, got {name!r}; {near}")
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
class Uniform:
    """A number drawn uniformly from [low, high); from low..high, both included, for a whole-numbered parameter."""

    low: float
    high: float


#: What a parameter is at one level: a number, one of several, or a number of a range.
Value = float | tuple[float, ...] | Uniform


@dataclass(frozen=True)
class Arrays:
    """What a kernel takes: the range of each parameter, indexed by op id and parameter slot."""

    low: np.ndarray  # float32 [n, SLOTS]; -inf for an unused slot
    high: np.ndarray  # float32 [n, SLOTS]; +inf for an unused slot
    integer: np.ndarray  # bool [n, SLOTS]
    cost: np.ndarray  # float64 [n, LEVELS + 1], by level; of level 0, parameters given by hand, that of the middle one


@functools.cache
def arrays() -> Arrays:
    """The parameters' ranges and the costs as arrays, made once."""
    shape = (len(DEGRADATIONS), SLOTS)
    low, high, integer = np.full(shape, -np.inf, np.float32), np.full(shape, np.inf, np.float32), np.zeros(shape, bool)
    cost = np.zeros((len(DEGRADATIONS), LEVELS + 1))
    for op, row in enumerate(DEGRADATIONS):
        cost[op, 1:] = row.cost
        cost[op, 0] = cost[op, (LEVELS + 1) // 2]
        for slot, p in enumerate(row.parameters):
            low[op, slot], high[op, slot], integer[op, slot] = p.low, p.high, p.integer
    return Arrays(low, high, integer, cost)


@dataclass(frozen=True)
class Numbers:
    """What is drawn: the values of n ops at each level as arrays, indexed by (op's place here, level - 1, slot)."""

    ids: np.ndarray  # int16 [n]; op ids
    values: np.ndarray  # float64 [n, LEVELS, SLOTS, most alternatives]
    counts: np.ndarray  # int64 [n, LEVELS, SLOTS]; alternatives at that level, 1 for an unused slot, 0 for a range
    low: np.ndarray  # float64 [n, LEVELS, SLOTS]; of a range
    span: np.ndarray  # float64 [n, LEVELS, SLOTS]; high - low of a range, 1 more for whole numbers
    integer: np.ndarray  # bool [n, 1, SLOTS]

    @staticmethod
    def of(entries: Sequence[tuple[str, Mapping[str, Sequence[Value]]]]) -> Numbers:
        """Of (op name, own levels by parameter) pairs; a parameter not named has the op table's levels."""
        rows = [DEGRADATIONS[op_id(name)] for name, _ in entries]
        settings = [
            [_settings(p, own.get(p.name)) for p in row.parameters] for row, (_, own) in zip(rows, entries, strict=True)
        ]
        several = [v for row in settings for five in row for v in five if isinstance(v, tuple)]
        shape = (len(entries), LEVELS, SLOTS)
        values = np.zeros((*shape, max(map(len, several), default=1)))
        counts, low, span = np.ones(shape, np.int64), np.zeros(shape), np.zeros(shape)
        integer = np.zeros((len(entries), 1, SLOTS), bool)
        for n, row in enumerate(rows):
            for slot, (p, five) in enumerate(zip(row.parameters, settings[n], strict=True)):
                integer[n, 0, slot] = p.integer
                for v, value in enumerate(five):
                    at = n, v, slot
                    if isinstance(value, Uniform):
                        ends = np.array([value.low, value.high], np.float32).astype(np.float64)  # as kernels have them
                        counts[at], low[at], span[at] = 0, ends[0], ends[1] - ends[0] + p.integer
                    else:
                        several_values = value if isinstance(value, tuple) else (value,)
                        counts[at], values[(*at, slice(len(several_values)))] = len(several_values), several_values
        return Numbers(np.array([op_id(row.name) for row in rows], np.int16), values, counts, low, span, integer)


def levels_in_words(p: Parameter) -> str:
    """A parameter's five levels as people read them: ``0.6 · 1.1 · 1.8``, alternatives with "or", a range with "to"."""
    if not p.levels:
        return f"{p.low:g} to {p.high:g}, whatever the level"
    five = [" or ".join(f"{v:.4g}" for v in p.alternatives(level)) for level in range(1, LEVELS + 1)]
    return f"{five[0]}, whatever the level" if len(set(five)) == 1 else " · ".join(five)


def _settings(p: Parameter, own: Sequence[Value] | None) -> Sequence[Value]:
    if own is not None:
        return own
    return p.levels or (Uniform(p.low, p.high),) * LEVELS


@functools.cache
def table_numbers() -> Numbers:
    """The op table's own levels, by op id."""
    return Numbers.of([(name, {}) for name in NAMES])


def draw_params(ops: np.ndarray, levels: np.ndarray, u: np.ndarray, numbers: Numbers | None = None) -> np.ndarray:
    """Parameters of each (op, level), given one uniform number in [0, 1) per slot.

    ops, levels: integers of one shape [...]; an op of -1 gets zeros.  u: float64 [..., SLOTS].  numbers: where ``ops``
    are places; None for the op table, where they are ids.  Returns float32 [..., SLOTS].
    """
    numbers = numbers or table_numbers()
    op, level = np.maximum(ops, 0), np.maximum(levels, 1) - 1
    counts = numbers.counts[op, level]
    pick = (u * counts).astype(np.int64)
    value = np.take_along_axis(numbers.values[op, level], pick[..., None], axis=-1)[..., 0]
    ranged = numbers.low[op, level] + u * numbers.span[op, level]
    ranged = np.where(numbers.integer[op, 0], np.floor(ranged), ranged)
    value = np.where(counts == 0, ranged, value)
    return np.where(ops[..., None] < 0, 0.0, value).astype(np.float32)
