"""The build of the native code, written once: compiler flags, instruction set, CUDA architectures, nvcc.

Used by setup.py (which loads this file by path, before the package exists), by qpt.ops.extension (is this build made
for this processor?), by qpt.ops.degrade.cuda (NVRTC flags), by qpt.commands.doctor and by the tests that compile the
same sources. Relies on the standard library only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
FACTS_FILE = "_build.json"  # written by setup.py beside qpt._C
FATBIN_FILE = "_cuda/degrade.fatbin"  # written by setup.py when nvcc is used
CUDA_SOURCES = ("cuda/degrade.cu",)  # below csrc/

# Contraction and fast-math stay off: a CPU, a GPU and every instruction set must give the same bytes.
# -fno-math-errno changes no value; it lets sqrtf become one instruction. GCC vectorises a choice between two computed
# floats only if told that nobody looks at floating-point exceptions, which changes no value either. Flags of Python's
# own build stay out: with their -fwrapv GCC does not vectorise loops over three-channel pixels (hue takes four times as
# long).
CXX_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
MODULE_FLAGS = ("-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra")
# Threads of a block, in every launch of our CUDA kernels: four warps for each of a multiprocessor's four schedulers,
# which leaves a thread 128 registers: as few as they can be without a spill.
BLOCK_THREADS = 512
DEVICE_DEFINES = (f"-DQPT_BLOCK_THREADS={BLOCK_THREADS}",)
CUDA_FLAGS = ("-std=c++17", "--fmad=false", *DEVICE_DEFINES)  # understood by nvcc and by NVRTC alike
# A portable build compiles these sources of csrc/cpu, and links the module, once more for each level, and the processor
# chooses when the module is loaded. The loss has its own choice within the module; its sources are compiled once.
# Written out, because GCC has the names of the levels since version 11 only.
LEVEL_SOURCES = ("degrade", "module")
LEVELS_FOLDER = "_levels"  # qpt/_levels/NAME/_C.TAG.so
_X86_V3 = ("-mavx2", "-mbmi", "-mbmi2", "-mf16c", "-mfma", "-mlzcnt", "-mmovbe", "-mpopcnt")
_X86_V4 = (*_X86_V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
_X86_LEVELS = {"x86-64-v4": _X86_V4, "x86-64-v3": _X86_V3}
DEFAULT_ARCHITECTURES = (80, 90)
NEWER_ARCHITECTURES = (100,)  # by default too, where nvcc knows them

# Predefined macro of GCC and Clang -> flag in /proc/cpuinfo, for what a compiler may emit on its own.
_X86_FEATURES = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__POPCNT__": "popcnt",
    "__MOVBE__": "movbe",
    "__LZCNT__": "abm",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__F16C__": "f16c",
    "__FMA__": "fma",
    "__AVX__": "avx",
    "__AVX2__": "avx2",
    "__AVXVNNI__": "avx_vnni",
    "__GFNI__": "gfni",
    "__AVX512F__": "avx512f",
    "__AVX512CD__": "avx512cd",
    "__AVX512BW__": "avx512bw",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512IFMA__": "avx512ifma",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512VBMI2__": "avx512_vbmi2",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BITALG__": "avx512_bitalg",
    "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
}
_ARM_FEATURES = {
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_ATOMICS": "atomics",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE2": "sve2",
}


def instruction_set_flags(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the compiler flags of the instruction set: this machine's, or the platform's baseline if QPT_PORTABLE=1.

    Raises ValueError for any other value of QPT_PORTABLE than 0 or 1.
    """
    portable = environ.get("QPT_PORTABLE", "0")
    if portable not in ("0", "1"):
        raise ValueError(f"QPT_PORTABLE must be 0 or 1, got {portable!r}")
    return () if portable == "1" else ("-march=native",)


