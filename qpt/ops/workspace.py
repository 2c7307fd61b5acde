"""Bytes of device memory that the custom ops take while they run, beyond their inputs and outputs.

A trace with fake tensors sees an op's outputs only; ``qpt.planning`` adds what stands here. Read off the code that
allocates: ``degrade.py`` and ``cuda.py``, ``loss.py`` and its backends; tests/test_plan.py compares with
allocations. Tensors of a few numbers are left out.
"""

from __future__ import annotations

from qpt.ops import extension
from qpt.ops.contrastive.loss import _LOOKUP, _LOOKUP_ACCELERATOR

_FLOAT, _ID = 4, 8  # bytes
_STRIP = 64  # backend_cpp.py pads rows of the symmetric form to it
_PARTIAL = 8 << 20  # bytes of partial sums, at most, where there are several parts: contrastive_launch.splits_for
_MATCH = 2 * _ID + 3  # bytes per key while its id is looked up: slot, id found, three comparisons


def degrade_bytes(rows: int, slots: int, patches: int, side: int, *, resizes: bool, teams: int) -> int:
    """Scratch and descriptions of ``degrade_patches`` on ``side`` x ``side`` regions.

    rows, slots: of the program, some row of which ``resizes``.  teams: threads (CPU) or resident blocks (GPU).
    """
    scratch = min(rows, teams) * extension.load().scratch_bytes(side, side, resizes, True)
    ops, params, ids, windows, boxes = 2 * slots, 16 * slots, 8 + 4 + 4, 5 * 4, 2 * 4 * patches
    return int(scratch) + rows * (ops + params + ids + windows + boxes)


def contrastive_forward_bytes(queries: int, pool: int, dim: int, *, same: bool, native: bool) -> int:
    """Of the loss of ``queries`` rows of length ``dim`` against as many keys and ``pool`` more.

    same: queries and keys are the same rows.  native: the C++ form on the CPU; else Triton on a GPU.
    """
    row = queries * dim * _FLOAT
    if native:
        # One call that allocates nothing; the symmetric form keeps sums of positives and ids, and packs its rows, which
        # it has given back when the outputs are made.
        held = row + 4 * queries * _ID
        return max(held, held + _packed(queries, dim) - row - queries * (_FLOAT + _ID)) if same else 0
    part = _LOOKUP_ACCELERATOR
    sums = (2 if pool else 1) * row + row  # of positives, softmax means of the batch and of the pool
    ids = queries * 8 * _ID
    return sums + ids + max(row, _PARTIAL) + min(max(pool, queries), part) * _MATCH


def contrastive_backward_bytes(queries: int, dim: int, *, native: bool) -> int:
    """Of the gradient where queries and keys are the same rows; otherwise there is none beyond the output."""
    row = queries * dim * _FLOAT
    if native:
        padded = queries * _padded(dim) * _FLOAT if _padded(dim) != dim else 0  # copied into the output
        pulls = row + min(queries, _LOOKUP) * dim * _FLOAT
        return max(_packed(queries, dim) + padded, pulls) + 4 * queries * _ID
    return 2 * row + max(row, _PARTIAL) + min(queries, _LOOKUP_ACCELERATOR) * (_MATCH + 2 * dim * _FLOAT)


def _packed(rows: int, dim: int) -> int:
    """What ``contrastive_cpp._same_rows`` allocates beside its result: packed rows, and a padded copy where needed."""
    padded = _padded(dim)
    copy = rows * padded * _FLOAT if padded != dim else 0
    return (rows + _STRIP) * padded * _FLOAT + copy


def _padded(dim: int) -> int:
    return -(-dim // _STRIP) * _STRIP
