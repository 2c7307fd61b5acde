"""Drawing ops, levels and parameters for many rows at once, on NumPy arrays.

``draw_params`` turns levels into parameters, for ``Program.from_chains`` and ``DegradationSpace``; ``RuleSampler``
draws one pass of a space, for ``DegradationSpace`` alone. Both take their random words from
``qpt.degradations.random_bits``, so that a row depends on its own key only.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpt.degradations import random_bits
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, MAX_PARAMS, NAMES, LevelValue, UniformRange, op_id
from qpt.degradations.rule import Rule


@dataclass(frozen=True)
class LevelArrays:
    """The parameters of n ops at each level as arrays, indexed by (op's place here, level - 1, parameter's place)."""

    ids: np.ndarray  # int16 [n]; op ids
    values: np.ndarray  # float64 [n, LEVELS, MAX_PARAMS, largest number of alternatives]
    counts: np.ndarray  # int64 [n, LEVELS, MAX_PARAMS]; number of alternatives; 1 without a parameter, 0 for a range
    low: np.ndarray  # float64 [n, LEVELS, MAX_PARAMS]; lower end of a range
    span: np.ndarray  # float64 [n, LEVELS, MAX_PARAMS]; high - low of a range, plus 1 for an integer parameter
    integer: np.ndarray  # bool [n, 1, MAX_PARAMS]

    @staticmethod
    def of(entries: Sequence[tuple[str, Mapping[str, Sequence[LevelValue]]]]) -> LevelArrays:
        """Make the arrays of (op name, own levels by parameter) pairs; other parameters have the op table's levels."""
        rows = [DEGRADATIONS[op_id(name)] for name, _ in entries]
        level_values = [
            [own.get(p.name) or p.level_values() for p in row.parameters]
            for row, (_, own) in zip(rows, entries, strict=True)
        ]
        alternatives = [v for row in level_values for five in row for v in five if isinstance(v, tuple)]
        shape = (len(entries), LEVELS, MAX_PARAMS)
        values = np.zeros((*shape, max(map(len, alternatives), default=1)))
        counts, low, span = np.ones(shape, np.int64), np.zeros(shape), np.zeros(shape)
        integer = np.zeros((len(entries), 1, MAX_PARAMS), bool)
        for n, row in enumerate(rows):
            for place, (p, five) in enumerate(zip(row.parameters, level_values[n], strict=True)):
                integer[n, 0, place] = p.integer
                for v, value in enumerate(five):
                    at = n, v, place
                    if isinstance(value, UniformRange):
                        # The ends are rounded to float32, as the kernels and the bounds of the table have them.
                        ends = np.array([value.low, value.high], np.float32).astype(np.float64)
                        counts[at], low[at], span[at] = 0, ends[0], ends[1] - ends[0] + p.integer
                    else:
                        given = value if isinstance(value, tuple) else (value,)
                        counts[at], values[n, v, place, : len(given)] = len(given), given
        return LevelArrays(np.array([op_id(row.name) for row in rows], np.int16), values, counts, low, span, integer)


@functools.cache
def _table_levels() -> LevelArrays:
    """Return the op table's own levels; places are op ids."""
    return LevelArrays.of([(name, {}) for name in NAMES])


def draw_params(ops: np.ndarray, levels: np.ndarray, u: np.ndarray, arrays: LevelArrays | None = None) -> np.ndarray:
    """Return the parameters of each (op, level), given one uniform number in [0, 1) per parameter.

    ops, levels: integers of one shape [...]; an op of -1 gets zeros.  u: float64 [..., MAX_PARAMS].  arrays: what the
    values of ``ops`` index; None for the op table, where they are op ids.  Returns float32 [..., MAX_PARAMS].
    """
    arrays = arrays or _table_levels()
    op, level = np.maximum(ops, 0), np.maximum(levels, 1) - 1
    counts = arrays.counts[op, level]
    pick = (u * counts).astype(np.int64)
    value = np.take_along_axis(arrays.values[op, level], pick[..., None], axis=-1)[..., 0]
    ranged = arrays.low[op, level] + u * arrays.span[op, level]
    ranged = np.where(arrays.integer[op, 0], np.floor(ranged), ranged)
    value = np.where(counts == 0, ranged, value)
    return np.where(ops[..., None] < 0, 0.0, value).astype(np.float32)


