"""Teams of 1, 2, 7, 32 and 256 threads give the bytes of a team of one, for every op, and without a data race.

tests/cpp/teams.cpp is compiled here with the package's own flags, once plain and once with -fsanitize=thread. The cases
come from qpt.degradations, so a new op is covered without a change. A team of one (and its SIMD rows) never waits, so
this is where a missing barrier, a wrong stride or a SIMD row with other bytes than its generic form shows.
"""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from qpt import Program, build
from qpt.degradations import DEGRADATIONS, LEVELS, NAMES
from qpt.ops.windows import plan_windows
from tests.test_ops import random_program, settings_of

SOURCE = Path(__file__).parent / "cpp" / "teams.cpp"
TEAM_SIZES = (1, 2, 7, 32, 256)


def compile_program(output: Path, *extra: str) -> Path:
    compiler = os.environ.get("CXX", "g++").split()
    flags = [*build.CXX_FLAGS, *build.instruction_set_flags(), "-Wall", "-Wextra", *extra]
    command = [*compiler, *flags, str(SOURCE), "-o", str(output), "-pthread"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program(tmp_path_factory.mktemp("teams") / "teams")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return compile_program(tmp_path_factory.mktemp("teams") / "teams_tsan", "-fsanitize=thread", "-g", "-O1")


def encode(image: np.ndarray, ops, params, seed: int = 5, boxes=(), size: int = 0, window=(0,) * 5) -> bytes:
    height, width, _ = image.shape
    padded = np.zeros((len(ops), 4), np.float32)
    for slot, values in enumerate(params):
        padded[slot, : len(values)] = values
    head = struct.pack("<iiiiiQ", height, width, len(ops), len(boxes), size, seed)
    body = np.array(ops, np.int16).tobytes() + padded.tobytes() + image.tobytes()
    return head + body + np.array(window, np.int32).tobytes() + np.array(boxes, np.int32).tobytes()


def encode_patches(image: np.ndarray, ops, params) -> bytes:
    """The same with two patches of the image's middle, so that ops that take windows get one."""
    height, width, _ = image.shape
    size = max(min(height, width) // 4, 1)
    boxes = np.array([[height // 2, width // 2], [height // 2 - size // 2, width // 3]], np.int32)
    boxes = np.minimum(boxes, [height - size, width - size])
    program = Program.from_chains(
        [[(NAMES[op], list(p)) for op, p in zip(ops, params, strict=True) if op >= 0]], seeds=[0]
    )
    window = plan_windows(program, torch.from_numpy(boxes)[None], size, height, width)[0].tolist()
    used = [slot for slot, op in enumerate(ops) if op >= 0]
    ops, params = [ops[slot] for slot in used], [params[slot] for slot in used]
    return encode(image, ops, params, boxes=boxes, size=size, window=window)


def write_cases(path: Path, sizes, levels, chains: int) -> Path:
    """Every op at `levels` with the first and last of its drawn parameters on every size, and random chains."""
    generator = np.random.default_rng(2)
    cases = []
    for height, width in sizes:
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for op, row in enumerate(DEGRADATIONS):
            for level in levels:
                options = settings_of(row, level)
                cases += [encode(image, [op], [params]) for params in {options[0], options[-1]}]
                cases.append(encode_patches(image, [op], [options[0]]))
        ops, params = random_program(chains, 4, seed=height)
        cases += [make(image, *row) for row in zip(ops, params, strict=True) for make in (encode, encode_patches)]
    path.write_bytes(struct.pack("<i", len(cases)) + b"".join(cases))
    return path


def without_address_randomisation(command: list[str]) -> list[str]:
    """ThreadSanitizer needs its fixed address map, which high-entropy randomisation breaks on recent kernels."""
    setarch = shutil.which("setarch")
    assert setarch, "setarch (util-linux) is needed to run ThreadSanitizer"
    return [setarch, "-R", *command]


@pytest.mark.rung("thread teams")
@pytest.mark.parametrize("size", TEAM_SIZES)
def test_same_bytes_at_every_team_size(program, tmp_path, size, long):
    sizes = [(1, 1), (3, 4), (13, 37), (40, 66)] + ([(96, 131), (70, 9)] if long else [])
    levels = range(1, LEVELS + 1) if long else (2, 5)
    cases = write_cases(tmp_path / "cases", sizes, levels, chains=20 if long else 4)
    result = subprocess.run([program, cases, str(size)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split()[0]) >= len(sizes) * len(levels) * len(NAMES)


@pytest.mark.rung("ThreadSanitizer")
def test_no_data_race(sanitized, tmp_path, long):
    sizes = [(11, 37), (21, 18)] if long else [(11, 37)]
    cases = write_cases(tmp_path / "cases", sizes, (2, 5) if long else (3,), chains=8 if long else 2)
    command = without_address_randomisation([str(sanitized), str(cases), "2", "7", *(["32"] if long else [])])
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "WARNING: ThreadSanitizer" not in result.stderr, (
        result.stdout + result.stderr[:4000]
    )
    assert "cases compared" in result.stdout


@pytest.mark.rung("ThreadSanitizer")
def test_a_missing_barrier_is_found(sanitized, tmp_path):
    """The test of the test: the same program with a sync() that does nothing, on a chain of two ops."""
    image = np.random.default_rng(3).integers(0, 256, (11, 37, 3), dtype=np.uint8)
    chain = encode(image, [NAMES.index("brightness"), NAMES.index("hue")], [(0.5,), (35.0,)])
    (tmp_path / "cases").write_bytes(struct.pack("<i", 1) + chain)
    command = without_address_randomisation([str(sanitized), str(tmp_path / "cases"), "7", "--no-sync"])
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0 and "WARNING: ThreadSanitizer: data race" in result.stderr
