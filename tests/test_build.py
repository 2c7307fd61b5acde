"""Packaging: instruction-set check, CUDA switches, one version, and qpt.kernels from a checkout without an install.

What ninja rebuilds, and how errors are shown, is tested in test_build_ninja.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qpt
from qpt import build

ROOT = Path(__file__).parents[1]


def setup_py(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `setup.py build_ext`, writing below tmp_path, in an environment with these variables."""
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        f"--build-lib={tmp_path}/lib",
        f"--build-temp={tmp_path}/o",
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"QPT_CUDA": "yes"}, "QPT_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"QPT_CUDA_ARCHS": "sm_80"}, "QPT_CUDA_ARCHS must be compute capabilities"),
        ({"QPT_PORTABLE": "true"}, "QPT_PORTABLE must be 0 or 1, got 'true'"),
        ({"QPT_BUILD_JOBS": "many"}, "QPT_BUILD_JOBS must be a positive integer, got 'many'"),
        ({"CXX": "no-such-compiler"}, "no working C++ compiler (no-such-compiler)"),
    ],
)
def test_setup_refuses_with_one_clear_error(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    result = setup_py(tmp_path, **environment)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_setup_imports_no_torch() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8") + (ROOT / "qpt" / "build.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) torch", text, flags=re.MULTILINE)


def test_sm_100_is_compiled_where_nvcc_knows_it(tmp_path: Path) -> None:
    for known, expected in (("compute_80\ncompute_90\n", (80, 90)), ("compute_90\ncompute_100\n", (80, 90, 100))):
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(f"#!/bin/sh\nprintf '{known}'\n")
        nvcc.chmod(0o755)
        assert build.default_architectures(str(nvcc)) == expected


def test_architectures() -> None:
    assert build.parse_architectures("90;80") == (80, 90)
    assert build.gencode_flags((80, 90)) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    for text in ("", "8.0", "sm_80", "80 90"):
        with pytest.raises(ValueError, match="QPT_CUDA_ARCHS"):
            build.parse_architectures(text)


def test_nvcc_of_cuda_home_comes_first(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert build.find_nvcc({"CUDA_HOME": str(tmp_path), "PATH": ""}) == str(nvcc)
    assert build.find_nvcc({"PATH": str(nvcc.parent)}) == str(nvcc)


def test_another_processor_is_an_explained_refusal(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu sse2 avx avx2\n")
    assert build.instruction_set_mismatch({"cpu_features": ["avx2"]}, cpuinfo) is None
    reason = build.instruction_set_mismatch({"cpu_features": ["avx2", "avx512f"]}, cpuinfo)
    assert reason is not None
    assert "lacks avx512f" in reason
    assert "QPT_PORTABLE=1" in reason
    assert build.instruction_set_mismatch({"cpu_features": ["avx512f"]}, tmp_path / "absent") is None


def test_the_widest_level_of_the_processor_is_loaded(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu sse2 avx avx2 fma\n")
    levels = [{"name": "wide", "cpu_features": ["avx512f"]}, {"name": "middle", "cpu_features": ["avx2", "fma"]}]
    facts = {"cpu_features": [], "levels": levels}
    assert build.level_of_processor(facts, cpuinfo) == levels[1]
    assert build.level_of_processor({"cpu_features": []}, cpuinfo) is None  # a build of before there were levels
    assert build.level_of_processor(facts, tmp_path / "absent") is None
    cpuinfo.write_text("processor : 0\nflags : fpu sse2\n")
    assert build.level_of_processor(facts, cpuinfo) is None
    assert build.instruction_set_mismatch(facts, cpuinfo) is None


def test_features_follow_the_flags() -> None:
    if build.processor_features() is None or "avx2" not in build.processor_features():
        pytest.skip("the flags of this test are x86-64's: this processor has no AVX2")
    assert "avx2" in build.cpu_features(["g++"], ["-mavx2"])
    assert "avx2" not in build.cpu_features(["g++"], ["-march=x86-64"])
    assert build.cpu_features(["g++"], build.instruction_set_flags({"QPT_PORTABLE": "1"})) == []
    native = build.cpu_features(["g++"], build.instruction_set_flags({}))
    assert set(native) <= build.processor_features()


def test_facts_of_this_build_fit_this_processor() -> None:
    facts = build.build_facts()
    assert facts is not None
    assert build.instruction_set_mismatch(facts) is None
    assert "-ffp-contract=off" in facts["flags"]
    assert not any("fast-math" in flag for flag in facts["flags"])


def test_kernels_and_sources_have_one_address() -> None:
    """qpt/kernels and qpt/csrc are links that work in a checkout; a wheel replaces them by what they point to."""
    for name in ("kernels", "csrc"):
        link = ROOT / "qpt" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"
    code = "import qpt.kernels, qpt.build; print(qpt.kernels.__file__); qpt.build.device_source()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("qpt/kernels/__init__.py")


def test_version_has_one_source() -> None:
    """qpt/version.py holds the version. pyproject.toml reads it; what cannot read it is compared with it."""
    assert 'version = { attr = "qpt.version.__version__" }' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert qpt.__version__ not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"version: {qpt.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert releases[0] == qpt.__version__


def test_import_needs_no_compiled_part() -> None:
    """`import qpt` in a process where the extension, Triton and CuPy cannot be imported."""
    code = (
        "import sys, json\n"
        "for name in ('qpt._C', 'triton', 'cupy'): sys.modules[name] = None\n"
        "import qpt\n"
        "print(json.dumps(sorted(qpt.__all__)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "degrade" in json.loads(result.stdout)