class RuleSampler:
    """One pass of a space as arrays, from which many rows are drawn at once.

    type_places: the place of each type among those of the whole space.
    """

    def __init__(self, rule: Rule, type_places: Mapping[Any, int]) -> None:
        groups = rule.groups
        specs = [spec for group in groups for spec in group.specs]
        self.rule = rule
        self.types = np.array([type_places[spec.type] for spec in specs])
        self.arrays = LevelArrays.of([(spec.op, spec.levels) for spec in specs])
        self.has_levels = np.array([spec.has_levels for spec in specs])
        self.weights = np.array([group.weight for group in groups])
        self.probability = np.array([group.probability for group in groups])
        self.number_shares = _shares(rule.number_weights) if rule.number_weights else None
        self.level_shares = _shares(rule.level_weights)
        counts = [len(group.specs) for group in groups]
        self.first = np.cumsum([0, *counts[:-1]])  # place of a group's first spec among all of them
        # Upper ends of the shares of [0, 1) that the specs of a group have, padded with 1. The number of ends that a
        # uniform number has reached is the place of the spec that it picks.
        self.spec_shares = np.ones((len(groups), max(counts)))
        for shares, group in zip(self.spec_shares, groups, strict=True):
            shares[: len(group.specs)] = _shares([spec.weight for spec in group.specs])

    def draw(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw one row per key: types [r, S], levels [r, S], params [r, S, MAX_PARAMS]; -1, 0 and 0 in unused slots.

        The last array, [r, S, MAX_PARAMS] in [0, 1), holds the numbers that ``draw_params`` made the parameters of.
        """
        rule, slots, members = self.rule, self.rule.max_ops, len(self.weights)
        picks = slots if rule.repeat else members
        # The layout of the words decides every program that a seed has ever given: word 0 is the row's seed, word 1 the
        # number of members, then the members, and for each slot the level, the parameters, the spec, the probability.
        words = random_bits.words(keys, 2 + picks + slots * (3 + MAX_PARAMS))
        which, rest = words[:, 2 : 2 + picks], words[:, 2 + picks :].reshape(len(keys), 3 + MAX_PARAMS, slots)
        count = rule.min_ops + _pick(words[:, 1], rule.max_ops - rule.min_ops + 1, self.number_shares)
        equal = (self.weights == self.weights[0]).all()
        if rule.repeat:
            place = _pick(which, members, None if equal else _shares(self.weights))
        else:
            # The start of a random permutation. With weights: members sorted by exponential variates of these rates,
            # which is drawing without replacement in proportion to the weights.
            arrival = which if equal else -np.log1p(-random_bits.to_unit(which)) / self.weights
            place = np.argsort(arrival, axis=1, kind="stable")[:, :slots]
        level = 1 + _pick(rest[:, 0], LEVELS, None if len(set(rule.level_weights)) == 1 else self.level_shares)
        params_u = random_bits.to_unit(rest[:, 1 : 1 + MAX_PARAMS].reshape(len(keys), slots, MAX_PARAMS))
        spec = (random_bits.to_unit(rest[:, -2])[..., None] >= self.spec_shares[place]).sum(axis=-1)
        level = np.where(self.has_levels[self.first[place] + spec], level, 1)
        acts = (np.arange(slots) < count[:, None]) & (random_bits.to_unit(rest[:, -1]) < self.probability[place])
        if not rule.shuffle:
            position = (self.first[place] + spec) * (LEVELS + 1) + level
            order = np.argsort(np.where(acts, position, np.iinfo(np.int64).max), axis=1, kind="stable")
            place, spec, level, acts = (np.take_along_axis(a, order, axis=1) for a in (place, spec, level, acts))
        entry, level = np.where(acts, self.first[place] + spec, -1), np.where(acts, level, 0)
        params = draw_params(entry, level, params_u, self.arrays)
        return np.where(acts, self.types[entry], -1), level, params, params_u


def pick_true(choices: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the place of one of the true values of each row, equally likely; 0 in a row without any.

    choices: bool [r, m].  u: float64 [r] in [0, 1).
    """
    ordinal = (u * choices.sum(axis=1)).astype(np.int64)
    return np.argmax(np.cumsum(choices, axis=1) > ordinal[:, None], axis=1)


def _shares(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the upper ends of the shares of [0, 1) that weights have; those of trailing zeros are 1."""
    ends = np.cumsum(np.asarray(weights, np.float64))
    ends /= ends[-1]
    return ends


def _pick(words: np.ndarray, count: int, shares: np.ndarray | None) -> np.ndarray:
    """Turn uint64 words into integers in [0, count), equally likely or by ``shares``."""
    if shares is None:
        return random_bits.below(words, count)
    return np.searchsorted(shares, random_bits.to_unit(words), side="right")
