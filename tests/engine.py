"""The C++ engine, called directly: NumPy arrays become buffers for qpt._C, without any Python code of qpt.

Used by the tests of ops, so that a fault in the argument checks of ``degrade`` cannot hide one in a kernel.
"""

import numpy as np

from qpt import _C

OP_NAMES = tuple(_C.op_names())


def buffer(array: np.ndarray) -> tuple[int, int]:
    """Return the (address, bytes) that qpt._C takes."""
    return array.ctypes.data, array.nbytes


def run(images, ops, params, seeds=None, source=None, threads=1) -> np.ndarray:
    """Run a program and return (r, H, W, 3) uint8.

    images: (B, H, W, 3) uint8.  ops: (r, S) names or ids; None or -1 is an unused slot.  params: (r, S, up to 4).
    seeds: (r,) int64, source: (r,); both default to the row numbers.  Output, scratch and the bytes around them are
    filled with a pattern first; a write past either end fails the calling test.
    """
    images = np.ascontiguousarray(images, np.uint8)
    _, height, width, channels = images.shape
    assert channels == 3
    rows, slots = len(ops), len(ops[0]) if len(ops) else 0
    ids = np.full((rows, slots), -1, np.int16)
    for r, s in np.ndindex(rows, slots):
        op = ops[r][s]
        ids[r, s] = OP_NAMES.index(op) if isinstance(op, str) else -1 if op is None else op
    padded = np.zeros((rows, slots, 4), np.float32)
    for r, row in enumerate(params):
        for s, values in enumerate(row):
            padded[r, s, : len(values)] = values
    seeds = np.ascontiguousarray(np.arange(rows) if seeds is None else seeds, np.int64)
    source = np.ascontiguousarray(np.arange(rows) if source is None else source, np.int32)
    assert seeds.shape == source.shape == (rows,)
    order = np.arange(rows, dtype=np.int32)[::-1].copy()  # any permutation gives the same result

    guard, pattern = 256, 0xA5
    size = rows * height * width * 3
    out = np.full(size + 2 * guard, pattern, np.uint8)
    resizes = bool((ids == OP_NAMES.index("resize_to")).any())
    own_scratch = _C.scratch_bytes(height, width, resizes, False)
    scratch_size = threads * own_scratch
    scratch = np.full(scratch_size + 2 * guard, pattern, np.uint8)
    none = (0, 0)
    _C.degrade(
        buffer(images), height, width, buffer(out[guard : guard + size]), rows, slots, buffer(ids), buffer(padded),
        buffer(seeds), buffer(source), buffer(order), none, none, 0, 0, none, 0, False,
        buffer(scratch[guard : guard + scratch_size]), own_scratch, threads,
    )  # fmt: skip
    for name, written, end in (("output", out, guard + size), ("scratch", scratch, guard + scratch_size)):
        assert (written[:guard] == pattern).all() and (written[end:] == pattern).all(), f"wrote outside the {name}"
    return out[guard : guard + size].reshape(rows, height, width, 3)


def run_one(image, op, *params, seed=0) -> np.ndarray:
    """Run one op on one image (H, W, 3) uint8."""
    return run(image[None], [[op]], [[params]], seeds=[seed])[0]
