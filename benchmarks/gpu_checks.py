"""Steps of ``gpu_day`` that check: the machine, one op, all ops' bytes against the CPU, small rows for a sanitizer."""

import importlib
import platform
import shutil
import subprocess
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_steps import Day
from qpt import build
from qpt.degradations.op_table import LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import BackendError
from qpt.ops.degrade import cuda, nvrtc
from qpt.ops.degrade.api import degrade, degrade_patches

_PACKAGES = ("torch", "triton", "cupy", "numpy", "torchvision", "kornia", "PIL", "skimage", "cv2")
_GEMM = 8192  # side of the matrices whose products are a ceiling


def machine(day: Day) -> None:
    """Record versions, the device's limits, and the rates that it reaches on copies and products."""
    day.record("versions", name="python", value=platform.python_version())
    for name in _PACKAGES:
        try:
            value = str(getattr(importlib.import_module(name), "__version__", "there"))
        except Exception as error:
            value = f"absent: {type(error).__name__}"
        day.record("versions", name=name, value=value)
    try:
        value = nvrtc.version()
    except BackendError as error:
        value = f"absent: {error}"
    day.record("versions", name="NVRTC", value=f"{value}, {nvrtc.find_library()}")
    day.record("versions", name="CUDA of torch", value=str(torch.version.cuda))
    for name, command in (
        (
            "driver",
            ["nvidia-smi", "--query-gpu=driver_version,name,clocks.max.sm,power.limit", "--format=csv,noheader"],
        ),
        ("nvcc", [build.find_nvcc() or "nvcc", "--version"]),
        ("g++", ["g++", "--version"]),
    ):
        day.record("versions", name=name, value=_output(command))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        day.record(
            "limits",
            device=index,
            name=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            memory_gib=properties.total_memory / 2**30,
            free_gib=torch.cuda.mem_get_info(index)[0] / 2**30,
            shared_bytes_of_a_block=properties.shared_memory_per_block_optin,
            l2_mib=properties.L2_cache_size / 2**20,
        )
    _ceilings(day)


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"absent: no {command[0]}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"absent: {error}"
    lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    return next((line for line in lines if "release" in line), lines[0])


