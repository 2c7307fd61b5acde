"""Settings of pre-training that start from a trained encoder: inputs of the head, rates, auxiliary terms."""

from typing import Any

import pytest
import torch
from torch import nn

from qpt.errors import InputError
from qpt.models.heads import projection_head, stage_means, stage_statistics
from qpt.pretraining import learner as learner_module
from qpt.pretraining.learner import Learner
from qpt.pretraining.optimisers import parameter_stages, set_rate
from tests.test_embed import CPU, OneGraph, batch, settings


def test_stage_statistics_are_those_of_positions() -> None:
    maps = [torch.randn(3, 4, 5, 6), torch.randn(3, 2, 1, 1).bfloat16()]
    values = stage_statistics(maps)
    assert values.shape == (3, 12) and values.dtype == torch.float32
    torch.testing.assert_close(values[:, :4], maps[0].mean((2, 3)))
    torch.testing.assert_close(values[:, 4:8], maps[0].std((2, 3), correction=0), rtol=1e-5, atol=1e-5)
    assert torch.equal(values[:, 8:10], maps[1].float()[:, :, 0, 0])
    torch.testing.assert_close(values[:, 10:], torch.full((3, 2), 1e-3))
    torch.testing.assert_close(stage_means(maps), values[:, [0, 1, 2, 3, 8, 9]])


def test_the_gradient_of_a_constant_channel_is_finite() -> None:
    flat = torch.ones(2, 3, 4, 4, requires_grad=True)
    stage_statistics([flat]).sum().backward()
    assert flat.grad.isfinite().all()


def test_a_head_with_layer_norm_ignores_the_scale_of_a_row() -> None:
    head, rows = projection_head(12, 4, 6, layer_norm=True), torch.randn(5, 12)
    torch.testing.assert_close(head(rows), head(rows * 40), rtol=1e-3, atol=1e-4)


def assert_chunks_are_one_graph(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    """Compare the gradients of cached chunks with those of one graph over the same chunks."""
    config = settings(chunk_images=3, **options)
    cached, plain = Learner(config, CPU), Learner(config, CPU)
    given = batch(config)
    loss, _ = cached.gradients(*given, **extra)
    monkeypatch.setattr(learner_module, "Embeddings", OneGraph)
    expected, _ = plain.gradients(*given, **extra)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for (name, a), b in zip(cached.query.named_parameters(), plain.query.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm() + 1e-7, name
    for a, b in zip(cached.query.buffers(), plain.query.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"mode": "moco", "symmetric": True}, {"mode": "in_batch", "accumulate": 2}], ids=str)
def test_a_head_on_all_stages_works_in_chunks(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_chunks_are_one_graph({"head_input": "stages", **options}, monkeypatch)


def test_a_head_on_all_stages_trains_every_stage_and_its_key_encoder() -> None:
    config = settings(mode="moco", head_input="stages")
    learner = Learner(config, CPU)
    assert learner.query["head"][0].normalized_shape == (2 * sum(learner.query["encoder"].stage_dims),)
    assert learner.key is not None
    before = [parameter.clone() for parameter in learner.key.parameters()]
    learner.step(*batch(config), 0.1)
    assert all(parameter.grad is not None for parameter in learner.query.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, learner.key.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_activation_checkpointing_keeps_the_gradients_of_a_head_on_all_stages() -> None:
    options = {"mode": "in_batch", "head_input": "stages"}
    plain, frugal = (Learner(settings(**options, activation_checkpointing=on), CPU) for on in (False, True))
    for learner in (plain, frugal):
        learner.gradients(*batch(learner.config))
    for (name, a), b in zip(frugal.query.named_parameters(), plain.query.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_compiled_stages_give_the_same_step() -> None:
    options = {"mode": "moco", "width": 8, "chunk_images": 4, "head_input": "stages"}
    plain, compiled = (Learner(settings(**options, compile=on), CPU) for on in (False, True))
    for seed in range(2):
        a, b = (learner.step(*batch(learner.config, seed), 0.03) for learner in (plain, compiled))
        assert b.loss == pytest.approx(a.loss, rel=1e-3)
    assert compiled.state_dict()["encoder"].keys() == plain.state_dict()["encoder"].keys()


def test_rates_of_stages_fall_toward_the_first() -> None:
    config = settings(optimizer="sgd", lr=1.0, encoder_lr_scale=0.5, stage_lr_decay=0.1)
    learner = Learner(config, CPU)
    for rate in (1.0, 0.2):
        set_rate(learner.optimizer, rate)
        rates = {id(p): group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
        assert len(rates) == len(list(learner.query.parameters()))
        for name, parameter in learner.query.named_parameters():
            stage = 4 if name.startswith("head") else int(name.split(".")[1][-1]) if ".layer" in name else 1
            expected = rate if name.startswith("head") else rate * 0.5 * 0.1 ** (4 - stage)
            assert rates[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_scale_of_zero_keeps_the_encoder(optimizer: str) -> None:
    config = settings(optimizer=optimizer, encoder_lr_scale=0.0)
    learner = Learner(config, CPU)
    before = {name: p.detach().clone() for name, p in learner.query.named_parameters()}
    learner.step(*batch(config), 0.1)
    for name, parameter in learner.query.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("encoder"), name
    fresh = Learner(config, CPU)
    fresh.load_state_dict(learner.state_dict())
    fresh.step(*batch(config, 1), 0.1)


def test_lars_keeps_its_exceptions_within_each_rate() -> None:
    groups = Learner(settings(optimizer="lars", stage_lr_decay=0.5), CPU).optimizer.param_groups
    assert len(groups) == 8  # the last stage has the rate of the head
    for group in groups:
        assert all((p.ndim > 1) == group["adapt"] for p in group["params"])
        assert (group["weight_decay"] > 0) == group["adapt"]


def test_parameters_of_an_encoder_without_named_stages_are_divided_in_order() -> None:
    encoder = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(6)))
    encoder.stage_dims = (2, 2, 2)  # type: ignore[assignment]
    assert list(parameter_stages(encoder).values()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(mode: str) -> None:
    config = settings(mode=mode, freeze_batch_norm=True, chunk_images=3)
    learner = Learner(config, CPU)
    statistics = {name: value.clone() for name, value in learner.query.named_buffers()}
    weight = learner.query["encoder"].bn1.weight.detach().clone()
    learner.step(*batch(config), 0.1)
    assert all(torch.equal(value, statistics[name]) for name, value in learner.query.named_buffers())
    assert not torch.equal(learner.query["encoder"].bn1.weight, weight)
    assert learner.query["encoder"].training  # activation checkpointing works in training only


@pytest.mark.parametrize(("field", "value"), [("encoder_lr_scale", -1.0), ("stage_lr_decay", 0.0), ("head_input", "all")])
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"pretrain: {field} must be"):
        settings(**{field: value})
