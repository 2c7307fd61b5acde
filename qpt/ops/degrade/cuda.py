"""The CUDA engine of ``degrade``: load the kernel, launch it through CuPy on torch's stream and in torch's memory.

Called by ``api.py``, which has checked every argument. The kernel is csrc/cuda/degrade.cu: from the fat binary that
setup.py left beside the package, else compiled once per GPU by NVRTC (``nvrtc.py``, which keeps the result).
tests/test_emulator.py runs the same source on the CPU with this module's launch configuration and arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qpt import build, compat
from qpt.degradations.program import Program
from qpt.errors import BackendError, InputError
from qpt.ops import extension
from qpt.ops.degrade import nvrtc
from qpt.ops.degrade.order import falling, gpu_barriers, gpu_costs, row_costs
from qpt.ops.degrade.patches import Patches

# A multiprocessor's registers are enough for one block of build.BLOCK_THREADS threads.
MAX_BLOCKS = 64  # of a team: kMaxBlocks of csrc/ops/op.h
# A block has at least so many rows of the image, if a team has several: barriers cost more than fewer rows save.
LEAST_ROWS = 8
# A barrier between the blocks of a team takes about 2 microseconds; in this time a multiprocessor executes so many
# instructions (four warps of 32 lanes, every second clock).
BARRIER = 2e-6 * 64 * 1.4e9
# The images and temporaries of the rows in flight stay in the L2 cache if they fit into so much of it; else traffic to
# memory makes a launch slower, by about so much. A row has three images of 3 bytes a pixel. Its temporaries are 0 to 19
# bytes, and about half of the time that ops take is theirs that have 12 or more.
ROW_BYTES, CACHE_SHARE, BEYOND_CACHE = 16, 0.8, 1.3
CACHE_BYTES = 40 << 20  # of an A100, the least of the GPUs that the kernel is compiled for
HEAD_BYTES = 64  # of shared memory, before the images: BlockHead of degrade.cu
STATE_WORDS = 32  # of 4 bytes, of TeamState of degrade.cu
# Of a device's memory, at most this share is scratch. It bounds the rows in flight of large images: a row of 12
# megapixels takes 0.3 GiB.
SCRATCH_SHARE = 1 / 8
_SHARED_LIMIT = "MaxSharedMemoryPerBlockOptin"  # CuPy's names of device attributes
_COOPERATIVE = "CooperativeLaunch"
_ALIGNMENT = 256  # bytes, of each tensor that is sent to the device


@dataclass(frozen=True)
class LaunchConfig:
    """Grid and memory of one launch. A team, of one or several blocks, has a row at a time.

    A block has build.BLOCK_THREADS threads and a multiprocessor of its own. Blocks are dealt to the teams in turn: some
    teams may have one more than others.
    """

    teams: int
    blocks: int  # of all teams
    scratch_bytes: int  # of a team, in global memory
    shared_bytes: int  # of a block, for images between ops; HEAD_BYTES come before them

    @staticmethod
    def of(
        program: Program,
        height: int,
        width: int,
        windows: Tensor | None,
        *,
        multiprocessors: int,
        shared_limit: int,
        scratch_limit: float = float("inf"),
        cache_bytes: int = CACHE_BYTES,
        blocks: int | None = None,
    ) -> LaunchConfig:
        """Choose the division of the multiprocessors among teams that should take the least time.

        windows: (r, 5) of Patches; None if the output is images.  shared_limit: bytes that a block may have.
        scratch_limit: bytes that all teams may have together; they are so many fewer, but one.
        cache_bytes: of the device's L2 cache.  blocks: of each team, if they are not to be chosen.
        """
        costs = gpu_row_costs(program, windows, height, width) * (height * width)
        scratch_of = functools.cache(functools.partial(_team_scratch, program, height, width, windows))
        teams, blocks = division(
            costs,
            height,
            width,
            multiprocessors,
            scratch_of,
            barriers=float(row_costs(program, None, height, width, gpu_barriers()).mean()),
            scratch_limit=scratch_limit,
            cache_bytes=cache_bytes,
            blocks=blocks,
        )
        scratch = scratch_of(-(-blocks // teams))
        # No more than the row that uses most of it: what a launch does not ask for stays an L1 cache.
        shared = max(shared_bytes_used(program, height, width, windows, shared_limit), default=0)
        return LaunchConfig(teams, blocks, scratch, shared if blocks == teams else 0)

    @property
    def largest_team(self) -> int:
        """Blocks of the teams that have most."""
        return -(-self.blocks // self.teams)

    def of_teams(self, teams: int) -> LaunchConfig:
        """Return the same with fewer teams, of as many blocks each."""
        return replace(self, teams=teams, blocks=min(self.blocks, teams * self.largest_team))


def division(
    costs: np.ndarray,
    height: int,
    width: int,
    multiprocessors: int,
    scratch_of: Callable[[int], int] = lambda _: 1,
    *,
    barriers: float = 4.0,
    scratch_limit: float = float("inf"),
    cache_bytes: int = CACHE_BYTES,
    blocks: int | None = None,
) -> tuple[int, int]:
    """Return the number of teams and of blocks of all of them, which should take the least time.

    costs: (r,) instructions of the rows, images of height x width.  scratch_of: bytes of a team of so many blocks.
    barriers: of a row, the mean.  cache_bytes: of the device's L2 cache.  blocks: of each team, if they are not to be
    chosen.
    """
    rows = len(costs)
    if blocks is not None:
        teams = int(max(1, min(rows, multiprocessors // blocks, scratch_limit // scratch_of(blocks))))
        return teams, teams * blocks
    falling_costs, total = np.sort(costs)[::-1].tolist(), float(costs.sum())
    most = max(1, min(multiprocessors, MAX_BLOCKS, height // LEAST_ROWS))
    waits = BARRIER * barriers

    def seconds(teams: int) -> float:
        all_blocks = min(multiprocessors, teams * most)
        size, larger = divmod(all_blocks, teams)  # blocks of a team; teams that have one more
        # The block that has most rows of the image sets the pace of its team.
        pace, of_larger = height / -(-height // size), height / -(-height // (size + 1))
        wait = waits if all_blocks > teams else 0.0
        # The last team ends later than others, by about a quarter of the costliest row that begins last.
        late = falling_costs[rows - teams] / 4 if rows > teams else 0.0
        even = (total + teams * late) / ((teams - larger) * pace + larger * of_larger) + rows / teams * wait
        time = max(even, falling_costs[0] / (of_larger if larger else pace) + wait)
        return time if teams * height * width * ROW_BYTES <= CACHE_SHARE * cache_bytes else time * BEYOND_CACHE

    fitting = [
        teams
        for teams in range(1, min(rows, multiprocessors) + 1)
        if teams * scratch_of(-(-min(multiprocessors, teams * most) // teams)) <= scratch_limit
    ]
    teams = min(fitting or [1], key=lambda teams: (seconds(teams), -teams))
    return teams, min(multiprocessors, teams * most)


def _team_scratch(program: Program, height: int, width: int, windows: Tensor | None, blocks: int) -> int:
    return extension.load().team_scratch_bytes(height, width, program.resizes(), windows is not None, blocks)


def gpu_row_costs(program: Program, windows: Tensor | None, height: int, width: int) -> np.ndarray:
    """Return (r,) float64, the estimated instructions per pixel of the image; arguments as of ``row_costs``."""
    return row_costs(program, windows, height, width, gpu_costs())


def shared_bytes_used(
    program: Program, height: int, width: int, windows: Tensor | None, shared_limit: int
) -> list[int]:
    """Return the shared memory that each row uses for its images between ops.

    Both images are in shared memory, or one (the other is in global memory), or none, as they fit into shared_limit.
    Arguments as of ``LaunchConfig.of``.
    """
    used = functools.cache(extension.load().shared_bytes_used)
    # The window of a row that works on the whole image is the image.
    extents = [(height, width)] * len(program) if windows is None else windows[:, 3:].tolist()
    return [
        used(h, w, resizes, windows is not None, shared_limit)
        for (h, w), resizes in zip(extents, program.resized_rows().tolist(), strict=True)
    ]


class KernelInputs(NamedTuple):
    """The tensors qpt_degrade reads, contiguous on the images' device; without patches the last three are empty."""

    images: Tensor  # (B, H, W, 3) uint8
    ops: Tensor  # of the program, as are the next three
    params: Tensor
    seeds: Tensor
    source: Tensor
    order: Tensor  # (r,) int32, the rows by falling cost
    windows: Tensor  # of the patches, as are the next two
    boxes: Tensor
    lut: Tensor

    @staticmethod
    def of(images: Tensor, program: Program, patches: Patches | None) -> KernelInputs:
        """Copy a program and its patches to the images' device, in one copy that the host does not wait for."""
        none = torch.empty(0, dtype=torch.int32, device="cpu")
        fields = (program.ops, program.params, program.seeds, program.source)
        cut = (patches.windows, patches.boxes, patches.lut) if patches else (none, none, none)
        windows = patches.windows if patches else None
        order = falling(gpu_row_costs(program, windows, images.shape[1], images.shape[2]))
        return KernelInputs(images, *_sent((*fields, order, *cut), images.device))


