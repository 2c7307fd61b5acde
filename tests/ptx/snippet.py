"""One instruction on arrays: the smallest kernel around it. Used by the tests of single instructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.ptx.kernel import Arithmetic, Buffer, load

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"


def evaluate(
    instruction: str,
    inputs: Sequence[np.ndarray],
    out: Sequence[type | str],
    *,
    registers: str = "",
    arithmetic: Arithmetic | None = None,
) -> list[np.ndarray]:
    """Run PTX text once for every element of `inputs`, arrays of one length.

    `instruction` names the inputs %a0, %a1, ... and writes %d0, %d1, ..., of the dtypes in `out`. The elements fill one
    warp in part, or whole warps.
    """
    count = len(inputs[0])
    sizes = [array.dtype.itemsize for array in inputs]
    dtypes = [np.dtype(kind) for kind in out]
    parameters = [f".param .u64 p{k}" for k in range(len(inputs) + len(out))]
    lines = [
        ".reg .b32 %i; .reg .b32 %block; .reg .b32 %size; .reg .b64 %at; .reg .b64 %base; .reg .pred %p<8>;",
        registers,
        *[f".reg .b{8 * max(size, 2)} %a{k};" for k, size in enumerate(sizes)],
        *[f".reg .b{8 * max(kind.itemsize, 2)} %d{k};" for k, kind in enumerate(dtypes)],
        "mov.u32 %i, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %size, %ntid.x; mad.lo.u32 %i, %block, %size, %i;",
    ]
    for k, size in enumerate(sizes):
        lines += [
            f"ld.param.u64 %base, [p{k}]; mad.wide.u32 %at, %i, {size}, %base; ld.global.b{8 * size} %a{k}, [%at];"
        ]
    lines += [instruction]
    for k, kind in enumerate(dtypes):
        place = len(inputs) + k
        lines += [
            f"ld.param.u64 %base, [p{place}]; mad.wide.u32 %at, %i, {kind.itemsize}, %base;",
            f"st.global.b{8 * kind.itemsize} [%at], %d{k};",
        ]
    text = f"{HEADER}.visible .entry snippet({', '.join(parameters)})\n{{\n" + "\n".join(lines) + "\nret;\n}\n"
    buffers = [Buffer(np.ascontiguousarray(array)) for array in inputs]
    results = [Buffer.empty(count, kind) for kind in dtypes]
    kernel = load(text)["snippet"]
    whole, rest = divmod(count, 32)
    options = {"arithmetic": arithmetic or Arithmetic()}
    if rest == 0:
        kernel.launch(whole, 32, [*buffers, *results], **options)
    else:
        assert whole == 0, "one partial warp, or whole ones"
        kernel.launch(1, rest, [*buffers, *results], **options)
    return [result.read() for result in results]
