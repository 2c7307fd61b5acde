"""DegradationSpace: the set of compositions a picture may go through, its exact size, and drawing from it.

Public as ``qpt.DegradationSpace``; drawn programs run through ``qpt.degrade``. Relies on ``qpt.degradations.rule``
(what a space is made of), the op table (``qpt.degradations.op_table``) and counter-based draws
(``qpt.degradations.random_bits``), so an image's chain depends on its own seed only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpt.degradations import counting, op_table, presets, random_bits, space_yaml
from qpt.degradations.op_table import LEVELS, SLOTS, Numbers
from qpt.degradations.program import Chain, Program, Step
from qpt.degradations.rule import MOST_SLOTS, ByLevel, Choice, Group, Rule, Uniform, is_number
from qpt.errors import InputError

__all__ = ["ByLevel", "Chain", "Choice", "DegradationSpace", "Group", "Program", "Rule", "Step", "Uniform"]

_MOST_ATTEMPTS = 10_000


@dataclass(frozen=True)
class DegradationSpace(Rule):
    """Compositions of min_ops..max_ops members of ``ops`` at levels 1..5, perhaps followed by more passes.

    The fields of ``Rule`` say how the first pass is drawn; then:

    then: further passes, each a ``Rule`` of its own, drawn after it (a second order).  pristine: probability that an
    image is left as it is, whatever the rules say.  source: where the rule and its numbers come from.  differs: what is
    not as there.  By default a draw takes the number of ops uniformly from min_ops..max_ops, then each op and each
    level uniformly.
    Raises InputError for an unknown or doubled name, no ops, or a number of ops the rule cannot reach.
    """

    then: tuple[Rule, ...] = ()
    pristine: float = 0.0
    source: str = field(default="", compare=False)
    differs: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.then, Sequence) or not all(type(rule) is Rule for rule in self.then):
            # not a DegradationSpace either: its own further passes would be lost
            raise InputError(f"DegradationSpace: then must be a list of passes, each a Rule, got {self.then!r}")
        object.__setattr__(self, "then", tuple(self.then))
        object.__setattr__(self, "differs", tuple(self.differs))
        most = sum(rule.max_ops for rule in self.passes)
        if most > MOST_SLOTS:
            raise InputError(f"DegradationSpace: max_ops of all passes must be {MOST_SLOTS} together, got {most}")
        if not is_number(self.pristine) or not 0 <= self.pristine <= 1:
            raise InputError(f"DegradationSpace: pristine must be a probability in 0..1, got {self.pristine!r}")
        object.__setattr__(self, "pristine", float(self.pristine))

    @staticmethod
    def preset(name: str) -> DegradationSpace:
        """A named space; see ``qpt.degradations.presets``. Raises InputError for an unknown name."""

        if name not in presets.NAMES:
            raise InputError(f"DegradationSpace.preset: name must be one of {', '.join(presets.NAMES)}, got {name!r}")
        return DegradationSpace.from_yaml(presets.path(name))

    @staticmethod
    def from_yaml(path: str | os.PathLike[str]) -> DegradationSpace:
        """A space written down: a YAML mapping whose keys are these fields.

        Raises InputError naming the file, the key, what it must be and what was given.
        """
        return space_yaml.read(DegradationSpace, path)

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The space as YAML, also written to ``path`` if given; ``from_yaml`` of it is equal to this one."""
        return space_yaml.write(self, path)

    @staticmethod
    def named(name: str) -> DegradationSpace:
        """A preset by its name, or else a YAML file by its path. Raises InputError if it is neither."""

        if name in presets.NAMES:
            return DegradationSpace.preset(name)
        if not name.endswith((".yaml", ".yml")) and not os.path.exists(name):
            raise InputError(
                f"DegradationSpace: space must be one of {', '.join(presets.NAMES)} or a YAML file, got {name!r}"
            )
        return DegradationSpace.from_yaml(name)

    @property
    def passes(self) -> tuple[Rule, ...]:
        """This rule, then the further ones."""
        return (self, *self.then)

    @functools.cached_property
    def types(self) -> tuple[Choice, ...]:
        """What compositions are made of, each once, in the order of mention: an op with one set of numbers.

        A source that has an op under two names, or with other numbers in a second pass, has two types of it.
        """
        choices = (choice for rule in self.passes for group in rule.groups for choice in group.choices)
        return tuple({choice.type: choice for choice in reversed(list(choices))}.values())[::-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Each op of the space once, in the order of mention."""
        return tuple(dict.fromkeys(choice.op for choice in self.types))

    def size(self, levels: bool = False) -> int:
        """The exact number of distinct compositions, by type, or by (type, level) with ``levels=True``."""
        return counting.count_compositions(self.passes, levels=levels, pristine=self.pristine > 0)

    def fingerprint(self) -> str:
        """16 hex digits that change whenever the rules, their numbers or the op table change."""
        meaning = {key: value for key, value in space_yaml.plain(self).items() if key not in ("source", "differs")}
        canonical = json.dumps([op_table.fingerprint(), meaning], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """The whole space in words, pass by pass."""
        words = "; then ".join(map(Rule.describe, self.passes))
        return f"{words}; pristine with probability {self.pristine:g}" if self.pristine else words

    def sample(
        self, n: int, *, views: int = 1, generator: torch.Generator | None = None, distinct: bool = True
    ) -> Program:
        """A program of n * views rows: row i degrades image i // views.

        generator: a CPU generator, or None for torch's default one; it supplies one seed per image and
        ``sample_seeded`` does the rest.
        """
        _whole("sample", "n", n, 0)
        if generator is not None and generator.device.type != "cpu":
            raise InputError(f"DegradationSpace.sample: generator must be on the CPU, got {generator.device}")
        seeds = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator, dtype=torch.int64)
        return self.sample_seeded(seeds, views=views, distinct=distinct)

    def sample_seeded(self, seeds: Tensor, views: int = 1, *, distinct: bool = True) -> Program:
        """A program in which each image's rows derive from that image's seed alone.

        seeds: int64 (n,) on the CPU.  distinct: no two views of one image have the same (type, level) list; a view that
        equals an earlier one is drawn again.  Returns n * views rows, ``source`` = row // views.
        Raises InputError for other seeds, views < 1, or more distinct views than the space has compositions (or than
        10,000 redraws find, where weights make some all but impossible).
        """
        if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64 or seeds.ndim != 1 or seeds.device.type != "cpu":
            got = f"{tuple(seeds.shape)} {seeds.dtype} on {seeds.device}" if isinstance(seeds, Tensor) else type(seeds)
            raise InputError(f"DegradationSpace.sample_seeded: seeds must be (n,) int64 on the CPU, got {got}")
        _whole("sample_seeded", "views", views, 1)
        if distinct and views > 1 and views > self._size_with_levels:
            raise InputError(
                f"DegradationSpace.sample_seeded: views must be at most the {self._size_with_levels} compositions of "
                f"this space when distinct, got {views}"
            )
        image_seeds = seeds.numpy()
        n = len(image_seeds)
        # [n, views, ...]: all first attempts at once, then only the views that equal an earlier one
        keys = np.stack([random_bits.subkey(image_seeds, view, 0) for view in range(views)], axis=1)
        drawn = [values.reshape(n, views, *values.shape[1:]) for values in self._draw(keys.reshape(-1))]
        types, levels = drawn[0], drawn[1]
        for view in range(1, views) if distinct else ():
            clash, attempt = np.arange(n), 0
            while True:
                same = (types[clash, :view] == types[clash, view : view + 1]) & (
                    levels[clash, :view] == levels[clash, view : view + 1]
                )
                clash = clash[same.all(axis=-1).any(axis=-1)]
                if not len(clash):
                    break
                attempt += 1
                if attempt > _MOST_ATTEMPTS:
                    raise InputError(
                        f"DegradationSpace.sample_seeded: views must be few enough to differ, got {views}: "
                        f"{_MOST_ATTEMPTS} redraws of one view found no other composition"
                    )
                again = self._draw(random_bits.subkey(image_seeds[clash], view, attempt))
                for values, new in zip(drawn, again, strict=True):
                    values[clash, view] = new
        drawn[0] = np.where(types < 0, -1, self._ids[types])
        row_ops, row_levels, row_params, row_seeds = (torch.from_numpy(values).flatten(0, 1) for values in drawn)
        source = torch.arange(n, dtype=torch.int32).repeat_interleave(views)
        return Program(row_ops, row_levels, row_params, row_seeds, source, op_table.fingerprint())

    def every_level(self, n: int, *, seed: int) -> Program:
        """Each op of the space alone at each level, for n images: n * len(types) * 5 rows by (image, type, level).

        seed: any int64; every row gets a seed of its own from it.
        """
        _whole("every_level", "n", n, 0)
        _whole("every_level", "seed", seed, -(2**63), 2**63 - 1)
        rows = n * len(self.types) * LEVELS
        seeds = random_bits.words(random_bits.subkey(np.array([seed], np.int64)), rows)[0].astype(np.int64)
        return self.single_ops(seeds.tolist())

    def single_ops(self, seeds: Sequence[int]) -> Program:
        """Each op of the space alone at each level, with these seeds: rows ordered by (image, type, level).

        seeds: int64, one per row, as many as a multiple of len(types) * 5.  Rows of one op with one seed share its
        sign, angle and noise.
        """
        each = len(self.types) * LEVELS
        if len(seeds) % each:
            raise InputError(f"DegradationSpace.single_ops: seeds must be a multiple of {each}, got {len(seeds)}")
        numbers = Numbers.of([(choice.op, choice.levels) for choice in self.types])
        images = len(seeds) // each
        place = np.tile(np.repeat(np.arange(len(self.types)), LEVELS), images)[:, None]
        level = np.tile(np.arange(1, LEVELS + 1), len(self.types) * images)[:, None]
        keys = np.array(seeds, np.int64)
        params = op_table.draw_params(place, level, random_bits.uniform(keys, SLOTS)[:, None], numbers)
        source = torch.arange(images, dtype=torch.int32).repeat_interleave(each)
        ops, levels = torch.from_numpy(numbers.ids[place]), torch.from_numpy(level.astype(np.int8))
        tensors = (ops, levels, torch.from_numpy(params), torch.from_numpy(keys), source)
        return Program(*tensors, op_table.fingerprint())

    @functools.cached_property
    def _size_with_levels(self) -> int:
        return self.size(levels=True)

    @functools.cached_property
    def _plans(self) -> tuple[_Plan, ...]:
        places = {choice.type: place for place, choice in enumerate(self.types)}
        return tuple(_Plan(rule, places) for rule in self.passes)

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """The op id of each type."""
        return np.array([op_table.op_id(choice.op) for choice in self.types], np.int16)

    def _draw(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One row per key: places in ``types`` int64 [r, S] (-1: unused), levels int8 [r, S], params float32
        [r, S, SLOTS], seeds int64 [r]."""
        passes = [plan.draw(random_bits.subkey(keys, k) if k else keys) for k, plan in enumerate(self._plans)]
        types, levels, params = (np.concatenate(parts, axis=1) for parts in zip(*passes, strict=True))
        if self.pristine:
            u = random_bits.uniform(random_bits.subkey(keys, len(passes)), 1)
            types, levels = np.where(u < self.pristine, -1, types), np.where(u < self.pristine, 0, levels)
            params = np.where(u[..., None] < self.pristine, 0, params)
        order = np.argsort(types < 0, axis=1, kind="stable")  # unused slots last: equal lists are equal arrays
        types, levels = np.take_along_axis(types, order, axis=1), np.take_along_axis(levels, order, axis=1)
        params = np.take_along_axis(params, order[..., None], axis=1)
        seeds = random_bits.words(keys, 1)[:, 0].astype(np.int64)
        return types, levels.astype(np.int8), params.astype(np.float32), seeds


class _Plan:
    """One pass, laid out as arrays for drawing many rows at once."""

    def __init__(self, rule: Rule, places: Mapping[Any, int]) -> None:
        groups = rule.groups
        choices = [choice for group in groups for choice in group.choices]
        self.rule = rule
        self.types = np.array([places[choice.type] for choice in choices])
        self.numbers = Numbers.of([(choice.op, choice.levels) for choice in choices])
        self.has_levels = np.array([choice.has_levels for choice in choices])
        self.weights = np.array([group.weight for group in groups])
        self.probability = np.array([group.probability for group in groups])
        self.number_shares = _shares(rule.number_weights) if rule.number_weights else None
        self.level_shares = _shares(rule.level_weights)
        counts = [len(group.choices) for group in groups]
        self.first = np.cumsum([0, *counts[:-1]])  # a group's first choice among all of them
        # Upper ends of each choice's share of [0, 1), filled up with 1: as many as are passed are skipped.
        self.choice_shares = np.ones((len(groups), max(counts)))
        for shares, group in zip(self.choice_shares, groups, strict=True):
            shares[: len(group.choices)] = _shares([choice.weight for choice in group.choices])

    def draw(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Types [r, S], levels [r, S] and params [r, S, SLOTS] of one pass; slots left out are -1, 0 and 0."""
        rule, slots, members = self.rule, self.rule.max_ops, len(self.weights)
        picks = slots if rule.repeat else members
        words = random_bits.words(keys, 2 + picks + slots * (3 + SLOTS))  # the first word is the row's seed
        which, rest = words[:, 2 : 2 + picks], words[:, 2 + picks :].reshape(len(keys), 3 + SLOTS, slots)
        count = rule.min_ops + _pick(words[:, 1], rule.max_ops - rule.min_ops + 1, self.number_shares)
        equal = (self.weights == self.weights[0]).all()
        if rule.repeat:
            place = _pick(which, members, None if equal else _shares(self.weights))
        else:  # the first of a random permutation; with weights, the first arrivals of a race at these rates
            arrival = which if equal else -np.log1p(-random_bits.to_unit(which)) / self.weights
            place = np.argsort(arrival, axis=1, kind="stable")[:, :slots]
        level = 1 + _pick(rest[:, 0], LEVELS, None if len(set(rule.level_weights)) == 1 else self.level_shares)
        params_u = random_bits.to_unit(rest[:, 1 : 1 + SLOTS].reshape(len(keys), slots, SLOTS))
        choice = (random_bits.to_unit(rest[:, -2])[..., None] >= self.choice_shares[place]).sum(axis=-1)
        level = np.where(self.has_levels[self.first[place] + choice], level, 1)
        acts = (np.arange(slots) < count[:, None]) & (random_bits.to_unit(rest[:, -1]) < self.probability[place])
        if not rule.shuffle:
            position = (self.first[place] + choice) * (LEVELS + 1) + level
            order = np.argsort(np.where(acts, position, np.iinfo(np.int64).max), axis=1, kind="stable")
            place, choice, level, acts = (np.take_along_axis(a, order, axis=1) for a in (place, choice, level, acts))
        entry, level = np.where(acts, self.first[place] + choice, -1), np.where(acts, level, 0)
        params = op_table.draw_params(entry, level, params_u, self.numbers)
        return np.where(acts, self.types[entry], -1), level, params


def _shares(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Upper ends of the shares of [0, 1) that weights have; those of a trailing 0 are 1."""
    ends = np.cumsum(np.asarray(weights, np.float64))
    ends /= ends[-1]
    return ends


def _pick(words: np.ndarray, count: int, shares: np.ndarray | None) -> np.ndarray:
    """uint64 words to integers in [0, count): equally often, or by ``shares``."""
    if shares is None:
        return random_bits.below(words, count)
    return np.searchsorted(shares, random_bits.to_unit(words), side="right")


def _whole(caller: str, name: str, value: object, least: int, most: int = 2**31 - 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"DegradationSpace.{caller}: {name} must be an integer in {least}..{most}, got {value!r}")
