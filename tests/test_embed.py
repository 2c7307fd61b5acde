"""Embedding in chunks: the assignment of images, and gradients, statistics and memory compared with a plain step."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.harness import tensor_peak
from qpt.errors import InputError
from qpt.ops.contrastive.api import contrastive_loss
from qpt.pretraining import learner as learner_module
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.embed import Embeddings, assign_chunks, embed_no_grad, restore_order
from qpt.pretraining.learner import Learner

CPU = torch.device("cpu")


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 8), st.integers(0, 10**6))
def test_chunks_hold_every_row_once_and_no_image_in_its_own(images: int, views: int, count: int, seed: int) -> None:
    in_order = assign_chunks(images, views, count, None)
    shuffled = assign_chunks(images, views, count, np.random.default_rng(seed))
    assert torch.equal(torch.cat(in_order), torch.arange(images * views))
    assert sorted(torch.cat(shuffled).tolist()) == list(range(images * views))
    for chunks in (in_order, shuffled):
        sizes = [len(chunk) for chunk in chunks]
        assert len(sizes) == count and max(sizes) - min(sizes) <= views
        for chunk in chunks:  # the rows of an image follow each other
            rows = chunk.view(-1, views)
            assert torch.equal(rows, rows[:, :1] + torch.arange(views)) and not (rows[:, 0] % views).any()
    own = sum(bool(np.intersect1d(a, b).size) for a, b in zip(in_order, shuffled, strict=True))
    if count > 1 and images > 1:  # of an odd number in two chunks one image has no other place
        assert own <= (1 if images % 2 and (count == 2 or images < 2 * count) else 0)


def test_chunks_are_random_and_repeatable() -> None:
    first, again, other = (torch.cat(assign_chunks(64, 2, 4, np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


class Network(nn.Module):
    """Two convolutions and a projection; ``norm`` puts batch norm and dropout between."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        middle = [nn.BatchNorm2d(6), nn.Dropout(0.3)] if norm else []
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.Tanh(), nn.Conv2d(6, 8, 3, 2), nn.Tanh())
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.head(self.layers(x).mean((2, 3))), dim=1)


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("in_batch", [False, True])
def test_cached_gradients_are_those_of_one_graph(dtype: torch.dtype, bound: float, norm: bool, in_batch: bool) -> None:
    """One graph over the same chunks, with the same dropout; without both, one over the batch at once."""
    torch.manual_seed(0)
    network = Network(norm).to(dtype)
    patches = torch.rand(26, 3, 12, 12, dtype=dtype)
    groups = torch.arange(13).repeat(2)
    pool = nn.functional.normalize(torch.randn(40, 5, dtype=dtype), dim=1)
    chunks = assign_chunks(26, 1, 4, np.random.default_rng(0))

    def loss(values: torch.Tensor) -> torch.Tensor:
        keys = values if in_batch else values.detach().roll(13, 0)
        return contrastive_loss(
            values, keys, query_groups=groups, key_groups=groups, exclude_self=in_batch, temperature=0.2,
            pool=pool, pool_groups=torch.arange(100, 140),
        )  # fmt: skip

    start = statistics(network)
    torch.manual_seed(1)
    plain = restore_order(chunks, [network(patches[chunk]) for chunk in chunks]) if norm else network(patches)
    loss(plain).backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    after = statistics(network)
    network.zero_grad()
    network.load_state_dict(start, strict=False)

    torch.manual_seed(1)
    embeddings = Embeddings(network, network, patches, chunks)
    assert all(torch.equal(value, start[name]) for name, value in network.named_buffers())
    drawn = torch.get_rng_state()
    loss(embeddings.values).backward()
    embeddings.backward()
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, parameter in network.named_parameters():
        assert (parameter.grad - expected[name]).norm() <= bound * expected[name].norm(), name
    for name, value in network.named_buffers():  # once per chunk, as the plain pass
        assert torch.equal(value, after[name]), name
    if norm:
        assert int(after["layers.1.num_batches_tracked"]) == 4


def settings(**options: Any) -> PretrainConfig:
    defaults = {
        "arch": "resnet18",
        "width": 4,
        "projection_dim": 8,
        "patch_size": 24,
        "batch_images": 8,
        "pool_size": 32,
        "precision": "float32",
    }
    return PretrainConfig("data", "out", **{**defaults, **options})  # type: ignore[arg-type]


