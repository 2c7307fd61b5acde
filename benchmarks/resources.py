"""Compile report: registers, memory and tensor-core use of every GPU kernel, without a GPU.

``python -m benchmarks resources`` compiles the kernels for sm_80 and sm_90 and lists registers, stack, local and shared
memory, spills and tensor-core instructions; the offline compile tests put limits on the same numbers. Relies on nvcc or
NVRTC (CUDA C++), Triton, and cuobjdump with nvdisasm: those of a CUDA toolkit, or the ones Triton bundles.
"""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, Settings
from qpt import build, compat
from qpt.errors import BackendError

HELP = "registers, stack, shared memory and spills of every GPU kernel, compiled for sm_80 and sm_90"
ARCHITECTURES = (80, 90)
# CUDA C++ Programming Guide, compute capabilities 8.0, 9.0 and 10.0: bytes of shared memory one block may use, bytes of
# a multiprocessor (of which each block takes 1 KiB for the system), and what else bounds the resident blocks.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
_SHARED_PER_MULTIPROCESSOR = {80: 167_936, 90: 233_472, 100: 233_472}
_REGISTERS, _WARPS, _BLOCKS = 65_536, 64, 32
_REGISTER_UNIT = 256  # registers are given to a warp in units of this many
_TENSOR_CORE = r"\b(?:[HIDBQ]MMA|[HIQ]GMMA|UTC[HIQO]MMA)\b"


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel, per thread; shared_bytes per block, without what is asked for at launch. For sm_90
    cuobjdump counts the system's 1 KiB in wherever shared memory is used.

    local_accesses counts LDL and STL instructions (spills and local arrays), tensor_core those of MMA and GMMA.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    local_accesses: int
    tensor_core: int


def read(cubin: bytes) -> dict[str, Resources]:
    """Read the resources of the kernels in a cubin, by mangled name. BackendError without cuobjdump or a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, assembly = cuobjdump("-res-usage", path), cuobjdump("-sass", path)
    found = parse(usage, assembly)
    if not found:
        raise BackendError(f"resources: no kernel in cuobjdump's report: {usage.strip()!r}")
    return found


def parse(usage: str, assembly: str) -> dict[str, Resources]:
    """Read the same from the output of cuobjdump ``-res-usage`` and ``-sass``."""
    bodies = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", assembly, flags=re.DOTALL))
    found = {}
    for name, line in re.findall(r"Function (\S+):\s*\n(.*)", usage):
        numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        body = bodies[name]
        found[name] = Resources(
            registers=numbers["REG"],
            stack_bytes=numbers["STACK"],
            local_bytes=numbers["LOCAL"],
            shared_bytes=numbers["SHARED"],
            local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", body)),
            tensor_core=len(re.findall(_TENSOR_CORE, body)),
        )
    return found


def blocks_per_multiprocessor(found: Resources, threads: int, architecture: int, shared_bytes: int = 0) -> int:
    """Return the number of blocks resident on a multiprocessor.  shared_bytes: what is asked for at launch."""
    warps = -(-threads // 32)
    per_warp = -(-found.registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    system = 0 if architecture >= 90 and found.shared_bytes else 1024  # counted in found already, or not
    shared = found.shared_bytes + shared_bytes + system
    by_registers = _REGISTERS // (max(per_warp, 1) * warps)
    return min(by_registers, _SHARED_PER_MULTIPROCESSOR[architecture] // shared, _WARPS // warps, _BLOCKS)


def occupancy(blocks: int, threads: int) -> float:
    """Return the share of a multiprocessor's threads that these resident blocks have."""
    return blocks * threads / (32 * _WARPS)


def cuobjdump(flag: str, path: Path) -> str:
    """Return the output of cuobjdump for a cubin or a fat binary. BackendError if it is missing or fails."""
    triton = importlib.util.find_spec("triton")
    bundled = [] if triton is None or triton.origin is None else [Path(triton.origin).parent / "backends/nvidia/bin"]
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin", *map(str, bundled)])
    program = shutil.which("cuobjdump", path=search)
    if program is None:
        raise BackendError(
            "resources: cuobjdump not found on $PATH, in /usr/local/cuda/bin or in Triton; run: pip install triton"
        )
    return run_tool([program, flag, str(path)], {**os.environ, "PATH": search})  # where cuobjdump finds nvdisasm


