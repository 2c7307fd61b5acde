"""Lower one instruction: its opcode in the machine's table, its operands as places of registers and constants.

Called by assemble.py, whose assembler inherits from Lowering. Operand and Instruction mirror the structs of
native/machine.h, flags those of native/memory.h. An opcode or a form of one that the machine does not have is an
UnknownOpcode that names it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

import numpy as np

from tests.ptx import native
from tests.ptx.parse import TYPE_BYTES, Function, Instruction, Module, number

LANES = 32
OPERAND = np.dtype([("at", "u4"), ("slot", "u4"), ("width", "u1"), ("constant", "u1"), ("unused", "u2")])
INSTRUCTION = np.dtype(
    [
        ("handler", "i4"), ("guard", "u1"), ("count", "u1"), ("unused", "u2"), ("predicate", OPERAND), ("flags", "u4"),
        ("target", "i4"), ("join", "i4"), ("unused2", "i4"), ("imm", "i8"), ("op", OPERAND, 16),
    ],
    align=True,
)  # fmt: skip
assert INSTRUCTION.itemsize == native.INSTRUCTION_BYTES
Operand = tuple[int, int, int, int, int]  # the fields of OPERAND


@dataclass
class Record:
    """The fields of INSTRUCTION before they are packed."""

    handler: int = 0
    guard: int = 0
    predicate: Operand = (0, 0, 0, 0, 0)
    flags: int = 0
    target: int = 0
    join: int = 0
    imm: int = 0
    op: list[Operand] = field(default_factory=list)

    def row(self) -> tuple:
        operands = [*self.op, *[(0, 0, 0, 0, 0)] * (16 - len(self.op))]
        imm = self.imm - (1 << 64) if self.imm >> 63 == 1 else self.imm
        return (
            self.handler, self.guard, len(self.op), 0, self.predicate, self.flags, self.target, self.join, 0, imm,
            operands,
        )  # fmt: skip


SPECIALS = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
SPECIALS += ["%laneid", "%warpid", "%nwarpid", *[f"%lanemask_{kind}" for kind in ("lt", "le", "eq", "gt", "ge")]]
SHARED_WINDOW, LOCAL_WINDOW = 1 << 60, 1 << 61

# Flags of memory instructions: native/memory.h.
_SPACES = {"": 0, "global": 1, "shared": 2, "local": 3, "const": 1, "param": 1}
_SIGNED, _STRONG, _ACQUIRE, _RELEASE, _COUNT_SHIFT, _NO_RESULT, _TRANSPOSE, _ZERO_FILL = (
    32, 512, 1024, 2048, 12, 1 << 16, 1 << 17, 1 << 18,
)  # fmt: skip
# Modifiers that change neither what is read nor what is written: caches, scopes, coherence beyond fences.
_HINTS = re.compile(r"\.(nc|ca|cg|cs|lu|cv|wb|wt|cta|cluster|gpu|sys|weak|L1::\w+|L2::\w+|level::\w+|unified)(?=\.|$)")


class UnknownOpcode(NotImplementedError):
    """An opcode, or a form of one, that this machine does not have."""


class Lowering:
    """The meaning of operands, and a method for each instruction that is more than its operands in order."""

    module: Module
    pool: bytearray  # of constants
    pooled: dict[tuple[int, int], int]
    specials: np.ndarray
    sinks: dict[int, Operand]  # by width, for the operand `_`
    symbols: dict[str, tuple[int, str]]  # name -> (address within its space, space)
    registers: dict[str, dict[str, Operand]]  # function -> register -> place
    starts: dict[str, int]  # function -> first instruction

    @staticmethod
    def callee(instruction: Instruction) -> str:
        return next(operand for operand in instruction.operands if not operand.startswith("("))

    def constant(self, value: int, width: int) -> Operand:
        """A lane-wide constant; width 0: a predicate."""
        key = (value, width)
        if key not in self.pooled:
            self.pooled[key] = len(self.pool)
            content = value.to_bytes(width, "little") * LANES if width else struct.pack("<Q", 0xFFFFFFFF * value)
            self.pool += content
        return self.pooled[key], 0, width, 1, 0

    def operand(self, function: Function, text: str, width: int | None) -> Operand:
        """A register, a special register, a variable's address or a number; width None: any."""
        registers = self.registers[function.name]
        if text in registers:
            operand = registers[text]
        elif text in SPECIALS:
            operand = tuple(self.specials[SPECIALS.index(text)].tolist())
        elif text == "_":
            return self.sinks[4 if width is None else width]
        elif text.split("+")[0].strip() in self.symbols:
            name, _, more = text.partition("+")
            address, _ = self.symbols[name.strip()]
            return self.constant(address + int(more or 0), width or 8)
        elif text == "WARP_SZ":
            return self.constant(LANES, width or 4)
        elif re.match(r"[-\d]", text):
            return self.constant(number(text, width or 8), width or 8)
        else:
            raise UnknownOpcode(f"the operand {text}")
        if width is not None and operand[2] != width:
            raise UnknownOpcode(f"the register {text} of {operand[2]} bytes where {width} are needed")
        return operand

    def lower(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        head = instruction.opcode.split(".")[0]
        lower = getattr(self, f"_lower_{head}", None)
        if head == "cp" and ".async" not in instruction.opcode:
            raise UnknownOpcode(instruction.opcode)
        if lower is not None and lower(function, instruction, record, start) is not False:
            return
        self._plain(function, instruction.opcode, list(instruction.operands), record)

    def _emit(self, record: Record, opcode: str, operands: list[Operand], flags: int = 0, imm: int = 0) -> None:
        handler, _, own = find_opcode(opcode)
        record.handler, record.flags, record.imm = handler, own | flags, imm
        record.op = list(operands)

    def _plain(self, function: Function, opcode: str, operands: list[str], record: Record) -> None:
        """An instruction whose operands are as its signature in the opcode table says."""
        if operands and "|" in operands[0]:
            operands = [*operands[0].split("|"), *operands[1:]]
            opcode += "|"
        flat: list[str] = []
        for operand in operands:
            flat += [part.strip() for part in operand.strip("{}").split(",")]
        handler, signature, flags = find_opcode(opcode)
        kinds = re.findall(r".\??", signature)
        needed = [kind for kind in kinds if not kind.endswith("?")]
        if not len(needed) <= len(flat) <= len(kinds):
            raise UnknownOpcode(f"{len(flat)} operands")
        record.handler, record.flags = handler, flags
        for text, kind in zip(flat, kinds, strict=False):
            if kind == "i":
                record.imm = number(text, 8)
                continue
            negated = kind == "p" and text.startswith("!")
            if negated:
                raise UnknownOpcode("a negated predicate operand")
            width = {"p": 0, "*": None}.get(kind[0], int(kind[0]) if kind[0].isdigit() else None)
            if kind == "*" and not re.match(r"[%_]", text) and len(record.op) == 1:
                width = TYPE_BYTES[opcode.rsplit(".", 1)[1]]
            record.op.append(self.operand(function, text.strip(), width))

    # Memory -----------------------------------------------------------------------------------------------------------

    def _address(self, function: Function, text: str) -> tuple[Operand, int, str]:
        """[register + offset], [variable + offset] -> base, offset, space of the variable."""
        inner = text.strip()[1:-1].strip()
        found = re.match(r"([%\w$.]+?)\s*(?:([+-])\s*(-?\w+))?$", inner)
        if not found:
            raise UnknownOpcode(f"the address {text}")
        base, sign, more = found.groups()
        offset = int(more, 0) * (-1 if sign == "-" else 1) if more else 0
        if base in self.registers[function.name]:
            return self.registers[function.name][base], offset, ""
        if re.match(r"\d", base):
            return self.constant(int(base, 0), 8), offset, ""
        address, space = self.symbols[base]
        return self.constant(address, 8), offset, space

    def _memory(self, opcode: str) -> tuple[str, str, int, int, list[str]]:
        """head, type, flags of space and order, vector length, what is left of the modifiers."""
        name = _HINTS.sub("", opcode)
        parts = name.split(".")
        flags, length, space, rest = 0, 1, "", []
        for part in parts[1:-1]:
            if part in _SPACES or part.startswith(("shared::", "param::")):
                space = part.split("::")[0]
            elif re.fullmatch(r"v[248]", part):
                length = int(part[1:])
            elif part in ("volatile", "relaxed", "mmio"):
                flags |= _STRONG
            elif part == "acquire":
                flags |= _STRONG | _ACQUIRE
            elif part == "release":
                flags |= _STRONG | _RELEASE
            elif part == "acq_rel":
                flags |= _STRONG | _ACQUIRE | _RELEASE
            else:
                rest.append(part)
        return parts[0], parts[-1], flags | _SPACES[space] << 6, length, rest

    def _values(self, function: Function, text: str, size: int) -> list[Operand]:
        parts = [part.strip() for part in text.strip("{}").split(",")]
        return [self.operand(function, part, size if re.match(r"[-\d]", part) else None) for part in parts]

    def _load_or_store(self, function: Function, instruction: Instruction, record: Record, store: bool) -> None:
        head, kind, flags, length, rest = self._memory(instruction.opcode)
        if rest:
            raise UnknownOpcode(instruction.opcode)
        size = TYPE_BYTES[kind]
        address, values = instruction.operands[:2] if store else instruction.operands[1::-1]
        base, offset, space = self._address(function, address)
        if space == "local":
            flags = flags & ~(7 << 6) | _SPACES["local"] << 6
        operands = self._values(function, values, size)
        if len(operands) != length or size > 8:
            raise UnknownOpcode(instruction.opcode)
        operands = [base, *operands] if store else [*operands, base]
        self._emit(record, f"{head}.{kind}", operands, flags | length << _COUNT_SHIFT, offset)

    def _lower_ld(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._load_or_store(function, instruction, record, store=False)

    def _lower_st(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._load_or_store(function, instruction, record, store=True)

    def _lower_ldu(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._load_or_store(
            function, Instruction(instruction.opcode.replace("ldu", "ld"), instruction.operands), record, False
        )

    def _lower_atom(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        head, kind, flags, length, rest = self._memory(instruction.opcode)
        if length != 1:
            raise UnknownOpcode(instruction.opcode)
        result = head == "atom"
        place = 1 if result else 0
        base, offset, _ = self._address(function, instruction.operands[place])
        size = TYPE_BYTES[kind]
        values = [self.operand(function, text, size) for text in instruction.operands[place + 1 :]]
        operands = [self.operand(function, instruction.operands[0], size)] if result else []
        operands += [base, *values]
        if len(values) == 1:
            operands.append(values[0])  # what cas compares with is not looked at
        self._emit(record, ".".join([head, *rest, kind]), operands, flags & ~(31 << 12) | _STRONG, offset)

    _lower_red = _lower_atom

    def _lower_cp(self, function: Function, instruction: Instruction, record: Record, start: int) -> bool | None:
        name = _HINTS.sub("", instruction.opcode)
        if name != "cp.async.shared.global" and name != "cp.async.shared::cta.global":
            return False
        operands = instruction.operands
        size = int(operands[2], 0)
        to, offset, _ = self._address(function, operands[0])
        source, source_offset, _ = self._address(function, operands[1])
        lowered = [to, source, self.constant(source_offset & (1 << 64) - 1, 8)]
        flags = size
        if len(operands) > 3:
            lowered.append(self.operand(function, operands[3], 4))
            flags |= _ZERO_FILL
        self._emit(record, "cp.async", lowered, flags, offset)
        return None

    def _lower_ldmatrix(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        parts = instruction.opcode.split(".")
        known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
        if not set(parts[1:]) <= known:
            raise UnknownOpcode(instruction.opcode)
        store = parts[0] == "stmatrix"
        address, values = instruction.operands if store else instruction.operands[::-1]
        base, offset, _ = self._address(function, address)
        registers = self._values(function, values, 4)
        flags = len(registers) << _COUNT_SHIFT | (_TRANSPOSE if "trans" in parts else 0)
        self._emit(record, parts[0], [base, *registers] if store else [*registers, base], flags, offset)

    _lower_stmatrix = _lower_ldmatrix

    def _lower_fence(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._emit(record, "fence", [])

    _lower_membar = _lower_fence

    def _lower_prefetch(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._emit(record, "prefetch", [])

    _lower_prefetchu = _lower_nanosleep = _lower_prefetch

    def _lower_cvta(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        parts = instruction.opcode.split(".")
        space = next(part for part in parts if part.split("::")[0] in _SPACES).split("::")[0]
        window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
        width = TYPE_BYTES[parts[-1]]
        operands = [self.operand(function, text, width) for text in instruction.operands]
        self._emit(record, f"cvta.to.{parts[-1]}" if "to" in parts else f"cvta.{parts[-1]}", operands, imm=window)

    def _lower_mov(self, function: Function, instruction: Instruction, record: Record, start: int) -> bool | None:
        to, source = instruction.operands
        width = TYPE_BYTES[instruction.opcode.rsplit(".", 1)[1]]
        if to.startswith("{") or source.startswith("{"):
            parts = [part.strip() for part in (to if to.startswith("{") else source).strip("{}").split(",")]
            whole = self.operand(function, source if to.startswith("{") else to, width)
            pieces = [self.operand(function, part, width // len(parts)) for part in parts]
            unpack = to.startswith("{")
            self._emit(record, "mov.unpack" if unpack else "mov.pack", [*pieces, whole] if unpack else [whole, *pieces])
            return None
        return False

    # Control ----------------------------------------------------------------------------------------------------------

    def _lower_bra(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._emit(record, instruction.opcode, [])
        record.target = start + function.labels[instruction.operands[0]]

    def _lower_brx(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        labels = function.tables[instruction.operands[1]]
        at = len(self.pool)
        self.pool += b"".join(struct.pack("<i", start + function.labels[label]) for label in labels)
        self.pool += bytes(-len(self.pool) % 8)
        index = self.operand(function, instruction.operands[0], 4)
        self._emit(record, "brx.idx", [index, (at, 0, 4, 1, 0)], imm=len(labels))

    def _lower_call(self, function: Function, instruction: Instruction, record: Record, start: int) -> None:
        self._emit(record, "call", [])
        record.target = self.starts[self.callee(instruction)]


_found: dict[str, tuple[int, str, int]] = {}


def find_opcode(opcode: str) -> tuple[int, str, int]:
    if opcode not in _found:
        found = native.find(opcode)
        if found is None:
            raise UnknownOpcode(f"no opcode {opcode}")
        _found[opcode] = found
    return _found[opcode]