def _ceilings(day: Day) -> None:
    source = torch.zeros(1 << (10 if day.dry_run else 30), dtype=torch.uint8, device=day.device)
    target = torch.empty_like(source)
    ms = day.milliseconds(lambda: target.copy_(source))
    day.record(
        "ceilings", what="copy on the device, bytes read and written", rate=2 * source.nbytes / ms / 1e9, unit="TB/s"
    )
    side = 32 if day.dry_run else _GEMM
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
        ("TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        a, b = (torch.randn(side, side, device=day.device, dtype=dtype) for _ in range(2))
        with tf32_products(tf32):
            ms = day.milliseconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        day.record("ceilings", what=f"product of {side} x {side}, {name}", rate=2 * side**3 / ms / 1e9, unit="TFLOP/s")


class tf32_products:
    """A context in which products of float32 matrices are in TF32, or are not."""

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.allowed

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.before


def photographs(count: int, side: int) -> tuple[torch.Tensor, str]:
    """Return (count, side, side, 3) uint8 on the CPU and what it holds: crops of photographs, or noise without any."""
    try:
        from qpt.data.crops import cut_crops
        from qpt.data.images import load_rgb
        from qpt.data.sample_images import sample_images

        crops = cut_crops([load_rgb(path) for path in sample_images()], count, size=side, seed=0)
        return torch.from_numpy(crops), "crops of photographs"
    except (BackendError, ImportError) as error:
        noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
        return torch.from_numpy(noise), f"noise, since there are no photographs: {error}"


def one_op(day: Day) -> None:
    """Run a blur on one image on every device, with the first one current, and record what was loaded."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))
    program = Program.from_chains([[("gaussian_blur", 3)]], seeds=[0])
    expected = degrade(images, program, backend="cpu")
    for index in range(1 if day.dry_run else torch.cuda.device_count()):
        device = day.device if day.dry_run else torch.device("cuda", index)
        answer = degrade(images.to(device), program, backend="cuda")
        equal = torch.equal(answer.cpu(), expected)
        kernel = cuda._kernel(device.index)
        with cuda._cupy().cuda.Device(device.index):
            function = kernel.function
            day.record(
                "kernel",
                device=str(device),
                equal=equal,
                registers=function.num_regs,
                local_bytes=function.local_size_bytes,
                static_shared_bytes=function.shared_size_bytes,
                shared_limit=kernel.shared_limit,
                threads=build.BLOCK_THREADS,
                most_threads=function.max_threads_per_block,
                architecture=function.binary_version,
            )
        if not equal:
            raise AssertionError(f"gaussian_blur on {device} has not the bytes of the CPU")


def all_ops(day: Day) -> None:
    """Compare all ops at all levels, and rows of photographs as in pre-training, with the CPU, byte for byte."""
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 61, 83, 3), np.uint8))
    images[1] = (torch.arange(61)[:, None, None] * 3 + torch.arange(83)[:, None]).to(torch.uint8)  # smooth
    names = NAMES[::9] if day.dry_run else NAMES
    chains = [[(name, level)] for name in names for level in range(1, LEVELS + 1)]
    twice = Program.from_chains(chains * 2, seeds=range(2 * len(chains)), source=[0] * len(chains) + [1] * len(chains))
    found = [_compare(day, "all ops and levels", images, twice, [chain[0][0] for chain in chains] * 2, 20)]
    space = DegradationSpace.preset("qpt")
    rows, side, size = (6, 48, 20) if day.dry_run else (512, 320, 160)
    crops, what = photographs(rows // 2, side)
    program = space.sample(rows // 2, views=2, generator=torch.Generator().manual_seed(0))
    found.append(_compare(day, f"preset qpt, {what}", crops, program, [str(chain) for chain in program], size))
    large, _ = photographs(2, 96 if day.dry_run else 1500)
    chain = [("gaussian_noise", 2), ("jpeg2000", 3), ("resize_to", 2), ("jpeg", 3)]
    program = Program.from_chains([chain] * 4, seeds=range(4), source=[0, 1, 0, 1])
    found.append(_compare(day, "large images", large, program, ["a chain of four"] * 4, size))
    if wrong := [name for names in found for name in names]:
        raise AssertionError(f"{len(wrong)} rows differ from the CPU's: {', '.join(dict.fromkeys(wrong))}"[:1000])


def _compare(day: Day, what: str, images: torch.Tensor, program: Program, names: list[str], size: int) -> list[str]:
    """Record and return the names of rows whose images or patches differ between the engines."""
    height, width = images.shape[1:3]
    rng = np.random.default_rng(2)
    corners = rng.integers(0, [height - size + 1, width - size + 1], (len(program), 2, 2))
    boxes = torch.from_numpy(corners.astype(np.int32))
    there = images.to(day.device)
    calls: dict[str, Any] = {
        "images": lambda x, backend: degrade(x, program, backend=backend),
        "patches, float32": lambda x, backend: degrade_patches(x, program, boxes, size, backend=backend),
        "patches, bfloat16": lambda x, backend: degrade_patches(
            x, program, boxes, size, dtype=torch.bfloat16, memory_format=torch.contiguous_format, backend=backend
        ),
    }
    found = []
    for form, call in calls.items():
        ours, again, truth = call(there, "cuda").cpu(), call(there, "cuda").cpu(), call(images, "cpu")
        same = [torch.equal(a, b) for a, b in zip(ours, truth, strict=True)]
        wrong = [name for name, equal in zip(names, same, strict=True) if not equal]
        day.record(
            "rows of the CPU's bytes", batch=what, form=form, rows=len(names), equal=sum(same),
            repeated=torch.equal(ours, again), differ=", ".join(dict.fromkeys(wrong))[:300],
        )  # fmt: skip
        found += wrong
    return found


def small_rows(day: Day) -> None:
    """Run every op on rows that a sanitizer gets through in its time: 24 x 31 pixels."""
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 24, 31, 3), np.uint8))
    names = NAMES[::9] if day.dry_run else NAMES
    program = Program.from_chains([[(name, 3)] for name in names], seeds=range(len(names)), source=[0] * len(names))
    boxes = torch.tensor([[[3, 5], [8, 9]]], dtype=torch.int32).expand(len(names), 2, 2)
    there = images.to(day.device)
    answers = (
        degrade(there, program, backend="cuda").cpu(),
        degrade_patches(there, program, boxes, 12, dtype=torch.uint8, backend="cuda").cpu(),
    )
    truths = (
        degrade(images, program, backend="cpu"),
        degrade_patches(images, program, boxes, 12, dtype=torch.uint8, backend="cpu"),
    )
    for answer, truth in zip(answers, truths, strict=True):
        day.record("small rows", rows=len(names), equal=torch.equal(answer, truth))
        if not torch.equal(answer, truth):
            raise AssertionError("small rows have not the bytes of the CPU")
