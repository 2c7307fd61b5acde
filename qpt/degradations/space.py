"""DegradationSpace: the set of compositions that an image may go through, its exact size, and drawing from it.

Public as ``qpt.DegradationSpace``; ``qpt.degrade`` runs the programs that are drawn. Relies on ``rule`` (the parts of a
space), ``sampling`` (drawing), ``counting`` (the size) and ``space_yaml``, all of this folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qpt.degradations import counting, op_table, presets, random_bits, space_yaml
from qpt.degradations.op_table import LEVELS, MAX_PARAMS
from qpt.degradations.program import Chain, Program, Step
from qpt.degradations.rule import MAX_SLOTS, ByLevel, Group, OpSpec, Rule, UniformRange, is_number
from qpt.degradations.sampling import LevelArrays, RuleSampler, draw_params, pick_true
from qpt.errors import InputError, check_int, check_number, describe_tensor

__all__ = ["ByLevel", "Chain", "DegradationSpace", "Group", "OpSpec", "Program", "Rule", "Step", "UniformRange"]

_MAX_ATTEMPTS = 10_000
_SIBLINGS = 2**31  # the place of a view in the path of a key that no view has


@dataclass(frozen=True)
class DegradationSpace(Rule):
    """Compositions of min_ops..max_ops members of ``ops`` at levels 1..5, and of further passes after them.

    The fields of ``Rule`` say how the first pass is drawn. By default the number of ops is uniform in min_ops..max_ops,
    and so are each op and each level.

    then: further passes, each a ``Rule``, drawn after the first (a second order).  pristine: probability that an image
    is left unchanged, whatever the rules say.  source: where the rules and their values come from.  differs: what
    differs from the source.  revision: of a preset, increased when its rules or values change.
    Raises InputError for an unknown or repeated name, no ops, or a number of ops that the rule cannot reach.
    """

    then: tuple[Rule, ...] = ()
    pristine: float = 0.0
    source: str = field(default="", compare=False)
    differs: tuple[str, ...] = field(default=(), compare=False)
    revision: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.then, Sequence) or not all(type(rule) is Rule for rule in self.then):
            # A DegradationSpace is a Rule too, but its own further passes would be lost.
            raise InputError(f"DegradationSpace: then must be a list of passes, each a Rule, got {self.then!r}")
        object.__setattr__(self, "then", tuple(self.then))
        object.__setattr__(self, "differs", tuple(self.differs))
        total = sum(rule.max_ops for rule in self.passes)
        if total > MAX_SLOTS:
            raise InputError(f"DegradationSpace: max_ops of all passes must be {MAX_SLOTS} together, got {total}")
        if not is_number(self.pristine) or not 0 <= self.pristine <= 1:
            raise InputError(f"DegradationSpace: pristine must be a probability in 0..1, got {self.pristine!r}")
        object.__setattr__(self, "pristine", float(self.pristine))
        object.__setattr__(self, "revision", check_int("DegradationSpace", "revision", self.revision, 1))

    @staticmethod
    def preset(name: str) -> DegradationSpace:
        """Return a named space of ``qpt.degradations.presets``; ``kadid@1`` is the first revision of ``kadid``.

        Raises InputError for an unknown name.
        """
        if not presets.is_preset(name):
            known = ", ".join((*presets.NAMES, *presets.earlier()))
            raise InputError(f"DegradationSpace.preset: name must be one of {known}, got {name!r}")
        return DegradationSpace.from_yaml(presets.path(name))

    @staticmethod
    def from_yaml(path: str | os.PathLike[str]) -> DegradationSpace:
        """Read a space from a YAML file, a mapping whose keys are these fields.

        Raises InputError naming the file, the key, what it must be and what was given.
        """
        return space_yaml.read(DegradationSpace, path)

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the space as YAML text, also written to ``path`` if given; ``from_yaml`` reads an equal one."""
        return space_yaml.write(self, path)

    @staticmethod
    def named(name: str | os.PathLike[str]) -> DegradationSpace:
        """Return the preset of that name or the space in a YAML file. Raises InputError if ``name`` is neither."""
        name = os.fspath(name)
        if presets.is_preset(name):
            return DegradationSpace.preset(name)
        if not name.endswith((".yaml", ".yml")) and not os.path.exists(name):
            raise InputError(
                f"DegradationSpace: space must be one of {', '.join(presets.NAMES)} or a YAML file, got {name!r}"
            )
        return DegradationSpace.from_yaml(name)

    @property
    def passes(self) -> tuple[Rule, ...]:
        """The rule of the first pass, then those of ``then``."""
        return (self, *self.then)

    @functools.cached_property
    def types(self) -> tuple[OpSpec, ...]:
        """The types that compositions are made of, each once, in the order of mention.

        A type is an op with one set of level values: an op that has other values in a second pass is two types.
        """
        specs = [spec for rule in self.passes for group in rule.groups for spec in group.specs]
        # Reversed twice, so that of equal types the spec that is mentioned first is kept.
        return tuple({spec.type: spec for spec in reversed(specs)}.values())[::-1]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the space's ops, each once, in the order of mention."""
        return tuple(dict.fromkeys(spec.op for spec in self.types))

    def size(self, levels: bool = False) -> int:
        """Return the exact number of distinct compositions: by type, or by (type, level) with ``levels=True``."""
        return counting.count_compositions(self.passes, levels=levels, pristine=self.pristine > 0)

    def fingerprint(self, table: str = "") -> str:
        """Return 16 hex digits that change whenever the rules, their values or the op table change.

        table: the fingerprint of the op table; this version's by default.
        """
        about = ("source", "differs", "revision")
        meaning = {key: value for key, value in space_yaml.plain(self).items() if key not in about}
        canonical = json.dumps([table or op_table.fingerprint(), meaning], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Return the space in words, pass by pass."""
        words = "; then ".join(map(Rule.describe, self.passes))
        return f"{words}; pristine with probability {self.pristine:g}" if self.pristine else words

    def sample(
        self, n: int, *, views: int = 1, generator: torch.Generator | None = None, distinct: bool = True
    ) -> Program:
        """Draw a program of n * views rows: row i degrades image i // views.

        generator: a CPU generator, or None for torch's default one; it gives one seed per image to ``sample_seeded``.
        """
        n = check_int("DegradationSpace.sample", "n", n, 0, 2**31 - 1)
        if generator is not None and generator.device.type != "cpu":
            raise InputError(f"DegradationSpace.sample: generator must be on the CPU, got {generator.device}")
        seeds = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator, dtype=torch.int64, device="cpu")
        return self.sample_seeded(seeds, views=views, distinct=distinct)

    def sample_seeded(self, seeds: Tensor, views: int = 1, *, distinct: bool = True, siblings: float = 0.0) -> Program:
        """Draw a program in which each image's rows depend on that image's seed alone.

        seeds: int64 (n,) on the CPU.  distinct: True if no two views of one image may have the same (type, level) list;
        a view that equals an earlier one is drawn again.  siblings: share of the images, in [0, 1], whose second view
        is the first one with another level of one op, in the same place; all other parameters and the seed of the row
        are those of the first view. The op is drawn uniformly among those that have another level, the level among
        those of the op's pass. An image whose first view has no such op, or whose sibling would equal a further view,
        keeps the second view that it has without siblings.  Returns n * views rows, ``source`` = row // views.
        Raises InputError for other seeds, views < 1, siblings with a single view, or more distinct views than the space
        has compositions (or than 10,000 redraws find, where the weights make some compositions nearly impossible).
        """
        if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64 or seeds.ndim != 1 or seeds.device.type != "cpu":
            got = describe_tensor(seeds) + (f" on {seeds.device}" if isinstance(seeds, Tensor) else "")
            raise InputError(f"DegradationSpace.sample_seeded: seeds must be (n,) int64 on the CPU, got {got}")
        views = check_int("DegradationSpace.sample_seeded", "views", views, 1, 2**31 - 1)
        siblings = check_number("DegradationSpace.sample_seeded", "siblings", siblings)
        if not 0 <= siblings <= (views > 1):
            rule = "in [0, 1], and 0 with a single view"
            raise InputError(f"DegradationSpace.sample_seeded: siblings must be {rule}, got {siblings:g}")
        if distinct and views > 1 and views > self._size_with_levels:
            raise InputError(
                f"DegradationSpace.sample_seeded: views must be at most the {self._size_with_levels} compositions of "
                f"this space when distinct, got {views}"
            )
        image_seeds = seeds.numpy()
        n = len(image_seeds)
        # [n, views, ...]: all first attempts at once, then only the views that equal an earlier one. A redraw has a key
        # of its own, (view, attempt), so that the other views and images do not notice it.
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
                if attempt > _MAX_ATTEMPTS:
                    raise InputError(
                        f"DegradationSpace.sample_seeded: views must be few enough to differ, got {views}: "
                        f"{_MAX_ATTEMPTS} redraws of one view found no other composition"
                    )
                again = self._draw(random_bits.subkey(image_seeds[clash], view, attempt))
                for values, new in zip(drawn, again, strict=True):
                    values[clash, view] = new
        if siblings and types.size:
            self._draw_siblings(image_seeds, drawn, siblings)
        drawn[0] = np.where(types < 0, -1, self._ids[types])
        row_ops, row_levels, row_params, row_seeds = (torch.from_numpy(values).flatten(0, 1) for values in drawn[:4])
        source = torch.arange(n, dtype=torch.int32, device="cpu").repeat_interleave(views)
        return Program(row_ops, row_levels, row_params, row_seeds, source, op_table.fingerprint())

    def every_level(self, n: int, *, seed: int) -> Program:
        """Make rows of each op of the space alone at each level, for n images.

        seed: any int64, from which every row gets a seed of its own.
        Returns n * len(types) * 5 rows, ordered by (image, type, level).
        """
        n = check_int("DegradationSpace.every_level", "n", n, 0, 2**31 - 1)
        seed = check_int("DegradationSpace.every_level", "seed", seed, -(2**63), 2**63 - 1)
        rows = n * len(self.types) * LEVELS
        seeds = random_bits.words(random_bits.subkey(np.array([seed], np.int64)), rows)[0].astype(np.int64)
        return self.single_ops(seeds.tolist())

    def single_ops(self, seeds: Sequence[int]) -> Program:
        """Make rows of each op of the space alone at each level, with these seeds.

        seeds: int64, one per row; their number is a multiple of len(types) * 5. Rows of one op that have the same seed
        have the same sign, angle and noise.  Returns rows ordered by (image, type, level).
        """
        each = len(self.types) * LEVELS
        if len(seeds) % each:
            raise InputError(f"DegradationSpace.single_ops: seeds must be a multiple of {each}, got {len(seeds)}")
        arrays = self._type_levels
        images = len(seeds) // each
        place = np.tile(np.repeat(np.arange(len(self.types)), LEVELS), images)[:, None]
        level = np.tile(np.arange(1, LEVELS + 1), len(self.types) * images)[:, None]
        keys = np.array(seeds, np.int64)
        params = draw_params(place, level, random_bits.uniform(keys, MAX_PARAMS)[:, None], arrays)
        source = torch.arange(images, dtype=torch.int32, device="cpu").repeat_interleave(each)
        ops, levels = torch.from_numpy(arrays.ids[place]), torch.from_numpy(level.astype(np.int8))
        tensors = (ops, levels, torch.from_numpy(params), torch.from_numpy(keys), source)
        return Program(*tensors, op_table.fingerprint())

    @functools.cached_property
    def _size_with_levels(self) -> int:
        return self.size(levels=True)

    @functools.cached_property
    def _samplers(self) -> tuple[RuleSampler, ...]:
        places = {spec.type: place for place, spec in enumerate(self.types)}
        return tuple(RuleSampler(rule, places) for rule in self.passes)

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """The op id of each type."""
        return np.array([op_table.op_id(spec.op) for spec in self.types], np.int16)

    @functools.cached_property
    def _type_levels(self) -> LevelArrays:
        return LevelArrays.of([(spec.op, spec.levels) for spec in self.types])

    def _draw(self, keys: np.ndarray) -> tuple[np.ndarray, ...]:
        """Draw one row per key.

        Returns places in ``types`` int64 [r, S] (-1: unused), levels int8 [r, S], params float32 [r, S, MAX_PARAMS],
        seeds int64 [r], and for siblings the pass of each slot int64 [r, S], and the numbers that the parameters were
        made of, float64 [r, S, MAX_PARAMS].
        """
        samplers = enumerate(self._samplers)
        passes = [sampler.draw(random_bits.subkey(keys, k) if k else keys) for k, sampler in samplers]
        types, levels, params, params_u = (np.concatenate(parts, axis=1) for parts in zip(*passes, strict=True))
        if self.pristine:
            u = random_bits.uniform(random_bits.subkey(keys, len(passes)), 1)
            types, levels = np.where(u < self.pristine, -1, types), np.where(u < self.pristine, 0, levels)
            params = np.where(u[..., None] < self.pristine, 0, params)
        # Unused slots go last, so that equal compositions are equal arrays.
        order = np.argsort(types < 0, axis=1, kind="stable")
        types, levels = np.take_along_axis(types, order, axis=1), np.take_along_axis(levels, order, axis=1)
        params, params_u = (np.take_along_axis(values, order[..., None], axis=1) for values in (params, params_u))
        seeds = random_bits.words(keys, 1)[:, 0].astype(np.int64)
        slot_passes = np.repeat(np.arange(len(passes)), [rule.max_ops for rule in self.passes])[order]
        return types, levels.astype(np.int8), params.astype(np.float32), seeds, slot_passes, params_u

    def _draw_siblings(self, image_seeds: np.ndarray, drawn: Sequence[np.ndarray], share: float) -> None:
        """Replace the second view of a share of the images by a sibling of the first; ``sample_seeded`` defines it.

        drawn: the arrays of ``_draw``, each [n, views, ...], which are changed in place.
        """
        types, levels, params, _, slot_passes, params_u = drawn
        images, first = np.arange(len(types)), types[:, 0]
        u = random_bits.uniform(random_bits.subkey(image_seeds, _SIBLINGS, 0), 3)
        # [n, S, LEVELS]: the levels that each op of the first view could have instead.
        has_levels = np.array([spec.has_levels for spec in self.types])
        of_pass = np.array([rule.level_weights for rule in self.passes]) > 0
        choices = of_pass[slot_passes[:, 0]] & ((first >= 0) & has_levels[first])[..., None]
        choices &= levels[:, 0, :, None] != np.arange(1, LEVELS + 1)
        slot = pick_true(choices.any(axis=2), u[:, 1])
        level = 1 + pick_true(choices[images, slot], u[:, 2])
        sibling = levels[:, 0].copy()
        sibling[images, slot] = level
        further = (types[:, 2:] == first[:, None]) & (levels[:, 2:] == sibling[:, None])
        chosen = (u[:, 0] < share) & choices.any(axis=(1, 2)) & ~further.all(axis=2).any(axis=1)
        chosen, slot = images[chosen], slot[chosen]
        for values in drawn:
            values[chosen, 1] = values[chosen, 0]
        levels[chosen, 1] = sibling[chosen]
        # From the numbers of the first view, so that a sign or an angle stays where the level leaves it random.
        of_slot = params_u[chosen, 0, slot]
        params[chosen, 1, slot] = draw_params(first[chosen, slot], level[chosen], of_slot, self._type_levels)
