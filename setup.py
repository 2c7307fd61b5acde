"""Build of the native part with ninja: qpt._C and, where nvcc is found or asked for, the CUDA fat binary.

Called by pip (pyproject.toml holds all metadata) and by `python setup.py build_ext --inplace`; both run ninja in the
same folder, build/ninja-<tag of the interpreter>, so that each finds what the other has compiled. An editable or
in-place build also writes compile_commands.json, for editors. Flags and searches live in qpt/build.py.

Environment variables:
    QPT_PORTABLE=0|1      1: the platform's baseline instruction set instead of this machine's and, on x86-64, two wider
                          ones between which the processor chooses at run time (default 0)
    QPT_CUDA=auto|0|1     fat binary: when nvcc is found | never | always, an error without nvcc (default auto)
    QPT_CUDA_ARCHS=80;90  compute capabilities in the fat binary, plus PTX of the last one (default: 80, 90 and, where
                          nvcc knows it, 100)
    QPT_BUILD_JOBS=N      run N compilers at a time (default: one per core)
    CXX, CPPFLAGS, CFLAGS, CXXFLAGS, LDFLAGS    the compiler, and flags that precede ours

qpt/kernels and qpt/csrc are symbolic links to ../kernels and ../csrc. A wheel copies what they point to, an editable
install and a bare checkout follow them, so `qpt.kernels` and the CUDA sources have one address in all three.
"""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)  # setuptools wants relative paths; in build.ninja they let a checkout move without a rebuild
SOURCES = sorted(Path("csrc/cpu").glob("*.cpp"))


def load_build_module() -> ModuleType:
    """Load qpt/build.py by path: importing the package would import torch."""
    spec = importlib.util.spec_from_file_location("qpt_build", ROOT / "qpt" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


qpt_build = load_build_module()


def fail(message: str) -> NoReturn:
    raise SystemExit(f"\nsetup.py: error: {message}\n")


def environment_flags(*names: str) -> list[str]:
    return [flag for name in names for flag in shlex.split(os.environ.get(name, ""))]


def parallel_jobs() -> int:
    """Return how many compilers may run at a time."""
    text = os.environ.get("QPT_BUILD_JOBS", str(os.cpu_count() or 1))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"QPT_BUILD_JOBS must be a positive integer, got {text!r}")
    return int(text)


def choose_cuda() -> dict[str, object]:
    """Return {"nvcc": path or None, "architectures": [...], "reason": why there is no fat binary, or None}."""
    requested = os.environ.get("QPT_CUDA", "auto")
    if requested not in ("auto", "0", "1"):
        raise ValueError(f"QPT_CUDA must be auto, 0 or 1, got {requested!r}")
    listed = os.environ.get("QPT_CUDA_ARCHS")
    architectures = None if listed is None else qpt_build.parse_architectures(listed)
    if requested == "0":
        return {"nvcc": None, "architectures": [], "reason": "built with QPT_CUDA=0"}
    nvcc = qpt_build.find_nvcc()
    if nvcc is None and requested == "1":
        fail(
            "QPT_CUDA=1, but there is no nvcc in $CUDA_HOME/bin, $PATH or /usr/local/cuda/bin. Ways out: install "
            "the CUDA toolkit; point CUDA_HOME at it; or unset QPT_CUDA: without a fat binary NVRTC (pip install "
            "'qpt[cuda]') compiles the same source at first use."
        )
    if nvcc is None:
        return {"nvcc": None, "architectures": [], "reason": "no nvcc was found when QPT was built"}
    try:
        program_version([nvcc])
        chosen = architectures or qpt_build.default_architectures(nvcc)
    except (OSError, subprocess.CalledProcessError) as error:
        return without_fat_binary(f"nvcc does not run: {error}")
    return {"nvcc": nvcc, "architectures": list(chosen), "reason": None}


def without_fat_binary(problem: str, architectures: Sequence[int] = ()) -> dict[str, object]:
    """Report a problem with nvcc: an error if QPT_CUDA=1, else a warning, and the reason to record."""
    if os.environ.get("QPT_CUDA") == "1":
        fail(f"{problem}\nWays out: fix the toolkit, choose QPT_CUDA_ARCHS it knows, or set QPT_CUDA=0.")
    print(f"setup.py: warning: built without the CUDA fat binary: {problem}", file=sys.stderr, flush=True)
    return {"nvcc": None, "architectures": list(architectures), "reason": problem}


def pybind11_headers(folder: Path) -> Path:
    """Copy pybind11's headers into the build folder, once per version, and return the include directory.

    pip builds in an environment that it makes anew each time: with its path on the command line nothing would ever be
    up to date. The version in the name rebuilds what was compiled against another one.
    """
    import pybind11

    copy = folder / f"pybind11-{pybind11.__version__}"
    if not copy.exists():
        partial = folder / "pybind11.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(pybind11.get_include(), partial)
        partial.rename(copy)  # an interrupted copy leaves no folder of the final name
    return copy


