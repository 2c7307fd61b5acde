"""The parts of a degradation space, as plain data: a ``Rule`` draws ``Group``s, and one ``OpSpec`` of a group acts.

Read by ``qpt.degradations.sampling``, ``qpt.degradations.counting`` and ``qpt.degradations.space_yaml``, whose keys are
these fields. Every object is checked against the op table when it is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, LevelValue, Parameter, UniformRange
from qpt.errors import InputError, as_number, check_int

__all__ = ["ByLevel", "Group", "LevelValue", "OpSpec", "Rule", "UniformRange"]

MAX_SLOTS = 64  # ops of a composition


@dataclass(frozen=True)
class ByLevel:
    """A range cut into five equal parts, one per level: level 1 at the ``mild`` end, level 5 at the ``strong`` one.

    With equal level weights the value is uniform over the whole range, as in sources that have ranges and no levels;
    the label then says how strong it was. For an integer parameter both ends may be drawn, and the parts differ by one
    value at most.
    """

    mild: float
    strong: float

    def __post_init__(self) -> None:
        for name in ("mild", "strong"):
            value = getattr(self, name)
            if type(value) not in (int, float) and (number := as_number(value)) is not None:
                object.__setattr__(self, name, number)  # NumPy's small integers would wrap in the sums below

    def parts(self, integer: bool) -> tuple[UniformRange, ...]:
        """Return the five ranges, level 1 first."""
        low, high = sorted((self.mild, self.strong))
        if integer:
            edges = [low + math.floor((high - low + 1) * k / LEVELS) for k in range(LEVELS + 1)]
            cut = [UniformRange(a, b - 1) for a, b in itertools.pairwise(edges)]
        else:
            # The last edge is `high` itself: the formula could round to a value beyond it.
            edges = [*(low + (high - low) * k / LEVELS for k in range(LEVELS)), high]
            cut = [UniformRange(a, b) for a, b in itertools.pairwise(edges)]
        return tuple(cut if self.mild <= self.strong else cut[::-1])


@dataclass(frozen=True)
class OpSpec:
    """An op that may be drawn, and the values that its parameters then have.

    op: a name of the op table.  weight: how often it is drawn, relative to the other members of its group or rule.
    levels: the op's own level values by parameter; a parameter left out keeps the op table's. They are given as one
    value for all levels (a number or a ``UniformRange``), as a ``ByLevel``, or as five values, each a number, a tuple
    of alternatives or a ``UniformRange``; they are kept as five values.
    Raises InputError for an unknown op or parameter, another number of levels, or values out of the op's range.
    """

    op: str
    weight: float = 1.0
    levels: Mapping[str, tuple[LevelValue, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        entry = DEGRADATIONS[op_table.op_id(self.op, "DegradationSpace")]
        _check_positive(f"weight of {self.op}", self.weight)
        object.__setattr__(self, "weight", float(self.weight))
        if not isinstance(self.levels, Mapping):
            raise InputError(
                f"DegradationSpace: levels of {self.op} must be a mapping of parameters, got {self.levels!r}"
            )
        known = {p.name: p for p in entry.parameters}
        unknown = [name for name in self.levels if name not in known]
        if unknown:
            raise InputError(
                f"DegradationSpace: levels of {self.op} must name its parameters ({', '.join(known)}), "
                f"got {unknown[0]!r}"
            )
        levels = {name: _check_levels(self.op, known[name], given) for name, given in self.levels.items()}
        object.__setattr__(self, "levels", levels)

    @property
    def type(self) -> tuple[str, tuple[tuple[str, tuple[LevelValue, ...]], ...]]:
        """The type: the op with its values, and without its weight. A composition is a list of types."""
        return self.op, tuple(sorted(self.levels.items()))

    @property
    def has_levels(self) -> bool:
        """True if a parameter's value depends on the level; otherwise the op is always drawn at level 1."""
        parameters = DEGRADATIONS[op_table.op_id(self.op)].parameters
        return any(len(set(self.levels.get(p.name) or p.levels)) > 1 for p in parameters)

    def shortened(self) -> OpSpec | str:
        """Return the op's name alone if it says everything, so that equal rules are equal objects."""
        return self.op if self.weight == 1 and not self.levels else self


