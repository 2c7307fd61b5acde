"""Instructions per pixel of every op on a GPU, counted by executing the compiled kernel on the CPU (tests/ptx).

``python -m benchmarks.gpu_costs [OP ...]`` counts all ops, or some, at all levels and writes
qpt/ops/degrade/gpu_costs.yaml, by which the CUDA engine orders rows and sizes teams; ``roofline_degrade`` predicts
times from the same file. It needs nvcc or NVRTC, and g++ for the executor.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qpt import build
from qpt.degradations.op_table import LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.io import read_yaml, to_yaml, write_whole
from qpt.ops.degrade.cuda import STATE_WORDS, KernelInputs, LaunchConfig, kernel_arguments
from qpt.ops.degrade.order import GPU_COSTS
from tests import ptx
from tests.ptx import compilers

# Of the image that is counted on: 46 rows of 320 pixels a block, as images of 320 x 320 have with seven blocks.
HEIGHT, WIDTH, BLOCKS = 138, 320, 3
_OF_A_ROW = 1  # barriers that no op has: before the first op; that after the last one brings the place of the next row
HEADER = """\
# What the CUDA kernel executes, by op and level: 32 times the instructions of all warps, over the pixels; and the
# barriers between the blocks of a row. Written by `python -m benchmarks.gpu_costs`.
"""


class Count(NamedTuple):
    """What one op executes. instructions: per pixel, without waiting.  barriers: of a team."""

    instructions: float
    barriers: int


def compile_kernel(architecture: int = 80) -> ptx.Kernel:
    """Return qpt_degrade as nvcc, or else NVRTC, compiles it for sm_80 or another architecture."""
    if compilers.find_nvcc():
        source = build.PACKAGE.resolve() / "csrc" / build.CUDA_SOURCES[0]
        text = compilers.nvcc(source, (*build.CUDA_FLAGS, "-O3"), architecture)
    else:
        text = compilers.nvrtc(build.device_source(), build.CUDA_FLAGS, architecture)
    return ptx.load(text)["qpt_degrade"]


def test_image(height: int, width: int) -> torch.Tensor:
    """Return a slope with texture, (1, height, width, 3) uint8."""
    place = np.arange(height * width * 3)
    slope = place // 3 % width * 180 // width
    return torch.from_numpy((slope + place * 40503 % 61).astype(np.uint8).reshape(1, height, width, 3))


def count(kernel: ptx.Kernel, chain: list[tuple[str, int]], height: int, width: int, blocks: int) -> Count:
    """Count a row of a program on an image of height x width, run by one team of so many blocks."""
    counts, waiting = execute(kernel, chain, height, width, blocks)
    arrivals = _places(kernel, counts, _ARRIVE)
    barriers = max((int(counts["runs"][place]) for place in arrivals), default=0) // blocks
    # The loop that waits runs as often as the executor's schedule has it; it is not work.
    work = int(counts["runs"].sum()) - int(counts["runs"][waiting].sum())
    return Count(32 * work / (height * width), barriers)


def execute(
    kernel: ptx.Kernel, chain: list[tuple[str, int]], height: int, width: int, blocks: int
) -> tuple[np.ndarray, list[int]]:
    """Return the counts of all instructions (ptx.native.COUNTS) for one row, as ``count`` has it, and the places of
    those that wait for other blocks."""
    program = Program.from_chains([chain], seeds=[1])
    images = test_image(height, width)
    config = LaunchConfig.of(program, height, width, None, multiprocessors=blocks, shared_limit=0, blocks=blocks)
    inputs = KernelInputs.of(images, program, None)
    out = torch.zeros(height * width * 3, dtype=torch.uint8)
    states = torch.zeros((1 + config.teams, STATE_WORDS), dtype=torch.int32)
    scratch = torch.zeros(config.teams * config.scratch_bytes, dtype=torch.uint8)
    buffers = [ptx.Buffer(field) for field in (*inputs, out, states, scratch) if field.numel()]
    by_address = {buffer.bytes.ctypes.data: buffer for buffer in buffers}
    given = [
        by_address.get(int(argument), 0) if isinstance(argument, np.uint64) else argument
        for argument in kernel_arguments(config, inputs, None, out, states, scratch)
    ]
    schedule = ptx.Schedule(resident=blocks)
    counts = kernel.launch(
        (config.blocks, 1), build.BLOCK_THREADS, given, shared_bytes=64, schedule=schedule, races=False, count=True,
        limit=10**10,
    )  # fmt: skip
    return counts, _places(kernel, counts, _WAIT)


_ARRIVE, _WAIT = "atomicAdd(arrived", "while (static_cast<i32>"  # of sync_team in csrc/cuda/degrade.cu


def lines_of(text: str) -> set[str]:
    """Return FILE:LINE of the line of degrade.cu that holds a text, as nvcc names it and as NVRTC does."""
    path = build.PACKAGE / "csrc" / build.CUDA_SOURCES[0]
    sources = {path.name: path.read_text(encoding="utf-8"), "source.cu": build.device_source()}
    return {
        f"{name}:{number}"
        for name, source in sources.items()
        for number, line in enumerate(source.splitlines(), 1)
        if text in line
    }


def _places(kernel: ptx.Kernel, counts: np.ndarray, text: str) -> list[int]:
    """Return the instructions that ran and that come from the line of degrade.cu that holds a text."""
    wanted = lines_of(text)
    lines = ((place, kernel.program.instructions[place].line) for place in np.flatnonzero(counts["runs"]).tolist())
    return [place for place, line in lines if line and not wanted.isdisjoint(line.chain().split(" < "))]


def main(names: list[str]) -> None:
    """Count these ops, or all, and write the table."""
    kernel = compile_kernel()
    table: dict[str, dict[str, list[int]]] = read_yaml(GPU_COSTS) if names else {"instructions": {}, "barriers": {}}
    for name in names or NAMES:
        counts = [count(kernel, [(name, level)], HEIGHT, WIDTH, BLOCKS) for level in range(1, LEVELS + 1)]
        table["instructions"][name] = [round(found.instructions) for found in counts]
        table["barriers"][name] = [found.barriers - _OF_A_ROW for found in counts]
        print(name, table["instructions"][name], table["barriers"][name], flush=True)
    text = HEADER + to_yaml(table, default_flow_style=None, width=120)
    write_whole(GPU_COSTS, lambda path: Path(path).write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