def batch(config: PretrainConfig, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random patches uint8, group ids and image ids of a step."""
    rows, size = config.batch_images * config.compositions, config.patch_size
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (rows, 2, size, size, 3), dtype=torch.uint8, generator=generator)
    images = torch.arange(config.batch_images).repeat_interleave(config.compositions)
    return patches.permute(0, 1, 4, 2, 3), torch.arange(rows) + seed * rows, images


class OneGraph(Embeddings):
    """The same chunks in one graph: what gradient caching stands for."""

    def __init__(self, embed: Any, network: nn.Module, patches: torch.Tensor, chunks: Sequence[torch.Tensor]) -> None:
        self.values = restore_order(chunks, [embed(patches[chunk]) for chunk in chunks])

    def backward(self) -> None:
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "moco"},
        {"mode": "moco", "symmetric": True, "accumulate": 2, "chunk_images": 2},
        {"mode": "moco", "in_batch_negatives": False, "compositions": 3},
        {"mode": "in_batch"},
        {"mode": "in_batch", "accumulate": 2, "chunk_images": 2},
        {"mode": "in_batch", "activation_checkpointing": True},
    ],
    ids=str,
)
def test_steps_in_chunks_are_steps_in_one_graph(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(**{"chunk_images": 3, **options})
    cached, plain = Learner(config, CPU), Learner(config, CPU)
    for seed in range(2):
        given_batch = batch(config, seed)
        loss, _ = cached.gradients(*given_batch)
        with monkeypatch.context() as patch:
            patch.setattr(learner_module, "Embeddings", OneGraph)
            expected, parts = plain.gradients(*given_batch)
        assert torch.allclose(loss, expected, rtol=1e-5)
        for (name, a), b in zip(cached.query.named_parameters(), plain.query.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm() + 1e-7, name
        for a, b in zip(cached.query.buffers(), plain.query.buffers(), strict=True):
            assert torch.equal(a, b)
        for learner in (cached, plain):
            learner.update(parts, 0.0)


def test_accumulation_averages_the_losses_of_the_parts() -> None:
    config = settings(mode="in_batch", accumulate=2)
    both, alone = Learner(config, CPU), Learner(settings(mode="in_batch", batch_images=4), CPU)
    patches, groups, images = batch(config)
    loss, _ = both.gradients(patches, groups, images)
    sums: dict[str, torch.Tensor] = {}
    losses = []
    for half in (slice(0, 8), slice(8, 16)):
        losses.append(alone.gradients(patches[half], groups[half], images[half])[0])
        for name, parameter in alone.query.named_parameters():
            sums[name] = sums.get(name, 0) + parameter.grad / 2
    assert torch.allclose(loss, torch.stack(losses).mean())
    for name, parameter in both.query.named_parameters():
        assert torch.allclose(parameter.grad, sums[name], rtol=1e-4, atol=1e-7), name


def test_activation_checkpointing_changes_no_gradient_and_records_statistics_once() -> None:
    config = settings(mode="in_batch")
    plain = Learner(config, CPU)
    frugal = Learner(settings(mode="in_batch", activation_checkpointing=True), CPU)
    for learner in (plain, frugal):
        learner.gradients(*batch(config))
    for (name, a), b in zip(frugal.query.named_parameters(), plain.query.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for a, b in zip(frugal.query.buffers(), plain.query.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("precision", "aligned"), [("bfloat16", 0.8), ("float16", 0.95)])
@pytest.mark.parametrize("chunk", [0, 4])
def test_half_precision_gradients_agree_with_float32(precision: str, aligned: float, chunk: int) -> None:
    """Loss within 3 %, the whole gradient within 15 % in length and its cosine above ``aligned``. float16 starts with a
    scale that overflows and halves it, leaving those steps out, until it does not."""
    options = {"mode": "in_batch", "width": 8, "chunk_images": chunk}
    config = settings(**options, precision=precision)
    half, full = Learner(config, CPU), Learner(settings(**options), CPU)
    assert half.scaler.is_enabled() == (precision == "float16")
    compared = 0
    for seed in range(8):
        scale = half.scaler.get_scale()
        (ours, parts), (truth, _) = (learner.gradients(*batch(config, seed)) for learner in (half, full))
        assert float(ours) == pytest.approx(float(truth), rel=0.03)
        gradient, wanted = (
            torch.cat([parameter.grad.flatten() for parameter in learner.query.parameters()]).double()
            for learner in (half, full)
        )
        if torch.isfinite(gradient).all():
            compared += 1
            gradient /= scale
            assert float(gradient.norm() / wanted.norm()) == pytest.approx(1, abs=0.15)
            assert float(nn.functional.cosine_similarity(gradient, wanted, dim=0)) > aligned
        half.update(parts, 0.0)
    assert compared >= 3
    fresh = Learner(config, CPU)
    fresh.load_state_dict(half.state_dict())
    assert fresh.updates == 8 and fresh.scaler.get_scale() == half.scaler.get_scale()


def test_a_compiled_encoder_gives_the_same_step() -> None:
    config = settings(mode="moco", width=8, chunk_images=4)
    plain, compiled = Learner(config, CPU), Learner(settings(mode="moco", width=8, chunk_images=4, compile=True), CPU)
    for seed in range(2):
        a, b = (learner.step(*batch(config, seed), 0.03) for learner in (plain, compiled))
        assert b.loss == pytest.approx(a.loss, rel=1e-3)
    assert compiled.state_dict()["encoder"].keys() == plain.state_dict()["encoder"].keys()


def test_an_infinite_loss_leaves_everything_as_it_was() -> None:
    config = settings(mode="in_batch")
    learner = Learner(config, CPU)
    with torch.no_grad():
        learner.query["head"][0].weight[0, 0] = float("inf")
    before = [parameter.detach().clone() for parameter in learner.query.parameters()]
    with pytest.raises(InputError, match="must be finite"):
        learner.step(*batch(config), 0.1)
    assert learner.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.query.parameters(), strict=True))


def test_similarities_are_those_of_the_pairs() -> None:
    config = settings(mode="moco", compositions=3, accumulate=2, pool_size=20)
    learner = Learner(config, CPU)
    learner.step(*batch(config, 0), 0.1)
    pool = learner.pool.keys.clone()
    _, parts = learner.gradients(*batch(config, 1))
    positive, negative, same = (float(value) for value in learner._similarities(parts))
    wanted: dict[str, list[float]] = {"positive": [], "negative": [], "same": []}
    for part in parts:
        table = part.queries @ part.keys.T
        for i, row in enumerate(table.tolist()):
            for j, value in enumerate(row):
                wanted["positive" if i == j else "negative"].append(value)
                if i != j and part.images[i] == part.images[j]:
                    wanted["same"].append(value)
        wanted["negative"] += (part.queries @ pool.T).flatten().tolist()
    for value, kind in ((positive, "positive"), (negative, "negative"), (same, "same")):
        assert value == pytest.approx(np.mean(wanted[kind]), abs=1e-5), kind


def test_memory_is_that_of_a_chunk(long: bool) -> None:
    """1,024 images in chunks of 32, beside a step of 32; in the short form an eighth of each."""
    share = 1 if long else 8
    peaks = []
    for images, chunk in ((32 // share, 0), (1024 // share, 32 // share)):
        sizes = {"arch": "resnet50", "width": 32, "patch_size": 32, "batch_images": images, "chunk_images": chunk}
        config = settings(**sizes)
        learner = Learner(config, CPU)
        learner.step(*batch(config), 0.03)  # the optimiser's state exists from now on
        peaks.append(tensor_peak(functools.partial(learner.step, *batch(config, 1), 0.03)))
    assert peaks[1] <= 1.3 * peaks[0], peaks


def test_embeddings_without_a_graph_are_in_the_order_of_the_patches() -> None:
    patches = torch.arange(10.0).view(10, 1, 1, 1)
    chunks = assign_chunks(10, 1, 3, np.random.default_rng(0))
    assert torch.equal(embed_no_grad(lambda x: x.flatten(1) * 2, patches, chunks)[:, 0], torch.arange(10.0) * 2)


def test_the_key_encoder_follows_by_the_bytes_of_lerp() -> None:
    learner = Learner(settings(mode="moco", momentum=0.97), CPU)
    assert learner.key is not None
    for parameter in learner.query.parameters():
        parameter.data += torch.randn_like(parameter)
    sides = zip(weights(learner.key), weights(learner.query), strict=True)
    expected = [key.lerp(query, 1.0 - 0.97) for key, query in sides]
    learner._update_ema(learner.key)
    for key, wanted in zip(weights(learner.key), expected, strict=True):
        assert torch.equal(key, wanted)


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in network.parameters()]
