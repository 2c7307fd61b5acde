"""The kinds of error a user of QPT can meet; everything else is a bug.

Raised by every public entry, printed as one line by the command line (``qpt.cli``).
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Sequence
from decimal import Decimal


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


def describe_tensor(value: object) -> str:
    """Name a value that must be a tensor, as ``describe`` does; of a NumPy array, also say how it becomes one."""
    remedy = "; torch.from_numpy(...) makes a tensor of it" if type(value).__module__ == "numpy" else ""
    return describe(value) + (remedy if getattr(value, "shape", ()) else "")


def check_untransformed(caller: str, name: str, value: object, why: str) -> None:
    """Raise InputError for a tensor inside ``torch.vmap``, ``torch.func.grad`` and the like, which has no values."""
    import torch
    from torch._C._functorch import is_functorch_wrapped_tensor

    # A compiler's tensors are none of these, and it cannot trace the question.
    if not torch.compiler.is_compiling() and isinstance(value, torch.Tensor) and is_functorch_wrapped_tensor(value):
        raise InputError(
            f"{caller}: {name} must hold values, got a tensor that torch.func or vmap transforms; "
            f"call it outside of them: {why}"
        )


def as_integer(value: object) -> int | None:
    """Return whatever has ``__index__`` as an int: NumPy's and torch's integers too. None for a bool and all else."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_number(value: object) -> float | None:
    """Return a real number of any type as a float: of Python, NumPy or torch, a Fraction, a Decimal.

    None for a bool, for text and for all else.
    """
    if type(value) is float:
        return value
    dtype = getattr(value, "dtype", None)
    # Without axes: an older NumPy makes a float of an array that holds one number.
    of_numpy = getattr(dtype, "kind", "") in ("i", "u", "f") and getattr(value, "shape", None) == ()
    real = isinstance(value, (numbers.Real, Decimal)) or of_numpy
    real |= getattr(dtype, "is_floating_point", False) is True
    if isinstance(value, bool) or not real:
        value = as_integer(value)
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # several numbers, or none that is a float
        return None


def as_flag(value: object) -> bool | None:
    """Return a bool, NumPy's too, as a bool. None for all else."""
    return bool(value) if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool" else None


def check_int(caller: str, name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value``, an integer in low..high, as an int; see ``as_integer`` for what counts as one.

    Raises InputError for anything else.
    """
    number = as_integer(value)
    if number is not None and number >= low and (high is None or number <= high):
        return number
    rule = f"of at least {low}" if high is None else f"in {low}..{high}"
    raise InputError(f"{caller}: {name} must be an integer {rule}, got {value!r:.200}")


def check_number(
    caller: str, name: str, value: object, *, above: float | None = None, least: float | None = None
) -> float:
    """Return ``value``, a finite number, as a float; see ``as_number`` for what counts as one.

    above, least: the number must be greater than this, or at least this. Raises InputError for anything else.
    """
    number = as_number(value)
    fits = number is not None and math.isfinite(number) and (above is None or number > above)
    if number is not None and fits and (least is None or number >= least):
        return number
    rule = "" if above is None else f" above {above:g}"
    rule = rule if least is None else f" of at least {least:g}"
    raise InputError(f"{caller}: {name} must be a finite number{rule}, got {value!r:.200}")


def hint(given: object, known: Sequence[str], *, most: int = 1, cutoff: float = 0.5) -> str:
    """Return the end of a message on a misspelt name: ``did you mean a or b?``, at most so many, or the known ones."""
    near = difflib.get_close_matches(str(given), known, n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