@dataclass(frozen=True)
class Group:
    """Ops of which one acts.

    ops: op names or OpSpecs; one is drawn by weight.  name: a label for people.  weight: how often the group is drawn,
    relative to the other members of the rule.  probability: that the group, once drawn, acts at all.
    Raises InputError for no members, a weight not above 0, or a probability outside (0, 1].
    """

    ops: tuple[str | OpSpec, ...]
    name: str = ""
    weight: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", _check_members("ops of a group", self.ops, "op names or OpSpecs"))
        if not isinstance(self.name, str):
            raise InputError(f"DegradationSpace: name of a group must be text, got {self.name!r}")
        _check_positive(f"weight of group {self.label}", self.weight)
        if not is_number(self.probability) or not 0 < self.probability <= 1:
            raise InputError(
                f"DegradationSpace: probability of group {self.label} must be above 0 and at most 1, "
                f"got {self.probability!r}"
            )
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "probability", float(self.probability))

    @property
    def specs(self) -> tuple[OpSpec, ...]:
        """The ops, each as an OpSpec."""
        return tuple(member if isinstance(member, OpSpec) else OpSpec(member) for member in self.ops)

    @property
    def label(self) -> str:
        """The name, or the names of the ops, for error messages."""
        return self.name or "/".join(dict.fromkeys(spec.op for spec in self.specs))


@dataclass(frozen=True)
class Rule:
    """The drawing of one pass of a space: a number of members, their order, and the level of each.

    ops: the members: op names, OpSpecs, or Groups.  min_ops, max_ops: how many members are drawn.
    repeat: True if a member may be drawn more than once.  shuffle: True if members act in the order in which they are
    drawn; otherwise they act in the order of ``ops``, the ops of one group in the group's order, and repetitions of one
    op from the mildest level to the strongest.
    number_weights: weights of min_ops, min_ops + 1, ..., max_ops members; empty for equal ones.  level_weights: weights
    of levels 1..5.
    Raises InputError that names the field.
    """

    ops: tuple[str | OpSpec | Group, ...]
    max_ops: int = 5
    min_ops: int = 0
    repeat: bool = True
    shuffle: bool = True
    number_weights: tuple[float, ...] = ()
    level_weights: tuple[float, ...] = (1.0,) * LEVELS

    def __post_init__(self) -> None:
        members = _check_members("ops", self.ops, "op names, OpSpecs or Groups", Group)
        object.__setattr__(self, "ops", members)
        repeated = sorted({m for m in members if isinstance(m, str) and members.count(m) > 1})
        if repeated:
            raise InputError(f"DegradationSpace: ops must name each op once, got {', '.join(repeated)} more than once")
        for name in ("repeat", "shuffle"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"DegradationSpace: {name} must be true or false, got {getattr(self, name)!r}")
        self._check_numbers_of_ops()
        _check_weights("level_weights", self, LEVELS, "one for each level")

    def _check_numbers_of_ops(self) -> None:
        for name in ("max_ops", "min_ops"):
            object.__setattr__(self, name, check_int("DegradationSpace", name, getattr(self, name), 0, MAX_SLOTS))
        if not self.repeat and self.max_ops > len(self.ops):
            raise InputError(
                f"DegradationSpace: max_ops must be at most {len(self.ops)}, the number of members, without "
                f"repetition, got {self.max_ops}"
            )
        if self.min_ops > self.max_ops:
            raise InputError(f"DegradationSpace: min_ops must be at most max_ops = {self.max_ops}, got {self.min_ops}")
        if len(self.number_weights):
            numbers = self.max_ops - self.min_ops + 1
            _check_weights("number_weights", self, numbers, f"for {self.min_ops}..{self.max_ops} ops")
        else:
            object.__setattr__(self, "number_weights", ())

    @property
    def groups(self) -> tuple[Group, ...]:
        """The members, each as a group."""
        return tuple(
            member if isinstance(member, Group) else Group((member,), weight=_weight(member)) for member in self.ops
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """The possible numbers of members: those of min_ops..max_ops whose weight is above 0."""
        counts = range(self.min_ops, self.max_ops + 1)
        weights = self.number_weights or (1.0,) * len(counts)
        return tuple(count for count, weight in zip(counts, weights, strict=True) if weight > 0)

    @property
    def levels(self) -> tuple[int, ...]:
        """The possible levels: those of 1..5 whose weight is above 0."""
        return tuple(level for level, weight in enumerate(self.level_weights, 1) if weight > 0)

    def describe(self) -> str:
        """Return the rule in words: ``0 to 5 of 29 ops, in any order, with repetition``."""
        number = f"{self.min_ops} to {self.max_ops}" if self.min_ops < self.max_ops else f"{self.min_ops}"
        named = any(len(group.ops) > 1 for group in self.groups)
        of = f"{len(self.ops)} groups, one op of each" if named else f"{len(self.ops)} ops"
        words = [f"{number} of {of}"]
        if self.max_ops > 1:
            words.append("in any order" if self.shuffle else "in a fixed order")
            words.append("with repetition" if self.repeat else "without repetition")
        if any(group.probability < 1 for group in self.groups):
            words.append("some left out by chance")
        return ", ".join(words)


def _weight(member: str | OpSpec) -> float:
    return member.weight if isinstance(member, OpSpec) else 1.0


def _check_members(what: str, ops: object, must: str, *kinds: type) -> tuple[Any, ...]:
    """Check a list of op names, OpSpecs and objects of ``kinds``; return it with OpSpecs shortened."""
    if isinstance(ops, (str, Mapping)) or not isinstance(ops, Sequence) or not ops:
        raise InputError(f"DegradationSpace: {what} must be a list of ops, at least one, got {ops!r}")
    for member in ops:
        if not isinstance(member, (str, OpSpec, *kinds)):
            raise InputError(f"DegradationSpace: {what} must be {must}, got {member!r}")
        if isinstance(member, str):
            op_table.op_id(member, "DegradationSpace")
    return tuple(member.shortened() if isinstance(member, OpSpec) else member for member in ops)


def _check_levels(op: str, p: Parameter, given: object) -> tuple[LevelValue, ...]:
    """Return the levels given for one parameter as five checked values."""
    where, given = f"DegradationSpace: levels of {op}, {p.name}", _listed(given)
    if isinstance(given, ByLevel):
        if (
            not is_number(given.mild)
            or not is_number(given.strong)
            or (p.integer and abs(given.mild - given.strong) < LEVELS - 1)
        ):
            raise InputError(f"{where} must be cut from two ends that leave {LEVELS} parts, got {given}")
        values: tuple[object, ...] = given.parts(p.integer)
    elif isinstance(given, UniformRange) or is_number(given):
        values = (given,) * LEVELS
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) == LEVELS:
        values = tuple(given)
    else:
        raise InputError(f"{where} must be a number, a range or {LEVELS} values, got {given!r}")
    return tuple(_check_level(where, p, value) for value in values)


