"""Counter-based random words: what is drawn depends only on the key and the position, never on who else draws.

Used by ``qpt.degradations.space`` and ``qpt.degradations.program``. Pixels get their numbers elsewhere (Philox, in
``csrc/philox.h``); these choose ops, levels and parameters, a few dozen words per row, on NumPy arrays of keys.

Source: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a bijection of 64-bit words. z: uint64 array; arithmetic is modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(keys: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` SplitMix64 outputs from each state in ``keys``: (r,) 64-bit -> uint64 (r, count)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return mix(np.ascontiguousarray(keys).view(np.uint64)[:, None] + steps)


def subkey(seeds: np.ndarray, *path: int) -> np.ndarray:
    """A key for each seed and each path of small integers from 0 (say view, attempt), unrelated to every other's."""
    keys = mix(np.ascontiguousarray(seeds).view(np.uint64) + _GOLDEN)
    for step in path:
        keys = mix(keys + np.array(step + 1, np.uint64) * _GOLDEN)
    return keys


def to_unit(random_words: np.ndarray) -> np.ndarray:
    """uint64 words to float64 in [0, 1), a multiple of 2^-53."""
    return (random_words >> np.uint64(11)) * 2.0**-53


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each key: (r,) 64-bit -> float64 (r, count)."""
    return to_unit(words(keys, count))


def below(random_words: np.ndarray, bound: int) -> np.ndarray:
    """uint64 words to integers in [0, bound), bound < 2^31; the bias is under bound / 2^32."""
    return ((random_words >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)
