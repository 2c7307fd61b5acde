"""NVRTC, NVIDIA's run-time compiler, called directly: CUDA source -> machine code for one architecture, cached on disk.

Used by qpt.ops.degrade.cuda where there is no fat binary, by qpt.commands.doctor, and by the offline compile tests: it
needs no GPU and no driver. Called through ctypes and not through CuPy, which adds -ftz=true to every compilation;
denormals flushed to zero would break the equality of CPU and GPU bytes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qpt.errors import BackendError


def find_library() -> Path | None:
    """libnvrtc of the nvidia-cuda-nvrtc package (CUDA builds of torch bring it), else of a CUDA toolkit; else None."""
    packages = {sysconfig.get_path("purelib"), *sys.path, site.getusersitepackages()}
    patterns = [Path(folder) / "nvidia" for folder in sorted(packages) if folder]
    found = [library for folder in patterns for library in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for toolkit in filter(None, toolkits):
        found += [Path(toolkit) / "lib64" / "libnvrtc.so"]
    return next((library for library in found if library.exists() and "alt" not in library.name), None)


@functools.cache
def _library() -> ctypes.CDLL:
    path = find_library()
    if path is None:
        raise BackendError(
            "NVRTC: libnvrtc was found neither in the Python environment nor in $CUDA_HOME or /usr/local/cuda; "
            "install it: pip install nvidia-cuda-nvrtc"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"NVRTC: {path} did not load ({error}); reinstall it: pip install nvidia-cuda-nvrtc"
        ) from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> str:
    """`"13.0"`. Raises BackendError without libnvrtc."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def architectures() -> list[int]:
    """What it compiles for: 80 for sm_80. Raises BackendError without libnvrtc."""
    count = ctypes.c_int()
    _library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    listed = (ctypes.c_int * count.value)()
    _library().nvrtcGetSupportedArchs(listed)
    return list(listed)


def compile_cubin(source: str, flags: Sequence[str], architecture: int, name: str) -> bytes:
    """Machine code (cubin) of one translation unit without #includes of files, for sm_`architecture`.

    Raises BackendError with the compiler's log.
    """
    library = _library()
    program = ctypes.c_void_p()
    options = [flag.encode() for flag in (*flags, f"-arch=sm_{architecture}")]
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status != 0:
            log = _bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            problem = library.nvrtcGetErrorString(status).decode()
            raise BackendError(f"NVRTC {version()}: {problem} for {name}, sm_{architecture}:\n{log}")
        return _bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(program: ctypes.c_void_p, size_function: str, get_function: str) -> bytes:
    library = _library()
    size = ctypes.c_size_t()
    getattr(library, size_function)(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, get_function)(program, buffer)
    return buffer.raw


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qpt"


def cubin_file(source: str, flags: Sequence[str], architecture: int, name: str) -> Path:
    """A file with the result of compile_cubin, kept in the cache under a hash of everything that determines it.

    Where the cache folder cannot be written the file lives as long as the process.
    """
    key = "\0".join([source, *flags, str(architecture), name, version()])
    file_name = f"{name}-sm_{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cubin"
    cached = cache_folder() / file_name
    if cached.exists():
        return cached
    cubin = compile_cubin(source, flags, architecture, name)
    try:
        return _write_whole(cached, cubin)
    except OSError:
        return _write_whole(Path(_process_folder().name) / file_name, cubin)


def _write_whole(path: Path, content: bytes) -> Path:
    """Write aside and rename, so that another process never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
    return path


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qpt-")
