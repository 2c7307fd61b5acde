"""A profile of the compiled GPU kernels, from the instructions that their PTX executes on the CPU (tests/ptx).

``python -m benchmarks profile degrade|contrastive`` prints a page per kernel and, for degrade, per op. Nothing is timed
and no GPU is used. Relies on nvcc or NVRTC, on Triton, on g++ for the executor and, for the comparison with machine
code, on cuobjdump.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import gpu_costs, profile_page, resources
from qpt import build, kernels
from qpt.degradations.op_table import LEVELS, NAMES
from qpt.errors import BackendError, InputError
from tests import ptx
from tests.ptx import compilers, counters

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRECISIONS = ("auto", "ieee", "tf32", "tf32x3", "bf16x3")
NOTHING = "(no op)"  # a row without ops: what every row costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and print the page; return the exit status, 2 for an error of the user's."""
    options = _parser().parse_args(arguments)
    try:
        content = _degrade(options) if options.kernel == "degrade" else _contrastive(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"benchmarks profile: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(content, indent=1) if options.json else profile_page.text(content, options.lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="kernel", required=True, metavar="KERNEL")
    degrade = commands.add_parser("degrade", help="qpt_degrade, op by op")
    degrade.add_argument("--ops", nargs="+", choices=[*NAMES, NOTHING], metavar="OP", help="ops (default: all)")
    degrade.add_argument("--level", type=int, default=3, help=f"level of the ops, 1 to {LEVELS} (default 3)")
    degrade.add_argument("--height", type=int, default=gpu_costs.HEIGHT, help="of the image (default %(default)s)")
    degrade.add_argument("--width", type=int, default=gpu_costs.WIDTH, help="of the image (default %(default)s)")
    degrade.add_argument("--blocks", type=int, default=gpu_costs.BLOCKS, help="blocks of a row (default %(default)s)")
    loss = commands.add_parser("contrastive", help="the loss's passes over pairs and its merge")
    loss.add_argument("--queries", type=int, default=128, metavar="N", help="queries (default 128)")
    loss.add_argument("--keys", type=int, default=1024, metavar="K", help="keys (default 1024)")
    loss.add_argument("--dim", type=int, default=128, metavar="D", help="length of the embeddings (default 128)")
    loss.add_argument("--dtype", choices=DTYPES, default="float32", help="of the queries (default float32)")
    loss.add_argument("--key-dtype", choices=DTYPES, help="of the keys (default: that of the queries)")
    loss.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the products (default auto)")
    loss.add_argument("--images", action="store_true", help="with image ids, as among the keys of a batch")
    for each in (degrade, loss):
        each.add_argument("--architecture", type=int, choices=(80, 90), default=80, help="sm_80 or sm_90 (default 80)")
        each.add_argument("--lines", type=int, default=6, help="source lines listed per op or kernel (default 6)")
        each.add_argument("--json", action="store_true", help="print JSON, with all lines, instead of text")
    return parser


def _check(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        wanted = f">= {least}" if most is None else f"{least} to {most}"
        raise InputError(f"profile: {name} must be {wanted}, got {value}")


def _degrade(options: argparse.Namespace) -> dict[str, Any]:
    _check("level", options.level, 1, LEVELS)
    for name in ("height", "width", "blocks"):
        _check(name, getattr(options, name), 1)
    kernel = gpu_costs.compile_kernel(options.architecture)
    cubin = _tolerant(lambda: resources.cuda_cubin(build.CUDA_SOURCES[0], options.architecture)[0])
    pixels = options.height * options.width
    sections = []
    for op in options.ops or [NOTHING, *NAMES]:
        chain = [] if op == NOTHING else [(op, options.level)]
        counts, waiting = gpu_costs.execute(kernel, chain, options.height, options.width, options.blocks)
        counts = counts.copy()
        counts[waiting] = 0  # the wait for other blocks goes by the executor's schedule
        sections.append({"name": op} | section(kernel, counts, pixels))
        print(f"{op}: {sections[-1]['per_unit']:.0f} instructions per pixel", file=sys.stderr, flush=True)
    return {
        "title": f"qpt_degrade, sm_{options.architecture}: {options.height} x {options.width} pixels, level "
        f"{options.level}, {options.blocks} blocks of {build.BLOCK_THREADS} threads",
        "unit": "pixel",
        "sections": sections,
        "machine_code": [machine_code("qpt_degrade", kernel, cubin)],
    }


def _contrastive(options: argparse.Namespace) -> dict[str, Any]:
    for name in ("queries", "keys", "dim"):
        _check(name, getattr(options, name), 1)
    from qpt.kernels import contrastive

    generator = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.nn.functional.normalize(torch.randn(count, options.dim, generator=generator))
        for count in (options.queries, options.keys)
    )
    queries, keys = queries.to(DTYPES[options.dtype]), keys.to(DTYPES[options.key_dtype or options.dtype])
    groups = torch.arange(len(queries)), torch.arange(len(keys))
    images = (groups[0] // 2, groups[1] // 2) if options.images else (None, None)
    sides = (queries, groups[0], images[0]), (keys, groups[1], images[1], None, True)
    common = (*sides, torch.tensor(0.2), math.log(0.5) if options.images else 0.0)
    device = compilers.TritonDevice(options.architecture, count=True, races=False)
    names = ["log-sum-exp and weighted sum", "merge of its parts", "key gradient", "merge of its parts"]
    with mock.patch.object(contrastive, "_device", return_value=(options.architecture, 2)), device.active():
        row_max, row_sum, _ = contrastive.lse_forward(*common, weighted=True, precision=options.precision)
        first = len(device.launches)
        contrastive.key_gradient(*common, row_max + row_sum.log(), precision=options.precision)
    names = [*names[:first], *names[2 : 2 + len(device.launches) - first]]
    logits = options.queries * options.keys
    sections, code = [], []
    for name, (kernel, counts), compiled in zip(names, device.launches, device.compiled, strict=True):
        sections.append({"name": name} | section(kernel, counts, logits))
        code.append(machine_code(name, kernel, compiled.asm.get("cubin")))
    return {
        "title": f"The contrastive loss, sm_{options.architecture}: N={options.queries} {options.dtype}, "
        f"K={options.keys} {options.key_dtype or options.dtype}, D={options.dim}, precision {options.precision}"
        + (", compiled without wgmma" if options.architecture >= 90 else ""),
        "unit": "logit",
        "sections": sections,
        "machine_code": code,
    }


def section(kernel: ptx.Kernel, counts: np.ndarray, units: int) -> dict[str, Any]:
    """Return what one launch executed; per unit: 32 times the instructions of warps, over pixels or logits."""
    pipes = counters.by_pipe(kernel, counts)
    whole = sum(total.instructions for total in pipes)
    barriers = [
        int(counts["runs"][place])
        for place in np.flatnonzero(counts["runs"]).tolist()
        if kernel.program.instructions[place].opcode.startswith(counters.BARRIERS)
    ]

    def entry(total: counters.Total) -> dict[str, Any]:
        return {
            "instructions": total.instructions,
            "per_unit": round(32 * total.instructions / units, 3),
            "share": round(total.instructions / whole, 4),
            "lanes": round(total.lanes, 4),
            "requests": total.requests,
            "bytes": total.bytes,
            "sector_bytes": 32 * total.sectors,
            "sectors_per_request": round(total.sectors_per_request, 2),
            "sector_use": round(total.sector_use, 3),
            "bank_conflicts": total.bank_conflicts,
        }

    lines = counters.totals(kernel, counts, _place_of)
    return {
        "instructions": whole,
        "per_unit": round(32 * whole / units, 2),
        "lanes": round(float(counts["lanes"].sum()) / (32 * whole), 4),
        "barriers_of_warps": sum(barriers),
        "bank_conflicts": int(counts["conflicts"].sum()),
        "shared_passes": int(counts["passes"].sum()),
        "bytes": dict(zip(ptx.native.SPACES, counts["bytes"].sum(0).tolist(), strict=True)),
        "pipes": {total.name: entry(total) for total in pipes},
        "lines": [_line(total.name) | entry(total) for total in lines],
    }


def _place_of(instruction: ptx.parse.Instruction, _: str = "") -> str | None:
    """Name a source line and, where its function was inlined into one of another file, the line there.

    A loop that the file's own function calls with a body of its own is passed over: it says nothing.
    """
    line = outermost = instruction.line
    if line is None or outermost is None:
        return None
    frame = line.inlined_at
    while frame:
        outermost, frame = (frame if frame.file == line.file else outermost), frame.inlined_at
    place, caller = f"{line.file}:{line.number}", outermost.inlined_at
    return f"{place} < {caller.file}:{caller.number}" if caller else place


def _line(name: str) -> dict[str, str]:
    line, _, caller = name.partition(" < ")
    return {"line": line, "caller": caller, "text": source_text(line)}


def source_text(place: str) -> str:
    """Return the text of a line FILE:LINE; "" where it is not found."""
    name, _, number = place.rpartition(":")
    lines = _source(name)
    return lines[int(number) - 1].strip() if 0 < int(number) <= len(lines) else ""


@cache
def _source(name: str) -> list[str]:
    kernel = Path(kernels.__path__[0], Path(name).name)
    if kernel.is_file():  # what Triton took from its cache names the checkout that compiled it first
        name = str(kernel)
    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8", errors="replace").splitlines()
    if Path(name).name == "source.cu":  # what NVRTC was given
        return build.device_source().splitlines()
    return []


# Unit of a machine instruction by how its name begins, in the words of counters.pipe; the rest is ALU.
_MACHINE = (
    (r"U?MOV|S2U?R|CS2R|R2UR|IMAD\.MOV|IMAD\.U32", "move"),  # the last by the FMA unit
    (r"[HIDBQ]G?MMA|WARPGROUP", "tensor"),
    (r"MUFU", "special"),
    (r"I2F|F2I|FRND|F2F(?!P)|I2I", "convert"),
    (r"DADD|DMUL|DFMA|DSETP|DMNMX", "double"),
    (r"HADD|HMUL|HFMA|HMNMX|HSET", "half"),
    (r"FADD|FMUL|FFMA", "FMA"),
    (r"IMAD|IMUL|IDP|IMMA", "IMAD"),
    (r"SHFL|VOTE|MATCH|REDUX", "lanes"),
    (r"LDGSTS", "copy global"),
    (r"LDG", "load global"), (r"LDS", "load shared"), (r"LDL", "load local"), (r"LDC|ULDC", "load const"),
    (r"LD$|LD\.", "load generic"), (r"STG", "store global"), (r"STS", "store shared"), (r"STL", "store local"),
    (r"ST$|ST\.", "store generic"), (r"ATOM|RED", "atomic"),
    (r"BRA|BRX|BSSY|BSYNC|BREAK|CALL|RET|EXIT|BAR|WARPSYNC|MEMBAR|ERRBAR|CCTL|DEPBAR|LDGDEPBAR|YIELD|NANOSLEEP|JMP",
     "control"),
)  # fmt: skip


def machine_pipe(opcode: str) -> str:
    """Return the unit of a machine instruction of sm_80 or sm_90."""
    return next((name for pattern, name in _MACHINE if re.match(pattern, opcode)), "ALU")


def machine_code(name: str, kernel: ptx.Kernel, cubin: bytes | None) -> dict[str, Any]:
    """Return the instructions of a kernel in PTX and in machine code, as they stand there, by unit, and its registers.

    Machine code has no numbers where cuobjdump is not found. NOP is left out: it pads.
    """
    static = Counter(counters.pipe(instruction) for instruction in kernel.program.instructions)
    found: dict[str, Any] = {"name": name, "ptx": sum(static.values()), "ptx_pipes": dict(static.most_common())}
    if cubin is None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        listing = _tolerant(lambda: resources.cuobjdump("-sass", path))
        usage = _tolerant(lambda: resources.cuobjdump("-res-usage", path))
    if listing is None or usage is None:
        return found
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)[^;]*;", listing)
    machine = Counter(machine_pipe(opcode) for opcode in opcodes if opcode != "NOP")
    (read,) = resources.parse(usage, listing).values()
    return found | {
        "machine": sum(machine.values()),
        "machine_pipes": dict(machine.most_common()),
        "ratio": round(sum(machine.values()) / found["ptx"], 3),
        "registers": read.registers,
        "local_accesses": read.local_accesses,
        "shared_bytes": read.shared_bytes,
    }


def _tolerant(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BackendError as error:
        print(f"benchmarks profile: {error}; no comparison with machine code", file=sys.stderr)
        return None
