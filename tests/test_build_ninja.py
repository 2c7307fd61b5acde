"""The build with ninja: an edit rebuilds what depends on it and nothing else; an error is shown in full.

No test compiles the engine. In a copy of csrc/ stand-ins for g++ and nvcc write true dependency files, which the real
preprocessor makes, and empty outputs; errors are those of the real compiler in a checkout of two small files.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qpt import build

ROOT = Path(__file__).parents[1]
OBJECTS = {f"{path.stem}.o" for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
MODULE = "module"  # of the stand-in's log: the file name depends on the interpreter
FAT_BINARY = "degrade.fatbin"

STAND_IN = """#!{python}
import os, re, subprocess, sys
arguments = sys.argv[1:]
if "--list-gpu-arch" in arguments:
    print("compute_80 compute_90")
elif "-o" not in arguments:
    if "-dM" in arguments and os.environ.get("OTHER_PROCESSOR"):
        print("#define __AVX512FP16__ 1")
    sys.exit(subprocess.call(["g++", *arguments]))
else:
    output = arguments[arguments.index("-o") + 1]
    if "-MF" in arguments:
        includes = [argument for argument in arguments if argument.startswith("-I")]
        dependencies = arguments[arguments.index("-MF") + 1]
        source = next(argument for argument in arguments if argument.startswith("csrc/"))
        preprocess = ["g++", "-std=c++17", "-march=native", *includes, "-x", "c++", "-M", "-MT", output, source]
        subprocess.run([*preprocess, "-MF", dependencies], check=True)
    open(output, "w").close()
    name = os.path.basename(output)
    with open({log!r}, "a") as log:
        level = os.path.basename(os.path.dirname(output)) if "_levels" in output else ""
        log.write(("module" + level if name.startswith("_C") else name) + "\\n")
