"""The launch table of the contrastive loss's kernels: their programs, by device, dtype and embedding length.

Used by contrastive.py beside it, by benchmarks/resources.py and by the tests, which compile every row of the table.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
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


# Kinds of products: in the half-precision dtype of the embeddings; of numbers as sums of terms of bfloat16; of TF32; of
# float32. Passes that compare ids of pairs take more registers: the first two have other tiles there than over a pool.
HALF, HALF_OF_PAIRS = "half", "half of pairs"
TERMS, TERMS_OF_PAIRS = "terms", "terms of pairs"
TF32, FLOAT32 = "tf32", "float32"
# Triton 3.3 takes more registers: its pass over a pool spills in the tiles of TERMS, and not in those of pairs.
OLD_TRITON = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6)

# (compute capability, kind of products, D up to) -> Launch, the first that fits. Where `step` covers D, the rows stay
# on chip and a stream tile serves both products; where `columns` does not, a third grid axis computes the logits again
# for each slice of columns. Chosen by what compiles without spills (benchmarks/resources.py).
LAUNCHES: dict[tuple[int, str, int], Launch] = {
    (80, HALF, 64): Launch(64, 64, 64, 64, 4, 3),
    (80, HALF, 128): Launch(64, 64, 128, 128, 4, 3),
    (80, HALF, 256): Launch(64, 64, 256, 256, 8, 2),
    (80, HALF, 1024): Launch(64, 32, 128, 512, 8, 2),
    (80, HALF_OF_PAIRS, 64): Launch(64, 64, 64, 64, 4, 3),
    (80, HALF_OF_PAIRS, 128): Launch(64, 64, 128, 128, 4, 3),
    (80, HALF_OF_PAIRS, 256): Launch(64, 64, 256, 256, 8, 2),
    (80, HALF_OF_PAIRS, 1024): Launch(64, 32, 128, 512, 8, 2),
    (80, TERMS, 64): Launch(64, 32, 64, 64, 4, 2),
    (80, TERMS, 128): Launch(64, 32, 128, 128, 4, 2),
    (80, TERMS, 256): Launch(32, 32, 256, 256, 8, 2),
    (80, TERMS, 1024): Launch(64, 32, 32, 256, 8, 2),
    (80, TERMS_OF_PAIRS, 64): Launch(32, 64, 64, 64, 4, 2),
    (80, TERMS_OF_PAIRS, 128): Launch(32, 32, 128, 128, 4, 2),
    (80, TERMS_OF_PAIRS, 1024): Launch(64, 32, 32, 128, 8, 2),
    (80, TF32, 64): Launch(64, 32, 64, 64, 8, 2),
    (80, TF32, 1024): Launch(64, 32, 32, 128, 8, 2),
    (80, FLOAT32, 64): Launch(64, 32, 64, 64, 8, 2),
    (80, FLOAT32, 1024): Launch(64, 32, 32, 128, 8, 2),
    (90, HALF, 64): Launch(64, 64, 64, 64, 4, 3),
    (90, HALF, 128): Launch(128, 128, 128, 128, 8, 2),
    (90, HALF, 256): Launch(64, 32, 256, 256, 8, 2),
    (90, HALF, 1024): Launch(64, 32, 128, 512, 8, 2),
    (90, HALF_OF_PAIRS, 64): Launch(64, 64, 64, 64, 4, 3),
    (90, HALF_OF_PAIRS, 128): Launch(64, 64, 128, 128, 4, 3),
    (90, HALF_OF_PAIRS, 256): Launch(64, 32, 256, 256, 8, 2),
    (90, HALF_OF_PAIRS, 1024): Launch(64, 32, 128, 512, 8, 2),
    (90, TERMS, 64): Launch(64, 64, 64, 64, 4, 3),
    (90, TERMS, 128): Launch(64, 64, 128, 128, 4, 2),
    (90, TERMS, 1024): Launch(64, 32, 64, 128, 4, 2),
    (90, TERMS_OF_PAIRS, 64): Launch(64, 64, 64, 64, 4, 2),
    (90, TERMS_OF_PAIRS, 128): Launch(64, 32, 128, 128, 4, 2),
    (90, TERMS_OF_PAIRS, 1024): Launch(64, 32, 64, 128, 4, 2),
    (90, TF32, 64): Launch(64, 32, 64, 64, 8, 2),
    (90, TF32, 1024): Launch(64, 32, 64, 128, 8, 2),
    (90, FLOAT32, 64): Launch(64, 32, 64, 64, 8, 2),
    (90, FLOAT32, 1024): Launch(32, 32, 64, 128, 8, 2),
}


def launch_for(capability: int, products: str, dim: int) -> Launch:
    """Return the table's row for a device of this compute capability (8.0 is 80; newer than the table: its newest).

    products: one of the kinds above. The last row of a device and kind, which walks D in steps, serves any D.
    """
    if OLD_TRITON:
        products = {HALF: HALF_OF_PAIRS, TERMS: TERMS_OF_PAIRS}.get(products, products)
    listed = max((known for known, *_ in LAUNCHES if known <= capability), default=min(known for known, *_ in LAUNCHES))
    tops = [top for known, kind, top in LAUNCHES if known == listed and kind == products]
    return LAUNCHES[listed, products, min((top for top in tops if top >= dim), default=max(tops))]


@functools.lru_cache(maxsize=1024)
def parts_for(n_rows: int, n_stream: int, dim: int, launch: Launch, multiprocessors: int) -> int:
    """Return the number of parts of the stream: about two programs a multiprocessor, each with eight tiles or more, and
    partial sums of at most 8 MiB (or one part)."""
    programs = triton.cdiv(n_rows, launch.rows) * triton.cdiv(dim, launch.columns)
    wanted = triton.cdiv(2 * multiprocessors, programs)
    most = max(1, min(wanted, n_stream // (8 * launch.stream), (1 << 21) // max(1, n_rows * dim)))

    def time(parts: int) -> float:
        # The multiprocessor with most programs takes it. One alone there hides no latency: hardly faster than two.
        return max(triton.cdiv(programs * parts, multiprocessors), 1.5) / parts

    return min(range(1, most + 1), key=time)


def device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which the tensor's GPU is the current device, where kernels are launched."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
