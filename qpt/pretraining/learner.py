"""One training step: patches of some compositions of each photograph in, loss and updated weights out.

``Learner`` owns everything a step changes (encoders, head, pool, optimiser) and is what a checkpoint holds. Called by
``qpt.pretraining.engine``; relies on ``qpt.ops.contrastive.api`` for the loss, on ``qpt.ops.contrastive.pool`` for the
negatives and on ``qpt.pretraining.embed`` for embedding in chunks.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qpt.data.normalise import normalise
from qpt.errors import InputError
from qpt.models import build_encoder, load_encoder, projection_head
from qpt.models.norm import synchronise
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.distributed import distributed_contrastive_loss
from qpt.ops.contrastive.pool import NegativePool
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.embed import Embeddings, deal, embed_frozen, restore
from qpt.pretraining.optimisers import build_optimizer
from qpt.pretraining.process_group import World

_TO_CHUNKS, _TO_PROCESSES = 3, 4  # first word of a seed: what the stream is for (see qpt.data.regions)


class Embedded(NamedTuple):
    """What one batch, or a part of it, was embedded to, in pairs of one composition: queries and keys [N, D], detached;
    their ids [N]. A query with several keys has a row for each, adjacent."""

    queries: Tensor
    keys: Tensor
    groups: Tensor
    images: Tensor


@dataclass(frozen=True)
class StepResult:
    """loss (of the whole batch); mean similarity of patches of one composition, of a patch and all other keys, and of
    compositions of one image (nan without any); and queries that had a positive (of this process).  embedded: what the
    first part of the batch became before the update."""

    loss: float
    positive_similarity: float
    negative_similarity: float
    same_image_similarity: float
    valid_rows: int
    embedded: Embedded


def learning_rate(config: PretrainConfig, step: int, steps: int) -> float:
    """Rate of the step-th update (from 0): linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, steps - config.warmup_steps)
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))