"""


class Checkout:
    """A copy of what setup.py reads, with stand-ins for the compilers."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"  # every path of a build may hold spaces
        self.log = folder / "log.txt"
        shutil.copytree(ROOT / "csrc", self.root / "csrc")
        (self.root / "qpt").mkdir()
        shutil.copy(ROOT / "qpt" / "build.py", self.root / "qpt")
        shutil.copy(ROOT / "setup.py", self.root)
        self.compiler = folder / "bin" / "c++"
        self.compiler.parent.mkdir()
        self.compiler.write_text(STAND_IN.format(python=sys.executable, log=str(self.log)))
        self.compiler.chmod(0o755)
        shutil.copy(self.compiler, self.compiler.with_name("nvcc"))

    def build(self, *arguments: str, **environment: str) -> set[str]:
        """Run `setup.py build_ext --inplace`; return the names of what was compiled and linked."""
        result = self.run(*arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        names = self.log.read_text(encoding="utf-8").split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        assert len(names) == len(set(names))
        return set(names)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        cuda = {"CUDA_HOME": str(self.compiler.parents[1]), "QPT_CUDA": "1", "QPT_CUDA_ARCHS": "80;90"}
        variables = {**os.environ, "CXX": str(self.compiler), **cuda, **environment}
        command = [sys.executable, "setup.py", "build_ext", "--inplace", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, env=variables)

    def ninja(self, *arguments: str) -> str:
        [build_file] = self.root.glob("build/*/build.ninja")
        command = [sys.executable, "-m", "ninja", "-f", str(build_file.relative_to(self.root)), *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout

    def outdated(self) -> set[str]:
        """Return the names of what ninja would compile and link, by a dry run."""
        commands = self.ninja("-n", "-v")
        outputs = {Path(name).name for name in re.findall(r"-o '?([^']*?\.(?:o|so|fatbin))\b", commands)}
        return {MODULE if name.startswith("_C") else name for name in outputs}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which everything was built once."""
    checkout = Checkout(tmp_path_factory.mktemp("ninja"))
    assert checkout.build() == {*OBJECTS, MODULE, FAT_BINARY}
    return checkout


def included(path: Path) -> set[Path]:
    """Return the file and all of ours that it includes, directly or not."""
    names = re.findall(r'^[ \t]*#include "([^"]+)"', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {path}.union(*(included((path.parent / name).resolve()) for name in names))


def test_second_build_does_nothing(checkout: Checkout) -> None:
    result = checkout.run()
    assert "ninja: no work to do." in result.stdout
    assert not checkout.log.exists()
    assert checkout.build("--force") == {*OBJECTS, MODULE, FAT_BINARY}


def test_header_rebuilds_what_includes_it_and_nothing_else(checkout: Checkout) -> None:
    csrc = (checkout.root / "csrc").resolve()
    outputs = {f"{path.stem}.o": included(path) for path in (csrc / "cpu").glob("*.cpp")}
    outputs[FAT_BINARY] = included(csrc.joinpath(*build.CUDA_SOURCES))
    assert checkout.outdated() == set()
    alone = []
    for header in csrc.rglob("*.h"):
        times = header.stat()
        os.utime(header)
        expected = {name for name, files in outputs.items() if header in files}
        assert checkout.outdated() == (expected | {MODULE} if expected & OBJECTS else expected), header.name
        os.utime(header, ns=(times.st_atime_ns, times.st_mtime_ns))
        alone.append((len(expected), header, expected))
    assert checkout.outdated() == set()
    count, header, expected = min(alone)
    assert 0 < count < len(outputs)
    header.write_text(header.read_text(encoding="utf-8") + "// an edit\n", encoding="utf-8")
    assert checkout.build() == {*expected, MODULE}


@pytest.mark.parametrize(
    ("environment", "rebuilt"),
    [
        ({"CPPFLAGS": "-DANYTHING"}, {*OBJECTS, MODULE}),
        ({"OTHER_PROCESSOR": "1"}, {*OBJECTS, MODULE}),
        ({"LDFLAGS": "-Lanywhere"}, {MODULE}),
        ({"QPT_CUDA_ARCHS": "90"}, {FAT_BINARY}),
        ({"QPT_CUDA": "0"}, set()),
    ],
)
def test_other_flags_rebuild_what_they_concern(
    checkout: Checkout, environment: dict[str, str], rebuilt: set[str]
) -> None:
    checkout.build()
    assert checkout.build(**environment) == rebuilt
    assert checkout.build() == rebuilt


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has levels")
def test_a_portable_build_compiles_the_engine_once_per_level(checkout: Checkout) -> None:
    checkout.build()
    levels = build.instruction_levels({"QPT_PORTABLE": "1"})
    sources = build.LEVEL_SOURCES
    assert {f"{source}.o" for source in sources} < OBJECTS
    compiled = {f"{source}.{level}.o" for source in sources for level in levels}
    assert checkout.build(QPT_PORTABLE="1") == {*OBJECTS, *compiled, MODULE, *(MODULE + level for level in levels)}
    assert checkout.build(QPT_PORTABLE="1") == set()
    facts = build.build_facts(checkout.root / "qpt")
    assert facts is not None
    assert facts["cpu_features"] == [] and "-march=native" not in facts["flags"]
    assert [level["name"] for level in facts["levels"]] == ["x86-64-v4", "x86-64-v3"]
    assert all((checkout.root / "qpt" / level["file"]).exists() for level in facts["levels"])
    assert checkout.build() == {*OBJECTS, MODULE}
    assert not (checkout.root / "qpt" / build.LEVELS_FOLDER).exists()


def test_what_is_left_in_the_package(checkout: Checkout) -> None:
    checkout.build()
    package = checkout.root / "qpt"
    facts = build.build_facts(package)
    assert facts is not None
    assert facts["cuda"]["architectures"] == [80, 90]
    assert (package / build.FATBIN_FILE).exists()
    assert len(list(package.glob("_C.*.so"))) == 1
    checkout.build(QPT_CUDA="0")
    assert not (package / build.FATBIN_FILE).exists()
    facts = build.build_facts(package)
    assert facts is not None
    assert facts["cuda"] == {"nvcc": None, "architectures": [], "reason": "built with QPT_CUDA=0"}


def test_editors_find_the_commands(checkout: Checkout) -> None:
    entries = json.loads((checkout.root / "compile_commands.json").read_text(encoding="utf-8"))
    assert {Path(entry["output"]).name for entry in entries} == OBJECTS
    for entry in entries:
        assert (checkout.root / entry["file"]).exists()
        assert Path(entry["directory"]) == checkout.root
        assert "-std=c++17" in entry["command"]


def small_checkout(folder: Path, **sources: str) -> Path:
    """A checkout with these files in csrc/cpu and a .cu file that is never looked into."""
    for name in ("setup.py", "qpt/build.py"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    for name, text in {"cuda/degrade.cu": "", **{f"cpu/{name}.cpp": text for name, text in sources.items()}}.items():
        target = folder / "csrc" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder


def run_setup(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, **environment})


def test_errors_of_the_compiler_are_shown_in_full(tmp_path: Path) -> None:
    """Both files' errors, all of them: `-k 0` keeps ninja from stopping at the first file."""
    lines = "\n".join(f"int f{i}() {{ return undefined_{i}; }}" for i in range(100))
    root = small_checkout(tmp_path, first=lines, second="int g() { return undefined_name; }\n")
    result = run_setup(root, QPT_CUDA="0")
    assert result.returncode != 0
    assert "setup.py: error: the compiler failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert "csrc/cpu/second.cpp:1:18" in result.stdout
    for i in range(100):
        assert f"undefined_{i}" in result.stdout
    assert not list(root.glob("qpt/_C*"))


def test_nvcc_that_fails_is_a_warning_unless_cuda_was_asked_for(tmp_path: Path) -> None:
    root = small_checkout(tmp_path, first="int f() { return 0; }\n")
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n[ $1 = --version ] && exit\necho 'no such architecture' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    environment = {"CUDA_HOME": str(tmp_path / "cuda"), "QPT_CUDA_ARCHS": "90"}
    fat_binary = root / "qpt" / build.FATBIN_FILE
    fat_binary.parent.mkdir()
    fat_binary.write_text("of an earlier build")
    result = run_setup(root, QPT_CUDA="auto", **environment)
    assert result.returncode == 0, result.stderr
    assert "warning: built without the CUDA fat binary: nvcc failed: no such architecture" in result.stderr
    assert not fat_binary.exists()
    assert len(list(root.glob("qpt/_C*.so"))) == 1
    facts = build.build_facts(root / "qpt")
    assert facts is not None
    assert facts["cuda"] == {"nvcc": None, "architectures": [90], "reason": "nvcc failed: no such architecture"}
    result = run_setup(root, QPT_CUDA="1", **environment)
    assert result.returncode != 0
    assert "no such architecture\nWays out: fix the toolkit" in result.stderr


def test_no_nvcc_is_the_recorded_reason_unless_cuda_was_asked_for(tmp_path: Path) -> None:
    root = small_checkout(tmp_path, first="int f() { return 0; }\n")
    build_py = root / "qpt" / "build.py"
    text = build_py.read_text(encoding="utf-8")
    build_py.write_text(text.replace("/usr/local/cuda/bin/nvcc", "/nowhere/nvcc"), encoding="utf-8")
    compiler = shutil.which("g++")
    assert compiler is not None
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "as", "ld"):
        tools.joinpath(name).symlink_to(shutil.which(name) or "")
    environment = {"CXX": compiler, "PATH": str(tools), "CUDA_HOME": "", "CUDA_PATH": ""}
    result = run_setup(root, QPT_CUDA="auto", **environment)
    assert result.returncode == 0, result.stderr
    facts = build.build_facts(root / "qpt")
    assert facts is not None
    assert facts["cuda"]["reason"] == "no nvcc was found when QPT was built"
    result = run_setup(root, QPT_CUDA="1", **environment)
    assert result.returncode != 0
    assert "QPT_CUDA=1, but there is no nvcc in $CUDA_HOME/bin" in result.stderr
    assert "Ways out: install the CUDA toolkit" in result.stderr


def test_nvcc_that_does_not_start_is_a_warning_too(tmp_path: Path) -> None:
    root = small_checkout(tmp_path, first="int f() { return 0; }\n")
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 127\n")
    nvcc.chmod(0o755)
    result = run_setup(root, QPT_CUDA="auto", CUDA_HOME=str(tmp_path / "cuda"))
    assert result.returncode == 0, result.stderr
    assert "warning: built without the CUDA fat binary: nvcc does not run" in result.stderr


def test_a_wheel_holds_the_whole_package_and_nothing_else(tmp_path: Path) -> None:
    """Also after a module was moved: its old place in the build folder is emptied."""
    stale = tmp_path / "qpt" / "moved_elsewhere.py"
    stale.parent.mkdir()
    stale.touch()
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["qpt"]
    packed = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run([*listed, "qpt", "csrc", "kernels"], capture_output=True, text=True).stdout.splitlines()
    if not tracked:
        pytest.skip("needs a git checkout: the files of the package are those that git lists")
    links = ("qpt/csrc", "qpt/kernels")
    expected = {Path(name) if name.startswith("qpt/") else Path("qpt", name) for name in tracked if name not in links}
    assert packed == {path for path in expected if path.suffix != ".cpp" and (ROOT / path).exists()}
