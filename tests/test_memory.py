"""Every op and random chains under AddressSanitizer and UBSan: no access outside a buffer, no undefined arithmetic,
every byte of the output written, and no more scratch than an op's entry in csrc/ops/table.h says.

tests/cpp/memory.cpp is compiled without optimisation, so that the sanitizer sees every access of the source. The ops
come from qpt.degradations.op_table, so a new op is covered without a change. ``make verify`` runs 100,000 random
programs.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES, Degradation
from tests.native import compile_program
from tests.test_ops import settings_of

pytestmark = pytest.mark.rung("AddressSanitizer")

CHECKS = "-fsanitize=address,undefined,float-cast-overflow,float-divide-by-zero"
SEED = 1


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("memory") / "memory"
    return compile_program("memory.cpp", output, CHECKS, "-fno-sanitize-recover=all", "-g1", "-O0")


def described(row: Degradation, every_setting: bool) -> str:
    """Return an op as tests/cpp/memory.cpp reads it, with every setting of its levels or the first and last of each."""
    settings: dict[tuple[float, ...], None] = {}
    for level in range(1, LEVELS + 1):
        options = settings_of(row, level)
        settings |= dict.fromkeys(options if every_setting else (options[0], options[-1]))
    lines = [
        f"{row.name} {len(row.parameters)} {len(settings)}",
        *(f"{np.float32(p.low)} {np.float32(p.high)} {int(p.integer)}" for p in row.parameters),
        *(" ".join(map(str, (*values, *(0,) * (4 - len(values))))) for values in settings),
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def table(tmp_path_factory, long) -> Path:
    path = tmp_path_factory.mktemp("memory") / "table"
    path.write_text("".join(described(row, every_setting=long) for row in DEGRADATIONS))
    return path


def run(program: Path, table: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, table, *map(str, arguments)], capture_output=True, text=True)


def test_every_op_on_awkward_sizes(program, table):
    result = run(program, table, "ops")
    assert result.returncode == 0, result.stderr[-4000:]
    assert int(result.stdout.split()[0]) >= 3 * len(NAMES) * LEVELS  # three teams, at least one size


@pytest.mark.timeout(3600)
def test_random_programs(program, table, long):
    pairs = 50_000 if long else 300  # of each of two processes
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda half: run(program, table, "random", SEED, half * pairs, pairs), range(2)))
    for result in halves:
        assert result.returncode == 0, result.stderr[-4000:]
        assert result.stdout == f"{pairs} pairs\n"


def test_half_the_scratch_is_reported(program, table):
    """The sanitizer reports an op that has too little scratch."""
    result = run(program, table, "ops-short")
    assert result.returncode != 0
    assert "ERROR: AddressSanitizer" in result.stderr and "while running" in result.stderr


@pytest.mark.parametrize(("height", "width"), [(128, 128), (256, 256), (320, 320), (180, 2048), (2048, 2048)])
def test_a_thread_needs_at_most_six_images(program, table, height, width):
    """The image between ops and the op's own scratch; below 128 x 128, arrays of a fixed size outweigh the image."""
    image = height * width * 3
    lines = run(program, table, "scratch", height, width).stdout.splitlines()
    images = {name: (image + int(size)) / image for name, size in map(str.split, lines)}
    assert tuple(images) == NAMES
    assert {name: round(share, 2) for name, share in images.items() if share > 6} == {}
