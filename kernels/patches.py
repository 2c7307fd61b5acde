"""Crop and normalise: out[n, c, y, x] = (views[row, top + y, left + x, c] / 255 - mean[c]) / std[c].

Called by qpt.ops.degrade for CUDA tensors, after the degradations. One pass: uint8 is read once, the encoder's type and
memory format are written once. Divisions are IEEE-rounded, so float32 results equal PyTorch's bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_PIXELS = 256  # pixels of one program; four lanes a pixel, the fourth idle
NUM_WARPS = 4


@triton.jit
def _crop_normalise_kernel(
    views,  # uint8 [rows, height, width, 3], contiguous
    boxes,  # int32 [rows * patches, 2]: top, left; every box lies inside its view
    out,  # float [rows * patches, 3, size, size], strides below
    patches,
    height,
    width,
    size,
    stride_patch,  # strides of `out`, in elements
    stride_channel,
    stride_y,
    stride_x,
    mean_r,
    mean_g,
    mean_b,
    std_r,
    std_g,
    std_b,
    BLOCK: tl.constexpr,
):
    patch = tl.program_id(0).to(tl.int64)  # offsets of a large batch pass 2^31
    row = patch // patches
    top = tl.load(boxes + patch * 2)
    left = tl.load(boxes + patch * 2 + 1)

    # 1. A tile of [BLOCK pixels, 4 channels]; the fourth channel and pixels beyond the patch are masked.
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = (pixel // size)[:, None]
    x = (pixel % size)[:, None]
    channel = tl.arange(0, 4)[None, :]
    inside = (pixel < size * size)[:, None] & (channel < 3)

    # 2. Read bytes as they lie in memory: channels of a pixel are neighbours.
    source = views + row * height * width * 3 + ((top + y) * width + left + x) * 3 + channel
    value = tl.load(source, mask=inside, other=0).to(tl.float32)

    # 3. Normalise in float32 and store in the output's type.
    mean = tl.where(channel == 0, mean_r, tl.where(channel == 1, mean_g, mean_b))
    std = tl.where(channel == 0, std_r, tl.where(channel == 1, std_g, std_b))
    value = tl.div_rn(tl.div_rn(value, 255.0) - mean, std)
    target = out + patch * stride_patch + channel * stride_channel + y * stride_y + x * stride_x
    tl.store(target, value.to(out.dtype.element_ty), mask=inside)


def crop_normalise(
    views: torch.Tensor,
    boxes: torch.Tensor,
    out: torch.Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    """Fill `out` with the normalised patches of `views`.

    views: (r, H, W, 3) uint8, contiguous.  boxes: (r, P, 2) int32 (top, left), contiguous, each box inside its view.
    out: (r * P, 3, size, size) float32, float16 or bfloat16 with any strides, none of them overlapping.
    mean, std: per channel, in the 0-1 range of pixel values.  Rows of views belong to P consecutive patches of `out`.
    """
    _, height, width, _ = views.shape
    count, _, size, _ = out.shape
    if count == 0:
        return
    grid = (count, triton.cdiv(size * size, BLOCK_PIXELS))
    _crop_normalise_kernel[grid](
        views,
        boxes,
        out,
        boxes.shape[1],
        height,
        width,
        size,
        *out.stride(),
        *mean,
        *std,
        BLOCK=BLOCK_PIXELS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
