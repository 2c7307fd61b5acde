"""Tests of QPT. `tests/reference` holds plain NumPy definitions; rungs of the no-GPU ladder are listed in rungs.py."""
