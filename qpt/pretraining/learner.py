"""One training step: patches of two compositions of each photograph in, loss and updated weights out.

``Learner`` owns everything a step changes (encoders, head, pool, optimiser) and is what a checkpoint holds. Called by
``qpt.pretraining.engine``; relies on ``qpt.ops.contrastive`` for the loss and on ``qpt.pool`` for the negatives.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qpt.models import build_encoder, load_encoder, projection_head
from qpt.ops.contrastive import ContrastiveResult, contrastive_loss_with_stats
from qpt.pool import NegativePool
from qpt.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class StepResult:
    """loss, mean similarity of positives, of all negatives and of same-image negatives, and rows that had a
    positive."""

    loss: float
    positive_similarity: float
    negative_similarity: float
    same_image_similarity: float
    valid_rows: int


def learning_rate(config: PretrainConfig, step: int, steps: int) -> float:
    """Rate of the step-th update (from 0): linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, steps - config.warmup_steps)
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))


class Learner:
    """The state of a pre-training run. Weights are drawn from ``config.seed`` without touching torch's global
    generator."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            encoder = build_encoder(config.arch, config.width)
            head = projection_head(encoder.feature_dim, config.projection_dim)
        if config.init:
            encoder.load_state_dict(load_encoder(config.init).state_dict())
        self.query = nn.ModuleDict({"encoder": encoder, "head": head})
        # torch 2.13 on a CPU without AVX-512 corrupts memory in the backward pass of a narrow channels-last network.
        self.memory_format = torch.channels_last if config.width >= 8 else torch.contiguous_format
        self.query.to(device).to(memory_format=self.memory_format).train()  # type: ignore[call-overload]
        self.key: nn.ModuleDict | None = None
        self.pool: NegativePool | None = None
        if config.mode == "moco":
            self.key = copy.deepcopy(self.query).requires_grad_(False)
            if config.pool_size:
                dtype = getattr(torch, config.pool_dtype)
                self.pool = NegativePool(config.pool_size, config.projection_dim, dtype=dtype, device=device)
        parameters = list(self.query.parameters())
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay)
        else:
            self.optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)

    def _embed(self, network: nn.ModuleDict, patches: Tensor) -> Tensor:
        """(N, 3, s, s) -> (N, D) float32 of unit length."""
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            embedding = network["head"](network["encoder"](patches.contiguous(memory_format=self.memory_format)))
        return nn.functional.normalize(embedding.float(), dim=1)

    def step(self, patches: Tensor, groups: Tensor, images: Tensor, lr: float) -> StepResult:
        """Forward, backward, update.

        patches (r, 2, 3, s, s): the two patches of each composition; groups (r,) int64: one id per composition, never
        used before; images (r,) int64: photograph of each row.  Raises InputError (from the loss) on NaN or infinite
        embeddings.
        """
        forward = self._in_batch if self.key is None else self._against_keys
        result, queries, keys = forward(patches, groups, images)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        self.optimizer.step()
        if self.key is not None:
            self._follow()
            if self.pool is not None:
                self.pool.push(keys, groups, images)
        return StepResult(
            loss=float(result.loss.detach()),
            positive_similarity=float(result.positive_similarity),
            negative_similarity=float(result.negative_similarity),
            same_image_similarity=_same_image_similarity(queries, keys, images),
            valid_rows=int(result.valid_rows),
        )

    def _in_batch(self, patches: Tensor, groups: Tensor, images: Tensor) -> tuple[ContrastiveResult, Tensor, Tensor]:
        """Every patch is query and key of one encoder (SimCLR's arrangement)."""
        both = self._embed(self.query, patches.transpose(0, 1).flatten(0, 1))
        groups, images = groups.repeat(2), images.repeat(2)
        result = self._loss(both, both, groups, images, exclude_self=True)
        first, second = both.detach().chunk(2)
        return result, first, second

    def _against_keys(
        self, patches: Tensor, groups: Tensor, images: Tensor
    ) -> tuple[ContrastiveResult, Tensor, Tensor]:
        """First patches are queries, second ones keys of the EMA encoder (MoCo); ``symmetric`` adds the swap."""
        assert self.key is not None
        passes = []
        for first in (0, 1) if self.config.symmetric else (0,):
            queries = self._embed(self.query, patches[:, first])
            with torch.no_grad():
                keys = self._embed(self.key, patches[:, 1 - first])
            negatives = self.config.in_batch_negatives
            result = self._loss(queries, keys, groups, images, pool=self.pool, in_batch_negatives=negatives)
            passes.append((result, queries.detach(), keys))
        result, queries, keys = passes[0]
        return result._replace(loss=torch.stack([each.loss for each, _, _ in passes]).mean()), queries, keys

    def _loss(self, queries: Tensor, keys: Tensor, groups: Tensor, images: Tensor, **options: Any) -> ContrastiveResult:
        return contrastive_loss_with_stats(
            queries,
            keys,
            query_groups=groups,
            key_groups=groups,
            query_images=images,
            key_images=images,
            temperature=self.config.temperature,
            same_image_weight=self.config.same_image_weight,
            **options,
        )

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the key encoder's weights toward the query encoder's (MoCo, arXiv 1911.05722, eq. 2)."""
        assert self.key is not None
        for mine, leader in zip(self.key.parameters(), self.query.parameters(), strict=True):
            mine.lerp_(leader, 1.0 - self.config.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {
            "encoder": self.query["encoder"].state_dict(),
            "head": self.query["head"].state_dict(),
            "key": None if self.key is None else self.key.state_dict(),
            "pool": None if self.pool is None else self.pool.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.query["encoder"].load_state_dict(state["encoder"])
        self.query["head"].load_state_dict(state["head"])
        if self.key is not None:
            self.key.load_state_dict(state["key"])
        if self.pool is not None:
            self.pool.load_state_dict(state["pool"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def _same_image_similarity(queries: Tensor, keys: Tensor, images: Tensor) -> float:
    """Mean similarity of a query and the keys of the same photograph's other compositions; nan when there are none.

    Rows of one photograph are adjacent, so only pairs a few rows apart need looking at.
    """
    total, count, shift = 0.0, 0, 1
    while shift < len(images) and bool((same := images[shift:] == images[:-shift]).any()):
        total += float((queries[shift:] * keys[:-shift]).sum(1)[same].sum())
        count += int(same.sum())
        shift += 1
    return total / count if count else math.nan
