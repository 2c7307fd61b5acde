"""The limits that every GPU kernel must keep, checked on the numbers that benchmarks.resources reads from its code, and
the mark of tests that compile the loss."""

import pytest

from benchmarks.resources import SHARED_LIMIT, Resources
from qpt.compat import triton_fault

FAULT = triton_fault()
#: Marks tests that compile the loss, which a Triton that is too old may not survive.
needs_triton = pytest.mark.skipif(FAULT is not None, reason=f"the loss on CUDA: {FAULT}")


def check(
    found: Resources, architecture: int, registers: int, launch_shared_bytes: int = 0, spilled_bytes: int = 0
) -> None:
    """Fail unless the kernel can be launched and keeps its values in registers.

    registers: the largest number that a thread may use.  launch_shared_bytes: shared memory asked for at launch.
    spilled_bytes: of registers that a thread may keep in local memory.
    """
    assert found.stack_bytes <= spilled_bytes, found
    assert found.local_bytes == 0, found
    assert found.local_accesses == 0 or spilled_bytes > 0, found
    assert found.shared_bytes + launch_shared_bytes <= SHARED_LIMIT[architecture], found
    assert found.registers <= registers, found
