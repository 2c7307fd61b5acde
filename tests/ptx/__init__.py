"""Execute PTX on the CPU, exactly and distrustfully: see README.md beside this file."""

from tests.ptx.kernel import Arithmetic, Buffer, Fault, Kernel, Kernels, Schedule, load
from tests.ptx.lower import UnknownOpcode

__all__ = ["Arithmetic", "Buffer", "Fault", "Kernel", "Kernels", "Schedule", "UnknownOpcode", "load"]
