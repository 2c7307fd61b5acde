"""LARS compared with its definition and with lightly's; parameters that optimisers neither decay nor adapt."""

import numpy as np
import pytest
import torch
from torch import nn

from qpt import PretrainConfig
from qpt.models import build_encoder
from qpt.pretraining.optimisers import LARS, build_optimizer, lars_groups
from tests.reference.lars import lars_step


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("adapt", [True, False])
def test_lars_is_that_of_the_paper(decay: float, adapt: bool) -> None:
    """Ten steps in float64 with a rate that changes at every one."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 5), (4, 2, 3, 3), (7,)]]
    ours = [layer.clone().requires_grad_() for layer in layers]
    weights, velocities = [layer.numpy().copy() for layer in layers], [np.zeros(layer.shape) for layer in layers]
    optimizer = LARS(ours, 1.0, momentum=0.9, weight_decay=decay, trust_coefficient=0.02, adapt=adapt)
    for step in range(10):
        optimizer.param_groups[0]["lr"] = lr = 0.5 * (step + 1) % 3
        for place, layer in enumerate(ours):
            gradient = torch.randn(layer.shape, generator=generator, dtype=torch.float64)
            layer.grad = gradient.clone()
            weights[place], velocities[place] = lars_step(
                weights[place],
                gradient.numpy(),
                velocities[place],
                lr=lr,
                momentum=0.9,
                decay=decay,
                trust=0.02,
                adapt=adapt,
            )
        optimizer.step()
        for layer, weight in zip(ours, weights, strict=True):
            np.testing.assert_allclose(layer.detach().numpy(), weight, rtol=1e-12, atol=1e-14)


def test_lars_is_lightlys_at_a_constant_rate() -> None:
    """lightly has the rate outside the velocity: the same while it does not change. It adapts only what it decays."""
    lars = pytest.importorskip("lightly.utils.lars", reason="lightly needs torchvision, which the tests do without")
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in [(8, 6), (5, 3, 3, 3)]]
    ours, theirs = ([layer.clone().requires_grad_() for layer in start] for _ in range(2))
    pair = (
        LARS(ours, 0.3, momentum=0.9, weight_decay=1e-3, trust_coefficient=0.01),
        lars.LARS(theirs, 0.3, momentum=0.9, weight_decay=1e-3, trust_coefficient=0.01, eps=0.0),
    )
    for _ in range(8):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_zero_norm_leaves_the_rate_as_it_is(weight: float) -> None:
    layer = torch.full((2, 2), weight, requires_grad=True)
    layer.grad = torch.full((2, 2), 1.0 - weight)
    LARS([layer], 0.5, trust_coefficient=0.01).step()
    assert torch.equal(layer.detach(), torch.full((2, 2), weight - 0.5 * (1.0 - weight)))


def test_biases_and_batch_norm_are_neither_decayed_nor_adapted() -> None:
    network = build_encoder("resnet18", 4)
    layers, others = lars_groups(network.parameters())
    norms = [p for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)]
    assert {id(p) for p in others["params"]} >= {id(p) for p in norms} and norms
    assert {id(p) for p in layers["params"]} == {
        id(m.weight) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }
    assert others["weight_decay"] == 0 and others["adapt"] is False
    bias = torch.ones(3, requires_grad=True)
    bias.grad = torch.full((3,), 2.0)
    LARS(lars_groups([bias]), 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 0.8))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("lars", LARS)], ids=lambda v: str(v)
)
def test_the_config_names_the_optimiser(name: str, kind: type) -> None:
    config = PretrainConfig("a", "b", optimizer=name, lr=0.7, weight_decay=0.01, trust_coefficient=0.005)  # type: ignore[arg-type]
    network = build_encoder("resnet18", 4)
    optimizer = build_optimizer(config, network)
    assert type(optimizer) is kind
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in network.parameters()}
    first = optimizer.param_groups[0]
    assert (first["lr"], first["weight_decay"]) == (0.7, 0.01)
    assert name != "lars" or first["trust_coefficient"] == 0.005


def test_a_restored_lars_continues_in_the_same_bytes() -> None:
    def train(optimizer: LARS, layer: torch.Tensor, steps: range) -> None:
        for step in steps:
            layer.grad = torch.full_like(layer, 0.1 * (step + 1))
            optimizer.step()

    whole, first, second = (torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_() for _ in range(3))
    train(LARS([whole], 0.1), whole, range(6))
    half = LARS([first], 0.1)
    train(half, first, range(3))
    second.data.copy_(first.data)
    rest = LARS([second], 0.1)
    rest.load_state_dict(half.state_dict())
    train(rest, second, range(3, 6))
    assert torch.equal(whole, second)
