"""Execute PTX on the CPU, exactly and distrustfully: see README.md beside this file."""

from tests.ptx.assemble import UnknownOpcode
from tests.ptx.kernel import Arithmetic, Buffer, Fault, Kernel, Kernels, Schedule, load

__all__ = ["Arithmetic", "Buffer", "Fault", "Kernel", "Kernels", "Schedule", "UnknownOpcode", "load"]
