"""The kinds of error a user of QPT can meet; everything else is a bug.

Raised by every public entry, printed as one line by the command line (``qpt.cli``).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """An argument is wrong. The message names the argument, what it must be and what was given."""


class BackendError(RuntimeError):
    """A compiled backend is missing or unusable. The message says what was tried, why, and the command that fixes
    it."""


class StalledError(RuntimeError):
    """Photographs stopped coming. The message says for how long, and which files were being decoded."""


def describe(value: object) -> str:
    """How an error message names what was given: ``(8, 3) float32`` for an array or tensor, else the type's name."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return type(value).__name__
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"


def hint(given: object, known: Sequence[str], *, most: int = 1, cutoff: float = 0.5) -> str:
    """What an error message says of a misspelt name: ``did you mean a or b?``, at most so many, or the known ones."""
    near = difflib.get_close_matches(str(given), known, n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
