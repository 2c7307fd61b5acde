"""qpt_degrade as nvcc and NVRTC compile it for sm_80 and sm_90, executed on the CPU: the C++ engine's bytes, no fault.

Scratch, shared memory and output are poison at the start; a byte that nobody wrote, a race or an access outside of a
buffer is a ptx.Fault. The launch configuration and the argument list are the launcher's own.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_costs import lines_of
from benchmarks.resources import SHARED_LIMIT
from qpt import DegradationSpace, Program, build, degrade, degrade_patches
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from qpt.ops.degrade import cuda
from qpt.ops.degrade.cuda import HEAD_BYTES, STATE_WORDS, KernelInputs, LaunchConfig, kernel_arguments
from qpt.ops.degrade.patches import Patches
from tests import ptx
from tests.ptx import compilers, native
from tests.test_emulator import SHAPES, images_of

pytestmark = pytest.mark.rung("PTX execution")

COMPILERS = [name for name, there in (("nvcc", compilers.find_nvcc()), ("nvrtc", compilers.find_nvrtc())) if there]
MAIN = COMPILERS[0]


@functools.cache
def compiled(compiler: str, architecture: int) -> str:
    if compiler == "nvcc":
        source = build.PACKAGE.resolve() / "csrc" / build.CUDA_SOURCES[0]
        return compilers.nvcc(source, (*build.CUDA_FLAGS, "-O3"), architecture)
    return compilers.nvrtc(build.device_source(), build.CUDA_FLAGS, architecture)


@functools.cache
def kernel(compiler: str, architecture: int) -> ptx.Kernel:
    return ptx.load(compiled(compiler, architecture))["qpt_degrade"]


def run(
    images: torch.Tensor,
    program: Program,
    patches: Patches | None = None,
    *,
    compiler: str = MAIN,
    architecture: int = 80,
    multiprocessors: int = 1,
    blocks: int | None = 1,
    shared_limit: int | None = None,
    schedule: ptx.Schedule | None = None,
    count: bool = False,
    limit: int = 400_000_000,
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the bytes of the images (r, H, W, 3) or of the patches, in one dimension, and the counts."""
    _, height, width, _ = images.shape
    windows = patches.windows if patches else None
    config = LaunchConfig.of(
        program,
        height,
        width,
        windows,
        multiprocessors=max(multiprocessors, blocks or 1),
        shared_limit=SHARED_LIMIT[architecture] if shared_limit is None else shared_limit,
        blocks=blocks,
    )
    schedule = schedule or ptx.Schedule()
    inputs = KernelInputs.of(images, program, patches)
    out = torch.zeros(len(program) * height * width * 3, dtype=torch.uint8)
    if patches is not None:  # of which the kernel gets an address and the size of an element
        out = torch.zeros(patches.empty(images.device).nbytes, dtype=torch.uint8).view(patches.lut.dtype)
    scratch = torch.zeros(config.teams * config.scratch_bytes, dtype=torch.uint8)
    states = torch.zeros((1 + config.teams, STATE_WORDS), dtype=torch.int32)
    buffers = [
        ptx.Buffer(field, writable=False, name=name) for name, field in inputs._asdict().items() if field.numel()
    ]
    result = ptx.Buffer(out.view(torch.uint8), defined=False, name="out")
    buffers += [result, ptx.Buffer(scratch, defined=False, name="scratch"), ptx.Buffer(states, name="states")]
    by_address = {buffer.bytes.ctypes.data: buffer for buffer in buffers}
    given = [
        by_address.get(int(argument), 0) if isinstance(argument, np.uint64) else argument
        for argument in kernel_arguments(config, inputs, patches, out, states, scratch)
    ]
    counts = kernel(compiler, architecture).launch(
        (config.blocks, 1), build.BLOCK_THREADS, given, shared_bytes=HEAD_BYTES + config.shared_bytes,
        schedule=replace(schedule, resident=max(config.largest_team, schedule.resident)),
        count=count,
        limit=limit,
    )  # fmt: skip
    found = result.read()
    return (found.view(len(program), height, width, 3) if patches is None else found), counts


def check(images: torch.Tensor, program: Program, **options: object) -> None:
    assert torch.equal(run(images, program, **options)[0], degrade(images, program))  # type: ignore[arg-type]


