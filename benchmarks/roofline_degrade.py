"""Predicted time of the CUDA engine on an A100 and an H100, where none was at hand: each op, and chains of preset qpt.

Run by ``python -m benchmarks roofline_degrade``; needs g++ and valgrind. Nothing here is measured on a GPU. Counted
are: the instructions of each op's source, on the path a thread block takes, run by one thread of a processor
(valgrind, g++ -O2 without vectorisation); the kernel's registers, as compiled for each GPU (benchmarks/resources.py),
hence the blocks resident on a multiprocessor; and the bytes an op must move at least. What is assumed stands in
``ASSUMPTIONS`` and is printed with the result.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import resources
from benchmarks.bench_degrade import parameters_of
from benchmarks.harness import Report, Settings
from benchmarks.roofline import GPUS, Gpu
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, op_id
from qpt.degradations.space import DegradationSpace
from qpt.errors import BackendError

HELP = "predicted milliseconds of the CUDA engine on A100 and H100, from counted instructions"
ROWS, SIDE = 256, 320  # of the predicted batch: rows of a program, pixels
BATCHES = (16, 32, 64, 128, 256, 512, 1024, 4096)  # rows whose utilisation is stated
COUNTED = 96  # side of the image whose instructions are counted
IPC = 0.5  # instructions per clock of each of a multiprocessor's four schedulers
SCHEDULERS, WARP = 4, 32
BYTES = 6  # of a pixel and op: read once and written once as uint8; temporaries are taken to stay in L2
BANDWIDTH_SHARE = 0.6
ASSUMPTIONS = (
    "Predictions, not measurements. One thread's x86 instructions stand for a GPU thread's; the two compilers may "
    "differ by a factor of two either way.",
    f"Each of a multiprocessor's {SCHEDULERS} schedulers issues {IPC} instructions a clock at boost clocks: few warps "
    "are resident, so latencies show. Work is divided evenly among a block's threads.",
    f"Device memory gives {BANDWIDTH_SHARE:.0%} of its peak; {BYTES} bytes a pixel and op. The greater of the two "
    "times counts. Rows are assigned to blocks heavy ones first.",
)


def run(settings: Settings) -> Report:
    """Count every op at all levels (``quick``: level 3), then predict."""
    side = 32 if settings.quick else COUNTED
    names = [row.name for row in DEGRADATIONS][:2] if settings.quick else [row.name for row in DEGRADATIONS]
    levels = (3,) if settings.quick else range(1, LEVELS + 1)
    with tempfile.TemporaryDirectory() as folder:
        program = build_counter(Path(folder))
        counted = {name: count_instructions(program, name, side, levels) for name in names}
    blocks = {gpu.name: _resident_blocks(gpu) for gpu in GPUS}
    found = []
    for name in names:
        per_pixel = float(np.mean(counted[name]))
        found += _predict(name, [per_pixel], 1, blocks)
    remarks = [f"Milliseconds for {ROWS} rows of {SIDE} x {SIDE}, mean over levels.", *ASSUMPTIONS]
    if not settings.quick:
        rows, ops = _chains(counted)
        found += _predict("chains of preset qpt", rows, ops, blocks)
        remarks += [_utilisation(rows, gpu, blocks[gpu.name]) for gpu in GPUS]
    return Report("roofline_degrade", predictions=found, remarks=remarks)


def build_counter(folder: Path) -> Path:
    """Compile instructions.cpp in ``folder``. BackendError without the tools."""
    for tool in ("g++", "valgrind"):
        if shutil.which(tool) is None:
            raise BackendError(f"roofline_degrade: {tool} not found on $PATH; run: apt-get install {tool}")
    program = folder / "instructions"
    flags = ["-std=c++17", "-O2", "-fno-tree-vectorize", "-ffp-contract=off", "-mavx", "-mfma"]
    source = Path(__file__).with_name("instructions.cpp")
    resources.run_tool(["g++", *flags, str(source), "-o", str(program)])
    return program


def count_instructions(program: Path, op: str, side: int, levels: Iterable[int]) -> list[float]:
    """Count the instructions per pixel of ``op`` at each level, on an image of side x side."""
    found = []
    every_level = parameters_of(op, LEVELS)
    for level in levels:
        words = [str(program), str(op_id(op)), str(side), *map(repr, every_level[level - 1])]
        tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=qpt_counted"]
        done = subprocess.run([*tool, *words], capture_output=True, text=True, check=False)
        collected = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or collected is None:
            raise BackendError(f"roofline_degrade: valgrind failed on {op}: {done.stderr.strip()[-400:]}")
        found.append(int(collected[1]) / side**2)
    return found


def _resident_blocks(gpu: Gpu) -> int:
    """Return the number of blocks of the degradation kernel on one multiprocessor of this GPU."""
    kernel = next(kernel for kernel in resources.kernels() if "degrade" in kernel.label)
    cubin, shared = kernel.compile(gpu.architecture)
    (found,) = resources.read(cubin).values()
    return resources.blocks_per_multiprocessor(found, kernel.threads(gpu.architecture), gpu.architecture, shared)


def _chains(counted: dict[str, list[float]]) -> tuple[list[float], float]:
    """Return the instructions per pixel of each row of a program of preset qpt, and the mean number of ops of a row."""
    program = DegradationSpace.preset("qpt").sample(ROWS, generator=torch.Generator().manual_seed(0))
    rows = [sum(counted[step.name][step.level - 1] for step in chain.steps) for chain in program]
    return rows, sum(map(len, program)) / ROWS


def _assign(rows: Iterable[float], places: int) -> np.ndarray:
    """Assign rows, heavy ones first, each to the block with the least work; return the instructions of each block."""
    found = np.zeros(places)
    for work in sorted(rows, reverse=True):
        found[found.argmin()] += work
    return found


def _utilisation(rows: list[float], gpu: Gpu, blocks: int) -> str:
    """Describe the share of the multiprocessors at work by the number of rows."""
    # A row is the work of one block: few rows leave multiprocessors idle, and unequal rows leave some idle at the end.
    places = gpu.multiprocessors * blocks
    shares = []
    for count in BATCHES:
        work = _assign(np.resize(rows, count), places)
        shares.append(f"{count} rows {work.mean() / work.max():.0%}")
    return f"Share of {gpu.name}'s {gpu.multiprocessors} multiprocessors at work, chains of preset qpt: " + ", ".join(
        shares
    )


def _predict(op: str, rows: list[float], ops: float, blocks: dict[str, int]) -> list[dict[str, Any]]:
    """Predict for each GPU.  rows: instructions per pixel of each row of the batch, repeated to ROWS."""
    found = []
    for gpu in GPUS:
        places = _assign(np.resize(rows, ROWS) * SIDE**2, gpu.multiprocessors * blocks[gpu.name])
        # The blocks of a multiprocessor share its schedulers.
        issue = SCHEDULERS * WARP * IPC / blocks[gpu.name] * gpu.clock
        arithmetic = places.max() / issue
        memory = ROWS * SIDE**2 * BYTES * ops / (gpu.bandwidth * BANDWIDTH_SHARE)
        found.append(
            {
                "op": op,
                "gpu": gpu.name,
                "predicted_ms": round(1000 * max(arithmetic, memory), 2),
                "bound_by": "instructions" if arithmetic > memory else "memory",
                "instructions_per_pixel": round(float(np.mean(rows))),
                "efficiency": IPC if arithmetic > memory else BANDWIDTH_SHARE,
                "peaks": gpu.source,
            }
        )
    return found
