"""The native code on 64-bit ARM: cross-compiled, and run by QEMU's user-mode emulation, where both are installed
(Debian: g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user). The bytes of the degradations are those of this
processor; the loss and the elementary functions are as near to float64 as they must be elsewhere.
"""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qpt.degradations.op_table import LEVELS
from tests.conftest import LONG
from tests.native import CPP, compile_program
from tests.reference.contrastive import contrastive
from tests.test_scalar_math import check_errors
from tests.test_teams import make_cases, write_cases

COMPILER, EMULATOR, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
LOSS_SOURCES = ("contrastive", "contrastive_forward", "contrastive_portable", "contrastive_avx2", "contrastive_avx512")

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
    rng = np.random.default_rng(0)
    n, k, dim, temperature = 70, 333, 48, 0.1
    queries, keys = (rng.normal(size=(count, dim)).astype(np.float32) for count in (n, k))
    queries, keys = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys))
    groups = rng.integers(0, 40, n), rng.integers(-1, 40, k)
    content = struct.pack("<qqqd", n, k, dim, temperature) + queries.tobytes() + keys.tobytes()
    (tmp_path / "embeddings").write_bytes(content + b"".join(ids.astype(np.int64).tobytes() for ids in groups))
    sources = [str(CPP.parent.parent / "csrc" / "cpu" / f"{name}.cpp") for name in LOSS_SOURCES]
    program = compile_for_arm("loss.cpp", tmp_path / "loss", *sources, "-Wno-unknown-pragmas")
    found = np.frombuffer(run_on_arm(program, tmp_path / "embeddings"), np.float32)
    expected = contrastive(queries, keys, *groups, temperature=temperature)
    assert found.size == 1 + n + n * dim
    np.testing.assert_allclose(found[0], expected["loss"], rtol=1e-6)
    gradient = found[1 + n :].reshape(n, dim)
    np.testing.assert_allclose(gradient, expected["grad_queries"], atol=1e-6 * np.abs(expected["grad_queries"]).max())
