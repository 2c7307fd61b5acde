"""``qpt doctor``: versions, backends, the reason why one is missing, and the command that fixes it.

Every check asks the code that does the real work, reports what is missing and never raises; nothing is compiled or
downloaded. Only the CPU path decides the exit status.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from qpt import build
from qpt.compat import triton_fault
from qpt.errors import BackendError
from qpt.process import THREAD_LIMITS, thread_limits, usable_threads
from qpt.version import __version__

HELP = "versions, backends, why a missing one is missing and the command that fixes it"
EXAMPLE = "  qpt doctor\n  qpt doctor --json | jq .cpu_works"

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "simplejpeg", "matplotlib", "triton")
CUPY = ("cupy-cuda12x", "cupy-cuda13x")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Return 0 if the CPU path works, whatever is missing for GPUs; 1 if it does not."""
    diagnosis = diagnose()
    if args.json:
        print(json.dumps(diagnosis.as_dict(), indent=2))
        return 0 if diagnosis.cpu_works else 1
    for title, table in (("versions", diagnosis.versions), ("machine", diagnosis.machine)):
        print(title)
        for name, value in table.items():
            print(f"  {name:<16} {value}")
    print("backends")
    for check in diagnosis.checks:
        print(f"  {'ok     ' if check.ok else 'missing'} {check.name:<16} {check.detail}")
        if check.fix:
            print(f"  {'':<24} fix: {check.fix}")
    print("the CPU path works" if diagnosis.cpu_works else "the CPU path is broken: see above")
    return 0 if diagnosis.cpu_works else 1


