"""Make a program that the machine of tests/ptx/native executes of a parsed module: places of registers and variables.

Called by tests.ptx.kernel; the instructions themselves are lowered by lower.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.ptx import flow
from tests.ptx.lower import INSTRUCTION, LANES, OPERAND, SPECIALS, Lowering, Operand, Record, UnknownOpcode, find_opcode
from tests.ptx.parse import TYPE_BYTES, Function, Instruction, Module, Variable

CONSTANT_BASE, PARAMETER_BASE = 0x0100_0000_0000, 0x0200_0000_0000  # of .const and .global variables, of arguments
SHARED_GAP = 64  # between variables of shared memory; an access there is out of bounds


@dataclass
class Program:
    """A kernel ready to run, with everything it calls."""

    code: np.ndarray
    instructions: list[Instruction]
    constants: bytes
    specials: np.ndarray
    register_bytes: int
    slots: int
    local_bytes: int
    static_shared: np.ndarray  # uint8 per byte: 0 allocated, 2 not
    dynamic_shared: bool
    entry: int
    parameters: list[tuple[int, int]]  # (offset, bytes) of every argument
    parameter_bytes: int
    globals: list[tuple[int, Variable]]  # (address, variable) in the order of the module
    threads: tuple[int, ...] | None
    symbols: dict[str, int] = field(default_factory=dict)


def assemble(module: Module, kernel: str) -> Program:
    """Return the program of one kernel. Raises KeyError without it, UnknownOpcode for what cannot be executed."""
    return _Assembler(module, kernel).program


def _aligned(size: int, align: int) -> int:
    return -(-size // align) * align


class _Assembler(Lowering):
    def __init__(self, module: Module, kernel: str) -> None:
        self.module = module
        self.pool = bytearray(64)
        self.pooled: dict[tuple[int, int], int] = {}
        self.register_bytes = 0
        self.slots = 1  # slot 0 is never poisoned
        self.local_bytes = 0
        self.specials = np.zeros(len(SPECIALS), OPERAND)
        for place in range(len(SPECIALS)):
            self.specials[place] = self._allocate("b32")
        self.sinks = {width: self._allocate(f"b{8 * width}") for width in (2, 4, 8)} | {0: self._allocate("pred")}
        self.symbols: dict[str, tuple[int, str]] = {}  # name -> (address within its space, space)
        functions = self._reached(kernel)
        self._place_variables(functions)
        self.registers = {
            function.name: {name: self._allocate(kind) for name, kind in function.registers.items()}
            for function in functions
        }
        starts, instructions = {}, []
        for function in functions:
            starts[function.name] = len(instructions)
            instructions += function.code
            instructions.append(Instruction("ret", (), line=function.code[-1].line))
        if len(instructions) >= 1 << 20:
            raise UnknownOpcode("a program of more than a million instructions")
        self.starts = starts
        self.records = [Record() for _ in instructions]
        for function in functions:
            self._lower(function)
        code = np.array([record.row() for record in self.records], INSTRUCTION)
        entry = module.functions[kernel]
        self.program = Program(
            code,
            instructions,
            bytes(self.pool),
            self.specials,
            self.register_bytes,
            self.slots,
            self.local_bytes,
            self.static_shared,
            any(v.space == "shared" and v.external for v in module.variables.values()),
            starts[kernel],
            self.parameters,
            self.parameter_bytes,
            self.globals,
            entry.threads,
            {name: address for name, (address, _) in self.symbols.items()},
        )

    def _reached(self, kernel: str) -> list[Function]:
        found = [self.module.functions[kernel]]
        for function in found:
            for instruction in function.code:
                if instruction.opcode.startswith("call"):
                    callee = self.callee(instruction)
                    if callee not in self.module.functions:
                        raise UnknownOpcode(f"a call of {callee}, which is not in the module")
                    if self.module.functions[callee] not in found:
                        found.append(self.module.functions[callee])
        return found

    def _place_variables(self, functions: list[Function]) -> None:
        """Give addresses: shared and local ones from 0, global and constant ones from CONSTANT_BASE."""
        shared = 0
        allowed: list[tuple[int, int]] = []
        self.globals: list[tuple[int, Variable]] = []
        address = CONSTANT_BASE
        names = list(self.module.variables.values()) + [v for f in functions for v in f.variables]
        for variable in sorted(names, key=lambda v: v.external):  # what is sized at launch comes last
            if variable.space == "shared":
                shared = _aligned(
                    shared + (SHARED_GAP if allowed else 0), max(variable.align, 16 if variable.external else 1)
                )
                self.symbols[variable.name] = shared, "shared"
                if variable.size:
                    allowed.append((shared, variable.size))
                shared += variable.size
            elif variable.space in ("global", "const"):
                self.symbols[variable.name] = address, "global"
                self.globals.append((address, variable))
                address += 1 << 33
        self.static_shared = np.full(shared, 2, np.uint8)
        for start, size in allowed:
            self.static_shared[start : start + size] = 0
        kernel = functions[0]
        offset = 0
        self.parameters = []
        for parameter in kernel.parameters:
            offset = _aligned(offset, parameter.align)
            self.symbols[parameter.name] = PARAMETER_BASE + offset, "param"
            self.parameters.append((offset, parameter.size))
            offset += parameter.size
        self.parameter_bytes = offset
        # Local memory: .local variables, and the parameters of calls, which nothing recursive needs twice.
        for function in functions:
            own = [v for v in function.variables if v.space in ("local", "param")]
            for variable in own + ([] if function is kernel else function.parameters + function.returns):
                self.local_bytes = _aligned(self.local_bytes, max(16, variable.align))
                self.symbols[variable.name] = self.local_bytes, "local"
                self.local_bytes += _aligned(variable.size, 16) + 16
        for function in functions:
            for instruction in function.code:
                if instruction.opcode.startswith("call"):
                    self._join_parameters(instruction)

    def _join_parameters(self, instruction: Instruction) -> None:
        """Give the .param variables of a call the places of the callee's parameters."""
        callee = self.module.functions[self.callee(instruction)]
        groups = [operand for operand in instruction.operands if operand.startswith("(")]
        given = (groups[-1] if callee.parameters else "", groups[0] if callee.returns else "")
        for texts, formal in zip(given, (callee.parameters, callee.returns), strict=True):
            names = [part.strip() for part in texts.strip("()").split(",") if part.strip()]
            for name, variable in zip(names, formal, strict=True):
                self.symbols[name] = self.symbols[variable.name]

    def _allocate(self, kind: str) -> Operand:
        width = TYPE_BYTES[kind]
        operand = (self.register_bytes, self.slots, width, 0, 0)
        self.register_bytes += LANES * width if width else 8
        self.slots += 1
        return operand

    def _lower(self, function: Function) -> None:
        start = self.starts[function.name]
        meeting = flow.joins(function)
        for index, instruction in enumerate(function.code):
            record = self.records[start + index]
            try:
                self.lower(function, instruction, record, start)
            except (UnknownOpcode, KeyError, ValueError, OverflowError, StopIteration) as error:
                raise UnknownOpcode(f"{instruction} ({instruction.line}): {error}") from error
            if index in meeting:
                record.join = start + meeting[index] if meeting[index] >= 0 else -1
            if instruction.guard:
                negated = instruction.guard.startswith("!")
                record.guard = 2 if negated else 1
                record.predicate = self.operand(function, instruction.guard.lstrip("!"), 0)
        last = self.records[start + len(function.code)]
        last.handler, _, last.flags = find_opcode("ret")
