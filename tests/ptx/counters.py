"""Tables of what a launch executed, per pipe, opcode and source line, from ``Kernel.launch(count=True)``.

A count is of PTX instructions of warps; ptxas makes machine instructions of them, of which one may be several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ptx.kernel import Kernel
from tests.ptx.parse import Instruction

SPECIAL = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh", "div.f", "div.rn", "div.full", "div.approx")
LANES_TALK = ("shfl", "vote", "match", "redux", "activemask", "elect")
CONTROL = ("bra", "brx", "call", "ret", "exit", "bar", "barrier", "trap", "membar", "fence")
ARITHMETIC = ("add", "sub", "mul", "fma", "mad", "min", "max", "neg", "abs")


def pipe(instruction: Instruction) -> str:
    """Return the unit that executes an instruction.

    tensor, special, double, half, FMA, ALU, convert, lanes, control, or memory with its space.
    """
    opcode = instruction.opcode
    head, *parts = opcode.split(".")
    if head in ("mma", "wmma"):
        return "tensor"
    if head in ("ld", "st", "atom", "red", "ldu", "cp", "ldmatrix", "stmatrix", "prefetch"):
        if "wait_group" in opcode or "commit_group" in opcode or "wait_all" in opcode:
            return "control"
        space = next((part.split("::")[0] for part in parts if part.split("::")[0] in _SPACES), "generic")
        return f"memory {space}"
    if head in CONTROL:
        return "control"
    if head in LANES_TALK:
        return "lanes"
    if head == "cvt":
        return "convert"
    if opcode.startswith(SPECIAL) and parts[-1].startswith(("f", "bf")):
        return "double" if parts[-1] == "f64" else "special"
    if parts and parts[-1] == "f64":
        return "double"
    if parts and parts[-1] in ("f16", "bf16", "f16x2", "bf16x2"):
        return "half"
    if parts and parts[-1] == "f32" and head in ARITHMETIC:
        return "FMA"
    return "ALU"


_SPACES = ("global", "shared", "local", "const", "param")


@dataclass(frozen=True)
class Total:
    """Sums over instructions. lanes: the active share of 32. sectors: of 32 bytes, of a request to global memory on
    average; conflicts: passes to the banks of shared memory beyond the fewest possible."""

    name: str
    instructions: int
    lanes: float
    requests: int
    bytes: int
    sectors_per_request: float
    bank_conflicts: int


def totals(kernel: Kernel, counts: np.ndarray, key: Callable[[Instruction], str | None]) -> list[Total]:
    """Return the totals of every group, the largest first; key: the group of an instruction, None to leave it out."""
    groups: dict[str, list[int]] = {}
    for place in np.flatnonzero(counts["runs"]).tolist():
        name = key(kernel.program.instructions[place])
        if name is not None:
            groups.setdefault(name, []).append(place)
    found = []
    for name, places in groups.items():
        rows = counts[places]
        runs, requests, sectors = (int(rows[field].sum()) for field in ("runs", "requests", "sectors"))
        waves, counted = int(rows["wavefronts"].sum()), int(rows["bytes"][rows["wavefronts"] > 0].sum())
        passes = int(rows["requests"][rows["wavefronts"] > 0].sum())
        fewest = max(passes, -(-counted // 128))
        globally = int(rows["requests"][rows["sectors"] > 0].sum())
        lanes = float(rows["lanes"].sum()) / (32 * runs)
        found.append(
            Total(
                name,
                runs,
                lanes,
                requests,
                int(rows["bytes"].sum()),
                sectors / max(1, globally),
                max(0, waves - fewest),
            )
        )
    return sorted(found, key=lambda total: -total.instructions)


def by_pipe(kernel: Kernel, counts: np.ndarray) -> list[Total]:
    return totals(kernel, counts, pipe)


def by_opcode(kernel: Kernel, counts: np.ndarray) -> list[Total]:
    return totals(kernel, counts, lambda instruction: instruction.opcode)


def by_line(kernel: Kernel, counts: np.ndarray) -> list[Total]:
    """Totals of every source line, where it stands itself and not where it was inlined."""
    return totals(kernel, counts, lambda instruction: str(instruction.line) if instruction.line else None)


def table(rows: list[Total], most: int = 20) -> str:
    """Return the largest groups as a Markdown table."""
    whole = sum(row.instructions for row in rows) or 1
    lines = [
        "| | warp instructions | share | lanes | bytes | sectors a request | bank conflicts |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.name} | {row.instructions:,} | {row.instructions / whole:.1%} | {row.lanes:.0%} | {row.bytes:,} | "
        f"{row.sectors_per_request:.1f} | {row.bank_conflicts:,} |"
        for row in rows[:most]
    ]
    return "\n".join(lines)
