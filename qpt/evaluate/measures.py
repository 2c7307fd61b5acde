"""Full-reference measures of images against their undegraded selves.

Called by ``qpt.pretraining`` for the targets of the regression head and by ``qpt.evaluate.unlabelled`` for those of a
score; it touches tensors alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Full-reference measures, in the order of the columns of ``measure``.
MEASURES = (
    "log_mse",  # log10(MSE + 1e-5), values in [0, 1]
    "ssim",  # Wang et al., 2004, in uniform windows of 7 x 7 at every second position
    "contrast_structure",  # the product of SSIM's terms of contrast and structure
    "gmsd",  # Xue et al., 2014, arXiv 1308.3052
    "gradient_ratio",  # log of mean gradient magnitudes, degraded over undegraded
    "contrast_ratio",  # log of standard deviations of luma, degraded over undegraded
    "luma_shift",  # mean of degraded less undegraded luma
    "chroma_error",  # log10 of the mean absolute errors of the two chroma channels
    "saturation_ratio",  # log of mean squared chroma, degraded over undegraded
)
#: Smallest side of a patch that has these measures, pixels: SSIM's window.
SMALLEST_PATCH_PX = 8
_ROWS_AT_ONCE = 64  # bounds the memory of the float32 copies of patches
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SSIM_MEAN, _SSIM_VARIANCE = 0.01**2, 0.03**2  # the constants of SSIM for values in [0, 1]
_GMSD = 170 / 255**2  # the constant of GMSD, published for values in [0, 255]


@torch.no_grad()
def measure(degraded: Tensor, clean: Tensor) -> Tensor:
    """Return the full-reference MEASURES of (N, 3, s, s) uint8 patches against their undegraded selves, (N, 9) float32.

    s is at least SMALLEST_PATCH_PX.
    """
    pairs = zip(degraded.split(_ROWS_AT_ONCE), clean.split(_ROWS_AT_ONCE), strict=True)
    return torch.cat([_measure(a.float() / 255, b.float() / 255) for a, b in pairs])


# Measured here and not by a library: piq and pyiqa need torchvision, which cannot be installed beside the pinned torch.
def _measure(degraded: Tensor, clean: Tensor) -> Tensor:
    axes = (1, 2, 3)
    a, b = _luma(degraded), _luma(clean)
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variances = _window_mean(a * a) - mean_a**2 + _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    # Rounding may leave the variances of a flat window below 0.
    structure = (2 * covariance + _SSIM_VARIANCE) / (variances.clamp_min(0) + _SSIM_VARIANCE)
    lightness = (2 * mean_a * mean_b + _SSIM_MEAN) / (mean_a**2 + mean_b**2 + _SSIM_MEAN)
    half_a, half_b = (_gradient(F.avg_pool2d(luma, 2)) for luma in (a, b))
    similarity = (2 * half_a * half_b + _GMSD) / (half_a**2 + half_b**2 + _GMSD)
    chroma_a, chroma_b = degraded[:, ::2] - a, clean[:, ::2] - b  # proportional to Cr and Cb
    columns = (
        torch.log10((degraded - clean).square().mean(axes) + 1e-5),
        (lightness * structure).mean(axes),
        structure.mean(axes),
        similarity.flatten(1).std(1, correction=0),
        torch.log((_gradient(a).mean(axes) + 1e-3) / (_gradient(b).mean(axes) + 1e-3)),
        torch.log((a.flatten(1).std(1, correction=0) + 1e-2) / (b.flatten(1).std(1, correction=0) + 1e-2)),
        (a - b).mean(axes),
        torch.log10(2 * (chroma_a - chroma_b).abs().mean(axes) + 1e-3),
        torch.log((2 * chroma_a.square().mean(axes) + 1e-3) / (2 * chroma_b.square().mean(axes) + 1e-3)),
    )
    return torch.stack(columns, dim=1)


def _luma(pixels: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=pixels.dtype, device=pixels.device)
    return (pixels * weights[:, None, None]).sum(1, keepdim=True)


def _window_mean(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, 7, stride=2)


def _gradient(values: Tensor) -> Tensor:
    """Return the magnitude of Prewitt's gradient inside the edges."""
    across = F.avg_pool2d(values, (3, 1), stride=1)
    down = F.avg_pool2d(values, (1, 3), stride=1)
    x, y = across[..., 2:] - across[..., :-2], down[..., 2:, :] - down[..., :-2, :]
    return torch.sqrt(x.square() + y.square() + 1e-12)
