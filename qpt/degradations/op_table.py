"""The op table: every degradation that QPT knows, as data. The place of a row in ``DEGRADATIONS`` is the op's id.

Read by every module of this folder, by ``qpt.ops``, ``qpt.report`` and the tests. The rows are in
``qpt/degradations/rows/``, a file per family. ``csrc/ops/table.h`` lists the same names in the same order, and
``qpt.ops.extension`` compares the two. docs/add-an-op.md says how a row is added.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass

import numpy as np

from qpt.degradations.row import LEVELS, MAX_PARAMS, Degradation, LevelValue, Parameter, Params, UniformRange
from qpt.degradations.rows.by_source import BY_SOURCE
from qpt.degradations.rows.colour import COLOUR
from qpt.degradations.rows.geometry import GEOMETRY
from qpt.degradations.rows.texture import TEXTURE
from qpt.errors import InputError, hint

__all__ = [
    "DEGRADATIONS",
    "LEVELS",
    "MAX_PARAMS",
    "NAMES",
    "Degradation",
    "LevelValue",
    "Parameter",
    "ParameterBounds",
    "Params",
    "UniformRange",
    "accepts",
    "costs",
    "describe_levels",
    "fingerprint",
    "op_id",
    "parameter_bounds",
]

DEGRADATIONS: tuple[Degradation, ...] = (*TEXTURE, *GEOMETRY, *COLOUR, *BY_SOURCE)
NAMES: tuple[str, ...] = tuple(row.name for row in DEGRADATIONS)
_IDS = {name: index for index, name in enumerate(NAMES)}


def op_id(name: str, caller: str = "op_id") -> int:
    """Return the id of a named op. Raises InputError with the nearest names for an unknown one."""
    if not isinstance(name, str) or name not in _IDS:
        near = hint(name, NAMES, most=3, cutoff=0.4)
        raise InputError(f"{caller}: op must be a name of the op table, got {name!r}; {near}")
    return _IDS[name]


#: Fingerprints of tables that this one continues. Their rows are its first ones, with the same levels and revisions and
#: with bounds that are as wide or narrower, so that what was made with them has the same meaning here.
EARLIER = ("17c6eb63c4ad1b55",)  # version 0.1.0: 53 rows, motion_blur of at least 1 px


def accepts(table: str) -> bool:
    """Return True if programs made with the op table of this fingerprint mean the same with this one."""
    return table == fingerprint() or table in EARLIER


@functools.cache
def fingerprint() -> str:
    """Return 16 hex digits that change whenever the meaning of an op id, a level or a parameter changes."""
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
class ParameterBounds:
    """The bounds of every parameter as arrays, indexed by op id and place of the parameter."""

    low: np.ndarray  # float32 [n, MAX_PARAMS]; -inf for a place without a parameter
    high: np.ndarray  # float32 [n, MAX_PARAMS]; +inf for a place without a parameter
    integer: np.ndarray  # bool [n, MAX_PARAMS]


@functools.cache
def parameter_bounds() -> ParameterBounds:
    """Return the bounds of the table's parameters."""
    shape = (len(DEGRADATIONS), MAX_PARAMS)
    low, high, integer = np.full(shape, -np.inf, np.float32), np.full(shape, np.inf, np.float32), np.zeros(shape, bool)
    for op, row in enumerate(DEGRADATIONS):
        for place, p in enumerate(row.parameters):
            low[op, place], high[op, place], integer[op, place] = p.low, p.high, p.integer
    return ParameterBounds(low, high, integer)


@functools.cache
def costs() -> np.ndarray:
    """Return the costs in nanoseconds per pixel, float64 [n, LEVELS + 1], indexed by op id and level.

    Parameters given by hand have level 0; its cost is that of the middle level.
    """
    cost = np.zeros((len(DEGRADATIONS), LEVELS + 1))
    for op, row in enumerate(DEGRADATIONS):
        cost[op, 1:] = row.cost
    cost[:, 0] = cost[:, (LEVELS + 1) // 2]
    return cost


def describe_levels(p: Parameter) -> str:
    """Return a parameter's five levels as text: ``0.6 · 1.1 · 1.8``, with "or" for alternatives, "to" for a range."""
    if not p.levels:
        return f"{p.low:g} to {p.high:g}, whatever the level"
    five = [" or ".join(f"{v:.4g}" for v in p.alternatives(level)) for level in range(1, LEVELS + 1)]
    return f"{five[0]}, whatever the level" if len(set(five)) == 1 else " · ".join(five)