def _sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return contiguous copies on a device of tensors on the CPU."""
    # From pinned memory: a copy from pageable memory is synchronous, and there were eight.
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")

    def unpacked(memory: Tensor) -> list[Tensor]:
        parts = zip(tensors, memory.split(sizes), strict=True)
        return [part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) for tensor, part in parts]

    for tensor, place in zip(tensors, unpacked(packed), strict=True):
        place.copy_(tensor)
    there = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    return unpacked(there.copy_(packed, non_blocking=True))


def kernel_arguments(
    config: LaunchConfig, inputs: KernelInputs, patches: Patches | None, out: Tensor, states: Tensor, scratch: Tensor
) -> tuple:
    """Return the arguments of qpt_degrade in order, as NumPy scalars, which fix their C types.

    out: images (r, H, W, 3) uint8, or the tensor of ``patches.empty``.  states: zeros, (1 + teams, STATE_WORDS) int32.
    """
    _, height, width, _ = inputs.images.shape
    rows, slots = inputs.ops.shape
    images, *fields = inputs
    pointers = [np.uint64(x.data_ptr() if x.numel() else 0) for x in (images, out, *fields, states, scratch)]
    cut = (patches.boxes.shape[1], patches.size, out.itemsize, patches.channels_last) if patches else (0, 0, 0, False)
    extents = (config.teams, config.shared_bytes, rows, slots, height, width, *cut)
    return (*pointers, np.int64(config.scratch_bytes), *map(np.int32, extents))


def degrade(images: Tensor, program: Program, patches: Patches | None) -> Tensor:
    """Run every row of a program in one launch on torch's current stream.

    images: (B, H, W, 3) uint8 on a CUDA device, contiguous.  Returns the output images (r, H, W, 3) uint8, or the
    patches, on the same device.  Raises BackendError if no kernel can be loaded.
    """
    _, height, width, _ = images.shape
    rows = len(program)
    if patches is None:
        out = torch.empty((rows, height, width, 3), dtype=torch.uint8, device=images.device)
    else:
        out = patches.empty(images.device)
    if rows == 0:
        return out
    index = images.device.index
    kernel = _kernel(index)
    config = LaunchConfig.of(
        program,
        height,
        width,
        patches.windows if patches else None,
        multiprocessors=kernel.multiprocessors,
        shared_limit=kernel.shared_limit,
        scratch_limit=kernel.memory_bytes * SCRATCH_SHARE,
        cache_bytes=kernel.cache_bytes,
        blocks=None if kernel.cooperative else 1,
    )
    config, scratch = _allocate(config, images)
    states = torch.empty((1 + config.teams, STATE_WORDS), dtype=torch.int32, device=images.device).zero_()
    inputs = KernelInputs.of(images, program, patches)
    arguments = kernel_arguments(config, inputs, patches, out, states, scratch)
    cupy = _cupy()
    # Everything is allocated, copied and launched on one stream, so torch's allocator may reuse `scratch` afterwards.
    with cupy.cuda.Device(index), compat.cupy_stream(cupy, torch.cuda.current_stream(index)):
        shared = HEAD_BYTES + config.shared_bytes
        kernel.function((config.blocks,), (build.BLOCK_THREADS,), arguments, shared_mem=shared)
    return out


def _allocate(config: LaunchConfig, images: Tensor) -> tuple[LaunchConfig, Tensor]:
    """Allocate the scratch of a launch, of half as many teams as long as the device has not got so much.

    Raises InputError, with the bytes, if there is none for one row.
    """
    while True:
        try:
            size = config.teams * config.scratch_bytes
            return config, torch.empty(size, dtype=torch.uint8, device=images.device)
        except torch.OutOfMemoryError as error:
            if config.teams == 1:
                height, width = images.shape[1:3]
                raise InputError(
                    f"degrade: images must leave {size} bytes of {images.device} free, which one row of {height} x "
                    f"{width} takes, got {str(error).partition(chr(10))[0]}"
                ) from error
            config = config.of_teams(config.teams // 2)


@functools.cache
def available() -> str | None:
    """Return None if CUDA kernels can be launched here, else the reason they cannot and what fixes it."""
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        advice = "check the driver with nvidia-smi" if torch.version.cuda else "install a CUDA build of PyTorch"
        return f"torch.cuda.is_available() is False (torch {torch.__version__}, {built}); {advice}"
    try:
        cupy = _cupy()
    except ImportError as error:
        return f"CuPy did not import ({error}); install it: pip install 'qpt[{cupy_extra()}]'"
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return (
            f"CuPy {cupy.__version__} sees no device ({error}); install that of torch's CUDA {torch.version.cuda}: "
            f"pip install 'qpt[{cupy_extra()}]'"
        )
    return None


def cupy_extra() -> str:
    """Return the extra of this package that brings the CuPy for torch's CUDA."""
    return "cuda12" if nvrtc.cuda_major() == 12 else "cuda13"