class Learner:
    """The state of a pre-training run. Weights are drawn from ``config.seed`` without touching torch's global
    generator. world: the processes that share the batch; every one holds the same weights."""

    def __init__(self, config: PretrainConfig, device: torch.device, world: World | None = None) -> None:
        self.config = config
        self.device = device
        self.world = World() if world is None else world
        self.updates = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            encoder = build_encoder(config.arch, config.width)
            head = projection_head(encoder.feature_dim, config.projection_dim)
        if config.init:
            encoder.load_state_dict(load_encoder(config.init).state_dict())
        encoder.activation_checkpointing = config.activation_checkpointing
        self.query = nn.ModuleDict({"encoder": encoder, "head": head})
        if self.world.size > 1 and config.batch_norm == "sync":
            synchronise(self.query, device)
        # torch 2.13 on a CPU without AVX-512 corrupts memory in the backward pass of a narrow channels-last network.
        self.memory_format = torch.channels_last if config.width >= 8 else torch.contiguous_format
        self.query.to(device).to(memory_format=self.memory_format).train()  # type: ignore[call-overload]
        self.key: nn.ModuleDict | None = None
        self.pool: NegativePool | None = None
        if config.mode == "moco":
            self.key = copy.deepcopy(self.query).requires_grad_(False)
            if config.pool_size:
                rows = config.pool_size // (self.world.size if config.pool_layout == "sharded" else 1)
                self.pool = NegativePool(
                    rows, config.projection_dim, dtype=getattr(torch, config.pool_dtype), device=device
                )
        if config.compile:
            for network in (self.query, self.key):
                if network is not None:
                    network["encoder"].compile()
        self.optimizer = build_optimizer(config, self.query)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")

    def step(self, patches: Tensor, groups: Tensor, images: Tensor, lr: float) -> StepResult:
        """Forward, backward, update.

        patches (r, P, 3, s, s) uint8: the patches of each composition; groups (r,) int64: equal ids are positives, none
        was used before; images (r,) int64: photograph of each row, its compositions adjacent. Of several processes
        each gives its part of the batch. Raises InputError if the loss or an embedding is not finite; weights, pool
        and optimiser are then as they were.
        """
        loss, parts = self.gradients(patches, groups, images)
        figures = torch.stack([loss, *self._similarities(parts)])
        value, positive, negative, same = figures.tolist()  # the one wait for the device
        if not math.isfinite(value):
            raise InputError(f"pretrain: the loss must be finite, got {value}")
        self.update(parts, lr)
        queries = len(images) * (self.config.patches if self.key is None else 1)
        return StepResult(value, positive, negative, same, queries, parts[0])

    def gradients(self, patches: Tensor, groups: Tensor, images: Tensor) -> tuple[Tensor, list[Embedded]]:
        """The loss, 0-d, with its gradient left in the weights' ``grad``; and the parts that accumulation makes.

        Nothing is read back from the device, and of the state only running batch-norm statistics change.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, parts = [], []
        views = self.config.compositions
        sizes = [len(rows) for rows in deal(len(images) // views, views, self.config.accumulate, None)]
        for part in zip(*(rows.split(sizes) for rows in (patches, groups, images)), strict=True):
            loss, embedded = self._backward(*part)
            losses.append(loss)
            parts.append(embedded)
        self.world.average_gradients(self.query.parameters())
        return torch.stack(losses).mean(), parts

    def update(self, parts: list[Embedded], lr: float) -> None:
        """Move the weights along the gradients, the key encoder after them, and push the keys."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        if self.key is not None:
            self._follow()
        if self.pool is not None:
            for part in parts:
                everyone = self.config.pool_layout == "replicated"
                new = (part.keys, part.groups, part.images)
                self.pool.push(*(self.world.gather_rows(rows) if everyone else rows for rows in new))

    def _backward(self, patches: Tensor, groups: Tensor, images: Tensor) -> tuple[Tensor, Embedded]:
        """Loss of one part of the batch, and its share of the gradient; in moco mode ``symmetric`` takes it with each
        patch as the query."""
        patches_each = self.config.patches
        ways = range(patches_each if self.config.symmetric and self.key is not None else 1)
        losses, seen = [], []
        for first in ways:
            embeddings, keys, ids, key_ids = self._embedded(patches, groups, images, first)
            loss = self._loss(embeddings.values, keys, ids, key_ids)
            self.scaler.scale(loss / (len(ways) * self.config.accumulate)).backward()
            embeddings.backward()
            losses.append(loss.detach())
            seen.append((embeddings.values.detach(), keys.detach()))
        queries, keys = seen[0]
        if self.key is None:  # the first patch and each other one, as they pair up
            rows = queries.unflatten(0, (len(images), patches_each))
            queries, keys = rows[:, 0], rows[:, 1:].flatten(0, 1)
        pairs = [rows.repeat_interleave(patches_each - 1, dim=0) for rows in (queries, groups, images)]
        return torch.stack(losses).mean(), Embedded(pairs[0], keys, pairs[1], pairs[2])

    def _embedded(
        self, patches: Tensor, groups: Tensor, images: Tensor, first: int
    ) -> tuple[Embeddings, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Queries, keys and the (groups, images) of each. in_batch: every patch is both (SimCLR's arrangement); moco:
        patch ``first`` is a query, the others are keys of the EMA encoder."""
        straight, rng, each = self._chunks(len(images), None), self._random(_TO_CHUNKS), self.config.patches
        if self.key is None:
            dealt = [straight, *(self._chunks(len(images), rng) for _ in range(each - 1))]
            chunks = [torch.cat([each * rows + p for p, rows in enumerate(part)]) for part in zip(*dealt, strict=True)]
            queries = Embeddings(self._embed_with(self.query), self.query, patches.flatten(0, 1), chunks)
            ids = groups.repeat_interleave(each), images.repeat_interleave(each)
            return queries, queries.values, ids, ids
        queries = Embeddings(self._embed_with(self.query), self.query, patches[:, first], straight)
        others = patches[:, [p for p in range(each) if p != first]]
        keys = self._keys(self.key, others, self._chunks(len(images), rng)).flatten(0, 1)
        key_ids = groups.repeat_interleave(each - 1), images.repeat_interleave(each - 1)
        return queries, keys, (groups, images), key_ids

    def _random(self, purpose: int) -> np.random.Generator:
        """One of this step, the same on all processes however much another purpose has drawn on each."""
        return np.random.default_rng([purpose, self.config.seed, self.updates])

    def _keys(self, network: nn.ModuleDict, patches: Tensor, chunks: list[Tensor]) -> Tensor:
        """(N, p, 3, s, s) -> (N, p, D) keys without a graph. With shuffled batch norm the processes embed each other's
        (MoCo, arXiv 1911.05722)."""
        embed_patches = self._embed_with(network)

        def embed(rows: Tensor) -> Tensor:
            return embed_patches(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

        if self.world.size == 1 or self.config.batch_norm != "shuffled":
            return embed_frozen(embed, patches, chunks)
        counts = self.world.gather(len(patches))
        views, rng = self.config.compositions, self._random(_TO_PROCESSES)
        dealt = [order.to(self.device) for order in deal(sum(counts) // views, views, self.world.size, rng)]
        mine = self.world.gather_rows(patches)[dealt[self.world.rank]]
        parts = torch.arange(len(mine), device=self.device).tensor_split(len(chunks))
        keys = restore(dealt, [self.world.gather_rows(embed_frozen(embed, mine, [p for p in parts if len(p)]))])
        start = sum(counts[: self.world.rank])
        return keys[start : start + len(patches)]

    def _chunks(self, rows: int, rng: np.random.Generator | None) -> list[Tensor]:
        """Rows that one pass of the encoder takes, by ``chunk_images``. All processes make the same number of chunks,
        whatever could not be read, for they normalise together."""
        config = self.config
        own = config.batch_images // self.world.size // config.accumulate
        count = math.ceil(own / config.chunk_images) if config.chunk_images else 1
        if config.batch_norm == "local":
            rng = None
        dealt = deal(rows // config.compositions, config.compositions, count, rng)
        together = self.world.size > 1 and config.batch_norm == "sync"
        return [chunk.to(self.device) for chunk in dealt if together or len(chunk)]

    def _embed_with(self, network: nn.ModuleDict) -> Any:
        """(n, 3, s, s) uint8 -> (n, D) float32 of unit length."""
        dtype = getattr(torch, self.config.precision)

        def embed(patches: Tensor) -> Tensor:
            x = normalise(patches.contiguous(memory_format=self.memory_format), dtype)
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                embedding = network["head"](network["encoder"](x))
            return nn.functional.normalize(embedding.float(), dim=1)

        return embed

    def _loss(
        self, queries: Tensor, keys: Tensor, ids: tuple[Tensor, Tensor], key_ids: tuple[Tensor, Tensor]
    ) -> Tensor:
        config, (groups, images), (key_groups, key_images) = self.config, ids, key_ids
        options: dict[str, Any] = {"exclude_self": True}
        if self.key is not None:
            options = {"pool": self.pool, "in_batch_negatives": config.in_batch_negatives}
        if self.world.size > 1:
            options |= {"key_exchange": config.key_exchange, "pool_layout": config.pool_layout}
        call = contrastive_loss if self.world.size == 1 else distributed_contrastive_loss
        return call(
            queries,
            keys,
            query_groups=groups,
            key_groups=key_groups,
            query_images=images,
            key_images=key_images,
            temperature=config.temperature,
            same_image_weight=config.same_image_weight,
            **options,
        )

    @torch.no_grad()
    def _similarities(self, parts: list[Embedded]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean similarity of patches of one composition, of queries and all other keys, and of compositions of one
        image, of this process; from sums of embeddings, so that none but the first kind is computed pair by pair."""
        views, each = self.config.compositions, self.config.patches - 1  # keys, and rows, of a query
        pairs = sum(len(part.queries) for part in parts)
        positive = torch.stack([(part.queries * part.keys).sum() for part in parts]).sum()
        shape = (-1, views * each)
        blocks = [(part.queries.unflatten(0, shape), part.keys.unflatten(0, shape)) for part in parts]
        images = torch.stack([(q.sum(1) * k.sum(1)).sum() for q, k in blocks]).sum() / each
        same = (images - positive) / (pairs * (views - 1)) if views > 1 else positive * math.nan
        total, count = positive * 0, 0
        if self.key is None or self.config.in_batch_negatives:
            for part in parts:
                total = total + (part.queries.sum(0) * part.keys.sum(0)).sum() / each
                count += len(part.queries) ** 2 // each
            total, count = total - positive, count - pairs
        if self.pool is not None and len(self.pool):
            queries = torch.stack([part.queries.sum(0) for part in parts]).sum(0) / each
            total = total + (queries * self.pool.keys.sum(0, dtype=torch.float32)).sum()
            count += pairs // each * len(self.pool)
        return positive / pairs, total / count if count else positive * math.nan, same

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the key encoder's weights toward the query encoder's (MoCo, arXiv 1911.05722, eq. 2)."""
        assert self.key is not None
        for mine, leader in zip(self.key.parameters(), self.query.parameters(), strict=True):
            mine.lerp_(leader, 1.0 - self.config.momentum)

    def state_dict(self, *, own: bool = False) -> dict[str, Any]:
        """What a checkpoint holds; the same on every process, which all must ask for it. Tensors are not copied.
        own: of a sharded pool this process's part only, and no other process is asked."""
        pool = None if self.pool is None else self.pool.state_dict()
        sharded = self.config.pool_layout == "sharded"
        return {
            "encoder": self.query["encoder"].state_dict(),
            "head": self.query["head"].state_dict(),
            "key": None if self.key is None else self.key.state_dict(),
            "pool": self.world.gather(pool) if sharded and not own else pool,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a ``state_dict`` in; InputError if a sharded pool is that of another number of processes."""
        self.query["encoder"].load_state_dict(state["encoder"])
        self.query["head"].load_state_dict(state["head"])
        if self.key is not None:
            self.key.load_state_dict(state["key"])
        if self.pool is not None:
            pool = state["pool"]
            if isinstance(pool, list):
                if len(pool) != self.world.size:
                    raise InputError(
                        f"pretrain: the number of processes must be {len(pool)}, as before, for a sharded pool, "
                        f"got {self.world.size}"
                    )
                pool = pool[self.world.rank]
            self.pool.load_state_dict(pool)
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state.get("updates", 0)
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