def write_if_changed(path: Path, text: str) -> None:
    """Write `text`; an unchanged file keeps its time, by which ninja decides."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def program_version(command: Sequence[str]) -> str:
    return subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout


def shell(arguments: Sequence[str]) -> str:
    """Return the arguments as text of a ninja command. $in and $out stay as they are: ninja quotes them itself."""
    return " ".join(a if a in ("$in", "$out", "$out.d") else shlex.quote(a).replace("$", "$$") for a in arguments)


class BuildNative(build_ext):
    """Build with ninja; place qpt._C, qpt/_build.json (compiler, flags, processor) and the CUDA fat binary."""

    def run(self) -> None:
        try:
            from ninja import BIN_DIR, ninja_syntax
        except ImportError:
            fail("ninja is missing. Run: python -m pip install ninja pybind11 setuptools")
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        flags = environment_flags("CPPFLAGS", "CFLAGS", "CXXFLAGS")
        try:
            jobs = parallel_jobs()
            flags += [*qpt_build.CXX_FLAGS, *qpt_build.MODULE_FLAGS, *qpt_build.instruction_set_flags()]
            cuda = choose_cuda()
        except ValueError as error:
            fail(str(error))
        self.levels = qpt_build.instruction_levels()
        try:
            features = qpt_build.cpu_features(compiler, flags)
            levels = [
                {
                    "name": name,
                    "file": self.level_file(name).as_posix(),
                    "cpu_features": qpt_build.cpu_features(compiler, [*flags, *level_flags]),
                }
                for name, level_flags in self.levels.items()
            ]
            compiler_version = program_version(compiler)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"no working C++ compiler ({' '.join(compiler)}): {error}. Install g++ 9 or newer, or set CXX.")
        self.folder = self.build_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        # ninja rebuilds what was made by another command. What the command does not show is in this file, on which
        # every object depends: -march=native means another instruction set on another processor.
        toolchain = (compiler_version, " ".join(features), sys.version)
        write_if_changed(self.folder / "toolchain.txt", "\n".join(toolchain))
        self.module = self.folder / Path(self.get_ext_filename("qpt._C")).name
        self.fat_binary = self.folder / Path(qpt_build.FATBIN_FILE).name if cuda["nvcc"] else None
        self.ninja = [os.path.join(BIN_DIR, "ninja"), "-f", str(self.folder / "build.ninja"), f"-j{jobs}"]
        with open(self.folder / "build.ninja", "w", encoding="utf-8") as file:
            self.write_build_file(ninja_syntax.Writer(file), compiler, flags, cuda)
        if self.inplace:
            commands = subprocess.run([*self.ninja, "-t", "compdb", "compile"], check=True, capture_output=True)
            Path("compile_commands.json").write_bytes(commands.stdout)
        problem = self.run_ninja()
        if problem is not None:
            cuda = without_fat_binary(problem, cuda["architectures"])
        version = compiler_version.splitlines()[0]
        self.place({"compiler": version, "flags": flags, "cpu_features": features, "levels": levels, "cuda": cuda})

    def level_file(self, level: str) -> Path:
        """Return the path of a level's module below the package."""
        return Path(qpt_build.LEVELS_FOLDER, level, Path(self.get_ext_filename("qpt._C")).name)

    def build_folder(self) -> Path:
        """Return the folder of objects: one for all ways to build, so that each finds what another has compiled.

        setuptools gives an editable install a temporary folder; only a folder that was asked for is obeyed.
        """
        if "build_temp" in self.distribution.get_option_dict("build_ext"):
            return Path(self.build_temp)
        return Path("build", f"ninja-{sysconfig.get_config_var('SOABI')}")

    def write_build_file(self, writer, compiler: list[str], flags: list[str], cuda: dict) -> None:
        """Write build.ninja: an object per source, the module, and the fat binary unless there is no nvcc."""
        try:
            includes = [pybind11_headers(self.folder)]
        except ImportError:
            fail("pybind11 is missing. Run: python -m pip install ninja pybind11 setuptools")
        includes += [Path(sysconfig.get_path(name)) for name in ("include", "platinclude")]
        # -MD and not -MMD: system headers count as dependencies too.
        dependencies = ["-MD", "-MF", "$out.d"]
        writer.comment("Written by setup.py, which holds the reasons.")
        writer.variable("builddir", str(self.folder).replace("$", "$$"))
        writer.variable("cxx", shell(compiler))
        include_flags = [f"-I{path}" for path in dict.fromkeys(includes)]

        def compiler_flags(*level_flags: str) -> str:
            every = [*flags, *level_flags]
            defines = ["-DNDEBUG", f'-DQPT_BUILD_FLAGS="{" ".join(every)}"']
            return shell([*every, "-fPIC", *defines, *include_flags])

        writer.variable("cxxflags", compiler_flags())
        writer.variable("ldflags", shell([*environment_flags("LDFLAGS"), "-fopenmp"]))
        writer.rule(
            "compile",
            f"$cxx $cxxflags {shell(dependencies)} -c $in -o $out",
            description="compile $in",
            depfile="$out.d",
            deps="gcc",
        )
        writer.rule("link", "$cxx -shared $in -o $out $ldflags", description="link $out")
        objects = [f"$builddir/{source.stem}.o" for source in SOURCES]
        for source, target in zip(SOURCES, objects, strict=True):
            writer.build(target, "compile", str(source), implicit="$builddir/toolchain.txt")
        modules = [f"$builddir/{self.module.name}"]
        writer.build(modules[0], "link", objects)
        for name, level_flags in self.levels.items():
            parts = []
            for source, shared in zip(SOURCES, objects, strict=True):
                own = source.stem in qpt_build.LEVEL_SOURCES
                parts.append(f"$builddir/{source.stem}.{name}.o" if own else shared)
                if own:
                    variables = {"cxxflags": compiler_flags(*level_flags)}
                    writer.build(parts[-1], "compile", str(source), "$builddir/toolchain.txt", variables=variables)
            modules.append(f"$builddir/{self.level_file(name)}")
            writer.build(modules[-1], "link", parts)
        writer.build("module", "phony", modules)
        if self.fat_binary is not None:
            write_if_changed(self.folder / "nvcc.txt", program_version([cuda["nvcc"]]))
            targets = ["-fatbin", "--threads=0", *qpt_build.gencode_flags(cuda["architectures"]), *dependencies]
            command = shell(qpt_build.nvcc_command(cuda["nvcc"], "$in", "$out", targets))
            # The output is kept too: it becomes the reason, in _build.json, of a build without the fat binary.
            writer.rule(
                "nvcc",
                f"{command} > $out.log 2>&1 || {{ cat $out.log; exit 1; }}",
                description="nvcc $in",
                depfile="$out.d",
                deps="gcc",
            )
            source = Path("csrc", *qpt_build.CUDA_SOURCES)
            writer.build(f"$builddir/{self.fat_binary.name}", "nvcc", str(source), implicit="$builddir/nvcc.txt")

    def run_ninja(self) -> str | None:
        """Build; return why there is no fat binary though nvcc was there, or None. Exit where anything else fails."""
        if self.force:
            subprocess.run([*self.ninja, "-t", "clean"], check=True, stdout=subprocess.DEVNULL)
        sys.stdout.flush()
        # -k 0: an error of nvcc does not keep the module from being built.
        command = [*self.ninja, "-k0", *(["--quiet"] if self.verbose < 1 else ["-v"] if self.verbose > 1 else [])]
        if subprocess.run(command).returncode == 0:
            return None
        remaining = subprocess.run([*self.ninja, "-n", "module"], capture_output=True, text=True)
        if self.fat_binary is None or "no work to do" not in remaining.stdout:
            fail("the compiler failed; its output is above.")
        self.fat_binary.unlink(missing_ok=True)  # of an earlier build
        log = Path(f"{self.fat_binary}.log")
        return f"nvcc failed: {log.read_text(encoding='utf-8', errors='replace').strip()[-2000:]}"

    def place(self, facts: dict) -> None:
        """Copy what was built into the package: of the checkout if in place, else of the wheel."""
        package = Path("qpt") if self.inplace else Path(self.build_lib, "qpt")
        facts_file = self.folder / qpt_build.FACTS_FILE
        facts_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        files = {self.module: package / self.module.name, facts_file: package / qpt_build.FACTS_FILE}
        shutil.rmtree(package / qpt_build.LEVELS_FOLDER, ignore_errors=True)  # of an earlier portable build
        files |= {self.folder / file: package / file for file in map(self.level_file, self.levels)}
        if self.fat_binary is not None and self.fat_binary.exists():
            files[self.fat_binary] = package / qpt_build.FATBIN_FILE
        else:
            (package / qpt_build.FATBIN_FILE).unlink(missing_ok=True)  # of an earlier build with CUDA
        for source, target in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            # Replaced, not overwritten: a process that has the old file loaded keeps it.
            partial = target.with_name(f"{target.name}.partial")
            shutil.copy2(source, partial)
            partial.replace(target)


class BuildPython(build_py):
    """build_py that starts from an empty folder: a module that was moved must not be in the next wheel."""

    def run(self) -> None:
        package = Path(self.build_lib, "qpt").resolve()
        if not self.editable_mode and package != ROOT / "qpt":
            shutil.rmtree(package, ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("qpt._C", sources=[str(source) for source in SOURCES], language="c++")],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