def run_tool(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Return the output of a command; BackendError with what it printed if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise BackendError(f"resources: {' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def cuda_cubin(source: str, architecture: int) -> tuple[bytes, int]:
    """Compile csrc/SOURCE for sm_``architecture``, by nvcc or else by NVRTC: (cubin, most shared bytes at launch)."""
    shared = SHARED_LIMIT[architecture]
    nvcc, path = build.find_nvcc(), build.PACKAGE / "csrc" / source
    if nvcc is None:
        from qpt.ops.degrade import nvrtc

        return nvrtc.compile_cubin(build.device_source(path), build.CUDA_FLAGS, architecture, path.stem), shared
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        run_tool(build.nvcc_command(nvcc, path, cubin, ["-cubin", f"-arch=sm_{architecture}"]))
        return cubin.read_bytes(), shared


def rows_in_shared_memory(patch: int, region: int = 320, rows: int = 4096) -> dict[int, tuple[float, float]]:
    """Return, by architecture, the shares of rows whose images between ops are in shared memory: at least one, both.

    Rows are of preset qpt, with two overlapping patches of a region as in pre-training.
    """
    import torch

    from qpt.data.boxes import draw_boxes
    from qpt.degradations.space import DegradationSpace
    from qpt.ops.degrade.cuda import shared_bytes_used
    from qpt.ops.degrade.patches import row_windows

    program = DegradationSpace.preset("qpt").sample(rows, generator=torch.Generator().manual_seed(0))
    rng = random.Random(0)
    boxes = torch.tensor([draw_boxes(rng, 2, patch, region, 0.1, 0.3) for _ in range(rows)], dtype=torch.int32)
    windows = row_windows(program, boxes, patch, region, region)
    both = shared_bytes_used(program, region, region, windows, 1 << 40)  # as much as any row can use
    found = {}
    for architecture in ARCHITECTURES:
        taken = shared_bytes_used(program, region, region, windows, SHARED_LIMIT[architecture])
        one = sum(here > 0 for here in taken) / rows
        found[architecture] = one, sum(here == most for here, most in zip(taken, both, strict=True)) / rows
    return found


def triton_cubin(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, object],
    architecture: int,
    warps: int,
    *,
    stages: int | None = None,
    divisible: Sequence[str] = (),
    fp_fusion: bool = False,
) -> tuple[bytes, int]:
    """Compile a Triton kernel for sm_``architecture``: (cubin, shared memory in bytes it asks for at launch)."""
    compiled = triton_compile(
        kernel, signature, constants, architecture, warps, stages=stages, divisible=divisible, fp_fusion=fp_fusion
    )
    return compiled.asm["cubin"], compiled.metadata.shared


def triton_compile(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, object],
    architecture: int,
    warps: int,
    *,
    stages: int | None = None,
    divisible: Sequence[str] = (),
    fp_fusion: bool = False,
) -> Any:
    """Compile a Triton kernel for sm_``architecture``; what is returned has its code in every form.

    signature: Triton's type of every argument, ``"constexpr"`` for those in ``constants``. divisible: arguments that
    are multiples of 16, as Triton finds out at a launch; it then copies in vectors.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    places = [place for place, name in enumerate(signature) if name in divisible]
    source = compat.triton_source(kernel, signature, constants, places)
    options: dict[str, object] = {"num_warps": warps, "enable_fp_fusion": fp_fusion}
    options |= {} if stages is None else {"num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def contrastive_pass(
    dtype: str,
    dim: int,
    architecture: int,
    *,
    running: bool = True,
    precision: str = "auto",
    both_roles: bool = False,
    all_options: bool = True,
) -> Any:
    """Compile the loss's pass over pairs with sums, for embeddings of one length, and return what Triton made.

    dtype: "fp32", "fp16" or "bf16", or "fp32 x bf16" for queries and keys. running: the log-sum-exp pass, else the key
    gradient. all_options: with image ids and self pairs, else as against a pool without them. Strides and pointers as
    of contiguous tensors.
    """
    from qpt.kernels import contrastive

    kernel = contrastive._pass_kernel
    queries, keys = dtype.split(" x ") if " x " in dtype else (dtype, dtype)
    products, launch = contrastive_products(
        dtype, dim, architecture, running=running, precision=precision, all_options=all_options
    )
    types = dict.fromkeys(("row_groups", "stream_groups", "row_images", "stream_images"), "*i64")
    types |= {"rows": f"*{queries if running else keys}", "stream": f"*{keys if running else queries}"}
    types |= dict.fromkeys(("temperature", "row_lse", "stream_lse", "row_max_out", "row_sum_out", "acc_out"), "*fp32")
    lengths = ("dim", "row_stride", "stream_stride", "part_length")
    types |= dict.fromkeys((*lengths, "n_rows", "n_stream", "self_offset"), "i32") | {"image_bias": "fp32"}
    pointers = [name for name, kind in types.items() if kind.startswith("*")]
    constants: dict[str, object] = {
        "row_step": 1,
        "stream_step": 1,
        "ROWS": launch.rows,
        "STREAM": launch.stream,
        "STEP": launch.step,
        "COLUMNS": launch.columns,
        "ONE_STEP": launch.step >= dim and launch.columns >= dim,
        "RUNNING": running,
        "WEIGHTED": True,
        "BOTH_ROLES": both_roles,
        "NEGATIVES": True,
        "HAS_IMAGES": all_options,
        "HAS_SELF": all_options,
        "SPLIT_ROWS": products.split_rows,
        "SPLIT_STREAM": products.split_stream,
        "SPLIT_P": products.split_p,
        "WIDEN": products.widen,
        "P_SCALE": products.p_scale,
        "PRECISION": products.precision,
        "LOG2E": contrastive.LOG2_E,
    }
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    options = {"stages": launch.stages, "divisible": [*pointers, *lengths], "fp_fusion": True}
    return triton_compile(kernel, signature, constants, architecture, launch.warps, **options)  # type: ignore[arg-type]


def contrastive_products(
    dtype: str, dim: int, architecture: int, *, running: bool = True, precision: str = "auto", all_options: bool = True
) -> tuple[Any, Any]:
    """Return the kinds of products and the launch of the loss's pass, with arguments as in ``contrastive_pass``."""
    import torch

    from qpt.kernels import contrastive

    known = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    sides = [known[name] for name in dtype.split(" x ")]
    rows, stream = (sides[0], sides[-1]) if running else (sides[-1], sides[0])
    products = contrastive.Products.of(rows, stream, precision, architecture, by_pairs=all_options or not running)
    return products, contrastive.launch_for(architecture, products.kind, dim)


