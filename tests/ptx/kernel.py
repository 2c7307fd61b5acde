"""Kernels that run: load PTX, give arguments, launch a grid on the CPU, read the results and the reports.

    from tests import ptx
    kernel = ptx.load(text)["add"]
    x, out = ptx.Buffer(numpy.ones(100, "f4")), ptx.Buffer.empty(100, "f4")
    kernel.launch(grid=4, block=32, arguments=[x, out, 100])
    out.read()

The machine behind it is tests/ptx/native; it imports nothing of the package under test.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.ptx import native
from tests.ptx.assemble import PARAMETER_BASE, Program, assemble
from tests.ptx.parse import Instruction, Module, parse

ORDERS = {"forward": 0, "reverse": 1, "random": 2}
APPROXIMATIONS = {"exact": 0, "up": 1, "down": 2, "mixed": 3}
_BUFFER_BASE, _BUFFER_STEP = 0x7000_0000_0000, 1 << 34


class Fault(AssertionError):
    """A fault of a program.

    kind: bounds, misaligned, poison, race, barrier, lanes, trap, limit or unsupported.  instruction: the one that did
    it, None where a fault has no place.  other: in a race the access before it.
    """

    def __init__(
        self, kind: str, text: str, instruction: Instruction | None = None, other: Instruction | None = None
    ) -> None:
        self.kind, self.instruction, self.other = kind, instruction, other
        super().__init__(f"{kind}: {text}")


class Buffer:
    """Global memory with a record of which bytes were written; outside of it lies nothing.

    array: a NumPy array or a CPU tensor of torch, used in place.  defined: whether its content may be read.
    """

    _made = 0

    def __init__(self, array: Any, *, defined: bool = True, writable: bool = True, name: str = "") -> None:
        self.array = array
        whole = array if isinstance(array, np.ndarray) else _bytes_of(array)
        if not whole.flags.c_contiguous:
            raise ValueError("a buffer must be contiguous")
        self.bytes = whole.reshape(-1).view(np.uint8)
        self.valid = np.full(self.bytes.size, defined, np.uint8)
        self.writable = writable
        Buffer._made += 1
        # Far from each other, so that no offset leads from one to another; aligned as far as the host's memory is.
        self.base = _BUFFER_BASE + Buffer._made * _BUFFER_STEP % (1 << 46) + self.bytes.ctypes.data % 256
        self.name = name or f"buffer {Buffer._made}"

    @staticmethod
    def empty(shape: int | tuple[int, ...], dtype: Any) -> Buffer:
        """A buffer of poison."""
        return Buffer(np.full(shape, 0x5A, np.uint8) if dtype == np.uint8 else np.zeros(shape, dtype), defined=False)

    def read(self) -> Any:
        """Return the array. Raises Fault if a byte of it was never defined."""
        if not self.valid.all():
            first = int(np.argmin(self.valid))
            missing = int((self.valid == 0).sum())
            raise Fault("poison", f"{missing} of {self.valid.size} bytes of {self.name} are not defined, first {first}")
        return self.array


def _bytes_of(tensor: Any) -> np.ndarray:
    size = tensor.numel() * tensor.element_size()
    if not tensor.is_contiguous():
        raise ValueError("a buffer must be contiguous")
    return (
        np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
        if size
        else np.empty(0, np.uint8)
    )


@dataclass(frozen=True)
class Schedule:
    """The way a grid is run: order of blocks and warps (forward, reverse, random), blocks that are resident together,
    instructions a warp runs before another does (0: until it waits)."""

    order: str = "forward"
    seed: int = 0
    resident: int = 1
    quantum: int = 0


@dataclass(frozen=True)
class Arithmetic:
    """A choice of what hardware may do and the ISA leaves open.

    approximation: the error of approximate instructions: exact, up or down by the whole bound, or mixed.
    tensor_core: "truncated" sums as measured on sm_80, or "rounded" once to nearest.
    """

    approximation: str = "mixed"
    tensor_core: str = "truncated"


@dataclass
class Kernel:
    """One kernel of a module, ready to launch."""

    name: str
    program: Program

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
        schedule: Schedule = Schedule(),
        arithmetic: Arithmetic = Arithmetic(),
        races: bool = True,
        strict: bool = False,
        count: bool = False,
        limit: int = 400_000_000,
        more_buffers: Sequence[Buffer] = (),
    ) -> np.ndarray:
        """Run the grid; return the counts of every instruction (native.COUNTS), zeros unless `count`.

        arguments: buffers, numbers (of the parameter's size; a float is a float32 or float64 by it), or bytes.
        more_buffers: memory that arguments reach as numbers.  Raises Fault.
        """
        program = self.program
        shape, extent = _three(block), _three(grid)
        threads = int(np.prod(shape))
        if program.threads and threads > int(np.prod(program.threads)):
            raise ValueError(f"{threads} threads of at most {program.threads}")
        if not 1 <= threads <= 1024:
            raise ValueError(f"a block has 1 to 1024 threads, got {threads}")
        packed = Buffer(self._pack(arguments), writable=False, name="the arguments")
        packed.base = PARAMETER_BASE
        buffers = [packed, *(argument for argument in arguments if isinstance(argument, Buffer)), *more_buffers]
        buffers += self._variables()
        unique = list({buffer.base: buffer for buffer in buffers if buffer.bytes.size}.values())
        given = native.Launch()
        keep: list[Any] = [np.frombuffer(program.constants, np.uint8).copy()]
        given.code, given.instructions = program.code.ctypes.data, len(program.code)
        given.constants, given.constant_bytes = keep[0].ctypes.data, keep[0].size
        given.specials, given.special_count = program.specials.ctypes.data, len(program.specials)
        given.static_valid, given.static_bytes = program.static_shared.ctypes.data, program.static_shared.size
        records = (native.Buffer * len(unique))()
        for record, buffer in zip(records, unique, strict=True):
            record.base, record.size = buffer.base, buffer.bytes.size
            record.data, record.valid = buffer.bytes.ctypes.data, buffer.valid.ctypes.data
            record.writable, record.name = buffer.writable, buffer.name.encode()
        given.buffers, given.buffer_count = ctypes.addressof(records), len(unique)
        counts = np.zeros(len(program.code), native.COUNTS)
        given.counts = counts.ctypes.data
        given.grid[:], given.shape[:] = extent, shape
        given.register_bytes, given.slots, given.local_bytes = (
            program.register_bytes,
            program.slots,
            program.local_bytes,
        )
        given.shared_bytes, given.entry = program.static_shared.size + shared_bytes, program.entry
        quantum = schedule.quantum or (1000 if schedule.resident > 1 else 0)
        given.options = native.Options(
            ORDERS[schedule.order], schedule.seed, schedule.resident, quantum, races, count,
            APPROXIMATIONS[arithmetic.approximation], arithmetic.tensor_core == "truncated", strict, 0, limit,
        )  # fmt: skip
        if int(np.prod(extent)) and native.library().ptx_launch(ctypes.byref(given)):
            raise self._fault(given)
        self.executed = given.executed
        return counts

    def _pack(self, arguments: Sequence[Any]) -> np.ndarray:
        places = self.program.parameters
        if len(arguments) != len(places):
            raise ValueError(f"{self.name} takes {len(places)} arguments, got {len(arguments)}")
        packed = np.zeros(max(1, self.program.parameter_bytes), np.uint8)
        for argument, (offset, size) in zip(arguments, places, strict=True):
            if isinstance(argument, Buffer):
                content = struct.pack("<Q", argument.base)
            elif isinstance(argument, bytes):
                content = argument
            elif isinstance(argument, (float, np.floating)):
                content = struct.pack("<f" if size == 4 else "<d", argument)
            else:
                content = (int(argument) & (1 << 8 * size) - 1).to_bytes(size, "little")
            if len(content) != size:
                raise ValueError(f"{self.name}: an argument of {len(content)} bytes where {size} are needed")
            packed[offset : offset + size] = np.frombuffer(content, np.uint8)
        return packed

    def _variables(self) -> list[Buffer]:
        made = []
        for address, variable in self.program.globals:
            content = bytearray(variable.initial.ljust(variable.size, b"\0"))
            for offset, symbol in variable.symbols:
                content[offset : offset + 8] = struct.pack("<Q", self.program.symbols[symbol])
            writable = variable.space == "global"
            buffer = Buffer(np.frombuffer(bytes(content), np.uint8).copy(), writable=writable, name=variable.name)
            buffer.base = address
            made.append(buffer)
        return made

    def _fault(self, given: native.Launch) -> Fault:
        def place(pc: int) -> Instruction | None:
            return self.program.instructions[pc] if pc >= 0 else None

        def describe(pc: int, block: int, thread: int) -> str:
            found = place(pc)
            where = f" at {found.line.chain()}" if found and found.line else ""
            return f"`{found}`{where}, block {block}, thread {thread}"

        text = f"{self.name}: {given.text.decode()}"
        if given.pc >= 0:
            text += f"\n  in {describe(given.pc, given.block, given.thread)}"
        if given.other_pc >= 0:
            text += f"\n  and {describe(given.other_pc, given.other_block, given.other_thread)}"
        return Fault(given.kind.decode(), text, place(given.pc), place(given.other_pc))


def _three(extent: int | Sequence[int]) -> tuple[int, int, int]:
    parts = (extent,) if isinstance(extent, int) else tuple(int(x) for x in extent)
    return (*parts, 1, 1)[:3]  # type: ignore[return-value]


class Kernels(dict[str, Kernel]):
    """The kernels of a module by name, assembled when they are first asked for."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module
        self.names = [name for name, function in module.functions.items() if function.entry]

    def __missing__(self, name: str) -> Kernel:
        if name not in self.names:
            raise KeyError(f"there is no kernel {name!r} in the module, which has {', '.join(self.names) or 'none'}")
        self[name] = Kernel(name, assemble(self.module, name))
        return self[name]

    def only(self) -> Kernel:
        """Return the module's one kernel."""
        (name,) = self.names
        return self[name]


def load(text: str) -> Kernels:
    """Return the kernels of PTX text."""
    return Kernels(parse(text))


__all__ = ["Arithmetic", "Buffer", "Fault", "Kernel", "Kernels", "Schedule", "load", "replace"]
