"""The kinds of error a user of QPT can meet; everything else is a bug.

Raised by every public entry, printed as one line by the command line (``qpt.cli``).
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Sequence


class InputError(ValueError):
    """An argument is wrong. The message names the argument, what it must be and what was given."""


class BackendError(RuntimeError):
    """A compiled backend is missing or unusable. The message says what was tried, why, and the command that fixes
    it."""


class StalledError(RuntimeError):
    """Photographs stopped coming. The message says for how long, and which files were being decoded."""


def describe(value: object) -> str:
    """Name a value in an error message: ``(8, 3) float32`` for a tensor, ``(8, 3) float32 ndarray`` for an array.

    Anything without a shape and a dtype is named by its type.
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    kind = type(value)
    if shape is None or dtype is None:
        return kind.__name__
    suffix = "" if kind.__module__.partition(".")[0] == "torch" else f" {kind.__name__}"
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}{suffix}"


def check_int(caller: str, name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value``, an integer in low..high, as an int; NumPy's integers are allowed, a bool is not.

    Raises InputError for anything else.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if number >= low and (high is None or number <= high):
            return number
    rule = f"of at least {low}" if high is None else f"in {low}..{high}"
    raise InputError(f"{caller}: {name} must be an integer {rule}, got {value!r}")


def hint(given: object, known: Sequence[str], *, most: int = 1, cutoff: float = 0.5) -> str:
    """What an error message says of a misspelt name: ``did you mean a or b?``, at most so many, or the known ones."""
    near = difflib.get_close_matches(str(given), known, n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
