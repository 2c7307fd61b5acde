"""The registry of the NumPy definitions: ``define`` enters a function under its own name. Imports nothing of qpt."""

from collections.abc import Callable, Sequence

import numpy as np

Definition = Callable[[np.ndarray, Sequence[float], int, int], np.ndarray]
REFERENCE: dict[str, Definition] = {}


def define(function: Definition) -> Definition:
    REFERENCE[function.__name__] = function
    return function
