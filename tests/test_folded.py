"""The form of an encoder that is faster on a CPU: the same maps, for the weights that it has now."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qpt.evaluate.features import image_features, prepare
from qpt.models import build_encoder
from qpt.models.base import Encoder
from qpt.models.folded import folded
from qpt.models.two_trunks import TwoTrunks


def trained(encoder: Encoder) -> Encoder:
    """Give batch norms statistics and weights that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5)):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return prepare(encoder)


def lite0() -> Encoder:
    return build_encoder("efficientnet_lite0")


ENCODERS = {
    "resnet18": lambda: build_encoder("resnet18", 8),
    "resnet50": lambda: build_encoder("resnet50", 8),
    "efficientnet_lite0": lite0,
    "two trunks": lambda: TwoTrunks(lite0(), lite0()),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_are_the_same_up_to_rounding(name: str) -> None:
    encoder = trained(ENCODERS[name]())
    other = folded(encoder)
    assert other is not encoder and sum(isinstance(m, nn.BatchNorm2d) for m in other.modules()) == 0
    for height, width in ((64, 64), (97, 130)):
        image = torch.randn((2, 3, height, width), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for expected, found in zip(encoder.stages(image), other.stages(image), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()))


def test_it_follows_the_weights_and_leaves_them_alone() -> None:
    encoder = trained(lite0())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    first = folded(encoder)
    assert folded(encoder) is first
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    with torch.no_grad():
        next(encoder.parameters()).mul_(2)
    assert folded(encoder) is not first
    image = torch.ones(1, 3, 64, 64)
    torch.testing.assert_close(folded(encoder).stages(image)[0], encoder.stages(image)[0], rtol=1e-4, atol=1e-5)


def test_what_trains_or_is_not_float32_stays_as_it_is() -> None:
    encoder = trained(build_encoder("resnet18", 8))
    half = prepare(build_encoder("resnet18", 8).to(torch.bfloat16))
    assert folded(half) is half
    encoder.train()
    assert folded(encoder) is encoder


def test_a_network_that_calls_its_children_in_another_order_stays_as_it_is() -> None:
    class Reversed(Encoder):
        def __init__(self) -> None:
            super().__init__("resnet18", 8)
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.stage_dims = (3,)

        def stages(self, x: Tensor) -> Sequence[Tensor]:
            return [self.conv(self.norm(x).relu())]

    encoder = trained(Reversed())
    assert folded(encoder) is encoder


def test_features_are_those_of_the_encoder_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = trained(lite0())
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    found = image_features(encoder, pixels)
    monkeypatch.setattr("qpt.evaluate.features.folded", lambda encoder: encoder)
    np.testing.assert_allclose(found, image_features(encoder, pixels), rtol=1e-3, atol=1e-5)
