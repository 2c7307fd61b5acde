"""A form of an encoder that computes the same features faster on a CPU. Called by ``qpt.evaluate.features``.

Batch norms are folded into the convolutions before them, activations overwrite their input, and padding of equal width
is left to the convolution. EfficientNet-Lite0, whose convolutions do little arithmetic, then takes two thirds of the
time or less; a ResNet gains a few per cent.
"""

from __future__ import annotations

import copy
import threading
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qpt.models.base import Encoder

_PROBE_PX = 64  # side of the image on which both forms must agree
_TOLERANCE = 1e-4  # of the largest value of a map; folding changes roundings, about 1e-6 of it
_lock = threading.Lock()
_kept: WeakKeyDictionary[Encoder, tuple[tuple[object, ...], Encoder]] = WeakKeyDictionary()


def folded(encoder: Encoder) -> Encoder:
    """Return an encoder whose ``stages`` are those of ``encoder`` up to rounding, or ``encoder`` where there is none.

    encoder: in eval mode. The result shares nothing with it, and is kept for as long as its weights are the same.
    """
    tensors = [*encoder.parameters(), *encoder.buffers()]
    if encoder.training or not all(map(_is_plain, tensors)):
        return encoder
    state = tuple((x.data_ptr(), x._version) for x in tensors)
    with _lock:  # images are scored in threads
        if encoder not in _kept or _kept[encoder][0] != state:
            _kept[encoder] = state, _fold(encoder)
        return _kept[encoder][1]


def _is_plain(x: Tensor) -> bool:
    """Return True for a tensor of float32 or integers on the CPU; of one made in inference mode no version is known."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.int64) and not x.is_inference()


def _fold(encoder: Encoder) -> Encoder:
    found = copy.deepcopy(encoder).requires_grad_(False)
    with torch.no_grad():
        for module in list(found.modules()):
            _fold_children(module)
    found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return found if _agree(encoder, found) else encoder


def _fold_children(parent: nn.Module) -> None:
    """Change the children of a module. That a batch norm is called on what the convolution before it in the list gives
    is a guess, which ``_agree`` checks."""
    for (name, first), (after, second) in pairwise(list(parent.named_children())):
        if isinstance(first, nn.Conv2d) and type(second) is nn.BatchNorm2d and second.track_running_stats:
            setattr(parent, name, fuse_conv_bn_eval(first, second))
            setattr(parent, after, nn.Identity())
    for child in parent.children():
        if isinstance(child, nn.ReLU | nn.ReLU6):
            child.inplace = True
        padding = getattr(child, "static_padding", None)  # of efficientnet_lite_pytorch, see qpt.models.backbones
        if isinstance(child, nn.Conv2d) and padding is not None and child.stride[0] == 1:
            child.padding = tuple((side - 1) // 2 for side in child.kernel_size)
            child.static_padding = nn.Identity()


def _agree(encoder: Encoder, other: Encoder) -> bool:
    side = max(_PROBE_PX, encoder.min_side)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, 3, side, side + 1), generator=generator, dtype=torch.float32, device="cpu")
    image = image.contiguous(memory_format=torch.channels_last)

    def close(ours: Tensor, theirs: Tensor) -> bool:
        return bool((ours - theirs).abs().max() <= _TOLERANCE * ours.abs().max())

    with torch.no_grad():
        return all(close(ours, theirs) for ours, theirs in zip(encoder.stages(image), other.stages(image), strict=True))
