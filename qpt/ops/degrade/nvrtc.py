"""Compiling CUDA source for one architecture with NVRTC, NVIDIA's run-time compiler; the results are cached on disk.

Used by ``cuda.py`` if there is no fat binary, by ``qpt doctor`` and by the offline compile tests. It needs neither a
GPU nor a driver.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import site
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from qpt import compat
from qpt.errors import BackendError
from qpt.io import write_whole


def find_library() -> Path | None:
    """Find libnvrtc in the nvidia-cuda-nvrtc packages, which CUDA builds of torch bring, or in a CUDA toolkit.

    One of torch's CUDA major version comes before all others: the driver, which serves torch, loads what it compiles.
    """
    packages = {sysconfig.get_path("purelib"), *sys.path, site.getusersitepackages()}
    patterns = [Path(folder) / "nvidia" for folder in sorted(packages) if folder]
    found = [library for folder in patterns for library in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for toolkit in filter(None, toolkits):
        found += [Path(toolkit) / "lib64" / "libnvrtc.so"]
    usable = [library for library in found if library.exists() and "alt" not in library.name]
    wanted = cuda_major()
    return min(usable, key=lambda library: wanted not in (None, _major(library)), default=None)


def cuda_major() -> int | None:
    """Return the major version of the CUDA that torch was built for; None without CUDA."""
    return int(torch.version.cuda.partition(".")[0]) if torch.version.cuda else None


def package() -> str:
    """Return the name of the package that brings NVRTC for torch's CUDA."""
    return "nvidia-cuda-nvrtc-cu12" if cuda_major() == 12 else "nvidia-cuda-nvrtc"


def _major(library: Path) -> int | None:
    """Return the major version in the name of a library or of what it links to, libnvrtc.so.13.0.48."""
    match = re.search(r"\.so\.(\d+)", library.resolve().name)
    return int(match.group(1)) if match else None


# NVRTC is called through ctypes and not through CuPy, which adds -ftz=true to every compilation: denormals flushed to
# zero would break the equality of CPU and GPU bytes.
@functools.cache
def _library() -> ctypes.CDLL:
    path = find_library()
    if path is None:
        raise BackendError(
            "NVRTC: libnvrtc was found neither in the Python environment nor in $CUDA_HOME or /usr/local/cuda; "
            f"install it: pip install {package()}"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"NVRTC: {path} did not load ({error}); reinstall it: pip install {package()}") from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> str:
    """Return NVRTC's version, such as ``"13.0"``. Raises BackendError without libnvrtc."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def architectures() -> list[int]:
    """Return the architectures that NVRTC compiles for, 80 for sm_80. Raises BackendError without libnvrtc."""
    count = ctypes.c_int()
    _library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    listed = (ctypes.c_int * count.value)()
    _library().nvrtcGetSupportedArchs(listed)
    return list(listed)


def compile_cubin(source: str, flags: Sequence[str], architecture: int, name: str) -> bytes:
    """Compile one translation unit, which may not include files, to machine code (cubin) for sm_``architecture``.

    Raises BackendError with the compiler's log.
    """
    library = _library()
    program = ctypes.c_void_p()
    # NVRTC 12.4 takes a generic lambda of a device function for a host function unless told that there are none.
    options = [flag.encode() for flag in (*flags, "-default-device", f"-arch=sm_{architecture}")]
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        with compat.locale_kept():
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
    """Return the folder that compiled kernels are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qpt"


def cubin_file(source: str, flags: Sequence[str], architecture: int, name: str) -> Path:
    """Return a file that holds the result of ``compile_cubin``, cached under a hash of everything that determines it.

    If the cache folder cannot be written, the file is deleted when the process ends.
    """
    key = "\0".join([source, *flags, str(architecture), name, version()])
    file_name = f"{name}-sm_{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cubin"
    cached = cache_folder() / file_name
    if cached.exists():
        return cached
    cubin = compile_cubin(source, flags, architecture, name)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cached, lambda unfinished: unfinished.write_bytes(cubin))
    except OSError:
        cached = Path(_process_folder().name) / file_name
        cached.write_bytes(cubin)
    return cached


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qpt-")
