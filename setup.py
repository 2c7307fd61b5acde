"""Builds qpt._C (C++17, pybind11, OpenMP; no torch) and, where nvcc is found or asked for, the CUDA fat binary.

Called by pip (pyproject.toml holds all metadata) and by `python setup.py build_ext --inplace`. Flags and searches live
in qpt/build.py. Switches, all environment variables:
    QPT_PORTABLE=0|1      1: the platform's baseline instruction set instead of this machine's (default 0)
    QPT_CUDA=auto|0|1     fat binary: when nvcc is found | never | always, an error without nvcc (default auto)
    QPT_CUDA_ARCHS=80;90  compute capabilities in the fat binary, plus PTX of the last one (default: 80, 90 and, where
                          nvcc knows it, 100)
    QPT_BUILD_JOBS=N      compile N files at a time (default: one per core)

qpt/kernels and qpt/csrc are symbolic links to ../kernels and ../csrc. A wheel copies what they point to, an editable
install and a bare checkout follow them, so `qpt.kernels` and the CUDA sources have one address in all three.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)  # setuptools wants relative paths


def load_build_module() -> ModuleType:
    """qpt/build.py by path: importing the package would import torch."""
    spec = importlib.util.spec_from_file_location("qpt_build", ROOT / "qpt" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


qpt_build = load_build_module()


def fail(message: str) -> None:
    raise SystemExit(f"\nsetup.py: error: {message}\n")


class BuildNative(build_ext):
    """build_ext that also writes qpt/_build.json (what was built, for which processor) and the CUDA fat binary."""

    def run(self) -> None:
        package = Path(self.build_lib) / "qpt"
        try:
            self.flags = [*qpt_build.CXX_FLAGS, *qpt_build.MODULE_FLAGS, *qpt_build.instruction_set_flags()]
            cuda = self.plan_cuda()
        except ValueError as error:
            fail(str(error))
        compiler = os.environ.get("CXX", "g++").split()
        os.environ.setdefault("CXX", "g++")
        os.environ.setdefault("CC", os.environ["CXX"])  # setuptools compiles C++ with CC unless told otherwise
        try:
            features = qpt_build.cpu_features(compiler, self.flags)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"no working C++ compiler ({' '.join(compiler)}): {error}. Install g++ 9 or newer, or set CXX.")
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        facts = {"compiler": version, "flags": self.flags, "cpu_features": features, "cuda": cuda}
        # Objects in build/ made with other flags or for another processor are as stale as objects of older sources.
        self.force = self.force or qpt_build.build_facts(package) != facts
        super().run()
        written = self.build_fat_binary(package, facts)
        if self.inplace or self.editable_mode:
            self.copy_to_source(package, written)

    def plan_cuda(self) -> dict[str, object]:
        """Whether to run nvcc: {"nvcc": path or None, "architectures": [...], "reason": why there is no fat binary}."""
        wish = os.environ.get("QPT_CUDA", "auto")
        if wish not in ("auto", "0", "1"):
            raise ValueError(f"QPT_CUDA must be auto, 0 or 1, got {wish!r}")
        asked = os.environ.get("QPT_CUDA_ARCHS")
        architectures = None if asked is None else qpt_build.parse_architectures(asked)
        if wish == "0":
            return {"nvcc": None, "architectures": [], "reason": "built with QPT_CUDA=0"}
        nvcc = qpt_build.find_nvcc()
        if nvcc is None and wish == "1":
            fail(
                "QPT_CUDA=1, but there is no nvcc in $CUDA_HOME/bin, $PATH or /usr/local/cuda/bin. Ways out: install "
                "the CUDA toolkit; point CUDA_HOME at it; or unset QPT_CUDA: without a fat binary NVRTC (pip install "
                "'qpt[cuda]') compiles the same source at first use."
            )
        if nvcc is None:
            return {"nvcc": None, "architectures": [], "reason": "no nvcc was found when QPT was built"}
        chosen = architectures or qpt_build.default_architectures(nvcc)
        return {"nvcc": nvcc, "architectures": list(chosen), "reason": None}

    def build_extension(self, ext: Extension) -> None:
        try:
            from pybind11 import get_include
            from pybind11.setup_helpers import ParallelCompile
        except ImportError:
            fail("pybind11 is missing. Run: python -m pip install pybind11 setuptools")
        ext.include_dirs.append(get_include())
        ext.extra_compile_args = [*self.flags, f'-DQPT_BUILD_FLAGS="{" ".join(self.flags)}"']
        ext.extra_link_args = ["-fopenmp"]
        with ParallelCompile("QPT_BUILD_JOBS", default=os.cpu_count() or 1):
            super().build_extension(ext)

    def build_fat_binary(self, package: Path, facts: dict) -> list[Path]:
        """Compile csrc/cuda for every architecture, write the facts; returns the files written below `package`."""
        fatbin = package / qpt_build.FATBIN_FILE
        cuda = facts["cuda"]
        source = Path("csrc", *qpt_build.CUDA_SOURCES)
        if cuda["nvcc"] is None:
            fatbin.unlink(missing_ok=True)  # of an earlier build with CUDA
        elif self.force or not fatbin.exists() or newest(header_files()) > fatbin.stat().st_mtime:
            fatbin.parent.mkdir(parents=True, exist_ok=True)
            targets = ["-fatbin", "--threads=0", *qpt_build.gencode_flags(cuda["architectures"])]
            command = qpt_build.nvcc_command(cuda["nvcc"], source, fatbin, targets)
            print(" ".join(command), flush=True)
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode != 0:
                fatbin.unlink(missing_ok=True)
                problem = f"nvcc failed: {(result.stderr or result.stdout).strip()[-2000:]}"
                if os.environ.get("QPT_CUDA") == "1":
                    fail(f"{problem}\nWays out: fix the toolkit, choose QPT_CUDA_ARCHS it knows, or set QPT_CUDA=0.")
                print(f"setup.py: warning: built without the CUDA fat binary: {problem}", file=sys.stderr, flush=True)
                facts = {**facts, "cuda": {**cuda, "nvcc": None, "reason": problem}}
        (package / qpt_build.FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
        written = [Path(qpt_build.FACTS_FILE)]
        return [*written, Path(qpt_build.FATBIN_FILE)] if fatbin.exists() else written

    def copy_to_source(self, package: Path, written: list[Path]) -> None:
        (ROOT / "qpt" / qpt_build.FATBIN_FILE).unlink(missing_ok=True)
        for name in written:
            target = ROOT / "qpt" / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(package / name, target)


def header_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cu"))


def newest(paths: list[str]) -> float:
    return max(os.path.getmtime(path) for path in paths)


setup(
    ext_modules=[
        Extension(
            "qpt._C",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cpu").glob("*.cpp")),
            depends=[*header_files(), "setup.py", "qpt/build.py"],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
