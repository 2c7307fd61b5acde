"""Reading and writing a degradation space as YAML; the keys are the fields of ``DegradationSpace`` and its parts.

Called by ``DegradationSpace.from_yaml``, ``to_yaml`` and ``fingerprint``. Every error names the file, the key, what it
must be and what was given.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from qpt.degradations.op_table import LEVELS, LevelValue, UniformRange
from qpt.degradations.rule import ByLevel, Group, OpSpec, Rule
from qpt.errors import InputError, hint
from qpt.io import read_yaml, to_yaml

Space = TypeVar("Space", bound=Rule)


def read(kind: type[Space], path: str | os.PathLike[str]) -> Space:
    """Read the space in a YAML file. kind: ``DegradationSpace``, which imports this module.

    Raises InputError for an unreadable file, or a key or value that is not allowed.
    """
    name = os.fspath(path)
    try:
        fields = read_yaml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"space must be a readable YAML file, got {name}: {error}") from error
    space: Space = _build(kind, fields, name)
    return space


def write(space: Rule, path: str | os.PathLike[str] | None) -> str:
    """Return the space as YAML text, without the fields that have their default; also write it to ``path`` if given."""
    text = to_yaml(plain(space), default_flow_style=None, width=120)
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def plain(item: Rule | Group | OpSpec | str) -> Any:
    """Return the item as numbers, text, lists and mappings; ``_build`` is the inverse."""
    if isinstance(item, str):
        return item
    out: dict[str, Any] = {}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value == default:
            continue
        if field.name in ("ops", "then"):
            out[field.name] = [plain(member) for member in value]
        elif field.name == "levels":
            out[field.name] = {name: _plain_levels(five) for name, five in value.items()}
        else:
            out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def _plain_levels(five: tuple[Any, ...]) -> Any:
    if len(set(five)) == 1 and not isinstance(five[0], tuple):
        five = five[:1]
    values = [_plain_value(value) for value in five]
    return values[0] if len(values) == 1 else values


def _plain_value(value: LevelValue) -> Any:
    if isinstance(value, UniformRange):
        return {"uniform": [value.low, value.high]}
    return list(value) if isinstance(value, tuple) else value


def _build(kind: type[Any], given: object, where: str) -> Any:
    """Make a DegradationSpace, Rule, Group or OpSpec of a mapping of its fields; ``where`` locates it in messages."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must be a mapping with the keys of {_NAMES[kind.__name__]}, got {given!r:.100}")
    known = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        if key not in known:
            raise InputError(
                f"{where}: {key} must be a key of {_NAMES[kind.__name__]}, got {key!r}; {hint(key, known)}"
            )
    first = "op" if kind is OpSpec else "ops"
    if first not in given:
        raise InputError(f"{where}: {first} must be given, got only {', '.join(map(str, given)) or 'nothing'}")
    fields = dict(given)
    if kind is not OpSpec:
        fields["ops"] = _members(kind, given["ops"], f"{where}: ops")
    if "then" in fields:
        rules = _list(given["then"], f"{where}: then", "passes")
        fields["then"] = tuple(_build(Rule, rule, f"{where}: then[{k}]") for k, rule in enumerate(rules))
    if "levels" in fields and isinstance(given["levels"], Mapping):
        levels = given["levels"].items()
        fields["levels"] = {name: _parse_levels(value, f"{where}: levels: {name}") for name, value in levels}
    if "differs" in fields:
        fields["differs"] = tuple(map(str, _list(given["differs"], f"{where}: differs", "sentences")))
    try:
        return kind(**fields)
    except InputError as error:
        reason = str(error).removeprefix("DegradationSpace: ")
        # What was given may be long: a table in place of a space.
        reason = reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 100]} ... {reason[-100:]}"
        raise InputError(f"{where}: {reason}") from error


def _members(kind: type[Any], given: object, where: str) -> tuple[Any, ...]:
    """Make the members of a rule (op names, OpSpecs, Groups) or of a group (op names, OpSpecs)."""
    members = []
    for k, member in enumerate(_list(given, where, "ops")):
        here = f"{where}[{k}]"
        if isinstance(member, Mapping) and "ops" in member and kind is not Group:
            members.append(_build(Group, member, here))
        elif isinstance(member, Mapping):
            members.append(_build(OpSpec, member, here))
        elif isinstance(member, str):
            members.append(member)
        else:
            raise InputError(
                f"{where}[{k}] must be the name of an op, or a mapping with op or ops, got {member!r:.100}"
            )
    return tuple(members)


def _list(given: object, where: str, of: str) -> list[Any]:
    if not isinstance(given, list):
        raise InputError(f"{where} must be a list of {of}, got {given!r:.100}")
    if len(given) > _MOST_MEMBERS:
        raise InputError(f"{where} must be a list of at most {_MOST_MEMBERS} {of}, got {len(given)}")
    return given


def _parse_levels(given: object, where: str) -> Any:
    """Turn ``{uniform: [low, high]}`` into a UniformRange, ``{by_level: [mild, strong]}`` into a ByLevel, else keep."""
    if isinstance(given, list):
        return tuple(
            tuple(v) if isinstance(v, list) else _parse_levels(v, f"{where}: level {k}") if k <= LEVELS else v
            for k, v in enumerate(given, 1)
        )
    if not isinstance(given, Mapping):
        return given
    kinds = {"uniform": UniformRange, "by_level": ByLevel}
    name = next(iter(given), None)
    ends = given.get(name)
    if len(given) != 1 or name not in kinds or not isinstance(ends, list) or len(ends) != 2:
        raise InputError(
            f"{where} must be a number, {LEVELS} values, {{uniform: [low, high]}} or {{by_level: [mild, strong]}}, "
            f"got {dict(given)!s:.200}"
        )
    return kinds[name](*ends)


_LONGEST = 1000  # characters of a reason
_MOST_MEMBERS = 256  # compositions of thousands of ops take minutes to count
_NAMES = {
    "DegradationSpace": "a space",
    "Rule": "a pass",
    "Group": "a group",
    "OpSpec": "an op",
}
