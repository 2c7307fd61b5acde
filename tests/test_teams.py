"""Teams of 1, 2, 7, 32 and 256 threads and of several blocks of threads give the bytes of a team of one, for every op,
without a data race; and no sync() of the sources can be left out, and no sync_team() replaced by it, without one of the
two failing.

tests/cpp/teams.cpp is compiled with the package's own flags, once as it is and once with -fsanitize=thread. The cases
come from qpt.degradations.op_table, so a new op is covered without a change. A team of one never waits and has vector
forms of its own, so these tests are the ones that find a missing barrier, a wrong stride, or a vector form with other
bytes than the generic form.
"""

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from qpt import Program
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from qpt.ops.degrade.patches import row_windows
from tests.native import CPP, compile_program
from tests.test_ops import random_program, settings_of

TEAM_SIZES = ("1", "2", "7", "32", "256", "2x3", "5x4", "16x2")  # threads, or blocks x threads
RACING = "2x4"  # the team in which a missing barrier must show: not of 3, the samples of a pixel


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program("teams.cpp", tmp_path_factory.mktemp("teams") / "teams")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return compile_program(
        "teams.cpp", tmp_path_factory.mktemp("teams") / "teams_tsan", "-fsanitize=thread", "-g", "-O0"
    )


def encode(image: np.ndarray, ops, params, seed: int = 5, boxes=(), size: int = 0, window=(0,) * 5) -> bytes:
    height, width, _ = image.shape
    padded = np.zeros((len(ops), 4), np.float32)
    for slot, values in enumerate(params):
        padded[slot, : len(values)] = values
    head = struct.pack("<iiiiiQ", height, width, len(ops), len(boxes), size, seed)
    body = np.array(ops, np.int16).tobytes() + padded.tobytes() + image.tobytes()
    return head + body + np.array(window, np.int32).tobytes() + np.array(boxes, np.int32).tobytes()


def encode_patches(image: np.ndarray, ops, params) -> bytes:
    """Encode the same with two patches in the image's middle, so that ops that take windows get one."""
    height, width, _ = image.shape
    size = max(min(height, width) // 4, 1)
    boxes = np.array([[height // 2, width // 2], [height // 2 - size // 2, width // 3]], np.int32)
    boxes = np.minimum(boxes, [height - size, width - size])
    program = Program.from_chains(
        [[(NAMES[op], list(p)) for op, p in zip(ops, params, strict=True) if op >= 0]], seeds=[0]
    )
    window = row_windows(program, torch.from_numpy(boxes)[None], size, height, width)[0].tolist()
    used = [slot for slot, op in enumerate(ops) if op >= 0]
    ops, params = [ops[slot] for slot in used], [params[slot] for slot in used]
    return encode(image, ops, params, boxes=boxes, size=size, window=window)


def make_cases(sizes, levels, chains: int) -> list[bytes]:
    """Return, for every size, random chains, and every op at ``levels`` with the first and last of its settings."""
    generator = np.random.default_rng(2)
    cases = []
    for height, width in sizes:
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ops, params = random_program(chains, 4, seed=height)
        cases += [make(image, *row) for row in zip(ops, params, strict=True) for make in (encode, encode_patches)]
        for op, row in enumerate(DEGRADATIONS):
            for level in levels:
                options = settings_of(row, level)
                cases += [encode(image, [op], [params]) for params in {options[0], options[-1]}]
                cases.append(encode_patches(image, [op], [options[0]]))
    return cases


def write_cases(path: Path, cases: list[bytes]) -> Path:
    path.write_bytes(struct.pack("<i", len(cases)) + b"".join(cases))
    return path


def run_sanitized(program: Path, cases: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run without address randomisation, which on recent kernels conflicts with ThreadSanitizer's memory map."""
    setarch = shutil.which("setarch")
    assert setarch, "setarch (util-linux) is needed to run ThreadSanitizer"
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    command = [setarch, "-R", str(program), str(cases), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)


@pytest.mark.rung("thread teams")
@pytest.mark.parametrize("size", TEAM_SIZES)
def test_same_bytes_at_every_team_size(program, tmp_path, size, long):
    sizes = [(1, 1), (3, 4), (13, 37), (40, 66)] + ([(96, 131), (70, 9)] if long else [])
    levels = range(1, LEVELS + 1) if long else (2, 5)
    cases = write_cases(tmp_path / "cases", make_cases(sizes, levels, chains=20 if long else 4))
    result = subprocess.run([program, cases, size], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split()[0]) >= len(sizes) * len(levels) * len(NAMES)


@pytest.mark.rung("thread teams")
def test_same_bytes_of_wide_and_of_low_images(program, tmp_path):
    # The vector forms go by parts of a row, up to 1,024 samples, and by groups of up to 16 rows; other parts are rests.
    cases = write_cases(tmp_path / "cases", make_cases([(19, 361), (16, 350), (33, 43)], (1, 4), chains=2))
    result = subprocess.run([program, cases, "7"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.rung("ThreadSanitizer")
def test_no_data_race(sanitized, tmp_path, long):
    sizes = [(11, 37), (21, 18)] if long else [(11, 37)]
    cases = make_cases(sizes, (2, 5) if long else (3,), chains=8 if long else 2)
    result = run_sanitized(
        sanitized, write_cases(tmp_path / "cases", cases), "7", "3x2", *(["2", "32"] if long else [])
    )
    assert result.returncode == 0, result.stdout + result.stderr[:4000]
    assert f"{len(cases)} cases compared" in result.stdout


def barriers() -> list[str]:
    """Return every sync() and sync_team() of the ops and of the chain, as FILE:LINE."""
    csrc = CPP.parents[1] / "csrc"
    return [
        f"{path.relative_to(csrc.parent)}:{number}"
        for path in (*sorted(csrc.glob("ops/*.h")), csrc / "chain.h")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\.sync(_team)?\(\)", line.partition("//")[0])
    ]


@pytest.fixture(scope="module")
def cases_of_barrier(sanitized, tmp_path_factory) -> dict[str, list[bytes]]:
    """Return the cases that reach each barrier, none of which has a race.

    The image is large enough for a second iteration of every loop between barriers, in each of the team's blocks.
    """
    cases = make_cases([(53, 70)], (3,), chains=2)
    path = write_cases(tmp_path_factory.mktemp("barriers") / "cases", cases)
    result = run_sanitized(sanitized, path, RACING, "--sites")
    assert result.returncode == 0, result.stdout + result.stderr[:4000]
    reached: dict[str, list[bytes]] = {barrier: [] for barrier in barriers()}
    for line in result.stdout.splitlines():
        if line.startswith("site "):
            _, number, site = line.split()
            reached["csrc/" + site.rpartition("csrc/")[2]].append(cases[int(number)])
    return reached


@pytest.mark.rung("ThreadSanitizer")
@pytest.mark.parametrize("barrier", barriers())
def test_no_barrier_can_be_left_out(sanitized, cases_of_barrier, tmp_path, barrier):
    """A sync() that is left out, or a sync_team() that is a sync(), must end in a race, other bytes or a crash;
    otherwise it is not needed, or the cases lack the one that needs it."""
    cases = cases_of_barrier[barrier]
    assert cases, "no case reaches this barrier"
    result = run_sanitized(sanitized, write_cases(tmp_path / "cases", cases), RACING, "--without", barrier)
    assert result.returncode != 0, f"{len(cases)} cases do not need this barrier: remove it, or add a case that does"
