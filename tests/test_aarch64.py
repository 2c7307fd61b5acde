"""The native code on 64-bit ARM: cross-compiled, and run by QEMU's user-mode emulation, where both are installed
(Debian: g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user). The bytes of the degradations are those of this
processor; the loss and the elementary functions are as near to float64 as they must be elsewhere.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qpt.degradations.op_table import LEVELS
from tests.conftest import LONG
from tests.loss_program import SOURCES, Embeddings
from tests.native import compile_program
from tests.test_scalar_math import check_errors
from tests.test_teams import make_cases, write_cases

COMPILER, EMULATOR, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(not LONG, reason="long form: QPT_LONG=1 (64-bit ARM by emulation)"),
    pytest.mark.skipif(bool(MISSING), reason=f"64-bit ARM: {' and '.join(MISSING)} not found"),
]


def compile_for_arm(source: str, output: Path, *extra: str) -> Path:
    return compile_program(source, output, *extra, compiler=[COMPILER], instruction_set=())


def run_on_arm(program: Path, *arguments: str | Path) -> bytes:
    return subprocess.run([EMULATOR, "-L", SYSTEM, program, *arguments], check=True, capture_output=True).stdout


def test_degradations_give_the_same_bytes(tmp_path: Path) -> None:
    sizes = [(1, 1), (3, 4), (13, 37), (40, 66), (96, 131), (70, 9)]
    cases = write_cases(tmp_path / "cases", make_cases(sizes, range(1, LEVELS + 1), chains=20))
    here = compile_program("teams.cpp", tmp_path / "teams")
    expected = subprocess.run([here, cases, "--bytes"], check=True, capture_output=True).stdout
    found = run_on_arm(compile_for_arm("teams.cpp", tmp_path / "teams_arm"), cases, "--bytes")
    assert len(expected) > 1_000_000
    assert found == expected


def test_elementary_functions(tmp_path: Path) -> None:
    check_errors(run_on_arm(compile_for_arm("scalar_math.cpp", tmp_path / "scalar_math")).decode())


def test_loss_and_gradient(tmp_path: Path) -> None:
    embeddings = Embeddings.draw(70, 333, 48)
    program = compile_for_arm("loss.cpp", tmp_path / "loss", *SOURCES, "-Wno-unknown-pragmas")
    gradient, expected = embeddings.check(run_on_arm(program, embeddings.write(tmp_path / "embeddings"), "portable"))
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max())
