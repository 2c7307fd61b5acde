"""One pre-training step: the share of degradations and loss, the cost of gradient caching and checkpointing, and
photographs a second by architecture and precision.

Run by ``python -m benchmarks step``: ResNet-18 at 160 px, 64 photographs x 2 compositions x 2 patches, a full pool of
65,536 keys. The step is the one ``qpt pretrain`` runs (``Learner.step``); degradations and loss are also timed alone,
in the same rounds. Peaks are of tensors, beyond weights, optimiser and pool. The architectures have fewer photographs,
and their step includes the degradations. torch.compile and a fused optimiser are tried on them: the trainer has the
first as a setting, and the second not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench_degrade import sample_crops
from benchmarks.contrastive_baselines import Unavailable, require_compiler
from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure
from qpt.data.boxes import draw_pair
from qpt.degradations.space import DegradationSpace
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.degrade.api import degrade_patches
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.learner import Learner

HELP = "milliseconds of a pre-training step and its parts, by chunks and checkpointing, architecture and precision"
STEP = "step without degradations"
LOSS_ALLOWED = 1e-4  # relative, between the loss and its definition with all logits
TRAINING = "training step"
PHOTOGRAPHS = 16  # of a training step
COMPILED, FUSED = "bfloat16, torch.compile", "float32, fused optimiser"
# Compiling takes a minute or two: one residual network stands for both.
ARCHITECTURES = {"resnet18": True, "resnet50": False, "efficientnet_lite0": True}  # whether it is tried compiled
# Relative differences from plain float32: of the first loss, which bfloat16 changed by up to 4e-3 (1.2e-2 at the sizes
# of --quick, of eight rows a batch norm), and of the first update, whose sums a fused optimiser rounds elsewhere.
FIRST_LOSS_ALLOWED, UPDATE_ALLOWED = 3e-2, 1e-3


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
    del cases  # with their networks
    trained, remarks = training_rows(settings)
    return StepReport("step", rows + trained, remarks=[_remark(figures), *remarks], figures=figures)


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
    learners = {name: _filled(Learner(way, patches.device)) for name, way in ways.items()}

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        if not np.isfinite(list(answers.values())).all():
            raise Disagreement(f"step: losses must be finite, got {answers}")
        plain, name = answers["qpt"], "qpt, activation checkpointing"
        return {name: {"loss_minus_plain": answers[name] - plain}}

    shape = f"{config.arch}, width {config.width}, {len(patches)} queries and keys of {config.patch_size} px"
    contenders = [
        Contender(name, lambda learner=learner: _step(learner, patches), learner.config.precision)
        for name, learner in learners.items()
    ]
    return Case(STEP, shape, config.batch_images, contenders, agree, peak=True)


def _step(learner: Learner, patches: torch.Tensor, lr: float = 1e-6) -> float:
    """Train on the patches of rows, which are the compositions of each photograph in turn; return the loss."""
    assert learner.pool is not None
    images = torch.arange(len(patches), device=patches.device) // learner.config.compositions
    return learner.step(patches, learner.pool.new_groups(len(patches)), images, lr).loss


def _filled(learner: Learner) -> Learner:
    """Fill the pool, as it is in all but the first steps of a run."""
    pool = learner.pool
    assert pool is not None
    images = torch.arange(pool.capacity, device=learner.device)
    pool.push(_unit(pool.capacity, pool.dim, 9, learner.device), pool.new_groups(pool.capacity), images)
    return learner


def training_rows(settings: Settings) -> tuple[list[Row], list[str]]:
    """Return the rows of whole training steps, by architecture and contender, and remarks about the trials."""
    remarks, compiles = [], not settings.quick
    if compiles:
        try:
            require_compiler()
        except Unavailable as error:
            compiles = False
            remarks.append(f"Not measured: {COMPILED}: {error}.")
    if compiles:
        torch._dynamo.reset()  # a function is compiled for eight sets of conditions at most, which others may have used
    firsts: dict[tuple[str, str], float] = {}
    cases = []
    for arch, tried in ARCHITECTURES.items():
        ways = training_ways(arch, settings.quick, compiles and tried)
        cases.append(_training_case(ways, torch.device(settings.device), firsts))
    # The call that is compared is the first one: it compiles and allocates.
    rows = measure(cases, settings.rounds, warmup=0, device=settings.device)
    rows = [_with_first(row, firsts.get((row.shape, row.backend))) for row in rows]
    return rows, [*remarks, *trial_remarks(rows, firsts)]


def training_ways(arch: str, quick: bool, compiles: bool) -> dict[str, PretrainConfig]:
    """Return contender -> settings of a training step of an architecture."""
    small: dict[str, Any] = {"patch_size": 64, "batch_images": 4, "pool_size": 64} if quick else {}
    if quick and arch.startswith("resnet"):
        small["width"] = 8
    base = {"arch": arch, "batch_images": PHOTOGRAPHS, **small}
    ways = {name: _config(**base, precision=name) for name in ("float32", "bfloat16")}
    if compiles:
        ways[COMPILED] = _config(**base, precision="bfloat16", compile=True)
    return {**ways, FUSED: ways["float32"]}


def _training_case(ways: dict[str, PretrainConfig], device: torch.device, firsts: dict[tuple[str, str], float]) -> Case:
    """Return the case of an architecture.  firsts: gets the seconds of the first call of what is compiled, by (shape,
    contender)."""
    config = ways["float32"]
    regions = sample_crops(config.batch_images, config.region).to(device)
    learners = {name: _filled(Learner(way, device)) for name, way in ways.items()}
    fuse(learners[FUSED].optimizer)
    start = [weight.detach().clone() for weight in learners["float32"].query.parameters()]
    network = f"{config.arch}, width {config.width}" if config.arch.startswith("resnet") else config.arch
    shape = f"{network}, {len(regions)} x {config.compositions} x 2 patches of {config.patch_size} px"

    def whole(name: str) -> Callable[[], float]:
        def step() -> float:
            return _step(learners[name], _degraded(config, regions), config.lr)

        def compiling() -> float:
            if (shape, name) in firsts:
                return step()
            from torch._inductor.utils import fresh_inductor_cache  # which takes a second to import

            with fresh_inductor_cache():  # an earlier run may have left what it compiled
                started = time.perf_counter()
                loss = step()
                firsts[shape, name] = time.perf_counter() - started
            return loss

        return compiling if ways[name].compile else step

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        wanted = answers["float32"]
        found = {name: {"first_loss": abs(loss / wanted - 1)} for name, loss in answers.items() if name != "float32"}
        plain, fused = ([*learners[name].query.parameters()] for name in ("float32", FUSED))
        found[FUSED]["update"] = update_difference(fused, plain, start)
        for name, differences in found.items():
            close = differences["first_loss"] <= FIRST_LOSS_ALLOWED
            if not (close and differences.get("update", 0.0) <= UPDATE_ALLOWED):
                raise Disagreement(f"step: {network}: {name} differs from float32: {differences}")
        return found

    return Case(TRAINING, shape, len(regions), [Contender(name, whole(name)) for name in ways], agree)


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser of torch update all weights in one kernel. Raises ValueError for one that has none."""
    for group in optimizer.param_groups:
        if "fused" not in group:
            raise ValueError(f"fuse: {type(optimizer).__name__} must have a fused form, got none")
        group.update(fused=True, foreach=False)


