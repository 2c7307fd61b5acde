"""The degradations as NumPy float64 definitions, written from their sources; imports nothing of qpt.

``REFERENCE[name](image, params, seed, slot)`` takes (H, W, 3) uint8 and the op's parameters and returns the exact
result as (H, W, 3) float64 in [0, 255], before the last rounding. An implementation is correct if it differs by at most
half a grey level, plus its own arithmetic error. Used by tests/test_ops.py. The definition of a new op goes into the
file of its family, one of those imported here.
"""

from tests.reference import blurs, by_source, colour, geometry, jpeg2000, noise, shapes
from tests.reference.definition import REFERENCE

__all__ = ["REFERENCE", "blurs", "by_source", "colour", "geometry", "jpeg2000", "noise", "shapes"]
