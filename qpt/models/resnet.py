"""ResNet-18/34/50 encoders (He et al., CVPR 2016, arXiv 1512.03385), with torchvision's state-dict names.

Used by pre-training (``forward``: pooled features) and evaluation (``stages``: the four feature maps). Weights at
``width=64`` load into torchvision's or timm's ResNet of the same name unchanged, but for the classifier ``fc``, which
an encoder does not have. This file is here only because no torchvision can be installed beside the torch that
``requirements/`` pins; once there is one, torchvision's ResNet takes its place.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qpt.models.base import Encoder
from qpt.models.heads import FLOAT32_ON_CPU
from qpt.models.norm import unrecorded_statistics

ARCHITECTURES: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False, **FLOAT32_ON_CPU)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs, **FLOAT32_ON_CPU))


class BasicBlock(nn.Module):
    """A block of two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes, **FLOAT32_ON_CPU)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes, **FLOAT32_ON_CPU)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """A block of a 1×1, a 3×3 and a 1×1 convolution, the last to four times the channels, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes, **FLOAT32_ON_CPU)
        self.conv2 = _conv(planes, planes, 3, stride)  # the stride is here, as in torchvision's ResNet v1.5
        self.bn2 = nn.BatchNorm2d(planes, **FLOAT32_ON_CPU)
        self.conv3 = _conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs, **FLOAT32_ON_CPU)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


def recompute_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed block's forward pass and of its recomputation in the backward pass."""
    # Batch norm must update its running statistics once only.
    return contextlib.nullcontext(), unrecorded_statistics(block)


class ResNet(Encoder):
    """A ResNet without its classifier.

    arch: a name of ``ARCHITECTURES``.  width: channels of the first stage; 64 is the standard network, smaller ones
    suit a laptop.  Input (N, 3, H, W) float, normalised with ``qpt.data.normalise``; any H, W >= 1.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, arch: str, width: int = 64) -> None:
        super().__init__(arch, width)
        kind, depths = ARCHITECTURES[arch]
        block = BasicBlock if kind == "basic" else Bottleneck
        self.conv1 = _conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width, **FLOAT32_ON_CPU)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, dims = width, []
        for index, depth in enumerate(depths):
            planes = width << index
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, planes, 2 if index > 0 and position == 0 else 1))
                channels = planes * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
            dims.append(channels)
        self.stage_dims = tuple(dims)
        self._reset()

    def _reset(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage_of_parameter(self, name: str) -> int:
        """Return the stage, from 0, that the parameter of this name belongs to; the stem counts as the first."""
        layer = name.partition(".")[0]
        return int(layer.removeprefix("layer")) - 1 if layer.startswith("layer") else 0

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the outputs of the four stages, (N, stage_dims[i], H/2^(i+2), W/2^(i+2)) each, rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        first = self._stage(self.layer1, x)
        second = self._stage(self.layer2, first)
        third = self._stage(self.layer3, second)
        return first, second, third, self._stage(self.layer4, third)

    def _stage(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return blocks(x)
        for block in blocks:
            contexts = functools.partial(recompute_contexts, block)
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x
