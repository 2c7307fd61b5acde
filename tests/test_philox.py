"""Philox 4x32-10: the published known answers, and the engine compared with the NumPy definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpt import _C
from tests.reference.philox import philox4x32

# Random123 1.14 (D. E. Shaw Research), tests/kat_vectors, lines "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.rung("reference")
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert _C.philox(words(counter), words(key)) == words(result)
    definition = philox4x32(np.array([words(counter)], np.uint32), words(key))
    assert tuple(definition[0].tolist()) == words(result)


WORD = st.integers(0, 2**32 - 1)


@pytest.mark.rung("reference")
@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_engine_equals_definition(counter, key):
    assert _C.philox(counter, key) == tuple(philox4x32(np.array([counter], np.uint32), key)[0].tolist())