def contrastive_graded(kinds: int, architecture: int) -> tuple[bytes, int]:
    """Compile the sums of graded positives for severities of ``kinds`` numbers and vectors of a multiple of 16."""
    from qpt.kernels import contrastive_graded as graded

    kernel = graded._graded_kernel
    types = dict.fromkeys(("row_groups", "stream_groups", "row_images", "stream_images"), "*i64")
    types |= dict.fromkeys(("row_severities", "stream_severities", "vectors", "total", "weight_out"), "*fp32")
    types |= dict.fromkeys(("n_rows", "n_stream", "dim", "self_offset"), "i32") | {"scale": "fp32"}
    pointers = [name for name, kind in types.items() if kind.startswith("*")]
    constants: dict[str, object] = {"KINDS": kinds, "HAS_IMAGES": True, "HAS_SELF": True}
    constants |= {name: getattr(graded, name) for name in ("ROWS", "STREAM", "ELEMENTS")}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    options = {"stages": graded.STAGES, "divisible": [*pointers, "dim"], "fp_fusion": True}
    return triton_cubin(kernel, signature, constants, architecture, graded.WARPS, **options)  # type: ignore[arg-type]


def contrastive_merge(architecture: int) -> tuple[bytes, int]:
    """Compile the merge of partial sums, at 128 columns."""
    from qpt.kernels import contrastive

    kernel = contrastive._merge_kernel
    constants: dict[str, object] = {
        "ROWS": contrastive.MERGE_ROWS,
        "COLUMNS": 128,
        "RUNNING": True,
        "WEIGHTED": True,
        "LOG2E": contrastive.LOG2_E,
    }
    types = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(("n", "dim", "parts"), "i32")
    types |= dict.fromkeys(constants, "constexpr")
    return triton_cubin(kernel, types, constants, architecture, contrastive.MERGE_WARPS, fp_fusion=True)


