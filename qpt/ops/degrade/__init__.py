"""``degrade`` and ``degrade_patches``: one call of a compiled engine for a batch of images.

``api.py`` checks the arguments (``checks.py``) and chooses an engine; ``cpu.py`` and ``cuda.py`` pass pointers to
``csrc/``; ``op.py`` registers the torch ops.
"""

from qpt.ops.degrade import op  # noqa: F401 - registers qpt::degrade and qpt::degrade_patches
