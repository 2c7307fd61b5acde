"""Networks of other packages for tests: timm's own tiny ones, and a stand-in for torchvision where it is missing.

timm imports torchvision for its data sets and transforms, none of which an encoder uses; so the names that timm imports
are enough for its networks to run. The stand-in's networks have the structure of torchvision's: their attributes, the
order of their parts, and Swin's maps with the channels last.
"""

import enum
import importlib.util
import sys
from collections import OrderedDict
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

MODULES = ("", ".transforms", ".transforms.functional", ".datasets", ".ops", ".ops.misc", ".models")


class _AnyName(ModuleType):
    """A module that has whatever name is imported from it, as an empty class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class ResNet(nn.Module):
    """The parts of torchvision's ResNet by name, and its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        for index, stride in enumerate((1, 2, 2, 2), start=1):
            setattr(self, f"layer{index}", nn.Sequential(nn.Conv2d(8, 8, 3, stride, 1), nn.BatchNorm2d(8)))
        self.fc = nn.Linear(8, 10)


class ConvNeXt(nn.Module):
    """``features`` of a stem and, in turn, blocks and convolutions that halve the size."""

    def __init__(self) -> None:
        super().__init__()
        halve = [nn.Conv2d(8 << i, 16 << i, 2, 2) for i in range(3)]
        blocks = [nn.Sequential(nn.Conv2d(8 << i, 8 << i, 3, 1, 1), nn.GELU()) for i in range(4)]
        stem = nn.Conv2d(3, 8, 4, 4)
        self.features = nn.Sequential(stem, blocks[0], halve[0], blocks[1], halve[1], blocks[2], halve[2], blocks[3])
        self.classifier = nn.Linear(64, 10)


class _Permute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _Merge(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (size // 2 * 2 for size in x.shape[1:3])
        x = x[:, :rows, :columns]
        return self.reduction(torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], 3))


class Swin(nn.Module):
    """``features`` whose maps have the channels last, and the ``permute`` that torchvision applies after them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 4, 4), _Permute()), nn.Linear(8, 8), _Merge(8), nn.Linear(16, 16), _Merge(16)
        )
        self.norm, self.permute, self.head = nn.LayerNorm(32), nn.Identity(), nn.Linear(32, 10)


class ViT(nn.Module):
    """The attributes of torchvision's VisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.image_size, self.hidden_dim, self.seq_length = 8, 32, 16, 17
        self.conv_proj, self.class_token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.zeros(1, 1, 16))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 17, 16))
        self.encoder.dropout = nn.Dropout(0.0)
        layers = [
            (f"encoder_layer_{i}", nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)) for i in range(4)
        ]
        self.encoder.layers = nn.Sequential(OrderedDict(layers))
        self.encoder.ln = nn.LayerNorm(16)
        self.heads = nn.Sequential(nn.Linear(16, 10))


class OneStage(nn.Module):
    """``features`` of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())


class Unknown(nn.Module):
    """None of the attributes by which stages are found."""


NETWORKS = {"resnet": ResNet, "convnext": ConvNeXt, "swin": Swin, "vit": ViT, "one": OneStage, "unknown": Unknown}


def _get_model(name: str, weights: str | None = None) -> nn.Module:
    if weights is None:
        return NETWORKS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return NETWORKS[name]()


def _stand_in() -> dict[str, ModuleType]:
    modules = {f"torchvision{name}": _AnyName(f"torchvision{name}") for name in MODULES}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modes = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")  # type: ignore[misc]
    modules["torchvision.transforms.functional"].InterpolationMode = modes  # type: ignore[attr-defined]
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})  # type: ignore
    modules["torchvision.models"].list_models = lambda: list(NETWORKS)  # type: ignore[attr-defined]
    modules["torchvision.models"].get_model = _get_model  # type: ignore[attr-defined]
    return modules


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in in torchvision's place."""
    for name, module in _stand_in().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def timm(request: pytest.FixtureRequest) -> ModuleType:
    """Import timm, with the stand-in if there is no torchvision; skip if there is no timm."""
    if importlib.util.find_spec("torchvision") is None:
        request.getfixturevalue("stand_in")
    return pytest.importorskip("timm")
