"""Normalisation of pixels for an encoder: ImageNet's mean and standard deviation on a 0-1 scale.

Source: the values torchvision's ResNet weights were trained with, which the whole field keeps. Every room that feeds
an encoder calls it; the degradation engine's table of normalised values is made by it.
"""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (value / 255 - mean) / std per channel of (N, 3, H, W) uint8 pixels, in ``dtype``.

    Computed in float32 (float64 for float64), then cast. Keeps the memory format and the device.
    """
    work = torch.float64 if dtype == torch.float64 else torch.float32
    # 255 is a tensor too: by a number CUDA would multiply with its rounded reciprocal, and differ from the CPU.
    statistics = torch.tensor((IMAGENET_MEAN, IMAGENET_STD, (255.0,) * 3), dtype=work, device=pixels.device)
    mean, std, white = statistics[:, :, None, None]
    return pixels.to(work).div_(white).sub_(mean).div_(std).to(dtype)
