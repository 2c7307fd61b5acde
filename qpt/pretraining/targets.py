"""What a patch's degradation says without labels: levels of its ops, severity by kind.

Levels are targets of the regression head, beside the full-reference measures of ``qpt.evaluate.measures``; severities
grade the positives of the loss.

The degradation engine knows what it has done to a patch: which ops at which levels, and how the undegraded patch looks.
Called by ``qpt.pretraining.failure`` for the input of a step and by ``qpt.pretraining.terms``; touches tensors alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.degradations.program import Program
from qpt.evaluate.measures import MEASURES

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
