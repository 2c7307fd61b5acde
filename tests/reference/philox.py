"""Philox 4x32-10 (Salmon et al., SC 2011) in NumPy, and the normal numbers that the noise ops use.

Imports nothing of qpt. The known answers are in tests/test_philox.py.
"""

import numpy as np

WORD = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: tuple[int, int], rounds: int = 10) -> np.ndarray:
    """Return the (n, 4) uint32 words of (n, 4) uint32 counters."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & WORD,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(counters: int, seed: int, slot: int, tag: int) -> np.ndarray:
    """Return the words of counters (0 .. counters - 1, slot, tag, 0) under the key (seed's low half, high half)."""
    counter = np.zeros((counters, 4), np.uint32)
    counter[:, 0] = np.arange(counters)
    counter[:, 1] = slot
    counter[:, 2] = tag
    return philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def element_words(count: int, seed: int, slot: int, tag: int) -> np.ndarray:
    """Return the words of elements 0 .. count - 1; e has word (e // 64) % 4 of counter 64 (e // 256) + e % 64."""
    blocks = -(-count // 256)
    return words(blocks * 64, seed, slot, tag).reshape(blocks, 64, 4).transpose(0, 2, 1).reshape(-1)[:count]


def normals(count: int, seed: int, slot: int, tag: int) -> np.ndarray:
    """Return standard normal numbers of elements 0 .. count - 1, float64.

    Elements are placed as by ``element_words``. Words 0, 1 and words 2, 3 of a counter are Box-Muller pairs (radius,
    angle) of 24 bits each: sqrt(-2 ln((r + 1) / 2^24)) times cos, sin of 2 pi a / 2^24.
    """
    blocks = -(-count // 256)
    drawn = words(blocks * 64, seed, slot, tag) >> np.uint32(8)
    radius = np.sqrt(-2 * np.log((drawn[:, 0::2].astype(np.float64) + 1) / 2**24))
    angle = 2 * np.pi * drawn[:, 1::2].astype(np.float64) / 2**24
    four = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)  # (counters, pair, cos or sin)
    return four.reshape(blocks, 64, 4).transpose(0, 2, 1).reshape(-1)[:count]