def check_patches(program: Program, height: int, width: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    images, size = images_of(1, height, width), 9
    boxes = torch.tensor([[height // 2, width // 2], [height // 2 - 2, width // 2 + 5]], dtype=torch.int32)
    boxes = boxes.expand(len(program), 2, 2)
    patches = Patches.of(program, boxes, size, height, width, dtype, layout)
    found, _ = run(images, program, patches, multiprocessors=4, blocks=2, schedule=ptx.Schedule("random", resident=4))
    expected = degrade_patches(images, program, boxes, size, dtype=dtype, memory_format=layout).flatten(0, 1)
    stored = expected.permute(0, 2, 3, 1) if layout == torch.channels_last else expected
    assert torch.equal(found.view(dtype), stored.flatten())


@pytest.mark.parametrize("name", NAMES)
def test_every_op_gives_the_engine_s_bytes(name: str, long: bool) -> None:
    levels = range(1, LEVELS + 1) if long else (1, LEVELS)
    program = Program.from_chains([[(name, level)] for level in levels], seeds=[7 * level for level in levels])
    for height, width in SHAPES if long else [(21, 29)]:
        for blocks in (1, 2, 5) if long else (1, 3):
            check(images_of(1, height, width), program, blocks=blocks, schedule=ptx.Schedule("random", seed=height))


@pytest.mark.parametrize(("compiler", "architecture"), [*((other, 80) for other in COMPILERS[1:]), (MAIN, 90)])
def test_the_other_compiler_s_kernel_and_that_for_sm_90_give_the_same_bytes(
    compiler: str, architecture: int, long: bool
) -> None:
    for name in NAMES if long else NAMES[::6]:
        levels = range(1, LEVELS + 1) if long else (2, 4)
        program = Program.from_chains([[(name, level)] for level in levels], seeds=[1 + level for level in levels])
        for blocks in (1, 2) if long else (1,):
            check(images_of(1, 17, 26), program, compiler=compiler, architecture=architecture, blocks=blocks)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_chains_and_a_grid_smaller_than_the_batch(order: str, long: bool) -> None:
    program = DegradationSpace.preset("qpt").sample(
        3, views=8 if long else 2, generator=torch.Generator().manual_seed(3)
    )
    check(images_of(3, 24, 31), program, multiprocessors=2, schedule=ptx.Schedule(order))
    check(images_of(3, 24, 31), program, multiprocessors=4, blocks=2, schedule=ptx.Schedule(order, resident=4))


def test_teams_of_unequal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "BARRIER", 0.0)  # for rows so small, teams would else have one block
    program = DegradationSpace.preset("qpt").sample(3, views=2, generator=torch.Generator().manual_seed(3))
    config = LaunchConfig.of(program, 24, 31, None, multiprocessors=5, shared_limit=0)
    assert config.blocks == 5 and config.teams in (2, 3)
    check(images_of(3, 24, 31), program, multiprocessors=5, blocks=None, schedule=ptx.Schedule("random", resident=5))


def test_blocks_that_run_interleaved() -> None:
    program = Program.from_chains(
        [[("gaussian_blur", 3), ("jpeg", 2)], [("hue", 4)], [("median_blur", 2)]], seeds=[1, 2, 3]
    )
    check(images_of(1, 13, 18), program, multiprocessors=3, schedule=ptx.Schedule("random", resident=3, quantum=37))
    check(images_of(1, 13, 18), program, blocks=3, schedule=ptx.Schedule("random", quantum=37))


def test_an_image_of_more_columns_than_threads() -> None:
    check(images_of(1, 2, 700), Program.from_chains([[("gaussian_blur", 2), ("jpeg", 3), ("resize_to", 2)]], seeds=[1]))


IMAGE = 24 * 31 * 3 + 8  # bytes of an image of 24 x 31 pixels, as memory is shared out


@pytest.mark.parametrize("shared_limit", [0, IMAGE, 2 * IMAGE])
def test_images_in_shared_memory_as_far_as_they_fit(shared_limit: int) -> None:
    chains = [
        [("gaussian_blur", 2), ("contrast", 3), ("gaussian_noise", 2), ("hue", 1)],
        [("resize_to", 2), ("gaussian_noise", 1), ("jpeg", 3)],
        [],
    ]
    program = Program.from_chains(chains, seeds=[1, 2, 3])
    check(images_of(1, 24, 31), program, multiprocessors=2, shared_limit=shared_limit)


@pytest.mark.parametrize("name", [row.name for row in DEGRADATIONS if row.grid_px is not None])
def test_every_op_in_a_window_gives_the_engine_s_patches(name: str, long: bool) -> None:
    program = Program.from_chains(
        [[(name, 2)], [("contrast", 3), (name, 1)]][: 2 if long else 1], seeds=[7, 8][: 2 if long else 1]
    )
    check_patches(program, 50, 55, torch.float32, torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_patches_in_every_form(dtype: torch.dtype, layout: torch.memory_format) -> None:
    chains = [[("gaussian_blur", 1), ("gaussian_noise", 2)], [], [("hue", 2), ("resize_to", 2)]]
    check_patches(Program.from_chains(chains, seeds=[1, 2, 3]), 21, 30, dtype, layout)


def three_rows(name: str, height: int = 48) -> tuple[torch.Tensor, Program]:
    """Rows of one block, two of them with two ops, so that scratch and either image are used again."""
    chains = [[(name, 5), (name, 2)], [(name, 1), (name, 3)], [(name, 3)]]
    return images_of(1, height, 53), Program.from_chains(chains, seeds=[7, 35, 8])


# Of small images, a loop's last barrier has another one behind it.
REDUNDANT = "noise.h"


def test_every_barrier_that_is_left_out_is_detected(long: bool) -> None:
    """A race, poison or other bytes: for each bar.sync of the compiled kernel that an op, or the patches, reach."""
    program = kernel(MAIN, 80).program
    nothing = native.find("prefetch")[0]  # type: ignore[index]
    seen: set[int] = set()
    missed: set[int] = set()
    # An op that takes strips of rows needs the barrier between its two passes only where the image has few strips.
    # Of what goes unnoticed with one block, three blocks may need it: then a team waits in the same place.
    forms = ((48, 1), (20, 1), (20, 3)) if long else ((48, 1),)
    for name, (height, blocks) in itertools.product(NAMES if long else ("jpeg", "median_blur", "hue"), forms):
        images, rows = three_rows(name, height)
        boxes = torch.tensor([[20, 20], [4, 9]], dtype=torch.int32).expand(3, 2, 2)
        cut = None
        if height == 48:
            cut = Patches.of(rows, boxes, 21, height, 53, torch.uint8, torch.contiguous_format)
        for patches in (None, cut) if cut else (None,):
            expected, counts = run(images, rows, patches, blocks=blocks, count=True)
            barriers = [p for p, i in enumerate(program.instructions) if i.opcode.startswith("bar")]
            for place in barriers:
                if counts["runs"][place] and place not in seen - missed and (blocks == 1 or place in missed):
                    seen.add(place)
                    before = program.code[place].copy()
                    program.code[place]["handler"] = nothing
                    try:
                        detected = not torch.equal(run(images, rows, patches, blocks=blocks)[0], expected)
                    except ptx.Fault as fault:
                        detected = fault.kind in ("race", "poison")
                    finally:
                        program.code[place] = before
                    (missed.discard if detected else missed.add)(place)
    assert len(seen) > (100 if long else 8)
    for place in missed:
        line = program.instructions[place].line
        assert line is not None
        assert REDUNDANT in line.chain(), line.chain()


def test_every_step_of_the_barrier_between_blocks_is_needed() -> None:
    """Without the first fence, the wait or the count of arrivals: a race, other bytes or no end.

    The executor takes a volatile read for an acquire, so of the fence after the wait it is only seen that it is there.
    """
    program = kernel(MAIN, 80).program
    nothing = native.find("prefetch")[0]  # type: ignore[index]
    wait, arrival = lines_of("while (static_cast<i32>"), lines_of("atomicAdd(arrived")
    images, rows = three_rows("gaussian_blur")
    expected, counts = run(images, rows, blocks=3, count=True)
    fences, arrivals, repeats = [], [], []
    for place in np.flatnonzero(counts["runs"]).tolist():
        instruction = program.instructions[place]
        head, lines = (
            instruction.opcode.split(".")[0],
            instruction.line.chain().split(" < ") if instruction.line else [],
        )
        if head in ("membar", "fence"):
            fences.append(place)
        elif head == "atom" and not arrival.isdisjoint(lines):
            arrivals.append(place)
        elif head == "bra" and not wait.isdisjoint(lines) and program.code[place]["target"] <= place:
            repeats.append(place)
    (before, after), (arrive,), (repeat,) = fences, arrivals, repeats
    assert before < arrive < repeat < after
    for place in (before, arrive, repeat):
        instruction = program.code[place].copy()
        program.code[place]["handler"] = nothing
        try:
            detected = not torch.equal(run(images, rows, blocks=3, limit=20_000_000)[0], expected)
        except ptx.Fault as fault:
            detected = fault.kind in ("race", "poison", "limit", "barrier")
        finally:
            program.code[place] = instruction
        assert detected, program.instructions[place]


def test_source_that_is_compiled_is_the_source_of_the_package() -> None:
    assert (build.PACKAGE.resolve() / "csrc" / build.CUDA_SOURCES[0]).samefile(
        Path(__file__).parents[1] / "csrc" / "cuda" / "degrade.cu"
    )