@dataclass(frozen=True)
class Check:
    """One backend. ok: usable here.  detail: a version, or the reason why it is missing.  fix: a command, or ""."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The content of `qpt doctor`. The CPU path is the checks named in CPU_PATH."""

    versions: dict[str, str]
    machine: dict[str, str]
    checks: list[Check]

    CPU_PATH = ("PyTorch", "C++ extension")

    @property
    def cpu_works(self) -> bool:
        return all(check.ok for check in self.checks if check.name in self.CPU_PATH)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`: versions, machine, checks (name, ok, detail, fix) and cpu_works."""
        return {**asdict(self), "cpu_works": self.cpu_works}


def diagnose() -> Diagnosis:
    """Check this machine. It takes a second or two (torch is imported) and changes nothing."""
    checks = [_torch(), _extension(), _openmp(), _triton(), _torch_cuda(), _cupy(), _fat_binary(), _nvcc(), _nvrtc()]
    versions = {"qpt": __version__, "python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": _threads(),
        "instruction set": _instruction_set(),
    }
    return Diagnosis(versions, machine, checks)


def _threads() -> str:
    limits = thread_limits()
    each = (f"{name} {limits.get(name, 'unset')}" for name in THREAD_LIMITS)
    return f"{usable_threads()} ({', '.join(each)})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _instruction_set() -> str:
    """Return the instruction set that qpt._C was compiled for."""
    facts = build.build_facts()
    if facts is None:
        return "unknown: nothing was built"
    level = build.level_of_processor(facts)
    if level is not None:
        return f"{level['name']}, chosen for this processor from a portable build"
    kind = "this machine's" if "-march=native" in facts["flags"] else "portable"
    features = facts["cpu_features"]
    widest = next((name for name in ("avx512f", "avx2", "avx", "sve", "asimddp") if name in features), "baseline")
    return f"{kind} ({widest}, {len(features)} features beyond the baseline)"


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("PyTorch", False, str(error), "pip install -r requirements/torch.txt")
    return Check("PyTorch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _extension() -> Check:
    rebuild = "pip install --force-reinstall --no-deps -e ."
    try:
        from qpt.ops import extension

        module = extension.load()
        facts = module.build_info()
    except (BackendError, ImportError, OSError) as error:
        return Check("C++ extension", False, str(error), rebuild)
    return Check("C++ extension", True, f"{len(module.op_names())} ops, {facts['compiler']}")


def _openmp() -> Check:
    try:
        from qpt.ops import extension

        openmp = extension.load().build_info()["openmp"]
    except (BackendError, ImportError, OSError):
        return Check("OpenMP", False, "unknown without the C++ extension")
    if openmp:
        return Check("OpenMP", True, f"version {openmp}")
    return Check("OpenMP", False, "the extension was compiled without it", "CXX=g++ pip install --force-reinstall -e .")


def _triton() -> Check:
    fault = triton_fault()
    if fault is None:
        return Check("Triton", True, importlib.import_module("triton").__version__)
    found, _, fix = fault.partition("; run: ")
    fix = fix if platform.system() == "Linux" else ""  # there are no wheels for others
    return Check("Triton", False, f"{found}; PyTorch operations take its place", fix)


def _torch_cuda() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("CUDA in PyTorch", False, str(error))
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Check("CUDA in PyTorch", True, f"CUDA {torch.version.cuda}: {names}")
    if not ctypes.util.find_library("cuda"):
        return Check(
            "CUDA in PyTorch", False, "this machine has no NVIDIA driver", "on a machine with a GPU: install one"
        )
    if torch.version.cuda is None:
        fix = f"pip install --force-reinstall a CUDA build of torch {torch.__version__.split('+')[0]}"
        return Check("CUDA in PyTorch", False, f"torch {torch.__version__} was built without CUDA", fix)
    return Check("CUDA in PyTorch", False, f"torch for CUDA {torch.version.cuda} sees no device", "nvidia-smi")


def _cupy() -> Check:
    try:
        cupy = importlib.import_module("cupy")
    except (ImportError, OSError) as error:
        return Check("CuPy", False, f"{error}; it launches the CUDA kernels", f"pip install 'qpt[{_cupy_extra()}]'")
    installed = [name for name in CUPY if _version(name) != "not installed"]
    if len(installed) > 1:  # their files are in one folder: the one installed last has won
        fix = f"pip uninstall {' '.join(installed)}, then pip install 'qpt[{_cupy_extra()}]'"
        return Check("CuPy", False, f"{' and '.join(installed)} are both installed", fix)
    return Check("CuPy", True, f"{cupy.__version__} ({''.join(installed) or 'of no package'})")


def _cupy_extra() -> str:
    try:
        from qpt.ops.degrade.cuda import cupy_extra
    except (ImportError, OSError):
        return "cuda13"
    return cupy_extra()


def _fat_binary() -> Check:
    path = build.PACKAGE / build.FATBIN_FILE
    facts = build.build_facts()
    if facts and path.exists():
        architectures = ", ".join(f"sm_{architecture}" for architecture in facts["cuda"]["architectures"])
        return Check("CUDA fat binary", True, f"{architectures} and PTX of the last, {path.stat().st_size // 1024} KiB")
    reason = facts["cuda"]["reason"] if facts else "nothing was built"
    return Check(
        "CUDA fat binary",
        False,
        f"{reason}; NVRTC compiles the same source at first use",
        "QPT_CUDA=1 pip install --force-reinstall --no-deps -e .  (needs nvcc)",
    )


def _nvcc() -> Check:
    nvcc = build.find_nvcc()
    if nvcc is None:
        return Check("nvcc", False, "not in $CUDA_HOME/bin, $PATH or /usr/local/cuda/bin", "install the CUDA toolkit")
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = [line for line in result.stdout.splitlines() if "release" in line]
    if result.returncode != 0 or not release:
        return Check("nvcc", False, f"{nvcc} --version failed: {result.stderr.strip()}", "reinstall the CUDA toolkit")
    host = shutil.which("g++") or "no g++ on PATH"
    return Check("nvcc", True, f"{release[0].split('release ')[-1]}, {nvcc}, host compiler {host}")


def _nvrtc() -> Check:
    try:
        from qpt.ops.degrade import nvrtc
    except (ImportError, OSError) as error:
        return Check("NVRTC", False, str(error))
    try:
        return Check("NVRTC", True, f"{nvrtc.version()}, cache in {nvrtc.cache_folder()}")
    except BackendError as error:
        return Check("NVRTC", False, str(error), f"pip install {nvrtc.package()}")
