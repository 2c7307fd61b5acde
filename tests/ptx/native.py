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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SOURCES = Path(__file__).with_name("native")
# Contraction and fast-math stay off: results are to the bit. Nobody looks at the host's floating-point exceptions.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fvect-cost-model=dynamic",
    "-march=native",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fPIC",
)
INSTRUCTION_BYTES = 240
_P, _I64, _U32, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_int32


class Options(ctypes.Structure):
    """Options of native/machine.h."""

    _fields_ = (
        *((name, _I32) for name in ("order", "seed", "resident", "quantum", "races", "count", "approximation")),
        ("truncate", _I32),
        ("strict", _I32),
        ("unused", _I32),
        ("limit", _I64),
    )


class Buffer(ctypes.Structure):
    """BufferGiven of native/api.cpp."""

    _fields_ = (
        ("base", _I64),
        ("size", _I64),
        ("data", _P),
        ("valid", _P),
        ("writable", _I64),
        ("name", ctypes.c_char_p),
    )


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


SPACES = ("global", "shared", "local")  # of what is counted by space
COUNTS = np.dtype(
    [
        *((name, "u8") for name in ("runs", "lanes")),
        *((name, "u8", len(SPACES)) for name in ("requests", "bytes", "sectors")),
        *((name, "u8") for name in ("passes", "conflicts")),
    ]
)


@functools.cache
def library() -> ctypes.CDLL:
    """Return the machine. Only what is new since the last time, for this processor, is compiled."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptx-machine"
    folder.mkdir(parents=True, exist_ok=True)
    # -march=native: code of one processor may not run on another that shares the folder.
    macros = subprocess.run(["g++", "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True).stdout
    sources = sorted(SOURCES.glob("*.cpp"), key=lambda path: -path.stat().st_size)  # what takes longest comes first
    common = repr(FLAGS).encode() + macros + b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one test run build it once
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            objects = list(workers.map(lambda source: _object(source, common, folder), sources))
        key = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()
        target = folder / f"machine-{key[:16]}.so"
        if not target.exists():
            _compile(["-shared", *map(str, objects)], target)
    found = ctypes.CDLL(str(target))
    found.ptx_find.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_uint)]
    return found


def _object(source: Path, common: bytes, folder: Path) -> Path:
    key = hashlib.sha256(common + source.read_bytes()).hexdigest()
    target = folder / f"{source.stem}-{key[:16]}.o"
    if not target.exists():
        _compile([*FLAGS, "-c", str(source)], target)
    return target


def _compile(arguments: list[str], target: Path) -> None:
    whole = target.with_suffix(".part")  # renamed when it is complete
    _run(["g++", *arguments, "-o", str(whole)])
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
