"""A memory plan as text for people and as plain data for programs. Called by ``qpt.commands.plan``."""

from __future__ import annotations

import dataclasses
from typing import Any

from qpt.models.names import OURS
from qpt.planning.gpus import GIB
from qpt.planning.search import Need, Plan, loss_shape
from qpt.planning.trace import CATEGORIES


def render(plan: Plan) -> str:
    """Return the text that ``qpt plan`` prints."""
    config, gpu, allowance = plan.config, plan.gpu, plan.allowance
    needs = _needs(plan)
    pool = f", pool {config.pool_size:,} x {config.projection_dim} {config.pool_dtype}" if config.mode == "moco" else ""
    encoder = f"{config.arch}, width {config.width}" if config.arch in OURS else config.arch
    lines = [
        f"{encoder}, {config.patch_size} px, {config.precision}, {config.mode}, "
        f"{config.optimizer}{pool}{', activation checkpointing' if config.activation_checkpointing else ''}",
        "",
        f"memory of {gpu.name:<12} {_gib(gpu.memory_bytes)} GiB",
        f"allowance              {_gib(allowance.total)} GiB   CUDA context {allowance.context / GIB:.2f}, "
        f"library workspaces {allowance.libraries / GIB:.2f}, fragmentation {allowance.fragmentation / GIB:.2f}: "
        "estimates, not traced",
        f"left for tensors       {_gib(plan.available_bytes)} GiB",
        "",
        f"{'':26} {'batch_images':>12} {'chunk_images':>12} {'pairs':>8} {'peak GiB':>9}",
    ]
    for name, need in needs.items():
        if need is None:
            lines.append(f"{name:26} {'none fits':>12}")
            continue
        verdict = "" if "largest" in name else ("  fits" if need.peak_bytes <= plan.available_bytes else "  too much")
        chunk = f"{need.chunk:,}" if need.chunk else "0"
        pairs = need.images * config.compositions
        lines.append(f"{name:26} {need.images:12,} {chunk:>12} {pairs:8,} {_gib(need.peak_bytes):>9}{verdict}")
    lines += ["", *_categories(needs), "", *_remarks(plan)]
    return "\n".join(lines)


def _categories(needs: dict[str, Need | None]) -> list[str]:
    """Return a table with a row per category and a column per batch."""
    columns = [need for need in needs.values() if need is not None]
    head = [f"{need.images:,}" + (f" by {need.chunk}" if need.chunk else "") for need in columns]
    lines = [f"{'GiB at the peak of':26} " + " ".join(f"{text:>14}" for text in head)]
    for name in CATEGORIES:
        sizes = [need.by_category.get(name, 0) for need in columns]
        if any(sizes):
            lines.append(f"  {name:24} " + " ".join(f"{size / GIB:14.3f}" for size in sizes))
    return lines


def _remarks(plan: Plan) -> list[str]:
    config = plan.config
    lines = []
    if plan.pool_rows is not None:
        rows = f"{plan.pool_rows:,} keys" if plan.pool_rows else "none"
        lines.append(f"largest pool_size at the batch asked for: {rows}")
    queries, keys = loss_shape(config)
    lines.append(
        f"the loss by itself: {plan.loss_bytes / GIB:.3f} GiB; with its {queries:,} x {keys:,} logits in memory it "
        f"would need {plan.full_logits_bytes / GIB:.2f} GiB"
    )
    for need in (plan.plain, plan.cached):
        if need is not None and need.checked_images:
            error = need.predicted_bytes / need.traced_bytes - 1
            chunked = f" in chunks of {need.chunk}" if need.chunk else ""
            lines.append(f"checked by a trace of {need.checked_images:,} images{chunked}: {error:+.1%}")
    if config.compile:
        lines.append("compile is on: traced as without it, which needs no less")
    return lines


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data, sizes in bytes."""
    queries, keys = loss_shape(plan.config)
    return {
        "gpu": dataclasses.asdict(plan.gpu),
        "config": {key: value for key, value in dataclasses.asdict(plan.config).items() if key not in ("data", "out")},
        "allowance_bytes": dataclasses.asdict(plan.allowance),
        "available_bytes": plan.available_bytes,
        "fits": plan.fits,
        **{
            key: None if need is None else dataclasses.asdict(need)
            for key, need in (
                ("asked", plan.asked),
                ("asked_with_gradient_caching", plan.chunked),
                ("largest_without_gradient_caching", plan.plain),
                ("largest_with_gradient_caching", plan.cached),
            )
        },
        "largest_pool_size": plan.pool_rows,
        "loss_bytes": plan.loss_bytes,
        "full_logits": {"queries": queries, "keys": keys, "bytes": plan.full_logits_bytes},
    }


def _needs(plan: Plan) -> dict[str, Need | None]:
    asked: dict[str, Need | None] = {"asked for": plan.asked}
    if plan.chunked.chunk and not plan.asked.chunk:
        asked["  with gradient caching"] = plan.chunked
    return {
        **asked,
        "largest without caching": plan.plain,
        "largest with caching": plan.cached,
    }


def _gib(size: int) -> str:
    return f"{size / GIB:6.2f}"
