"""Counter-based random words on NumPy arrays of keys: a word depends on its key and its position only.

Used by ``qpt.degradations.space``, ``sampling`` and ``program`` to draw ops, levels and parameters, a few dozen words
per row. The random numbers of pixels come from Philox instead (``csrc/philox.h``).

Source: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's output function, a bijection of 64-bit words, to a uint64 array."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(keys: np.ndarray, count: int) -> np.ndarray:
    """Return the first ``count`` SplitMix64 outputs from each state in ``keys``: (r,) 64-bit -> uint64 (r, count)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return mix(np.ascontiguousarray(keys).view(np.uint64)[:, None] + steps)


def subkey(seeds: np.ndarray, *path: int) -> np.ndarray:
    """Return a key for each seed and a path of small integers from 0 (view and attempt, say).

    Keys of different seeds or paths are statistically independent.
    """
    keys = mix(np.ascontiguousarray(seeds).view(np.uint64) + _GOLDEN)
    for step in path:
        keys = mix(keys + np.array(step + 1, np.uint64) * _GOLDEN)
    return keys


def to_unit(random_words: np.ndarray) -> np.ndarray:
    """Turn uint64 words into float64 numbers in [0, 1), multiples of 2^-53."""
    return (random_words >> np.uint64(11)) * 2.0**-53


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` numbers in [0, 1) for each key: (r,) 64-bit -> float64 (r, count)."""
    return to_unit(words(keys, count))


def below(random_words: np.ndarray, bound: int) -> np.ndarray:
    """Turn uint64 words into integers in [0, bound), bound < 2^31; the bias is below bound / 2^32."""
    return ((random_words >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)