@torch.no_grad()
def update_difference(weights: Sequence[Tensor], others: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """Return the norm of the difference of two updates of ``start`` over the norm of the second one."""
    apart, moved = (
        torch.stack([(w - o).norm() for w, o in zip(ours, theirs, strict=True)]).norm()
        for ours, theirs in ((weights, others), (others, start))
    )
    return float(apart / moved)


def _with_first(row: Row, seconds: float | None) -> Row:
    return row if seconds is None else replace(row, note=f"first step {seconds:.0f} s")


def trial_remarks(rows: Sequence[Row], firsts: dict[tuple[str, str], float]) -> list[str]:
    """Say what the fused optimiser and torch.compile change of a step, and after how many steps the latter has paid."""
    times = {(row.shape, row.backend): row.median_ms for row in rows}
    ratios = {shape: ms / times[shape, "float32"] for (shape, name), ms in times.items() if name == FUSED}
    fused = ", ".join(f"{shape.split(',')[0]} {ratio:.3f}" for shape, ratio in ratios.items())
    remarks = [f"Time of a training step with a fused optimiser over that without: {fused}."]
    paid = []
    for (shape, name), seconds in firsts.items():
        before, after = times[shape, "bfloat16"], times[shape, name]
        steps = f"paid for after {1000 * seconds / (before - after):,.0f} steps" if after < before else "never paid for"
        paid.append(f"{shape.split(',')[0]} {after / before:.2f}, its first step of {seconds:.0f} s {steps}")
    if paid:
        remarks.append(f"Time of a training step in bfloat16 with torch.compile over that without: {'; '.join(paid)}.")
    return remarks
