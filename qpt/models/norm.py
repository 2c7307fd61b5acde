"""Batch norm over all processes, and forward passes that leave its running statistics alone.

Called by ``qpt.models.resnet`` and by pre-training (``learner``, ``embed``); it communicates through
``torch.distributed``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qpt.errors import InputError


@contextmanager
def unrecorded_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norm normalise by the batch, as in training, without updating running means, variances and counts."""
    # A rate of 0, not track_running_stats = False: that would save other tensors, which checkpointing refuses. A count
    # that is thrown away, not None: nn.SyncBatchNorm refuses to run without one.
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(module.momentum, module.num_batches_tracked) for module in norms]
    for module, (_, batches) in zip(norms, kept, strict=True):
        module.momentum, module.num_batches_tracked = 0.0, None if batches is None else batches.clone()
    try:
        yield
    finally:
        for module, (momentum, batches) in zip(norms, kept, strict=True):
            module.momentum, module.num_batches_tracked = momentum, batches


def freeze_batch_norm(network: nn.Module) -> None:
    """Let every batch norm of ``network`` normalise by its running statistics and keep them; its weights still train.

    A later call of ``network.train()`` undoes this.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Replace every batch norm by one whose statistics are those of all processes; weights and names stay.

    Raises InputError for a kind of batch norm that computes more than that, as timm's, which holds the activation.
    """
    norms = [type(module) for module in network.modules() if isinstance(module, _BatchNorm)]
    unknown = sorted({kind.__name__ for kind in norms if kind.forward is not _BatchNorm.forward})
    if unknown:  # torch's conversion would drop what they do besides, and say nothing
        raise InputError(
            f"pretrain: batch_norm must be local or shuffled for an encoder with {', '.join(unknown)}, which cannot be "
            "synchronised, got sync"
        )
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlooBatchNorm2d


class GlooBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes, for CPUs (``nn.SyncBatchNorm`` takes CUDA tensors only).

    In training every process of the default group must call it, with any number of rows, 0 too. The gradient is
    that of one process with all rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None  # the encoders have no cumulative average
            rate = self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * (count / (count - 1)), rate)
        return y


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over all processes' (N, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channels = x.shape[1]
        local = wide.numel() // channels
        # Mean and squared distance from it, first of this process, then combined as Chan et al. (1979) do: a
        # difference of squares would cancel.
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0) if local else (wide.new_zeros(channels),) * 2
        statistics = torch.cat([mean, variance * local, mean.new_tensor([local])])
        gathered = [torch.empty_like(statistics) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, statistics)
        means, distances, counts = torch.stack(gathered).split([channels, channels, 1], 1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        variance = (distances + counts * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        normal = (wide - _per_channel(mean)) * _per_channel(scale)
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (normal * _per_channel(weight) + _per_channel(bias)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, weight, scale, count = ctx.saved_tensors
        wide = upstream.to(normal.dtype)
        for_bias, for_weight = wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))
        sums = torch.cat([for_bias, for_weight])
        dist.all_reduce(sums)
        mean, along = (sums / count).chunk(2)
        gradient = (wide - _per_channel(mean) - normal * _per_channel(along)) * _per_channel(scale * weight)
        return gradient.to(upstream.dtype), for_weight, for_bias, None


def _per_channel(channels: Tensor) -> Tensor:
    return channels[:, None, None]
