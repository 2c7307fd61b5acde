"""The page of ``python -m benchmarks profile``: text for a terminal from what profile.py counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import table

# Columns of the first table, and the units that each adds up.
COLUMNS = {
    "FMA": ("FMA",),
    "IMAD": ("IMAD",),
    "ALU": ("ALU",),
    "half": ("half",),
    "double": ("double",),
    "convert": ("convert",),
    "special": ("special",),
    "tensor": ("tensor",),
    "lanes": ("lanes",),
    "load": ("load",),
    "store": ("store",),
    "atomic": ("atomic",),
    "copy": ("copy",),
    "control": ("control",),
}
ACCESSES = ("load", "store", "atomic", "copy")
NOTES = """\
Counted: PTX instructions of warps, times 32, per {unit}, as executed on the CPU. ptxas makes machine instructions of
them; the ratio of the two below is static, of the whole text of a kernel, not of what a {unit} executes. What PTX keeps
in local memory ptxas may move to registers: the machine code's accesses to local memory are what is left.
IMAD runs on the FMA unit; convert (between integers and floats) and special run at a quarter of the rate; control
includes barriers. Active: mean share of the 32 lanes. Moved: 32-byte sectors touched, which L1 may serve. Sector use:
bytes that lanes asked for over the bytes moved (1 is best without sharing; above 1, lanes read the same bytes).
Conflicts: passes to the banks of shared memory beyond the fewest possible, as a share of all passes. An access by a
generic address is counted where it led. A line of an inlined function is listed once for each caller elsewhere."""
LEAST_BYTES = 0.5  # per unit: accesses of fewer bytes are not listed
CONSTANTS = ("const", "param")  # spaces served by the constant cache: not in the table of memory


def text(content: dict[str, Any], lines: int) -> str:
    """Return the page; lines: source lines of each section."""
    sections, unit = content["sections"], content["unit"]
    parts = [f"# {content['title']}", NOTES.format(unit=unit), f"## Instructions per {unit}, by unit"]
    parts.append(_units(sections, unit))
    parts += [
        "## Memory",
        _memory(sections, unit),
        "## PTX and machine code, static",
        _machine(content["machine_code"]),
    ]
    parts.append("## Where the instructions go")
    for section in sections:
        parts.append(f"### {section['name']}: {section['per_unit']:,.1f} per {unit}")
        parts.append(_lines(section["lines"][:lines], unit))
    return "\n\n".join(parts)


def _units(sections: Sequence[dict[str, Any]], unit: str) -> str:
    used = [name for name in COLUMNS if any(_sum(section, name) for section in sections)]
    header = ["", "all", *used, "active", "barriers of a warp"]
    rows = [
        [
            section["name"],
            f"{section['per_unit']:,.1f}",
            *[f"{_sum(section, name):,.2f}" if _sum(section, name) else "" for name in used],
            f"{section['lanes']:.0%}",
            f"{section['barriers_of_warps']:,}",
        ]
        for section in sections
    ]
    return table(header, rows, others="--:")


def _sum(section: dict[str, Any], column: str) -> float:
    pipes = section["pipes"].items()
    return sum(entry["per_unit"] for name, entry in pipes if name.split(" ")[0] in COLUMNS[column])


def _memory(sections: Sequence[dict[str, Any]], unit: str) -> str:
    header = ["", "access", f"instructions per {unit}", f"bytes per {unit}", "moved", "active", "sectors a request"]
    header += ["sector use", "conflicts"]
    rows = []
    for section in sections:
        for name, entry in section["pipes"].items():
            access, _, space = name.partition(" ")
            units = 32 * section["instructions"] / section["per_unit"]
            if access not in ACCESSES or space in CONSTANTS or entry["bytes"] < LEAST_BYTES * units:
                continue
            shared, passes = space == "shared", section["shared_passes"]
            rows.append(
                [
                    section["name"],
                    name,
                    f"{entry['per_unit']:,.2f}",
                    f"{entry['bytes'] / units:,.2f}",
                    "" if shared else f"{entry['sector_bytes'] / units:,.2f}",
                    f"{entry['lanes']:.0%}",
                    "" if shared else f"{entry['sectors_per_request']:.1f}",
                    "" if shared else f"{entry['sector_use']:.2f}",
                    f"{entry['bank_conflicts'] / max(1, passes):.0%}" if entry["bank_conflicts"] else "",
                ]
            )
    return table(header, rows, others="--:")


def _machine(code: Sequence[dict[str, Any]]) -> str:
    parts = []
    for entry in code:
        if "machine" not in entry:
            parts.append(f"{entry['name']}: {entry['ptx']:,} PTX instructions; no machine code to compare with.")
            continue
        parts.append(
            f"{entry['name']}: {entry['machine']:,} machine instructions of {entry['ptx']:,} of PTX "
            f"(ratio {entry['ratio']:.2f}), {entry['registers']} registers, {entry['local_accesses']} accesses to "
            f"local memory, {entry['shared_bytes']:,} bytes of static shared memory."
        )
        names = list(dict.fromkeys([*entry["ptx_pipes"], *entry["machine_pipes"]]))
        rows = [
            [name, f"{entry['ptx_pipes'].get(name, 0):,}", f"{entry['machine_pipes'].get(name, 0):,}"] for name in names
        ]
        parts.append(table(["unit", "PTX", "machine"], rows, others="--:"))
    return "\n\n".join(parts)


def _lines(lines: Sequence[dict[str, Any]], unit: str) -> str:
    header = ["line < caller", "share", f"per {unit}", "active", "sectors a request", "conflicts", "text"]
    rows = []
    for entry in lines:
        rows.append(
            [
                " < ".join(Path(place).name for place in (entry["line"], entry["caller"]) if place),
                f"{entry['share']:.1%}",
                f"{entry['per_unit']:,.2f}",
                f"{entry['lanes']:.0%}",
                f"{entry['sectors_per_request']:.1f}" if entry["sectors_per_request"] else "",
                f"{entry['bank_conflicts']:,}" if entry["bank_conflicts"] else "",
                "`" + entry["text"].replace("|", "\\|")[:110] + "`" if entry["text"] else "",
            ]
        )
    return table(header, rows, others="--:")
