"""Predicted time of the loss on an A100 and an H100, where none was at hand, in the arithmetic that it runs in.

Run by ``python -m benchmarks roofline_loss``; needs Triton and cuobjdump. Nothing here is measured on a GPU. The kernel
is compiled for each GPU, its machine instructions of the loop over keys are counted, and the tensor cores' work in it
follows from its products. What is assumed stands in ``ASSUMPTIONS`` and is printed with the result.
"""

import math
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import resources, roofline
from benchmarks.harness import Report, Settings
from benchmarks.roofline import GPUS, Gpu
from benchmarks.roofline_degrade import IPC, SCHEDULERS

HELP = "predicted milliseconds of the loss on A100 and H100, by dtype, from the compiled kernel"
DIM = 128
SIZES = ((256, 65_536), (512, 65_536), (1024, 65_536), (4096, 65_536), (512, 1_048_576))
L2_BYTES_PER_CLOCK = 5120  # of the whole GPU (NVIDIA A100 white paper; taken for the H100 as well)
SHARE = roofline.EFFICIENCY  # of the bandwidth of memory and L2 that is reached
ASSUMPTIONS = (
    "Predictions, not measurements: log-sum-exp and gradient of the queries against a pool without image ids, and the "
    "merge of the parts; positives, in-batch keys and the time of launches are left out.",
    f"Each of a multiprocessor's {SCHEDULERS} schedulers issues {IPC} instructions a clock at boost clocks beside the "
    "tensor cores, which run at their peak; a warp does not overlap the two, warps of a scheduler do.",
    f"L2 gives {L2_BYTES_PER_CLOCK} bytes a clock and device memory its published peak, of both {SHARE:.0%} are "
    "reached; partial results stay in L2. The greatest of the times of instructions, L2 and memory counts.",
    "tensor-core roofline: the products that the precision takes, at the peak of bfloat16 (float16), nothing else. A "
    "float32 number is two terms of bfloat16: three products for one; against a bfloat16 pool two.",
)


class Form(NamedTuple):
    """One arithmetic of the loss. dtype, precision: as ``resources.contrastive_pass`` has them; products of bfloat16
    for one of the definition, in each of the two; bytes of a number of the pool."""

    name: str
    dtype: str
    precision: str
    products: int
    key_bytes: int


FORMS = (
    Form("float32", "fp32", "auto", 3, 4),
    Form("float32, bfloat16 pool", "fp32 x bf16", "auto", 2, 2),
    Form("bfloat16", "bf16", "auto", 1, 2),
    Form("float32 ieee", "fp32", "ieee", 0, 4),
)


class Loop(NamedTuple):
    """One turn of the kernel's loop over keys. instructions: of a warp, without those of tensor cores."""

    instructions: int
    rows: int
    stream: int
    warps: int
    blocks: int  # resident on a multiprocessor


@cache
def compiled_loop(form: Form, architecture: int) -> Loop:
    """Compile the pass over a pool and count the loop that both products are in."""
    compiled = resources.contrastive_pass(form.dtype, DIM, architecture, precision=form.precision, all_options=False)
    _, launch = resources.contrastive_products(
        form.dtype, DIM, architecture, precision=form.precision, all_options=False
    )
    cubin = compiled.asm["cubin"]
    (found,) = resources.read(cubin).values()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        assembly = resources.cuobjdump("-sass", path)
    blocks = resources.blocks_per_multiprocessor(found, launch.warps * 32, architecture, compiled.metadata.shared)
    steps = -(-DIM // launch.step)
    return Loop(count_loop(assembly, steps), launch.rows, launch.stream, launch.warps, blocks)


def count_loop(assembly: str, steps: int = 1) -> int:
    """Return the instructions of one turn of the longest loop of cuobjdump's listing, without those of tensor cores.

    A loop is what lies between a branch and its target before it. steps: turns of the longest loop inside of it, if
    there is one. ValueError without a loop.
    """
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)([^;]*);"
    lines = [(int(place, 16), opcode, rest) for place, opcode, rest in re.findall(pattern, assembly)]
    places = {place: index for index, (place, _, _) in enumerate(lines)}
    loops = []
    for index, (_, opcode, rest) in enumerate(lines):
        target = re.search(r"0x([0-9a-f]+)", rest) if opcode == "BRA" else None
        if target is None or not places.get(int(target[1], 16), index) < index:
            continue
        loops.append(range(places[int(target[1], 16)], index + 1))
    if not loops:
        raise ValueError("count_loop: the listing must hold a loop, got none")

    def count(loop: range) -> int:
        return sum("MMA" not in lines[index][1] and lines[index][1] != "NOP" for index in loop)

    longest = max(loops, key=len)
    inner = [loop for loop in loops if loop != longest and loop[0] in longest and loop[-1] in longest]
    return count(longest) + (steps - 1) * max(map(count, inner), default=0)


