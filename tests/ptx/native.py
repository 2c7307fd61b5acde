"""Build the machine of tests/ptx/native with g++ and call it.

Built once for a state of its sources and kept in the user's cache folder; relies on g++ and NumPy.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SOURCES = Path(__file__).with_name("native")
# Contraction and fast-math stay off: results are to the bit. Nobody looks at the host's floating-point exceptions.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC")
INSTRUCTION_BYTES = 240
_P, _I64, _U32, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_int32


class Options(ctypes.Structure):
    """Options of native/machine.h."""

    _fields_ = (
        *((name, _I32) for name in ("order", "seed", "resident", "quantum", "races", "count", "approximation")),
        ("truncate", _I32),
        ("limit", _I64),
    )


class Buffer(ctypes.Structure):
    """BufferGiven of native/api.cpp."""

    _fields_ = (("base", _I64), ("size", _I64), ("data", _P), ("valid", _P), ("writable", _I64), ("name", ctypes.c_char_p))


class Launch(ctypes.Structure):
    """LaunchGiven of native/api.cpp."""

    _fields_ = (
        ("code", _P), ("instructions", _I64), ("constants", _P), ("constant_bytes", _I64), ("specials", _P),
        ("special_count", _I64), ("static_valid", _P), ("static_bytes", _I64), ("buffers", _P), ("buffer_count", _I64),
        ("counts", _P), ("grid", _U32 * 3), ("shape", _U32 * 3),
        *((name, _U32) for name in ("register_bytes", "slots", "local_bytes", "shared_bytes", "entry", "unused")),
        ("options", Options),
        *((name, _I64) for name in ("pc", "other_pc", "block", "thread", "other_block", "other_thread", "executed")),
        ("kind", ctypes.c_char * 32), ("text", ctypes.c_char * 512),
    )  # fmt: skip


COUNTS = np.dtype([(name, "u8") for name in ("runs", "lanes", "bytes", "requests", "sectors", "wavefronts")])


@functools.cache
def library() -> ctypes.CDLL:
    """Return the machine, compiled if its sources or this processor are new."""
    sources = sorted(SOURCES.glob("*.cpp"))
    key = hashlib.sha256(repr(FLAGS).encode())
    for path in [*sources, *sorted(SOURCES.glob("*.h"))]:
        key.update(path.read_bytes())
    # -march=native: code of one processor may not run on another that shares the folder.
    key.update(subprocess.run(["g++", "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True).stdout)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptx-machine"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"machine-{key.hexdigest()[:16]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one test run build it once
        if not target.exists():
            _build(sources, target)
    found = ctypes.CDLL(str(target))
    found.ptx_find.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_uint)]
    return found


def _build(sources: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [Path(folder, f"{source.stem}.o") for source in sources]
        commands = [["g++", *FLAGS, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            list(workers.map(_run, commands))
        whole = Path(folder, target.name)
        _run(["g++", "-shared", *map(str, objects), "-o", str(whole)])
        whole.replace(target)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")


def find(opcode: str) -> tuple[int, str, int] | None:
    """Return number, signature and flags of an opcode; None for one that the machine does not have."""
    signature, flags = ctypes.c_char_p(), ctypes.c_uint()
    number = library().ptx_find(opcode.encode(), ctypes.byref(signature), ctypes.byref(flags))
    return None if number < 0 else (number, (signature.value or b"").decode(), flags.value)
