"""One pre-training step: the share of degradations and loss, and the cost of gradient caching and checkpointing.

Run by ``python -m benchmarks step``: ResNet-18 at 160 px, 64 photographs x 2 compositions x 2 patches, a full pool of
65,536 keys. The step is the one ``qpt pretrain`` runs (``Learner.step``); degradations and loss are also timed alone,
in the same rounds. Peaks are of tensors, beyond weights, optimiser and pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.bench_degrade import sample_crops
from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure
from qpt.data.boxes import draw_pair
from qpt.degradations.space import DegradationSpace
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.degrade.api import degrade_patches
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.learner import Learner

HELP = "milliseconds of a pre-training step and of its parts, and what gradient caching and checkpointing cost"
STEP = "step without degradations"
LOSS_ALLOWED = 1e-4  # relative, between the loss and its definition with all logits


@dataclass(frozen=True)
class StepReport(Report):
    """A report with the share that degradations and loss have of a whole step."""

    figures: dict[str, float] = field(default_factory=dict)


def run(settings: Settings) -> StepReport:
    """Time the parts and the step in interleaved rounds."""
    small: dict[str, Any] = {"width": 8, "patch_size": 32, "batch_images": 4, "pool_size": 64} if settings.quick else {}
    config, device = _config(**small), torch.device(settings.device)
    regions = sample_crops(config.batch_images, config.region).to(device)
    patches = _degraded(config, regions)
    cases = [
        _degrade_case(config, regions),
        _loss_case(config, device),
        _step_case(config, patches, small),
    ]
    rows = measure(cases, settings.rounds, warmup=1, device=settings.device)
    figures = shares(rows)
    return StepReport("step", rows, remarks=[_remark(figures)], figures=figures)


def shares(rows: list[Row]) -> dict[str, float]:
    """Return the shares of degradations, loss and both in the whole step."""
    times = {row.op: row.median_ms for row in rows if row.backend == "qpt"}
    whole = times["degradations"] + times[STEP]
    parts = {name: times[name] / whole for name in ("degradations", "loss")}
    return {**parts, "both": sum(parts.values())}


def _remark(figures: dict[str, float]) -> str:
    shown = {name: f"{share:.1%}" for name, share in figures.items()}
    return f"Of the whole step degradations take {shown['degradations']}, the loss {shown['loss']}: {shown['both']}."


def _config(**changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {"arch": "resnet18", "width": 64, "patch_size": 160, "batch_images": 64, **changes}
    return PretrainConfig("-", "-", mode="moco", **settings)


def _degraded(config: PretrainConfig, regions: torch.Tensor) -> torch.Tensor:
    rng = np.random.default_rng(0)
    size, views = config.patch_size, config.compositions
    pairs = [draw_pair(rng, size, config.region, config.iou_min, config.iou_max) for _ in regions]
    program = DegradationSpace.named(config.space).sample_seeded(torch.arange(len(regions)), views=views)
    boxes = torch.tensor(pairs, dtype=torch.int32).repeat_interleave(views, 0)
    return degrade_patches(regions, program, boxes, size, dtype=torch.uint8)


def _degrade_case(config: PretrainConfig, regions: torch.Tensor) -> Case:
    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        if not torch.equal(answers["qpt"], _degraded(config, regions)):
            raise Disagreement("step: degradations must be the same bytes every time")
        return {}

    shape = f"{len(regions)} x {config.compositions} x 2 patches of {config.patch_size} px"
    return Case("degradations", shape, len(regions), [Contender("qpt", lambda: _degraded(config, regions))], agree)


def _unit(rows: int, dim: int, seed: int, device: torch.device) -> torch.Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1).to(device)


def _loss_case(config: PretrainConfig, device: torch.device) -> Case:
    rows = config.batch_images * config.compositions
    queries, keys, pool = (
        _unit(n, config.projection_dim, seed, device) for seed, n in enumerate((rows, rows, config.pool_size))
    )
    groups, pool_groups = torch.arange(rows, device=device), torch.arange(config.pool_size, device=device) + rows
    images = groups // config.compositions

    def loss() -> torch.Tensor:
        leaf = queries.clone().requires_grad_()
        value = contrastive_loss(
            leaf, keys, query_groups=groups, key_groups=groups, query_images=images, key_images=images,
            pool=pool, pool_groups=pool_groups, pool_images=pool_groups, temperature=config.temperature,
        )  # fmt: skip
        value.backward()
        return value.detach()

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        logits = queries @ torch.cat([keys, pool]).T / config.temperature
        wanted = torch.nn.functional.cross_entropy(logits, groups)
        difference = float((answers["qpt"] - wanted).abs() / wanted)
        if not difference <= LOSS_ALLOWED:
            raise Disagreement(f"step: the loss is {difference:.2g} from cross-entropy over all logits")
        return {"qpt": {"relative_to_cross_entropy": difference}}

    shape = f"N={rows} K={rows}+{config.pool_size} D={config.projection_dim}, forward + gradient"
    return Case("loss", shape, config.batch_images, [Contender("qpt", loss)], agree)


def _step_case(config: PretrainConfig, patches: torch.Tensor, small: dict[str, Any]) -> Case:
    chunk = config.batch_images // 4
    ways = {
        "qpt": config,
        f"qpt, chunks of {chunk} photographs": _config(**small, chunk_images=chunk),
        "qpt, activation checkpointing": _config(**small, activation_checkpointing=True),
    }
    images = torch.arange(config.batch_images, device=patches.device).repeat_interleave(config.compositions)
    learners = {name: _filled(Learner(way, patches.device)) for name, way in ways.items()}

    def step(learner: Learner) -> float:
        assert learner.pool is not None
        return learner.step(patches, learner.pool.new_groups(len(images)), images, 1e-6).loss

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        if not np.isfinite(list(answers.values())).all():
            raise Disagreement(f"step: losses must be finite, got {answers}")
        plain, name = answers["qpt"], "qpt, activation checkpointing"
        return {name: {"loss_minus_plain": answers[name] - plain}}

    shape = f"{config.arch}, width {config.width}, {len(images)} queries and keys of {config.patch_size} px"
    contenders = [Contender(name, lambda learner=learner: step(learner)) for name, learner in learners.items()]
    return Case(STEP, shape, config.batch_images, contenders, agree, peak=True)


def _filled(learner: Learner) -> Learner:
    """Fill the pool, as it is in all but the first steps of a run."""
    pool = learner.pool
    assert pool is not None
    images = torch.arange(pool.capacity, device=learner.device)
    pool.push(_unit(pool.capacity, pool.dim, 9, learner.device), pool.new_groups(pool.capacity), images)
    return learner
