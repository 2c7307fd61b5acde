"""DegradationSpace: the set of compositions a picture may go through, its exact size, and drawing from it.

Public as ``qpt.DegradationSpace``; drawn programs run through ``qpt.degrade``. Relies on the op table
(``qpt.degradations``) and on counter-based draws (``qpt.streams``), so an image's chain depends on its own seed only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpt import degradations, streams
from qpt.degradations import LEVELS, SLOTS
from qpt.errors import InputError
from qpt.program import Chain, Program, Step

__all__ = ["PRESETS", "Chain", "DegradationSpace", "Program", "Step", "count_compositions"]

_MOST_SLOTS = 64


def count_compositions(types: int, levels: int, min_ops: int, max_ops: int, *, repeat: bool, shuffle: bool) -> int:
    """How many distinct lists of min_ops..max_ops (type, level) pairs the rule allows; levels=1 counts by type.

    repeat, shuffle: s ordered draws of any pair, (types * levels)^s.  No repeat: a type occurs once, at any level,
    types! / (types - s)! * levels^s.  No shuffle: only one order of each list counts, so multisets of pairs with
    repeat, C(types * levels + s - 1, s), and C(types, s) * levels^s without.
    """
    total = 0
    for s in range(min_ops, max_ops + 1):
        if repeat and shuffle:
            total += (types * levels) ** s
        elif repeat:
            total += math.comb(types * levels + s - 1, s) if s else 1
        elif shuffle:
            total += math.perm(types, s) * levels**s
        else:
            total += math.comb(types, s) * levels**s
    return total


@dataclass(frozen=True)
class DegradationSpace:
    """Compositions of min_ops..max_ops named ops at levels 1..5.

    ops: names from the op table, each once.  repeat: an op may occur more than once.  shuffle: any order; otherwise ops
    act in the order of ``ops`` (and one op's repeats from its mildest level up).
    A draw takes the number of ops uniformly from min_ops..max_ops, then each op and each level uniformly.
    Raises InputError for an unknown or doubled name, no ops, or a number of ops the rule cannot reach.
    """

    ops: tuple[str, ...]
    max_ops: int = 5
    min_ops: int = 0
    repeat: bool = True
    shuffle: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.ops, str) or not self.ops:
            raise InputError(f"DegradationSpace: ops must be a tuple of op names, at least one, got {self.ops!r}")
        object.__setattr__(self, "ops", tuple(self.ops))
        for name in self.ops:
            degradations.op_id(name, "DegradationSpace")
        doubled = sorted({name for name in self.ops if self.ops.count(name) > 1})
        if doubled:
            raise InputError(f"DegradationSpace: ops must name each op once, got {', '.join(doubled)} more than once")
        most = _MOST_SLOTS if self.repeat else min(len(self.ops), _MOST_SLOTS)
        for field in ("max_ops", "min_ops"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                why = "" if self.repeat else f" ({len(self.ops)} ops without repetition)"
                raise InputError(f"DegradationSpace: {field} must be an integer in 0..{most}{why}, got {value!r}")
        if self.min_ops > self.max_ops:
            raise InputError(f"DegradationSpace: min_ops must be at most max_ops = {self.max_ops}, got {self.min_ops}")

    @staticmethod
    def preset(name: str) -> DegradationSpace:
        """A named space; see ``qpt.space.PRESETS``. Raises InputError for an unknown name."""
        if name not in PRESETS:
            raise InputError(f"DegradationSpace.preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]()

    def size(self, levels: bool = False) -> int:
        """The exact number of distinct compositions, by type, or by (type, level) with ``levels=True``."""
        return count_compositions(
            len(self.ops),
            LEVELS if levels else 1,
            self.min_ops,
            self.max_ops,
            repeat=self.repeat,
            shuffle=self.shuffle,
        )

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

        seeds: int64 (n,) on the CPU.  distinct: no two views of one image have the same (op, level) list; a view that
        equals an earlier one is drawn again.  Returns n * views rows, ``source`` = row // views.
        Raises InputError for other seeds, views < 1, or more distinct views than the space has compositions.
        """
        if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64 or seeds.ndim != 1 or seeds.device.type != "cpu":
            got = f"{tuple(seeds.shape)} {seeds.dtype} on {seeds.device}" if isinstance(seeds, Tensor) else type(seeds)
            raise InputError(f"DegradationSpace.sample_seeded: seeds must be (n,) int64 on the CPU, got {got}")
        _whole("sample_seeded", "views", views, 1)
        if distinct and views > self.size(levels=True):
            raise InputError(
                f"DegradationSpace.sample_seeded: views must be at most the {self.size(levels=True)} compositions of "
                f"this space when distinct, got {views}"
            )
        image_seeds = seeds.numpy()
        n = len(image_seeds)
        # [n, views, ...]: all first attempts at once, then only the views that equal an earlier one
        keys = np.stack([streams.subkey(image_seeds, view, 0) for view in range(views)], axis=1)
        drawn = [field.reshape(n, views, *field.shape[1:]) for field in self._draw(keys.reshape(-1))]
        ops, levels = drawn[0], drawn[1]
        for view in range(1, views) if distinct else ():
            clash, attempt = np.arange(n), 0
            while True:
                same = (ops[clash, :view] == ops[clash, view : view + 1]) & (
                    levels[clash, :view] == levels[clash, view : view + 1]
                )
                clash = clash[same.all(axis=-1).any(axis=-1)]
                if not len(clash):
                    break
                attempt += 1
                again = self._draw(streams.subkey(image_seeds[clash], view, attempt))
                for field, values in zip(drawn, again, strict=True):
                    field[clash, view] = values
        row_ops, row_levels, row_params, row_seeds = (torch.from_numpy(field).flatten(0, 1) for field in drawn)
        source = torch.arange(n, dtype=torch.int32).repeat_interleave(views)
        return Program(row_ops, row_levels, row_params, row_seeds, source, degradations.fingerprint())

    def every_level(self, n: int, *, seed: int) -> Program:
        """Each op of the space alone at each level, for n images: n * len(ops) * 5 rows ordered by (image, op, level).

        seed: any int64; every row gets a seed of its own from it.
        """
        _whole("every_level", "n", n, 0)
        _whole("every_level", "seed", seed, -(2**63), 2**63 - 1)
        chains = [[(name, level)] for name in self.ops for level in range(1, LEVELS + 1)]
        seeds = streams.words(streams.subkey(np.array([seed], np.int64)), n * len(chains))[0].astype(np.int64)
        source = np.repeat(np.arange(n), len(chains))
        return Program.from_chains(chains * n, seeds=seeds.tolist(), source=source.tolist())

    def _draw(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One row per key: ops int16 [r, S], levels int8 [r, S], params float32 [r, S, SLOTS], seeds int64 [r]."""
        r, slots, types = len(keys), self.max_ops, len(self.ops)
        picks = slots if self.repeat else types
        words = streams.words(keys, 2 + picks + slots * (1 + SLOTS))
        count = self.min_ops + streams.below(words[:, 1], self.max_ops - self.min_ops + 1)
        if self.repeat:
            place = streams.below(words[:, 2 : 2 + picks], types)  # index into self.ops
        else:  # the first draws of a random permutation
            place = np.argsort(words[:, 2 : 2 + picks], axis=1, kind="stable")[:, :slots]
        level = 1 + streams.below(words[:, 2 + picks : 2 + picks + slots], LEVELS)
        unused = np.arange(slots) >= count[:, None]
        place, level = np.where(unused, types, place), np.where(unused, 0, level)
        if not self.shuffle:  # unused slots have the highest place, so they stay last
            order = np.argsort(place * (LEVELS + 1) + level, axis=1, kind="stable")
            place, level = np.take_along_axis(place, order, axis=1), np.take_along_axis(level, order, axis=1)
        ids = np.array([*(degradations.op_id(name) for name in self.ops), -1], np.int16)
        ops = ids[place]
        u = streams.to_unit(words[:, 2 + picks + slots :]).reshape(r, slots, SLOTS)
        params = degradations.draw_params(ops, level, u)
        return ops, level.astype(np.int8), params, words[:, 0].astype(np.int64)


def _whole(caller: str, name: str, value: object, least: int, most: int = 2**31 - 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"DegradationSpace.{caller}: {name} must be an integer in {least}..{most}, got {value!r}")


# 29 types: with them the rule below gives the size that the paper states. The op table has more.
_QPT_OPS = (
    "gaussian_blur",
    "gaussian_blur_aniso",
    "motion_blur",
    "defocus_blur",
    "median_blur",
    "glass_blur",
    "zoom_blur",
    "unsharp_mask",
    "gaussian_noise",
    "gaussian_noise_grey",
    "gaussian_noise_ycbcr",
    "speckle_noise",
    "impulse_noise",
    "poisson_noise",
    "jpeg",
    "rescale_nearest",
    "rescale_bilinear",
    "rescale_bicubic",
    "pixelate",
    "brightness",
    "mean_shift",
    "gamma",
    "contrast",
    "contrast_curve",
    "saturation",
    "hue",
    "quantise",
    "colour_diffusion",
    "colour_shift",
)


def _qpt() -> DegradationSpace:
    """At most five ordered draws, with repetition, of 29 types.

    This is the rule of Zhao et al. (CVPR 2023), which gives their "roughly 2 * 10^7" compositions: 29 types make
    29^0 + ... + 29^5 = 21,243,690 by type. Their list of types is not public; this one is ours.
    """
    return DegradationSpace(ops=_QPT_OPS, max_ops=5, min_ops=0, repeat=True, shuffle=True)


PRESETS: dict[str, Callable[[], DegradationSpace]] = {"qpt": _qpt}