@dataclass(frozen=True)
class Kernel:
    """Kernels of one source file.  threads: architecture -> threads of a block.  compile: -> (cubin, shared bytes)."""

    label: str
    threads: Callable[[int], int]
    compile: Callable[[int], tuple[bytes, int]]


def kernels() -> list[Kernel]:
    """Return every GPU kernel of the project."""
    from qpt.kernels import contrastive
    from qpt.kernels.contrastive_graded import WARPS

    cuda = [
        Kernel(f"csrc/{source}", lambda _: build.BLOCK_THREADS, partial(cuda_cubin, source))
        for source in build.CUDA_SOURCES
    ]
    merge = Kernel("kernels/contrastive.py merge", lambda _: contrastive.MERGE_WARPS * 32, contrastive_merge)
    graded = [
        Kernel(f"kernels/contrastive_graded.py, S={kinds}", lambda _: WARPS * 32, partial(contrastive_graded, kinds))
        for kinds in GRADED
    ]
    return [*cuda, *map(_contrastive_kernel, CONTRASTIVE), merge, *graded]


# Passes of the loss: arguments of ``contrastive_pass``, by name.
PASSES: dict[str, dict[str, bool]] = {
    "log-sum-exp over a pool": {"all_options": False},
    "log-sum-exp": {},
    "key gradient": {"running": False},
}
# What the loss's kernels are compiled for, here and in the tests: (dtype, D, pass, precision).
CONTRASTIVE = [
    *[("fp32", dim, name, "auto") for dim in (64, 128, 256, 512) for name in PASSES],
    *[("fp32 x bf16", 128, name, "auto") for name in PASSES],
    *[(half, dim, name, "auto") for half in ("fp16", "bf16") for dim in (128, 256, 512) for name in list(PASSES)[1:]],
    *[("fp32", 128, name, precision) for precision in ("ieee", "tf32x3") for name in list(PASSES)[1:]],
]
GRADED = (1, 8)  # numbers of a severity


def _contrastive_kernel(variant: tuple[str, int, str, str]) -> Kernel:
    dtype, dim, name, precision = variant
    role = PASSES[name]

    def compile_for(architecture: int) -> tuple[bytes, int]:
        compiled = contrastive_pass(dtype, dim, architecture, precision=precision, **role)
        return compiled.asm["cubin"], compiled.metadata.shared

    def threads(architecture: int) -> int:
        return contrastive_products(dtype, dim, architecture, precision=precision, **role)[1].warps * 32

    return Kernel(f"kernels/contrastive.py {name}, {dtype} {precision}, D={dim}", threads, compile_for)


def run(settings: Settings) -> Report:
    """Report on all kernels and architectures (``quick``: the first architecture). Nothing is timed."""
    compiled = []
    for kernel in kernels():
        for architecture in ARCHITECTURES[:1] if settings.quick else ARCHITECTURES:
            cubin, launch_shared = kernel.compile(architecture)
            for name, found in read(cubin).items():
                entry = {"source": kernel.label, "kernel": name, "architecture": f"sm_{architecture}"} | asdict(found)
                entry["launch_shared_bytes"] = launch_shared
                threads = kernel.threads(architecture)
                blocks = blocks_per_multiprocessor(found, threads, architecture, launch_shared)
                residence = {"threads": threads, "blocks_per_multiprocessor": blocks}
                compiled.append(entry | residence | {"occupancy": round(occupancy(blocks, threads), 4)})
    return Report("resources", compiled=compiled, remarks=_remarks())


def _remarks() -> list[str]:
    found = [
        "launch_shared_bytes of csrc/cuda/degrade.cu is an upper limit: a launch asks for what its rows can use, which "
        "is next to nothing if a row has several blocks."
    ]
    for patch in (64, 96, 160, 224):
        shares = [
            f"sm_{architecture}: {one:.0%} at least one, {two:.0%} both"
            for architecture, (one, two) in rows_in_shared_memory(patch).items()
        ]
        found.append(
            f"Rows of preset qpt, two overlapping patches of {patch} px in a region of 320 px, whose images between "
            f"ops are in shared memory if a row has one block: {'; '.join(shares)}."
        )
    return found
