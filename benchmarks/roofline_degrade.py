"""Predicted time of the CUDA engine on an A100 and an H100, where none was at hand: each op, and chains of preset qpt.

Run by ``python -m benchmarks roofline_degrade``. Nothing here is measured on a GPU. Counted are the instructions and
barriers of each op, by executing the compiled kernel on the CPU (``gpu_costs``), and the bytes an op must move at
least. The same model gives the times of the kernel whose rows had one thread block each, whose counts are kept in
one_block_costs.yaml. What is assumed stands in ``ASSUMPTIONS`` and is printed with the result.
"""

import heapq
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Report, Settings
from benchmarks.roofline import GPUS, Gpu
from qpt.data.boxes import draw_boxes
from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.ops.degrade import order
from qpt.ops.degrade.cuda import LaunchConfig, division
from qpt.ops.degrade.patches import row_windows

HELP = "predicted milliseconds of the CUDA engine on A100 and H100, from counted instructions"
ONE_BLOCK_COSTS = Path(__file__).with_name("one_block_costs.yaml")
ROWS, SIDE = 256, 320  # of the predicted batch: rows of a program, pixels
TRAINING_ROWS, PATCH = 512, 160  # of the call of a training step: rows, side of its two patches
BATCHES = (16, 32, 64, 128, 256, 512, 1024, 4096)  # rows whose utilisation is stated
IPC = 0.5  # instructions per clock of each of a multiprocessor's four schedulers
SCHEDULERS, WARP = 4, 32
BARRIER = 2e-6  # seconds of a barrier between the blocks of a team
BYTES = 6  # of a pixel and op: read once and written once as uint8; temporaries are taken to stay in L2
BANDWIDTH_SHARE = 0.6
ASSUMPTIONS = (
    "Predictions, not measurements. Instructions are those of the kernel's PTX, executed on the CPU; the machine's own "
    "may differ by a factor of two either way.",
    f"Each of a multiprocessor's {SCHEDULERS} schedulers issues {IPC} instructions a clock at boost clocks: few warps "
    f"are resident, so latencies show. A barrier between the blocks of a row takes {1e6 * BARRIER:g} microseconds.",
    f"Device memory gives {BANDWIDTH_SHARE:.0%} of its peak; {BYTES} bytes a pixel and op. The greater of the two "
    "times counts. A team that ends early takes the row of the greatest cost that is left.",
)


def run(settings: Settings) -> Report:
    """Predict from the committed counts (``quick``: two ops only)."""
    names = [row.name for row in DEGRADATIONS][: 2 if settings.quick else None]
    found = []
    for name in names:
        program = Program.from_chains([[(name, 1 + i % LEVELS)] for i in range(ROWS)], seeds=range(ROWS))
        found += [predict(name, program, None, gpu) for gpu in GPUS]
    remarks = [f"Milliseconds for {ROWS} rows of {SIDE} x {SIDE}, the five levels in turn.", *ASSUMPTIONS]
    if not settings.quick:
        calls = {"chains of preset qpt": (_program(ROWS), None), "training call": training_call()}
        for name, (program, windows) in calls.items():
            found += [predict(name, program, windows, gpu) for gpu in GPUS]
            found += [predict(f"{name}, one block a row", program, windows, gpu, one_block=True) for gpu in GPUS]
        ms = {(entry["op"], entry["gpu"]): entry["predicted_ms"] for entry in found}
        before_after = ", ".join(
            f"{gpu.name} {ms['training call', gpu.name]} ms (with one block a row and its ops as they were, "
            f"{ms['training call, one block a row', gpu.name]} ms)"
            for gpu in GPUS
        )
        remarks.append(
            f"A training call, {TRAINING_ROWS} rows of preset qpt with two overlapping patches of {PATCH} px: "
            f"{before_after}."
        )
        remarks += [_utilisation(gpu) for gpu in GPUS]
    return Report("roofline_degrade", predictions=found, remarks=remarks)


def _program(rows: int) -> Program:
    return DegradationSpace.preset("qpt").sample(rows, generator=torch.Generator().manual_seed(0))


def training_call() -> tuple[Program, torch.Tensor]:
    """Return the program of a training step, and the windows of its rows (r, 5) int32."""
    program, rng = _program(TRAINING_ROWS), random.Random(0)
    boxes = [draw_boxes(rng, 2, PATCH, SIDE, 0.1, 0.3) for _ in range(TRAINING_ROWS)]
    return program, row_windows(program, torch.tensor(boxes, dtype=torch.int32), PATCH, SIDE, SIDE)


