"""The counter-based random words: SplitMix64's published outputs, independence of keys, ranges."""

import numpy as np

from qpt.degradations import random_bits


def test_splitmix64_known_answers():
    """The outputs of the reference C program (Vigna, prng.di.unimi.it/splitmix64.c) from state 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random_bits.words(np.array([1234567], np.uint64), 4)[0].tolist() == expected


def test_words_depend_on_their_key_and_place_alone():
    keys = np.array([0, -1, 5, 2**62], np.int64)
    words = random_bits.words(keys, 6)
    assert np.array_equal(random_bits.words(keys[2:3], 4)[0], words[2, :4])
    assert len(np.unique(words)) == words.size


def test_subkeys_of_neighbouring_seeds_and_paths_are_all_different():
    seeds = np.arange(-50, 50)
    keys = [random_bits.subkey(seeds, view, attempt) for view in range(8) for attempt in range(8)]
    keys += [random_bits.subkey(seeds), *(random_bits.subkey(seeds, view) for view in range(8))]
    assert len(np.unique(np.concatenate(keys))) == 100 * (64 + 9)


def test_ranges_include_both_ends():
    ends = np.array([0, 2**64 - 1], np.uint64)
    assert random_bits.to_unit(ends).tolist() == [0.0, 1 - 2.0**-53]
    assert random_bits.below(ends, 29).tolist() == [0, 28]
    assert random_bits.below(ends, 1).tolist() == [0, 0]
