"""Triton kernels without a GPU: interpreted against PyTorch, and compiled for sm_80 and sm_90 with limits.

In the interpreter every output is poisoned and lies between guard elements, so an element that is not written, or one
written outside, shows. The interpreter truncates to bfloat16 where a GPU rounds: one unit in the last place.
"""

import itertools

import pytest
import torch

from benchmarks import resources
from tests import offline
from tests.interpreter import Interpreter

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GUARD = 64
# rows, patches, height, width, size: one pixel, odd, a non-multiple of the block, the block exactly, whole view
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 17, 23, 7), (3, 1, 40, 31, 20), (1, 2, 16, 16, 16), (2, 2, 50, 64, 33)]
TOL = {torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 2**-7}  # relative


def case(rows: int, patches: int, height: int, width: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random views uint8 [rows, height, width, 3] and boxes int32 [rows, patches, 2], one of them in a corner."""
    generator = torch.Generator().manual_seed(rows * 1000 + size)
    views = torch.randint(0, 256, (rows, height, width, 3), dtype=torch.uint8, generator=generator)
    top = torch.randint(0, height - size + 1, (rows, patches), generator=generator)
    left = torch.randint(0, width - size + 1, (rows, patches), generator=generator)
    top[0, 0], left[0, 0] = height - size, width - size
    return views, torch.stack([top, left], dim=-1).to(torch.int32)


def expected(views: torch.Tensor, boxes: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """The definition, patch by patch, in float32; [r * P, 3, size, size]."""
    patches = []
    for row, patch in itertools.product(range(boxes.shape[0]), range(boxes.shape[1])):
        top, left = boxes[row, patch].tolist()
        patches.append(views[row, top : top + size, left : left + size].permute(2, 0, 1))
    pixels = torch.stack(patches).float() / 255
    return ((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).to(dtype)


def run_crop(
    views: torch.Tensor, boxes: torch.Tensor, size: int, dtype: torch.dtype, channels_last: bool
) -> tuple[torch.Tensor, bool]:
    """In the interpreter: the patches, and whether both guards are intact."""
    from qpt.kernels.patches import crop_normalise

    count = boxes.shape[0] * boxes.shape[1]
    store = torch.full((GUARD + count * 3 * size * size + GUARD,), float("nan"), dtype=dtype)
    inner = store[GUARD:-GUARD]
    pixels_first = inner.view(count, size, size, 3).permute(0, 3, 1, 2)
    out = pixels_first if channels_last else inner.view(count, 3, size, size)
    crop_normalise(views, boxes, out, MEAN, STD)
    return out.contiguous(), bool(store[:GUARD].isnan().all() and store[-GUARD:].isnan().all())


@pytest.mark.rung("Triton interpreter")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_normalise_equals_torch(
    interpreter: Interpreter, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    views, boxes = case(*shape)
    out, guards_intact = interpreter(run_crop, views, boxes, shape[-1], dtype, channels_last)
    assert guards_intact
    torch.testing.assert_close(out, expected(views, boxes, shape[-1], dtype), rtol=TOL[dtype], atol=0)


@pytest.mark.rung("Triton interpreter")
def test_crop_normalise_of_nothing(interpreter: Interpreter) -> None:
    views = torch.zeros(0, 8, 8, 3, dtype=torch.uint8)
    out, guards_intact = interpreter(run_crop, views, torch.zeros(0, 2, 2, dtype=torch.int32), 4, torch.float32, False)
    assert out.shape == (0, 3, 4, 4)
    assert guards_intact


@pytest.mark.rung("offline compile")
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_normalise_compiles_without_spills(architecture: int, dtype: str, channels_last: bool) -> None:
    from qpt.kernels import patches

    arguments = {"views": "*u8", "boxes": "*i32", "out": f"*{dtype}"}
    arguments |= dict.fromkeys(("patches", "height", "width", "size"), "i32")
    arguments |= dict.fromkeys(("stride_patch", "stride_channel", "stride_y", "stride_x"), "i32")
    arguments |= dict.fromkeys(("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b"), "fp32")
    # Triton turns a stride of one into a constant at launch; so does this.
    constants: dict[str, object] = {"BLOCK": patches.BLOCK_PIXELS, "stride_channel" if channels_last else "stride_x": 1}
    arguments |= dict.fromkeys(constants, "constexpr")
    cubin, shared_bytes = resources.triton_cubin(
        patches._crop_normalise_kernel, arguments, constants, architecture, patches.NUM_WARPS
    )
    (found,) = resources.read(cubin).values()
    offline.check(found, architecture, registers=64, launch_shared_bytes=shared_bytes)
