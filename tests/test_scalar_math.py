"""csrc/scalar_math.h against libm in double: tests/cpp/scalar_math.cpp sweeps ranges, this file bounds the errors."""

import os
import subprocess
from pathlib import Path

import pytest

from qpt import build

SOURCE = Path(__file__).parent / "cpp" / "scalar_math.cpp"
UNIT = 2.0**-24  # half the spacing of float32 numbers just above 1


@pytest.mark.rung("reference")
def test_errors_are_a_few_units_in_the_last_place(tmp_path):
    compiler = os.environ.get("CXX", "g++").split()
    program = tmp_path / "scalar_math"
    flags = [*build.CXX_FLAGS, *build.instruction_set_flags()]
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    found = {name: float(value) for name, value in (line.split() for line in lines)}
    assert found.pop("exact") == 1
    assert set(found) == {"exponential", "natural_log", "sine", "cosine"}
    assert max(found.values()) <= 4 * UNIT, found