def predict(form: Form, n: int, k: int, gpu: Gpu) -> dict[str, Any]:
    """Predict milliseconds for N queries and K keys of 128, and the share of the tensor-core roofline."""
    from qpt.kernels.contrastive_launch import parts_for

    loop = compiled_loop(form, gpu.architecture)
    _, launch = resources.contrastive_products(
        form.dtype, DIM, gpu.architecture, precision=form.precision, all_options=False
    )
    parts = parts_for(n, k, DIM, launch, gpu.multiprocessors)
    # Clocks of one warp in one turn: at its scheduler's tensor core, and at issue.
    per_clock = gpu.matrix["bfloat16"] / gpu.multiprocessors / gpu.clock
    tensor = 4.0 * loop.rows * loop.stream * DIM * form.products / per_clock * SCHEDULERS / loop.warps
    issue = loop.instructions / IPC
    row_blocks = -(-n // loop.rows)
    blocks = row_blocks * parts
    busiest = -(-blocks // gpu.multiprocessors)  # blocks of one multiprocessor
    turns = math.ceil(math.ceil(k / parts) / loop.stream)
    clocks = 0.0
    while busiest > 0:
        resident = min(busiest, loop.blocks)
        warps = resident * loop.warps / SCHEDULERS
        clocks += turns * max(warps * tensor, warps * issue, tensor + issue)
        busiest -= resident
    partial = 2 * parts * n * 4 * (DIM + 2)  # written, and read by the merge
    l2 = L2_BYTES_PER_CLOCK * gpu.clock * SHARE
    seconds = {
        "instructions": clocks / gpu.clock,
        "L2": row_blocks * k * DIM * form.key_bytes / l2,
        "memory": k * DIM * form.key_bytes / (gpu.bandwidth * SHARE),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    total = seconds[bound] + partial / l2
    best = 4.0 * n * k * DIM * form.products / gpu.matrix["bfloat16"]
    return {
        "form": form.name,
        "shape": f"N={n} K={k} D={DIM}",
        "gpu": gpu.name,
        "predicted_ms": round(1000 * total, 4),
        "bound_by": bound,
        "roofline_ms": round(1000 * best, 4),
        "share_of_roofline": round(best / total, 3) if best else "",
        "instructions_per_turn": loop.instructions,
        "tile": f"{loop.rows} x {loop.stream}",
        "blocks_per_multiprocessor": loop.blocks,
        "parts": parts,
        "peaks": gpu.source,
    }


def run(settings: Settings) -> Report:
    """Predict all forms and sizes (``quick``: the first form and size)."""
    forms, sizes = (FORMS[:1], SIZES[:1]) if settings.quick else (FORMS, SIZES)
    found = [predict(form, n, k, gpu) for form in forms for n, k in sizes for gpu in GPUS]
    return Report("roofline_loss", predictions=found, remarks=list(ASSUMPTIONS))
