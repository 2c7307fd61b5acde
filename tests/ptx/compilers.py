"""PTX from CUDA C++ (nvcc, NVRTC) and from Triton, and a device of Triton's that runs its kernels on this machine.

Used by the tests. Everything that is compiled is for sm_80 unless told otherwise; no GPU and no driver are needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.ptx.kernel import Arithmetic, Buffer, Kernel, Schedule, load


def find_nvcc() -> str | None:
    """Return nvcc of $CUDA_HOME, of $PATH or of /usr/local/cuda; None without one."""
    places = [f"{os.environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places += [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def nvcc(source: str | Path, flags: Sequence[str] = ("-std=c++17", "-O3"), architecture: int = 80) -> str:
    """Return the PTX of a .cu file, or of source text, with line information."""
    with tempfile.TemporaryDirectory() as folder:
        path = source if isinstance(source, Path) else Path(folder, "source.cu")
        if not isinstance(source, Path):
            path.write_text(source)
        out = Path(folder, "out.ptx")
        command = [
            find_nvcc() or "nvcc",
            *flags,
            "-lineinfo",
            f"-arch=compute_{architecture}",
            "-ptx",
            "-o",
            str(out),
            str(path),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
        return out.read_text()


@functools.cache
def find_nvrtc() -> ctypes.CDLL | None:
    """Return libnvrtc of the nvidia-cuda-nvrtc package or of a toolkit; None without one."""
    packages = {sysconfig.get_path("purelib"), *sys.path, site.getusersitepackages()}
    found = [
        lib
        for folder in sorted(filter(None, packages))
        for lib in sorted(Path(folder, "nvidia").glob("*/lib/libnvrtc.so.*"))
    ]
    found.append(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "lib64", "libnvrtc.so"))
    path = next((path for path in found if path.exists() and "alt" not in path.name), None)
    return ctypes.CDLL(str(path)) if path else None


def nvrtc(source: str, flags: Sequence[str] = ("-std=c++17",), architecture: int = 80) -> str:
    """Return the PTX of CUDA source text that includes no file."""
    library = find_nvrtc()
    if library is None:
        raise FileNotFoundError("libnvrtc: pip install nvidia-cuda-nvrtc")
    program = ctypes.c_void_p()
    options = [flag.encode() for flag in (*flags, "-lineinfo", f"-arch=compute_{architecture}")]
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None)
    try:
        status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        what = "ProgramLog" if status else "PTX"
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, text)
        if status:
            raise RuntimeError(text.value.decode())
        return text.value.decode()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def cuda(source: str, flags: Sequence[str] = ("-std=c++17",)) -> str:
    """Return the PTX of source text by nvcc where there is one, else by NVRTC."""
    return nvcc(source, (*flags, "-O3")) if find_nvcc() else nvrtc(source, flags)


class TritonDevice:
    """A device on which Triton's own launch path ends here: ``kernel[grid](...)`` on CPU tensors, while it is active.

    Memory that is allocated meanwhile with ``torch.empty`` or ``new_empty`` is poison until a kernel writes it.
    For sm_90 and newer Triton is told not to use wgmma, which this machine does not have: products are those of sm_80.
    `patch`: applied to the PTX before it is loaded. Launches are listed in `launches` as (kernel, counts).
    """

    _current: TritonDevice

    @staticmethod
    def _current_launch(compiled: Any, *arguments: Any) -> None:
        TritonDevice._current._launch(compiled, *arguments)

    def __init__(
        self,
        architecture: int = 80,
        *,
        schedule: Schedule | None = None,
        arithmetic: Arithmetic | None = None,
        count: bool = False,
        strict: bool = False,
        races: bool = True,
        patch: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.architecture, self.patch = architecture, patch
        self.count, self.strict, self.races = count, strict, races
        self.schedule, self.arithmetic = schedule or Schedule(), arithmetic or Arithmetic()
        self.launches: list[tuple[Kernel, np.ndarray]] = []
        self.compiled: list[Any] = []  # what Triton made, of every launch
        self.buffers: dict[int, tuple[Buffer, Any]] = {}  # by address of a tensor's storage; which is kept alive

    @contextlib.contextmanager
    def active(self) -> Iterator[TritonDevice]:
        import torch
        import triton
        from triton.compiler.compiler import CompiledKernel

        device = self
        plain, plain_new = torch.empty, torch.Tensor.new_empty

        def handles(kernel: Any) -> None:
            """In place of loading machine code. Triton keeps compiled kernels, but devices come and go."""
            kernel.module, kernel.function = "ptx", None
            name = "_run" if hasattr(CompiledKernel, "run") else "run"  # the latter before Triton 3.5 or so
            setattr(kernel, name, functools.partial(TritonDevice._current_launch, kernel))

        def empty(*args: Any, **options: Any) -> Any:
            return device._poison(plain(*args, **options))

        def new_empty(tensor: Any, *args: Any, **options: Any) -> Any:
            return device._poison(plain_new(tensor, *args, **options))

        before = vars(triton.runtime.driver).copy()
        plainly = {"DISABLE_MMA_V3": "1"} if self.architecture >= 90 else {}
        TritonDevice._current = self
        triton.runtime.driver.set_active(_Driver(self.architecture))
        try:
            with (
                mock.patch.dict(os.environ, plainly),
                mock.patch.object(CompiledKernel, "_init_handles", handles),
                mock.patch.object(CompiledKernel, "__del__", lambda _: None, create=True),  # noqa: PT008 (a method)
                mock.patch.object(torch, "empty", empty),
                mock.patch.object(torch.Tensor, "new_empty", new_empty),
            ):
                yield self
        finally:
            vars(triton.runtime.driver).update(before)

    def _poison(self, tensor: Any) -> Any:
        if tensor.numel():
            self._buffer(tensor).valid[:] = 0
        return tensor

    def _buffer(self, tensor: Any) -> Buffer:
        """The buffer of a tensor's whole storage."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.buffers:
            import torch

            whole = torch.tensor([], dtype=torch.uint8).set_(storage)
            name = f"tensor {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            self.buffers[storage.data_ptr()] = Buffer(whole, name=name), tensor
        return self.buffers[storage.data_ptr()][0]

    def check(self, tensor: Any) -> Any:
        """Return the tensor. Raises Fault where its bytes are not defined."""
        self._buffer(tensor).read()
        return tensor

    def _launch(self, compiled: Any, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        *_, arguments = rest[:4], rest[4:]
        text = self.patch(compiled.asm["ptx"])
        kernel = _loaded(text).only()
        signature = compiled.src.signature
        # Triton 3.2 gives arguments of the signature alone, without constants, and names those that it folded.
        names = [name for name in compiled.src.fn.arg_names if name in signature]
        folded = set(compiled.src.constants)
        given: list[Any] = []
        buffers = []
        for name, argument in zip(names, arguments, strict=True):
            if signature[name] == "constexpr" or name in folded:
                continue
            if hasattr(argument, "data_ptr"):
                if argument.numel() == 0:
                    given.append(0)
                    continue
                buffer = self._buffer(argument)
                buffers.append(buffer)
                given.append(buffer.base + argument.data_ptr() - argument.untyped_storage().data_ptr())
            else:
                given.append(0 if argument is None else argument)
        given += [0] * (len(kernel.program.parameters) - len(given))  # scratch memory, of which none is asked for
        assert getattr(compiled.metadata, "global_scratch_size", 0) == 0
        block = compiled.metadata.num_warps * 32
        counts = kernel.launch(
            (x, y, z), block, given, shared_bytes=compiled.metadata.shared, more_buffers=buffers,
            schedule=self.schedule, arithmetic=self.arithmetic, count=self.count, strict=self.strict,
            races=self.races,
        )  # fmt: skip
        self.launches.append((kernel, counts))
        self.compiled.append(compiled)


_loaded = functools.lru_cache(maxsize=64)(load)


class _Driver:
    """A driver that answers what Triton's launch path asks."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0
