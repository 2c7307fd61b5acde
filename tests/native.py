"""Compiling the C++ programs of tests/cpp with the package's own flags; used by the tests that run them."""

import os
import subprocess
from pathlib import Path

from qpt import build

CPP = Path(__file__).parent / "cpp"


def compile_program(source: str, output: Path, *extra: str) -> Path:
    """Compile tests/cpp/``source`` to an executable at ``output``; ``extra`` flags come after the package's."""
    compiler = os.environ.get("CXX", "g++").split()
    flags = [*build.CXX_FLAGS, *build.instruction_set_flags(), "-Wall", "-Wextra", *extra]
    command = [*compiler, *flags, str(CPP / source), "-o", str(output), "-pthread"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output