def instruction_levels(environ: Mapping[str, str] = os.environ) -> dict[str, tuple[str, ...]]:
    """Return {name: compiler flags} of the further instruction sets of a portable build, the widest first."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return dict(_X86_LEVELS) if x86 and environ.get("QPT_PORTABLE") == "1" else {}


def cpu_features(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The processor features, as named in /proc/cpuinfo, that code compiled with these flags may use."""
    command = [*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    defined = set(re.findall(r"^#define (\w+)", macros, flags=re.MULTILINE))
    table = {**_X86_FEATURES, **_ARM_FEATURES}
    return sorted(feature for macro, feature in table.items() if macro in defined)


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str] | None:
    """The features of the processor we run on; None where the system does not list them."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return set(found.group(1).split()) if found else None


def build_facts(package: Path = PACKAGE) -> dict[str, Any] | None:
    """Return the facts that setup.py wrote about the build in `package`; None if nothing was built there."""
    try:
        facts: dict[str, Any] = json.loads((package / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return facts


def instruction_set_mismatch(facts: Mapping[str, Any] | None, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Why a build with these facts cannot run on this processor, with the way out; None if it can.

    Asked before qpt._C is loaded: loading it on the wrong processor would end the process with SIGILL.
    """
    present = processor_features(cpuinfo)
    if facts is None or present is None:
        return None
    missing = [feature for feature in facts["cpu_features"] if feature not in present]
    if not missing:
        return None
    return (
        f"it was compiled for another processor: this one lacks {', '.join(missing)}. Rebuild here, or anywhere for "
        "the platform's baseline instruction set: QPT_PORTABLE=1 pip install --force-reinstall --no-deps ."
    )


def level_of_processor(
    facts: Mapping[str, Any] | None, cpuinfo: Path = Path("/proc/cpuinfo")
) -> Mapping[str, Any] | None:
    """Return the facts (name, file, cpu_features) of the widest level of a portable build that runs on this processor.

    None: the module qpt._C itself is the one to load, since no level fits or the build has none.
    """
    present = processor_features(cpuinfo)
    if facts is None or present is None:
        return None
    return next((level for level in facts.get("levels", []) if present.issuperset(level["cpu_features"])), None)


def parse_architectures(text: str) -> tuple[int, ...]:
    """`"80;90"` -> (80, 90), sorted. Raises ValueError naming QPT_CUDA_ARCHS for anything else."""
    parts = [part.strip() for part in re.split("[;,]", text) if part.strip()]
    if not parts or not all(re.fullmatch(r"\d{2,3}", part) for part in parts):
        raise ValueError(f'QPT_CUDA_ARCHS must be compute capabilities like "80;90", got {text!r}')
    return tuple(sorted({int(part) for part in parts}))


def default_architectures(nvcc: str) -> tuple[int, ...]:
    """The compute capabilities that this nvcc compiles for unless QPT_CUDA_ARCHS says otherwise."""
    command = [nvcc, "--list-gpu-arch"]
    known = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return DEFAULT_ARCHITECTURES + tuple(arch for arch in NEWER_ARCHITECTURES if f"compute_{arch}" in known)


def gencode_flags(architectures: Sequence[int]) -> list[str]:
    """nvcc flags for machine code of every architecture, and PTX of the last one for GPUs newer than all of them."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    last = architectures[-1]
    return [*flags, f"-gencode=arch=compute_{last},code=compute_{last}"]


def find_nvcc(environ: Mapping[str, str] = os.environ) -> str | None:
    """nvcc of $CUDA_HOME, then of $PATH, then of /usr/local/cuda; None if there is none."""
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    places = [f"{home}/bin/nvcc"] if home else []
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    places += [on_path] if on_path else []
    places.append("/usr/local/cuda/bin/nvcc")
    return next((place for place in places if os.access(place, os.X_OK)), None)


def nvcc_command(nvcc: str, source: Path | str, output: Path | str, targets: Sequence[str]) -> list[str]:
    """The command that compiles one .cu file; `targets` are gencode flags with -fatbin, or -cubin and -arch."""
    return [nvcc, *CUDA_FLAGS, "-O3", *targets, "-o", str(output), str(source)]


def device_source(path: Path = PACKAGE / "csrc" / CUDA_SOURCES[0]) -> str:
    """One .cu file with our own headers written in: what NVRTC, which opens no files, gets.

    Being whole, it is also a sound key for a cache of compiled kernels: a changed header changes it.
    """
    once: set[Path] = set()

    def expand(path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        if "#pragma once" in text:
            if path in once:
                return ""
            once.add(path)
            text = text.replace("#pragma once", "")

        def included(match: re.Match[str]) -> str:
            return expand((path.parent / match.group(1)).resolve())

        return re.sub(r'^[ \t]*#include "([^"]+)".*$', included, text, flags=re.MULTILINE)

    return expand(path.resolve())
