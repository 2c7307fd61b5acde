"""The launch table of the contrastive loss's kernels: their programs, by device, dtype and embedding length.

Used by contrastive.py beside it, by benchmarks/resources.py and by the tests, which compile every row of the table.
"""

from __future__ import annotations

from typing import NamedTuple

import triton


class Launch(NamedTuple):
    """One entry: rows and stream rows of a tile, columns of one step of the first product and of the sums that one
    program keeps, warps, pipeline stages."""

    rows: int
    stream: int
    step: int
    columns: int
    warps: int
    stages: int


# (compute capability, tensor-core dtype?, D up to) -> Launch, the first that fits. Where `step` covers D, the rows stay
# on chip and a stream tile serves both products; where `columns` does not, a third grid axis computes the logits again
# for each slice of columns. Chosen by what compiles without spills (benchmarks/resources.py).
LAUNCHES: dict[tuple[int, bool, int], Launch] = {
    (80, True, 64): Launch(64, 64, 64, 64, 4, 3),
    (80, True, 128): Launch(64, 64, 128, 128, 4, 3),
    (80, True, 256): Launch(64, 64, 256, 256, 8, 2),
    (80, True, 1024): Launch(64, 32, 128, 512, 8, 2),
    (80, False, 64): Launch(64, 32, 64, 64, 8, 2),
    (80, False, 1024): Launch(64, 32, 32, 128, 8, 2),
    (90, True, 64): Launch(64, 64, 64, 64, 4, 3),
    (90, True, 128): Launch(64, 64, 128, 128, 4, 3),
    (90, True, 256): Launch(64, 32, 256, 256, 8, 2),
    (90, True, 1024): Launch(64, 32, 128, 512, 8, 2),
    (90, False, 64): Launch(64, 32, 64, 64, 8, 2),
    (90, False, 1024): Launch(64, 32, 64, 128, 8, 2),
}


def launch_for(capability: int, half: bool, dim: int) -> Launch:
    """Return the table's row for a device of this compute capability (8.0 is 80; newer than the table: its newest).

    The last row of a device and dtype, which walks D in steps, serves any D.
    """
    listed = max((known for known, *_ in LAUNCHES if known <= capability), default=min(known for known, *_ in LAUNCHES))
    tops = [top for known, kind, top in LAUNCHES if known == listed and kind == half]
    return LAUNCHES[listed, half, min((top for top in tops if top >= dim), default=max(tops))]


def parts_for(n_rows: int, n_stream: int, dim: int, launch: Launch, multiprocessors: int) -> int:
    """Return the number of parts of the stream: about two programs a multiprocessor, each with eight tiles or more, and
    partial sums of at most 8 MiB (or one part)."""
    programs = triton.cdiv(n_rows, launch.rows) * triton.cdiv(dim, launch.columns)
    wanted = triton.cdiv(2 * multiprocessors, programs)
    return max(1, min(wanted, n_stream // (8 * launch.stream), (1 << 21) // max(1, n_rows * dim)))
