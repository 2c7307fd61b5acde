"""What a patch's degradation says without labels: full-reference measures, levels of its ops, severity by kind.

Measures and levels are targets of the regression head; severities grade the positives of the loss.

The degradation engine knows what it has done to a patch: which ops at which levels, and how the undegraded patch looks.
Called by ``qpt.pretraining.failure`` for the input of a step and by ``qpt.pretraining.terms``; touches tensors alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.degradations.program import Program

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
#: Ops whose levels are columns of a target. A variant has the column of the op that it is a variant of.
OPS = tuple(op.name for op in DEGRADATIONS if not op.variant_of)
#: Columns of a target: the measures, then the level of each of the OPS.
COLUMNS = len(MEASURES) + len(OPS)
_OP_COLUMN = torch.tensor([OPS.index(op.variant_of or op.name) for op in DEGRADATIONS], dtype=torch.int64, device="cpu")

#: Kinds of degradation, the columns of ``severities``: the OPS that look alike.
KINDS: dict[str, tuple[str, ...]] = {
    "blur": (
        *("gaussian_blur", "gaussian_blur_aniso", "motion_blur", "defocus_blur", "median_blur", "glass_blur"),
        *("zoom_blur", "box_blur", "generalised_blur", "plateau_blur", "sinc_filter", "bilateral", "denoise"),
    ),
    "sharpening": ("unsharp_mask", "high_sharpen"),
    "noise": (
        *("gaussian_noise", "gaussian_noise_grey", "gaussian_noise_ycbcr", "gaussian_noise_cov", "speckle_noise"),
        *("impulse_noise", "poisson_noise", "poisson_noise_grey", "iso_noise"),
    ),
    "compression": ("jpeg", "jpeg2000"),
    "resampling": (
        *("rescale_nearest", "rescale_bilinear", "rescale_bicubic", "rescale_area", "rescale_lanczos"),
        *("pixelate", "resize_to"),
    ),
    "displacement": ("spatial_jitter", "non_eccentricity_patch", "colour_block", "elastic"),
    "tone": (
        *("brightness", "mean_shift", "gamma", "contrast", "contrast_curve", "value_shift", "brightness_curve"),
        *("quantise", "posterise", "dither"),
    ),
    "colour": ("saturation", "hue", "colour_diffusion", "colour_shift", "chroma", "chromatic_aberration"),
}

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


def op_levels(program: Program) -> Tensor:
    """Return the highest level of each of the OPS in each row, over LEVELS: (r, number of OPS) float32 in [0, 1].

    An op that a row does not have, or whose parameters were given without a level, has 0.
    """
    none = len(OPS)  # the column of unused slots, cut off again
    columns = torch.where(program.ops < 0, none, _OP_COLUMN[program.ops.long()])
    levels = torch.zeros((len(program), none + 1), dtype=torch.float32, device="cpu")
    return levels.scatter_reduce(1, columns, program.levels.float() / LEVELS, "amax")[:, :none]


def severities(program: Program) -> Tensor:
    """Return the highest level of each of the KINDS in each row, over LEVELS: (r, 8) float32 in [0, 1]."""
    levels = op_levels(program)
    return torch.stack([levels[:, [OPS.index(op) for op in ops]].amax(1) for ops in KINDS.values()], dim=1)


def cut_patches(regions: Tensor, source: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut the patches of the rows from the regions as they are: (r, P, 3, size, size) uint8.

    regions: (B, R, R, 3) uint8.  source: (r,) region of each row.  boxes: (r, P, 2) (top, left).
    """
    sides = torch.arange(size, dtype=torch.int64, device=regions.device)
    top, left = boxes.to(regions.device).long().unbind(-1)
    region = source.to(regions.device).long()[:, None, None, None]
    pixels = regions[region, (top[..., None] + sides)[..., None], (left[..., None] + sides)[..., None, :]]
    return pixels.movedim(-1, -3)


class RunningMoments(nn.Module):
    """Mean and variance of each column over all rows seen so far, kept with the weights, so that a run resumes exactly.

    epsilon: added to the variance.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, columns: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        for name, shape in (("count", ()), ("mean", (columns,)), ("squares", (columns,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device="cpu"))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Count (N, columns) rows in."""
        # Chan et al. (1979), as a difference of squares would cancel. In place: StepGuard holds the buffers.
        rows = rows.double()
        total = self.count + len(rows)
        distance = rows.mean(0) - self.mean
        self.squares += (rows - rows.mean(0)).square().sum(0) + distance.square() * (self.count * len(rows) / total)
        self.mean += distance * (len(rows) / total)
        self.count.copy_(total)

    def scale(self) -> Tensor:
        """Return 1 over the standard deviation of each column, float32."""
        return torch.rsqrt(self.squares / self.count.clamp_min(1) + self.epsilon).float()

    def standardise(self, rows: Tensor) -> Tensor:
        """Return (..., columns) rows less the mean, over the standard deviation, float32."""
        return (rows - self.mean).float() * self.scale()
