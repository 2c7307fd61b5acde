"""Variants of the pretext task: more patches, images as positives; losses compared with the definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qpt import PretrainConfig, pretrain
from qpt.models.checkpoint_file import read_checkpoint
from qpt.pretraining import engine
from qpt.pretraining.learner import Learner, StepResult
from tests.reference.contrastive import contrastive
from tests.test_pretrain import assert_same_bytes, log_rows, tiny
from tests.test_pretrain import image_folder as image_folder

CPU = torch.device("cpu")


def settings(**options: Any) -> PretrainConfig:
    defaults = {
        "arch": "resnet18",
        "width": 4,
        "projection_dim": 8,
        "patch_size": 24,
        "batch_images": 4,
        "precision": "float32",
    }
    return PretrainConfig("data", "out", **{**defaults, "pool_size": 64, "lr": 0.1, **options})  # type: ignore[arg-type]


def learner_of(config: PretrainConfig) -> Learner:
    """Make a learner whose batch norm uses running statistics, so that an embedding does not depend on its chunk."""
    learner = Learner(config, CPU)
    generator = torch.Generator().manual_seed(9)
    for network in (learner.query, learner.key):
        for module in () if network is None else network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.eval()
    return learner


def batch(config: PretrainConfig, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, size = config.batch_images * config.compositions, config.patch_size
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (rows, config.patches, 3, size, size), dtype=torch.uint8, generator=generator)
    images = torch.arange(config.batch_images).repeat_interleave(config.compositions)
    return patches, seed * rows + torch.arange(rows) // config.rows_per_group, images


def embeddings(learner: Learner, patches: torch.Tensor, which: str) -> np.ndarray:
    """(r, P, D) of every patch by the query or the key network, one row at a time."""
    network = learner.query if which == "query" else learner.key
    with torch.no_grad():
        return torch.stack([learner._embed_with(network)(row) for row in patches]).numpy()


@pytest.mark.parametrize("patches", [2, 3, 5])
@pytest.mark.parametrize("positives", ["composition", "image"])
@pytest.mark.parametrize("chunk_images", [0, 2])
def test_moco_loss_has_every_other_patch_as_a_positive(patches: int, positives: str, chunk_images: int) -> None:
    options = {"patches": patches, "positives": positives, "chunk_images": chunk_images, "same_image_weight": 0.5}
    config = settings(**options)
    learner = learner_of(config)
    learner.step(*batch(config, 0), 0.1)
    assert learner.pool is not None and len(learner.pool) == 8 * (patches - 1)
    pool = [value.numpy().copy() for value in (learner.pool.keys, learner.pool.groups, learner.pool.images)]
    rows, groups, images = batch(config, 1)
    key_ids = [ids.numpy().repeat(patches - 1) for ids in (groups, images)]
    expected = contrastive(
        embeddings(learner, rows, "query")[:, 0],
        embeddings(learner, rows, "key")[:, 1:].reshape(-1, 8),
        groups.numpy(),
        key_ids[0],
        images.numpy(),
        key_ids[1],
        *pool,
        same_image_weight=0.5,
    )
    assert expected["valid_rows"] == 8
    loss, parts = learner.gradients(rows, groups, images)
    assert float(loss) == pytest.approx(expected["loss"], abs=1e-5)
    learner.update(parts, 0.1)
    assert learner.pool.groups[-8 * (patches - 1) :].tolist() == key_ids[0].tolist()


@pytest.mark.parametrize("patches", [2, 4])
@pytest.mark.parametrize("positives", ["composition", "image"])
@pytest.mark.parametrize("chunk_images", [0, 2])
def test_in_batch_loss_has_every_patch_as_query_and_key(patches: int, positives: str, chunk_images: int) -> None:
    config = settings(mode="in_batch", patches=patches, positives=positives, chunk_images=chunk_images)
    learner = learner_of(config)
    rows, groups, images = batch(config)
    every = embeddings(learner, rows, "query").reshape(-1, 8)
    ids = [ids.numpy().repeat(patches) for ids in (groups, images)]
    expected = contrastive(every, every, ids[0], ids[0], ids[1], ids[1], exclude_self=True)
    assert expected["valid_rows"] == 8 * patches
    result = learner.step(rows, groups, images, 0.1)
    assert result.loss == pytest.approx(expected["loss"], abs=1e-5)
    assert result.valid_rows == 8 * patches


def test_symmetric_takes_each_patch_as_the_query() -> None:
    config = settings(patches=3, symmetric=True, pool_size=0)
    learner = learner_of(config)
    rows, groups, images = batch(config)
    queries, keys = (embeddings(learner, rows, which) for which in ("query", "key"))
    ids = groups.numpy().repeat(2)
    losses = [
        contrastive(queries[:, p], np.delete(keys, p, axis=1).reshape(-1, 8), groups.numpy(), ids)["loss"]
        for p in range(3)
    ]
    assert learner.step(rows, groups, images, 0.1).loss == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
def test_chunks_change_no_gradient_of_many_patches(mode: str) -> None:
    gradients = []
    for chunk_images in (0, 1):
        config = settings(mode=mode, patches=3, chunk_images=chunk_images)
        learner = learner_of(config)
        learner.gradients(*batch(config))
        gradients.append([parameter.grad.clone() for parameter in learner.query.parameters()])
    for plain, chunked in zip(*gradients, strict=True):
        assert (plain - chunked).norm() <= 1e-4 * plain.norm() + 1e-7


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
def test_similarities_of_many_patches_are_those_of_the_pairs(mode: str) -> None:
    """Return the figures of the first patch and all keys, as a log shows them."""
    config = settings(mode=mode, patches=4, compositions=3, accumulate=2)
    learner = learner_of(config)
    learner.step(*batch(config, 0), 0.1)
    rows, groups, images = batch(config, 1)
    queries = embeddings(learner, rows, "query")
    keys = (queries if learner.key is None else embeddings(learner, rows, "key"))[:, 1:]
    wanted: dict[str, list[float]] = {"positive": [], "negative": [], "same": []}
    for half in (slice(0, 6), slice(6, 12)):
        for i, query in enumerate(queries[half, 0]):
            for j, others in enumerate(keys[half]):
                values = (others @ query).tolist()
                wanted["positive" if i == j else "negative"] += values
                if i != j and images[half][i] == images[half][j]:
                    wanted["same"] += values
        if learner.pool is not None:
            wanted["negative"] += (queries[half, 0] @ learner.pool.keys.numpy().T).ravel().tolist()
    _, parts = learner.gradients(rows, groups, images)
    found = [float(value) for value in learner._similarities(parts)]
    assert found == pytest.approx([np.mean(wanted[kind]) for kind in ("positive", "negative", "same")], abs=1e-5)


@pytest.mark.parametrize("positives", ["composition", "image"])
def test_the_engine_makes_the_groups_of_the_positives(
    positives: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], list[int], tuple[int, ...]]] = []
    step = Learner.step

    def noted(
        self: Learner, patches: torch.Tensor, groups: torch.Tensor, images: torch.Tensor, lr: float
    ) -> StepResult:
        seen.append((groups.tolist(), images.tolist(), tuple(patches.shape)))
        return step(self, patches, groups, images, lr)

    monkeypatch.setattr(engine.Learner, "step", noted)
    options = {"positives": positives, "compositions": 3, "patches": 4, "steps": 2, "boxes": "independent"}
    pretrain(tiny(image_folder, tmp_path / "run", **options))
    for groups, images, shape in seen:
        assert shape == (12, 4, 3, 24, 24)
        alike = [[a == b for b in groups] for a in groups]
        wanted = images if positives == "image" else list(range(12))
        assert alike == [[a == b for b in wanted] for a in wanted]
    assert not set(seen[0][0]) & set(seen[1][0])


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "moco", "patches": 3, "optimizer": "lars", "lr": 1.0, "chunk_images": 2},
        {"mode": "in_batch", "patches": 4, "positives": "image", "optimizer": "adamw"},
    ],
    ids=str,
)
def test_a_variant_resumes_to_the_same_bytes(options: dict[str, object], image_folder: Path, tmp_path: Path) -> None:
    whole = tiny(image_folder, tmp_path / "whole", **options)
    pretrain(whole)
    assert all(np.isfinite(float(row["loss"])) for row in log_rows(tmp_path / "whole"))

    class Stopped(Exception):
        pass

    def stop(self: Learner, *given: Any) -> StepResult:
        if self.updates == 5:
            raise Stopped
        return step(self, *given)

    step = Learner.step
    part = tiny(image_folder, tmp_path / "part", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Learner, "step", stop)
        with pytest.raises(Stopped):
            pretrain(part)
    assert read_checkpoint(tmp_path / "part")["step"] == 3
    pretrain(part, resume=True)
    assert_same_bytes(tmp_path / "whole", tmp_path / "part")