def _cupy() -> Any:
    import cupy

    return cupy


@dataclass(frozen=True)
class Kernel:
    """qpt_degrade as it is loaded on one device.

    function: CuPy's RawKernel; call it under a guard for the device, as all of its attributes are of the current one.
    shared_limit: bytes of shared memory that images may have, per block.  cooperative: whether blocks may wait for
    each other.
    """

    function: Any
    shared_limit: int
    cooperative: bool
    multiprocessors: int
    memory_bytes: int
    cache_bytes: int


@functools.cache
def _kernel(device: int) -> Kernel:
    """Load qpt_degrade for one device, from the fat binary or else from NVRTC, and allow it all shared memory.

    Raises BackendError with both causes.
    """
    cupy = _cupy()
    properties = torch.cuda.get_device_properties(device)
    causes = []
    for origin, load in (("fat binary", _load_fat_binary), ("NVRTC", _load_from_nvrtc)):
        try:
            with cupy.cuda.Device(device) as own:
                cooperative = bool(own.attributes[_COOPERATIVE])
                function = load(cupy, device, cooperative)
                # What a block may have holds the kernel's own static arrays too.
                shared = own.attributes[_SHARED_LIMIT] - function.shared_size_bytes
                function.max_dynamic_shared_size_bytes = shared
                multiprocessors, memory = properties.multi_processor_count, properties.total_memory
                cache = properties.L2_cache_size or CACHE_BYTES
                return Kernel(function, shared - HEAD_BYTES, cooperative, multiprocessors, memory, cache)
        except (BackendError, OSError, cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
            causes.append(f"{origin}: {error}")
    raise BackendError(
        f"degrade: no CUDA kernel for device {device}: {'; '.join(causes)}. Build one for it, with nvcc: "
        f"QPT_CUDA=1 QPT_CUDA_ARCHS={_architecture(device)} pip install --force-reinstall --no-deps ."
    )


# Of a cooperative kernel every launch is one: it begins only when all of its blocks can be resident.
def _load_fat_binary(cupy: Any, device: int, cooperative: bool) -> Any:
    path = build.PACKAGE / build.FATBIN_FILE
    if not path.exists():
        facts = build.build_facts()
        raise BackendError(facts["cuda"]["reason"] if facts else f"there is no {path}")
    return cupy.RawModule(path=str(path), enable_cooperative_groups=cooperative).get_function("qpt_degrade")


def _load_from_nvrtc(cupy: Any, device: int, cooperative: bool) -> Any:
    path = nvrtc.cubin_file(build.device_source(), build.CUDA_FLAGS, _architecture(device), "degrade")
    return cupy.RawModule(path=str(path), enable_cooperative_groups=cooperative).get_function("qpt_degrade")


def _architecture(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
