"""Building the CUDA source for the block emulator, and running it with the launcher's own configuration and arguments.

Used by tests/test_emulator.py. Output, scratch and shared memory are poisoned and lie between guard bytes, as do the
inputs. ``run`` executes twice with different poison and guard bytes: a result that depends on them differs.
"""

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.resources import SHARED_LIMIT
from qpt import Program, build
from qpt.ops.degrade.cuda import STATE_WORDS, KernelInputs, LaunchConfig, kernel_arguments
from qpt.ops.degrade.patches import Patches

SOURCE = Path(__file__).with_name("degrade.cpp")
GUARD = 256  # bytes on either side of every buffer
ORDERS = {"forward": 0, "reverse": 1, "random": 2}
CTYPES = {"uint64": ctypes.c_void_p, "int64": ctypes.c_int64, "int32": ctypes.c_int32}


class Schedule(ctypes.Structure):
    """block_emulator::Schedule.

    order, seed: the order of blocks and of threads between barriers.  skipped_barrier: the barrier to leave out, -1
    for none.  fill: the initial byte of shared memory.
    """

    _fields_ = (
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("skipped_barrier", ctypes.c_int),
        ("fill", ctypes.c_int),
    )


class EmulatorError(AssertionError):
    """A state in which a GPU would hang, or a write outside a buffer."""


@dataclass
class Buffer:
    """A tensor between guard bytes."""

    store: torch.Tensor
    tensor: torch.Tensor
    fill: int

    @staticmethod
    def of(content: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, fill: int) -> "Buffer":
        size = torch.Size(shape).numel() * dtype.itemsize
        store = torch.full((GUARD + size + GUARD,), fill, dtype=torch.uint8)
        tensor = store[GUARD : GUARD + size].view(dtype).view(shape)
        if content is not None:
            tensor.copy_(content)
        return Buffer(store, tensor, fill)

    def guards_intact(self) -> bool:
        return bool((self.store[:GUARD] == self.fill).all() and (self.store[-GUARD:] == self.fill).all())


class Emulator:
    """The shared library that is made from tests/emulator/degrade.cpp."""

    def __init__(self, folder: Path) -> None:
        library = folder / "emulator.so"
        flags = [*build.CXX_FLAGS, *build.DEVICE_DEFINES, "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]
        subprocess.run(["g++", *flags, "-march=native", str(SOURCE), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        for name in ("emulate_degrade", "emulate_mirror", "emulate_divergent_barrier", "emulate_absent_block"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.emulate_scratch_bytes.restype = ctypes.c_int64

    def scratch_bytes(self, height: int, width: int, resizes: bool, for_patches: bool, blocks: int) -> int:
        """Return the scratch of a team, from the source that was built here."""
        return self.library.emulate_scratch_bytes(height, width, resizes, for_patches, blocks)

    def check(self, error: bytes | None) -> None:
        if error is not None:
            raise EmulatorError(error.decode())

    def run(
        self,
        images: torch.Tensor,
        program: Program,
        order: str,
        skipped_barrier: int = -1,
        multiprocessors: int = 1,
        blocks: int | None = 1,
        patches: Patches | None = None,
        shared_limit: int = SHARED_LIMIT[80],
    ) -> tuple[torch.Tensor, int]:
        """Execute twice with different poison; return the bytes, equal in both, and the number of barriers reached.

        blocks: of a team, of which there are as many as the multiprocessors are enough for; None: as the library
        divides the multiprocessors.
        The bytes are those of the images (r, H, W, 3) or, as one dimension, of the patches.
        """
        windows = patches.windows if patches else None
        config = LaunchConfig.of(
            program,
            *images.shape[1:3],
            windows,
            multiprocessors=max(multiprocessors, blocks or 1),
            shared_limit=shared_limit,
            blocks=blocks,
        )
        first, barriers = self._once(
            images, program, config, patches, Schedule(ORDERS[order], 1, skipped_barrier, 0xCD)
        )
        second, _ = self._once(images, program, config, patches, Schedule(ORDERS[order], 1, skipped_barrier, 0x3A))
        if not torch.equal(first, second):
            raise EmulatorError("the result depends on bytes that nobody wrote")
        return first, barriers

    def _once(
        self,
        images: torch.Tensor,
        program: Program,
        config: LaunchConfig,
        patches: Patches | None,
        schedule: Schedule,
    ) -> tuple[torch.Tensor, int]:
        _, height, width, _ = images.shape
        fill = schedule.fill
        given = KernelInputs.of(images, program, patches)
        inputs = [Buffer.of(field, tuple(field.shape), field.dtype, fill) for field in given]
        shape = (len(program), height, width, 3) if patches is None else (patches.empty(images.device).nbytes,)
        out = Buffer.of(None, shape, torch.uint8, fill)
        scratch = Buffer.of(None, (config.teams * config.scratch_bytes,), torch.uint8, fill)
        zeros = torch.zeros((1 + config.teams, STATE_WORDS), dtype=torch.int32)
        states = Buffer.of(zeros, tuple(zeros.shape), torch.int32, fill)
        # The kernel gets an address and an element's size; the buffer holds bytes.
        typed = out.tensor if patches is None else out.tensor.view(patches.lut.dtype)
        guarded = KernelInputs(*(field.tensor for field in inputs))
        arguments = kernel_arguments(config, guarded, patches, typed, states.tensor, scratch.tensor)
        barriers = ctypes.c_int()
        converted = [CTYPES[argument.dtype.name](int(argument)) for argument in arguments]
        self.check(
            self.library.emulate_degrade(ctypes.byref(schedule), config.blocks, ctypes.byref(barriers), *converted)
        )
        for buffer in (*inputs, out, states, scratch):
            if not buffer.guards_intact():
                raise EmulatorError("a byte outside a buffer was written")
        return out.tensor.clone(), barriers.value
