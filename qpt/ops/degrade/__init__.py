"""``degrade`` and ``degrade_patches``: one call of the compiled engine for a batch of images.

``api.py`` checks and chooses, ``cpu.py`` and ``cuda.py`` pass pointers to ``csrc/``, ``op.py`` registers the torch ops.
"""

from qpt.ops.degrade import op  # noqa: F401 - registers qpt::degrade and qpt::degrade_patches
