"""The loss's products in AMX tiles (csrc/cpu/contrastive_tiles.h) by the real code with emulated tile operations, for
processors without AMX; where the processor has it, tests/test_contrastive_cpp.py runs the tiles themselves.
"""

import subprocess
from pathlib import Path

import pytest
import torch

from qpt.ops import extension
from tests.loss_program import DTYPES, SOURCES, Embeddings
from tests.native import CPP, compile_program

# One pair; ragged; one past a strip and a slab; several tasks and parts; a dimension of several tiles
SIZES = [(1, 1, 1), (7, 20, 5), (65, 97, 33), (257, 2600, 64), (40, 333, 200)]

pytestmark = pytest.mark.skipif(
    "AVX-512" not in extension.load().contrastive_isas(), reason="tiles are emulated beside AVX-512, which is not here"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    header = f'-DQPT_TILE_HEADER="{CPP / "emulated_tiles.h"}"'
    return compile_program("loss.cpp", tmp_path_factory.mktemp("tiles") / "loss", *SOURCES, header)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_emulated_tiles_equal_the_definition(
    size: tuple[int, int, int], dtype: torch.dtype, program: Path, tmp_path: Path
) -> None:
    embeddings = Embeddings.draw(*size, dtype)
    file = embeddings.write(tmp_path / "embeddings")
    result = subprocess.run([program, file, "AMX"], check=True, capture_output=True)
    embeddings.check(result.stdout)


def test_nan_in_a_query_reaches_the_loss(program: Path, tmp_path: Path) -> None:
    embeddings = Embeddings.draw(70, 300, 40)
    embeddings.queries.view("uint32")[3, 5] = 0x7FFFFFFF  # the nan that rounding to bfloat16 by addition would lose
    file = embeddings.write(tmp_path / "embeddings")
    result = subprocess.run([program, file, "AMX"], check=True, capture_output=True)
    assert torch.frombuffer(bytearray(result.stdout), dtype=torch.float32)[0].isnan()
