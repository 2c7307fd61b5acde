"""The degradations by code for AVX2 on a processor that has more, compiled for the occasion; used by ``bench_degrade``.

A portable build holds such code as its level x86-64-v3. Its bytes are those of every other code.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

from benchmarks.harness import Contender
from qpt import build
from qpt.ops import extension

NAME, LEVEL, WIDER = "qpt, code for AVX2", "x86-64-v3", "avx512f"
SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cpu"


def contenders(call: Callable[[], Any]) -> list[Contender]:
    """Return a contender that makes the call with code for AVX2; none where the processor's own code is for AVX2."""
    if WIDER not in (build.processor_features() or ()):
        return []
    flags = build.instruction_levels({"QPT_PORTABLE": "1"})[LEVEL]
    module = _compile(flags)

    def with_level() -> Any:
        own = extension._loaded
        extension._loaded = module
        try:
            return call()
        finally:
            extension._loaded = own

    return [Contender(NAME, with_level, f"compiled with {' '.join(flags)}")]


def _compile(flags: tuple[str, ...]) -> ModuleType:
    print(f"degrade: compiling {NAME}, a minute or two", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "_C.so")
        includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        every = [*build.CXX_FLAGS, *build.MODULE_FLAGS, *flags, "-fPIC", "-DNDEBUG", '-DQPT_BUILD_FLAGS=""', *includes]
        compiler = os.environ.get("CXX", "g++").split()
        subprocess.run([*compiler, *every, "-shared", *sorted(SOURCES.glob("*.cpp")), "-o", library], check=True)
        # Of a name, pybind11 loads one module in a process. The last part is that of the initialising function.
        spec = importlib.util.spec_from_file_location("avx2._C", library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
