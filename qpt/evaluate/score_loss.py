"""``ScoreLoss``: the score of a ``Scorer`` as a differentiable function of images, for training and optimisation.

Made by ``Scorer.as_metric(as_loss=True)``; it touches nothing but its arguments. The definition is that of the scorer
(``qpt.evaluate.features`` and the ridge on them), computed from values of 0 to 1 with no rounding to 8 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from qpt.errors import InputError, check_untransformed, describe
from qpt.evaluate.features import outside_graphs
from qpt.evaluate.image_crops import MIN_SIDE, crop_boxes

if TYPE_CHECKING:
    from qpt.evaluate.scorer import Scorer

REDUCTIONS = ("mean", "sum", "none")
_ROUNDS_TO_RANGE = 0.5 / 255  # what rounds to a value of 8 bits may lie outside 0 to 1 by as little


class ScoreLoss(nn.Module):
    """A scorer with a gradient, in pyiqa's convention of ``as_loss=True``: ``metric(x)`` returns one number.

    x: (N, 3, H, W) floating-point RGB values of 0 to 1, which requires a gradient, on any device.  reduction: over
    images, "mean", "sum", or "none" for (N, 1). As in pyiqa the number is the score itself, higher for better
    (``lower_better`` is False): minimise its negative.

    ``to``, ``double`` and the like move the encoder, a copy whose weights are frozen and whose mode stays that of
    evaluation. The result has the dtype of x. It differs from the scorer's own by the rounding to 8 bits of the image
    and of its half and quarter scale, which has no gradient and is left out.
    """

    lower_better = False
    metric_mode = "NR"
    metric_name = "qpt"

    def __init__(self, scorer: Scorer, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise InputError(f"metric: loss_reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        self.encoder = copy.deepcopy(scorer.encoder).requires_grad_(False)
        self.protocol = scorer.protocol
        self.reduction = reduction
        self.score_range = f"{scorer.mos_min:g}, {scorer.mos_max:g}"
        # The weights of the features themselves; not a buffer, since it stays float64 whatever the encoder is.
        self._coefficients = scorer.read_out.coefficients(scorer.weights, scorer.encoder.stage_dims)
        self._intercept = scorer.intercept
        self._calibration = scorer.calibration
        self.train(False)

    def train(self, mode: bool = True) -> ScoreLoss:
        """Keep the encoder in eval mode: batch norm must not follow the images of the network that is trained."""
        return super().train(False)

    def forward(self, target: Tensor, ref: object = None) -> Tensor:
        """Return the scores of a batch, reduced; ``ref`` is there for the convention and is not used.

        Raises InputError for what is not (N, 3, H, W) values of 0 to 1 with N, H, W of at least 1, and for a tensor
        without a gradient, except under ``torch.no_grad``.
        """
        _check(target)
        work = torch.promote_types(torch.promote_types(target.dtype, self.encoder.dtype), torch.float32)
        with torch.autocast(self.encoder.device.type, enabled=False):  # the caller's setting must not change the dtype
            scores = self._scores(target.to(device=self.encoder.device, dtype=work)).to(target.dtype)[:, None]
        if self.reduction == "none":
            return scores
        return scores.mean() if self.reduction == "mean" else scores.sum()

    def _scores(self, images: Tensor) -> Tensor:
        """Return the scores of (N, 3, H, W) values: (N,) float64."""
        encoder, protocol = self.encoder, self.protocol
        statistics = torch.tensor((IMAGENET_MEAN, IMAGENET_STD), dtype=images.dtype, device=images.device)
        mean, std = statistics[:, :, None, None]
        raw = torch.full((len(images),), self._intercept, dtype=torch.float64, device=images.device)
        images = _mirror_pad(images, max(MIN_SIDE, encoder.min_side))
        for index, coefficients in enumerate(torch.from_numpy(self._coefficients).to(images.device)):
            if index > 0:
                images = _mirror_pad(_half_scale(images), max(MIN_SIDE // 2, encoder.min_side))
            boxes = crop_boxes(images.shape[3], images.shape[2], side=protocol.crop_px, count=protocol.crops)
            crops = [(images[:, :, top:bottom, left:right] - mean) / std for left, top, right, bottom in boxes]
            moments = torch.stack([_moments(encoder.stages(crop.to(encoder.dtype))) for crop in crops])
            raw = raw + (_statistics(moments) * coefficients[:, None]).sum(dim=(0, 2))
        if self._calibration is None:
            return raw
        low, high = self._calibration.low, self._calibration.high
        return low + (high - low) * torch.sigmoid((raw - self._calibration.centre) / self._calibration.width)


@outside_graphs
def _check(target: object) -> None:
    check_untransformed("metric", "target", target, "its gradient comes from autograd")
    shape = tuple(target.shape) if isinstance(target, Tensor) and target.is_floating_point() else ()
    if not isinstance(target, Tensor) or len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise InputError(
            "metric: target must be an (N, 3, H, W) float tensor of values 0 to 1, N, H and W at least 1, under "
            f"as_loss, got {describe(target)}"
        )
    if torch.is_grad_enabled() and not target.requires_grad:
        raise InputError(
            "metric: target must require a gradient under as_loss, got a tensor without one; call "
            "target.requires_grad_(), or for values alone torch.no_grad() or as_metric()"
        )
    low, high = (bound.item() for bound in target.detach().aminmax())
    if not (low >= -_ROUNDS_TO_RANGE and high <= 1 + _ROUNDS_TO_RANGE):
        raise InputError(
            f"metric: target must hold values from 0 to 1, got {low:.7g} to {high:.7g}; divide values up to 255 by "
            "255, or clamp(0, 1) after a step"
        )


def _mirror_pad(images: Tensor, min_side: int) -> Tensor:
    """Pad (N, C, H, W) as ``image_crops.mirror_pad`` pads an image."""
    for dim in (2, 3):
        missing = max(0, min_side - images.shape[dim])
        if missing:
            places = np.pad(np.arange(images.shape[dim]), (missing // 2, missing - missing // 2), mode="symmetric")
            images = images.index_select(dim, torch.from_numpy(places).to(images.device))
    return images


def _half_scale(images: Tensor) -> Tensor:
    """Halve (N, C, H, W) values of 0 to 1 with the filter of ``image_crops.half_scale``: bicubic, antialiased."""
    size = (images.shape[2] // 2, images.shape[3] // 2)
    return functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def _moments(maps: Iterable[Tensor]) -> Tensor:
    """Return mean and variance over positions of (N, C_i, h_i, w_i) maps: (2, N, sum C_i) float64."""
    pairs = [torch.var_mean(stage.flatten(2).to(_at_least_float32(stage)), dim=2, correction=0) for stage in maps]
    return torch.stack([torch.cat(parts, dim=1).double() for parts in ([m for _, m in pairs], [v for v, _ in pairs])])


def _at_least_float32(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _statistics(moments: Tensor) -> Tensor:
    """Return mean and standard deviation over all crops, (2, N, C), from (crops, 2, N, C) of crops of one size."""
    means, variances = moments.unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    # The square root has no derivative at 0. There a channel is constant, and so the derivative is taken to be 0.
    varies = variance > 0
    return torch.stack([mean, torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)])
