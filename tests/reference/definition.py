"""The registry of the NumPy definitions: ``define`` registers a function by its name. Imports nothing of qpt."""

from collections.abc import Callable, Sequence

import numpy as np

Definition = Callable[[np.ndarray, Sequence[float], int, int], np.ndarray]
REFERENCE: dict[str, Definition] = {}


def define(function: Definition) -> Definition:
    """Register the definition of the op of this name."""
    REFERENCE[function.__name__] = function
    return function
