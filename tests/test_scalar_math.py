"""Bounds on the errors of csrc/scalar_math.h, which tests/cpp/scalar_math.cpp measures against libm in double."""

import subprocess

import pytest

from tests.native import compile_program

UNIT = 2.0**-24  # half the spacing of float32 numbers just above 1


def check_errors(output: str) -> None:
    """Assert that what the program printed is within the bounds."""
    found = {name: float(value) for name, value in (line.split() for line in output.splitlines())}
    assert found.pop("exact") == 1
    assert found.pop("quick_power_of_two") <= 3e-6
    assert set(found) == {"exponential", "natural_log", "sine", "cosine"}
    assert max(found.values()) <= 4 * UNIT, found


@pytest.mark.rung("reference")
def test_errors_are_a_few_units_in_the_last_place(tmp_path):
    program = compile_program("scalar_math.cpp", tmp_path / "scalar_math")
    check_errors(subprocess.run([program], check=True, capture_output=True, text=True).stdout)
