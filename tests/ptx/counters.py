"""Tables of what a launch executed, per pipe, opcode and source line, from ``Kernel.launch(count=True)``.

A count is of PTX instructions of warps; ptxas makes machine instructions of them, of which one may be several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ptx.kernel import Kernel
from tests.ptx.native import COUNTS, SPACES
from tests.ptx.parse import Instruction

SPECIAL = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh", "div.f", "div.rn", "div.full", "div.approx")
LANES_TALK = ("shfl", "vote", "match", "redux", "activemask", "elect")
CONTROL = ("bra", "brx", "call", "ret", "exit", "bar", "barrier", "trap", "membar", "fence")
BARRIERS = ("bar.sync", "barrier.sync", "bar.red", "barrier.red")
_ACCESS = {"ld": "load", "ldu": "load", "ldmatrix": "load", "st": "store", "stmatrix": "store"}
_ACCESS |= {"atom": "atomic", "red": "atomic", "cp": "copy", "prefetch": "prefetch", "prefetchu": "prefetch"}
_FLOATS = ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")
_SPACES = ("global", "shared", "local", "const", "param")


def named_space(instruction: Instruction) -> str:
    """Return the space in an opcode that accesses memory; "" for a generic address and for other opcodes."""
    if instruction.opcode.startswith("cp.async."):
        return "global"
    parts = instruction.opcode.split(".")[1:]
    return next((part.split("::")[0] for part in parts if part.split("::")[0] in _SPACES), "")


def pipe(instruction: Instruction, space: str = "") -> str:
    """Return the unit that executes an instruction on sm_80.

    tensor, special (of transcendental functions, roots and float divisions), convert (between integers and floats, and
    rounding to integers: a quarter of the rate), double, half, FMA, IMAD (integer products, by the FMA unit), ALU,
    lanes, control; or load, store, atomic or copy with the space: the named one, else `space`, else "generic".
    """
    opcode = instruction.opcode
    head, *parts = opcode.split(".")
    if head in ("mma", "wmma"):
        return "tensor"
    if head in _ACCESS:
        if "wait_group" in opcode or "commit_group" in opcode or "wait_all" in opcode:
            return "control"
        return f"{_ACCESS[head]} {named_space(instruction) or space or 'generic'}"
    if head in CONTROL:
        return "control"
    if head in LANES_TALK:
        return "lanes"
    kind = parts[-1] if parts else ""
    if head == "cvt":
        to, source = parts[-2:]
        rounded = any(part in ("rni", "rzi", "rmi", "rpi") for part in parts)
        return "convert" if (to in _FLOATS) != (source in _FLOATS) or "f64" in (to, source) or rounded else "ALU"
    if opcode.startswith(SPECIAL) and kind.startswith(("f", "bf")):
        return "double" if kind == "f64" else "special"
    if kind == "f64":
        return "double"
    if kind in _FLOATS and kind != "f32":
        return "half"
    if head in ("add", "sub", "mul", "fma", "mad") and kind == "f32":
        return "FMA"
    return "IMAD" if head in ("mul", "mad", "mul24", "mad24", "dp4a", "dp2a") else "ALU"


@dataclass(frozen=True)
class Total:
    """Sums over instructions. lanes: the active share of 32. sectors_per_request: sectors of 32 bytes of a request to
    global or local memory on average; sector_use: bytes that lanes asked for over bytes of those sectors, above 1 where
    lanes share; bank_conflicts: passes to the banks of shared memory beyond the fewest possible."""

    name: str
    instructions: int
    lanes: float
    requests: int
    bytes: int
    sectors: int
    sectors_per_request: float
    sector_use: float
    bank_conflicts: int


def by_space_reached(kernel: Kernel, counts: np.ndarray, place: int) -> list[tuple[str, np.ndarray]]:
    """Return the counts of one instruction by space: several rows for a generic address that led to several.

    A request that mixes spaces is one of each, as hardware makes it.
    """
    row, instruction = counts[place], kernel.program.instructions[place]
    reached = [k for k in range(len(SPACES)) if row["requests"][k]]
    if not pipe(instruction).endswith("generic") or not reached:
        return [("", row)]
    parts = []
    for k in reached:
        part = np.zeros((), COUNTS)
        part["runs"] = row["requests"][k]
        part["lanes"] = round(int(row["lanes"]) * int(row["bytes"][k]) / int(row["bytes"].sum()))
        for field in ("requests", "bytes", "sectors"):
            part[field][k] = row[field][k]
        if SPACES[k] == "shared":
            part["passes"], part["conflicts"] = row["passes"], row["conflicts"]
        parts.append((SPACES[k], part))
    # Runs without an active lane reach nothing.
    parts[0][1]["runs"] += max(0, int(row["runs"]) - sum(int(part["runs"]) for _, part in parts))
    return parts


def totals(kernel: Kernel, counts: np.ndarray, key: Callable[[Instruction, str], str | None]) -> list[Total]:
    """Return the totals of every group, the largest first.

    key: the group of an instruction that reached a space ("" where its opcode says it), None to leave it out.
    """
    groups: dict[str, list[np.ndarray]] = {}
    for place in np.flatnonzero(counts["runs"]).tolist():
        for space, row in by_space_reached(kernel, counts, place):
            name = key(kernel.program.instructions[place], space)
            if name is not None:
                groups.setdefault(name, []).append(row)
    found = [_total(name, np.array(rows, COUNTS)) for name, rows in groups.items()]
    return sorted(found, key=lambda total: -total.instructions)


def _total(name: str, rows: np.ndarray) -> Total:
    runs, wide = int(rows["runs"].sum()), [SPACES.index(space) for space in ("global", "local")]
    sectors, asked = (int(rows[field][:, wide].sum()) for field in ("sectors", "bytes"))
    return Total(
        name,
        runs,
        float(rows["lanes"].sum()) / (32 * runs),
        int(rows["requests"].sum()),
        int(rows["bytes"].sum()),
        sectors,
        sectors / max(1, int(rows["requests"][:, wide].sum())),
        asked / max(1, 32 * sectors),
        int(rows["conflicts"].sum()),
    )


def by_pipe(kernel: Kernel, counts: np.ndarray) -> list[Total]:
    return totals(kernel, counts, pipe)


def by_opcode(kernel: Kernel, counts: np.ndarray) -> list[Total]:
    return totals(kernel, counts, lambda instruction, _: instruction.opcode)


def by_line(kernel: Kernel, counts: np.ndarray) -> list[Total]:
    """Totals of every source line, where it stands itself and not where it was inlined."""
    return totals(kernel, counts, lambda instruction, _: str(instruction.line) if instruction.line else None)


def table(rows: list[Total], most: int = 20) -> str:
    """Return the largest groups as a Markdown table."""
    whole = sum(row.instructions for row in rows) or 1
    lines = [
        "| | warp instructions | share | lanes | bytes | sectors a request | sector use | bank conflicts |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.name} | {row.instructions:,} | {row.instructions / whole:.1%} | {row.lanes:.0%} | {row.bytes:,} | "
        f"{row.sectors_per_request:.1f} | {row.sector_use:.0%} | {row.bank_conflicts:,} |"
        for row in rows[:most]
    ]
    return "\n".join(lines)