def _check_level(where: str, p: Parameter, value: object) -> LevelValue:
    """Check the value of one level against the parameter's bounds; return it with its numbers as floats."""
    if isinstance(value, UniformRange):
        numbers = [value.low, value.high]
        if all(map(is_number, numbers)) and numbers[0] > numbers[1]:
            raise InputError(f"{where} must be a range from low to high, got {value}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        numbers = list(value)
    else:
        numbers = [value]  # type: ignore[list-item]
    for number in numbers:
        if not is_number(number) or not p.low <= number <= p.high or (p.integer and number != int(number)):
            kind = "an integer in" if p.integer else "in"
            raise InputError(f"{where} must be {kind} [{p.low:g}, {p.high:g}] {p.unit}, got {number!r}")
    if not numbers:
        raise InputError(f"{where} must be a value or several, got none")
    floats = tuple(map(float, numbers))
    if isinstance(value, UniformRange):
        return UniformRange(*floats)
    return floats if len(floats) > 1 else floats[0]


def _check_weights(name: str, rule: Rule, count: int, what: str) -> None:
    """Check a field of weights and store it as a tuple of floats."""
    given = _listed(getattr(rule, name))
    good = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == count
    if not good or not all(is_number(w) and w >= 0 for w in given) or not sum(given) > 0:
        raise InputError(
            f"DegradationSpace: {name} must be {count} numbers, {what}, none below 0 and one above, got {given!r}"
        )
    object.__setattr__(rule, name, tuple(map(float, given)))


def _listed(value: Any) -> Any:
    """Return an array as the list of its numbers, and all else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) and value.ndim else value


def _check_positive(what: str, value: object) -> None:
    if not is_number(value) or not value > 0:  # type: ignore[operator]
        raise InputError(f"DegradationSpace: {what} must be a number above 0, got {value!r}")


def is_number(value: object) -> bool:
    """Return True for a finite real number of any type that is no bool."""
    number = as_number(value)
    return number is not None and math.isfinite(number)
