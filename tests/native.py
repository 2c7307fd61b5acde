"""Compiling the C++ programs of tests/cpp with the package's own flags; used by the tests that run them."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qpt import build

CPP = Path(__file__).parent / "cpp"


def compile_program(
    source: str,
    output: Path,
    *extra: str,
    compiler: Sequence[str] | None = None,
    instruction_set: Sequence[str] | None = None,
) -> Path:
    """Compile tests/cpp/``source`` to an executable at ``output``; ``extra`` flags come after the package's.

    compiler: default CXX, or g++.  instruction_set: its flags (default: the package's).
    """
    compiler = os.environ.get("CXX", "g++").split() if compiler is None else compiler
    instruction_set = build.instruction_set_flags() if instruction_set is None else instruction_set
    flags = [*build.CXX_FLAGS, *instruction_set, "-Wall", "-Wextra", *extra]
    command = [*compiler, *flags, str(CPP / source), "-o", str(output), "-pthread"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output