def predict(
    op: str, program: Program, windows: torch.Tensor | None, gpu: Gpu, *, one_block: bool = False
) -> dict[str, Any]:
    """Predict one call.  one_block: with the kernel whose rows had one block each."""
    costs = _costs(one_block)
    per_pixel = order.row_costs(program, windows, SIDE, SIDE, costs)
    arithmetic, _, config = _seconds(program, windows, gpu, one_block)
    moved = BYTES * SIDE**2 * float(order.row_costs(program, windows, SIDE, SIDE, np.ones_like(costs)).sum())
    memory = moved / (gpu.bandwidth * BANDWIDTH_SHARE)
    return {
        "op": op,
        "gpu": gpu.name,
        "predicted_ms": round(1000 * max(arithmetic, memory), 2),
        "bound_by": "instructions" if arithmetic > memory else "memory",
        "instructions_per_pixel": round(float(per_pixel.mean())),
        "efficiency": IPC if arithmetic > memory else BANDWIDTH_SHARE,
        "blocks_of_a_row": round(config.blocks / config.teams, 1),
        "peaks": gpu.source,
    }


def _costs(one_block: bool) -> np.ndarray:
    return order.read_costs(ONE_BLOCK_COSTS) if one_block else order.gpu_costs()


def alike_ms(per_pixel: float, rows: int, side: int, gpu: Gpu, barriers: float = 3) -> float:
    """Return the milliseconds of rows that are alike, of so many instructions per pixel and barriers."""
    instructions = np.full(rows, per_pixel * side**2)
    teams, blocks = division(instructions, side, side, gpu.multiprocessors, barriers=barriers, cache_bytes=gpu.cache)
    working = _working_seconds(instructions, gpu)
    return 1000 * _last_end(working, np.full(rows, barriers * BARRIER), np.full(rows, side), teams, blocks)


def _working_seconds(instructions: np.ndarray, gpu: Gpu) -> np.ndarray:
    """Return the seconds in which one multiprocessor executes so many instructions."""
    return instructions / (SCHEDULERS * WARP * IPC * gpu.clock)


def _last_end(costs: np.ndarray, barriers: np.ndarray, heights: np.ndarray, teams: int, blocks: int) -> float:
    """Return the time at which the last of the teams ends, which take rows, costly ones first, whenever they are free.

    costs, barriers: (r,), of the rows, in one unit of time: that in which one block does all the work, and what the
    barriers take if a team has several blocks.  heights: (r,) pixels.  blocks: of all teams.
    """
    places = np.argsort(-costs, kind="stable")
    waits = barriers[places] if blocks > teams else 0.0
    least, larger = divmod(blocks, teams)
    sizes = [least] * (teams - larger) + [least + 1] * larger
    # The block that has most rows of the image sets the pace of its team.
    taken = {n: (costs[places] * -(-heights[places] // n) / heights[places] + waits).tolist() for n in set(sizes)}
    # Of teams that are free at once the smaller one comes first: a GPU may do so, and it is the slower way.
    free = [(0.0, size) for size in sizes]
    for row in range(len(places)):
        end, size = free[0]
        heapq.heapreplace(free, (end + taken[size][row], size))
    return max(free)[0]


def _seconds(
    program: Program, windows: torch.Tensor | None, gpu: Gpu, one_block: bool = False
) -> tuple[float, float, LaunchConfig]:
    """Return the seconds of a call, the multiprocessors' seconds at work, and the launch."""
    config = LaunchConfig.of(
        program,
        SIDE,
        SIDE,
        windows,
        multiprocessors=gpu.multiprocessors,
        shared_limit=0,
        cache_bytes=gpu.cache,
        blocks=1 if one_block else None,
    )
    instructions = order.row_costs(program, windows, SIDE, SIDE, _costs(one_block)) * SIDE**2
    # Those of its ops; the last one also waits for the place of the team's next row, unless patches are cut after it.
    barriers = order.row_costs(program, None, SIDE, SIDE, order.gpu_barriers()) + (windows is not None)
    heights = np.full(len(program), SIDE) if windows is None else windows.numpy()[:, 3]
    working = _working_seconds(instructions, gpu)
    return _last_end(working, barriers * BARRIER, heights, config.teams, config.blocks), float(working.sum()), config


def _utilisation(gpu: Gpu) -> str:
    """Describe the share of the multiprocessors at work by the number of rows."""
    shares = []
    for rows in BATCHES:
        seconds, working, config = _seconds(_program(rows), None, gpu)
        busy = working / (seconds * gpu.multiprocessors)
        shares.append(f"{rows} rows {busy:.1%} ({config.blocks / config.teams:.1f} blocks a row)")
    return f"Share of {gpu.name}'s {gpu.multiprocessors} multiprocessors at work, chains of preset qpt: " + ", ".join(
        shares
    )
