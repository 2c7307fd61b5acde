"""Bytes of torch's memory that the custom ops take while they run, beyond their inputs and outputs.

A trace with fake tensors sees an op's outputs only; ``qpt/planning/trace.py`` adds the numbers of this file. They
follow the allocations of ``qpt/ops/degrade`` and ``qpt/ops/contrastive``; tests/test_plan.py compares. Tensors of a
few numbers are left out.
"""

from __future__ import annotations

from qpt.ops import extension
from qpt.ops.contrastive.backend_torch import LOOKUP_ROWS, LOOKUP_ROWS_ACCELERATOR

_FLOAT, _ID = 4, 8  # bytes
_STRIP = 64  # backend_cpp.py pads rows of the symmetric form to it
_PARTIAL = 8 << 20  # bytes of partial sums, at most, where there are several parts: contrastive_launch.parts_for
_MATCH = 2 * _ID + 3  # bytes per key while its id is looked up: slot, id found, three comparisons


def degrade_bytes(rows: int, slots: int, patches: int, side: int, *, resizes: bool, teams: int, gpu: bool) -> int:
    """Return the scratch and the row descriptions of ``degrade_patches`` on ``side`` x ``side`` regions.

    rows, slots: of the program, some row of which ``resizes``.  teams: threads (CPU) or resident blocks (``gpu``): the
    most that a launch takes, which is what it takes if each block has a row of its own.
    """
    own = extension.load()
    of_team = (
        own.team_scratch_bytes(side, side, resizes, True, 1) if gpu else own.scratch_bytes(side, side, resizes, True)
    )
    scratch = min(rows, teams) * of_team
    ops, params, ids, windows, boxes = 2 * slots, 16 * slots, 8 + 4 + 4, 5 * 4, 2 * 4 * patches
    return int(scratch) + rows * (ops + params + ids + windows + boxes)


def contrastive_forward_bytes(queries: int, pool: int, dim: int, *, native: bool, graded: bool = False) -> int:
    """Return the workspace of the loss of ``queries`` rows of length ``dim`` against as many keys and ``pool`` more.

    native: the C++ form on the CPU; else Triton on a GPU. graded: with severities. The backward takes nothing beyond
    its output.
    """
    row = queries * dim * _FLOAT
    if native and not graded:
        return 0  # the C++ form has its partial sums (at most 4 MiB) from malloc
    if native:
        # Sums of positives, then softmax means of the batch and of the pool, each with the parts that it is made of.
        # The output's gradient is made from them at the end, and looked at for what is not finite: a copy and flags.
        peak = max(2 * row + _native_parts(queries, queries, dim), 4 * row + 3 * queries * dim)
        if pool:
            peak = max(peak, 3 * row + _native_parts(queries, pool, dim))
        return peak - row + queries * 3 * _ID
    sums = (2 if pool else 1) * row + row  # of positives, softmax means of the batch and of the pool
    ids = queries * 8 * _ID
    return sums + ids + max(row, _PARTIAL) + min(max(pool, queries), LOOKUP_ROWS_ACCELERATOR) * _MATCH


def contrastive_self_forward_bytes(rows: int, dim: int, *, native: bool) -> int:
    """Return the workspace of the loss whose queries and keys are the same rows."""
    if not native:
        return contrastive_forward_bytes(rows, 0, dim, native=False)
    # Sums of positives and ids are kept, and rows are packed; the packing is given back when the outputs are made.
    row = rows * dim * _FLOAT
    held = row + 4 * rows * _ID
    return max(held, held + _packed(rows, dim) - row - rows * (_FLOAT + _ID))


def contrastive_self_backward_bytes(rows: int, dim: int, *, native: bool) -> int:
    """Return the workspace of the gradient where queries and keys are the same rows."""
    row = rows * dim * _FLOAT
    if native:
        padded = rows * _padded(dim) * _FLOAT if _padded(dim) != dim else 0  # copied into the output
        pulls = row + min(rows, LOOKUP_ROWS) * dim * _FLOAT
        return max(_packed(rows, dim) + padded, pulls) + 4 * rows * _ID
    return 2 * row + max(row, _PARTIAL) + min(rows, LOOKUP_ROWS_ACCELERATOR) * (_MATCH + 2 * dim * _FLOAT)


def _native_parts(rows: int, stream: int, dim: int) -> int:
    """Return what ``backend_cpp._pass`` allocates for the parts of its stream."""
    parts = extension.load().contrastive_division(rows, stream, dim)[1]
    return int(parts) * rows * (dim + 2) * _FLOAT if parts > 1 else 0


def _packed(rows: int, dim: int) -> int:
    """Return what ``backend_cpp._symmetric`` allocates beside its result: packed rows, and a padded copy if needed."""
    padded = _padded(dim)
    copy = rows * padded * _FLOAT if padded != dim else 0
    return (rows + _STRIP) * padded * _FLOAT + copy


def _padded(dim: int) -> int:
    return -(-dim // _STRIP) * _STRIP
