"""One training step: patches of some compositions of each image in, loss and updated weights out.

``Learner`` owns everything a step changes (encoders, head, pool, optimiser), which is what a checkpoint holds. Called
by ``qpt.pretraining.engine``; relies on ``qpt.ops.contrastive`` for the loss and the pool of negatives, and on
``qpt.pretraining.embed`` for embedding in chunks.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from qpt.data.normalise import normalise
from qpt.errors import InputError
from qpt.models import build_encoder, load_weights
from qpt.models.base import Encoder
from qpt.models.heads import stage_means, stage_statistics
from qpt.models.norm import freeze_batch_norm, synchronise
from qpt.models.two_trunks import joined_state
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.distributed import distributed_contrastive_loss
from qpt.ops.contrastive.pool import NegativePool
from qpt.pretraining.arithmetic import with_precision
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.embed import Embeddings, assign_chunks, embed_no_grad, restore_order, send
from qpt.pretraining.optimisers import build_optimizer, set_rate
from qpt.pretraining.process_group import ProcessGroup
from qpt.pretraining.similarities import EmbeddedPairs, mean_similarities
from qpt.pretraining.terms import head_on, make_terms, terms_loss

_FOR_CHUNKS, _FOR_PROCESSES = 3, 4  # first word of a seed: the purpose of the stream (see qpt.data.regions)


@dataclass(frozen=True)
class StepResult:
    """loss of the whole batch; mean similarity of patches of one composition, of a patch and all other keys, and of
    compositions of one image (nan without any); valid_rows: queries of this process that had a positive.  embedded: the
    first part of the batch, embedded before the update."""

    loss: float
    positive_similarity: float
    negative_similarity: float
    same_image_similarity: float
    valid_rows: int
    embedded: EmbeddedPairs


def learning_rate(config: PretrainConfig, step: int, steps: int) -> float:
    """Return the rate of the step-th update (from 0): linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, steps - config.warmup_steps)
    return 0.5 * config.lr * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))


class Learner:
    """The state of a pre-training run. Weights are drawn from ``config.seed`` without touching torch's global
    generator. processes: those that share the batch; every one holds the same weights."""

    def __init__(self, config: PretrainConfig, device: torch.device, processes: ProcessGroup | None = None) -> None:
        self.device = device
        self.processes = ProcessGroup() if processes is None else processes
        self.config = config = with_precision(config, device, self.processes)
        self.updates = 0
        self._dtype = getattr(torch, config.precision)
        self._reads_stages = bool(config.head_input == "stages" or config.regression or config.distillation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            encoder = build_encoder(config.arch, config.width)
            head = head_on(config, encoder, config.projection_dim)
        if config.init:
            load_weights(encoder, config.init)
        encoder.activation_checkpointing = config.activation_checkpointing
        self.query = nn.ModuleDict({"encoder": encoder, "head": head})
        self.frozen: Any = None  # the encoder as the run began with it
        if config.distillation or config.two_trunks:
            self.frozen = copy.deepcopy(encoder).requires_grad_(False)
        if self.processes.size > 1 and config.batch_norm == "sync":
            synchronise(self.query, device)
        # torch 2.13 on a CPU without AVX-512 corrupts memory in the backward pass of a narrow channels-last network.
        self.memory_format = torch.channels_last if config.width >= 8 else torch.contiguous_format
        self.query.to(device).to(memory_format=self.memory_format).train()  # type: ignore[call-overload]
        if self.frozen is not None:
            self.frozen.to(device).to(memory_format=self.memory_format).eval()
        if config.freeze_batch_norm:
            freeze_batch_norm(encoder)
        self.key: nn.ModuleDict | None = None
        self.pool: NegativePool | None = None
        if config.mode == "moco":
            self.key = copy.deepcopy(self.query).requires_grad_(False)
            if config.pool_size:
                rows = config.pool_size // (self.processes.size if config.pool_layout == "sharded" else 1)
                self.pool = NegativePool(
                    rows, config.projection_dim, dtype=getattr(torch, config.pool_dtype), device=device
                )
        self._terms = make_terms(config, encoder)
        for name, term in self._terms.items():  # from here on, because the key encoder has none
            self.query[name] = term.to(device)
        if config.compile:
            for network in (self.query, self.key):
                if network is not None:
                    self._compile(network["encoder"])
        self.optimizer = build_optimizer(config, self.query)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")

    def _compile(self, encoder: nn.Module) -> None:
        """Compile what ``_embed_with`` calls of an encoder."""
        if self._reads_stages:
            encoder.stages = torch.compile(encoder.stages)  # type: ignore[assignment, arg-type]
        else:
            encoder.compile()

    def step(self, patches: Tensor, groups: Tensor, images: Tensor, lr: float, **further: Tensor) -> StepResult:
        """Run the forward and backward pass and update the weights.

        patches (r, P, 3, s, s) uint8: the patches of each composition; groups (r,) int64: equal ids are positives, none
        was used before; images (r,) int64: image of each row, its compositions adjacent; further: arguments of
        ``gradients`` (``StepInput.further``). Each process gives its part of the batch. Raises InputError if the loss
        or an embedding is not finite; weights, pool and optimiser are then as they were.
        """
        loss, parts = self.gradients(patches, groups, images, **further)
        figures = torch.stack([loss, *self._similarities(parts)])
        value, positive, negative, same = figures.tolist()  # the only wait for the device in a step
        if not math.isfinite(value):
            raise InputError(f"pretrain: the loss must be finite, got {value}")
        self.update(parts, lr)
        queries = len(images) * (self.config.patches if self.key is None else 1)
        return StepResult(value, positive, negative, same, queries, parts[0])

    def gradients(
        self,
        patches: Tensor,
        groups: Tensor,
        images: Tensor,
        measured: Tensor | None = None,
        severities: Tensor | None = None,
    ) -> tuple[Tensor, list[EmbeddedPairs]]:
        """Compute the loss, 0-d, and leave its gradient in the weights' ``grad``; also return the accumulated parts.

        measured (r, P, C): what the regression head predicts; severities (r, S): what positives are graded by. Nothing
        is read back from the device, and of the state only the buffers of the networks change.
        """
        targets = self._targets(patches, measured)
        ids = (groups, images) if severities is None else (groups, images, severities)
        self.optimizer.zero_grad(set_to_none=True)
        losses, parts = [], []
        views = self.config.compositions
        sizes = [len(rows) for rows in assign_chunks(len(images) // views, views, self.config.accumulate, None)]
        for part, wanted, *own in zip(*(rows.split(sizes) for rows in (patches, targets, *ids)), strict=True):
            loss, embedded = self._backward(part, wanted, tuple(own))
            losses.append(loss)
            parts.append(embedded)
        self.processes.average_gradients(self.query.parameters())
        return torch.stack(losses).mean(), parts

    def update(self, parts: list[EmbeddedPairs], lr: float) -> None:
        """Update the weights from their gradients, then the key encoder, and push the keys into the pool."""
        set_rate(self.optimizer, lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        if self.key is not None:
            self._update_ema(self.key)
        if self.pool is not None:
            for part in parts:
                replicated = self.config.pool_layout == "replicated"
                new = (part.keys, part.groups, part.images)
                self.pool.push(*(self.processes.gather_rows(rows) if replicated else rows for rows in new))

    @torch.no_grad()
    def _update_ema(self, key: nn.ModuleDict) -> None:
        """Move the key encoder's weights toward the query encoder's (MoCo, arXiv 1911.05722, eq. 2)."""
        pairs = [(network, self.query[name]) for name, network in key.items()]  # terms have no part in it
        keys, queries = ([p for network in side for p in network.parameters()] for side in zip(*pairs, strict=True))
        get_ema_multi_avg_fn(self.config.momentum)(keys, queries, None)  # all weights in a few kernels

    def _query_places(self) -> range:
        """Return the places of the patches that are queries of a loss of their own in moco mode."""
        return range(self.config.patches if self.config.symmetric and self.key is not None else 1)

    @torch.no_grad()
    def _targets(self, patches: Tensor, measured: Tensor | None) -> Tensor:
        """Return the targets of all terms for the patches that the query network embeds, (r, P, columns)."""
        places = self.config.patches if self.key is None else len(self._query_places())
        patches, targets = patches[:, :places], []
        if "regression" in self._terms:
            assert measured is not None
            targets.append(self._terms["regression"].targets(measured[:, :places].flatten(0, 1), self.processes))
        if "distillation" in self._terms:
            rows = patches.flatten(0, 1)
            chunks = rows.split(max(1, self.config.chunk_images or len(rows)))
            means = torch.cat([stage_means(self._maps(self.frozen, chunk)) for chunk in chunks])
            targets.append(self._terms["distillation"].targets(means, self.processes))
        if not targets:
            return patches.new_empty((*patches.shape[:2], 0))
        return torch.cat(targets, dim=1).unflatten(0, patches.shape[:2])

    def _backward(self, patches: Tensor, targets: Tensor, ids: tuple[Tensor, ...]) -> tuple[Tensor, EmbeddedPairs]:
        """Compute the loss of one part of the batch and add its share of the gradient. ids: as in ``_loss``.

        In moco mode ``symmetric`` takes the mean over the losses with each patch as the query.
        """
        config, patches_each = self.config, self.config.patches
        query_places = self._query_places()
        losses, embedded = [], []
        for place in query_places:
            embeddings, queries, keys = self._embed(patches, place)
            loss = self._loss(queries, keys, ids)
            if self._terms:
                wanted = targets.flatten(0, 1) if self.key is None else targets[:, place]
                loss = loss + terms_loss(config, self._terms, embeddings.values[:, config.projection_dim :], wanted)
            self.scaler.scale(loss / (len(query_places) * config.accumulate)).backward()
            embeddings.backward()
            losses.append(loss.detach())
            embedded.append((queries.detach(), keys.detach()))
        queries, keys = embedded[0]
        if self.key is None:  # every patch is a query: pair the first of a composition with each other one
            rows = queries.unflatten(0, (len(patches), patches_each))
            queries, keys = rows[:, 0], rows[:, 1:].flatten(0, 1)
        pairs = [rows.repeat_interleave(patches_each - 1, dim=0) for rows in (queries, *ids[:2])]
        return torch.stack(losses).mean(), EmbeddedPairs(pairs[0], keys, pairs[1], pairs[2])

    def _embed(self, patches: Tensor, query_place: int) -> tuple[Embeddings, Tensor, Tensor]:
        """Embed queries and keys; return what embeds the queries, and both.

        in_batch: every patch is both (SimCLR's arrangement).  moco: patch ``query_place`` of each composition is a
        query, the others are keys of the EMA encoder.
        """
        in_order, rng, each = self._chunks(len(patches), None), self._generator(_FOR_CHUNKS), self.config.patches
        if self.key is None:
            # Patches at each place are assigned to chunks anew, so that the first patch of a composition shares no
            # statistics with the others; chunk i of every place then goes through the encoder at once.
            by_place = [in_order, *(self._chunks(len(patches), rng) for _ in range(each - 1))]
            chunks = [
                torch.cat([each * rows + place for place, rows in enumerate(part)])
                for part in zip(*by_place, strict=True)
            ]
            embeddings = Embeddings(self._embed_with(self.query), self.query, patches.flatten(0, 1), chunks)
            queries = self._without_terms(embeddings)
            return embeddings, queries, queries
        embeddings = Embeddings(self._embed_with(self.query), self.query, patches[:, query_place], in_order)
        others = patches[:, [place for place in range(each) if place != query_place]]
        keys = self._embed_keys(self.key, others, self._chunks(len(patches), rng)).flatten(0, 1)
        return embeddings, self._without_terms(embeddings), keys

    def _without_terms(self, embeddings: Embeddings) -> Tensor:
        return embeddings.values[:, : self.config.projection_dim] if self._terms else embeddings.values

    def _embed_keys(self, network: nn.ModuleDict, patches: Tensor, chunks: list[Tensor]) -> Tensor:
        """Embed (N, p, 3, s, s) patches as (N, p, D) keys without a graph. With shuffled batch norm the processes embed
        each other's (MoCo, arXiv 1911.05722)."""
        embed_patches = self._embed_with(network)

        def embed(rows: Tensor) -> Tensor:
            return embed_patches(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

        if self.processes.size == 1 or self.config.batch_norm != "shuffled":
            return embed_no_grad(embed, patches, chunks)
        counts = self.processes.gather(len(patches))
        views, rng = self.config.compositions, self._generator(_FOR_PROCESSES)
        by_process = assign_chunks(sum(counts) // views, views, self.processes.size, rng)
        by_process = tuple(send(rows, self.device) for rows in by_process)
        own = self.processes.gather_rows(patches)[by_process[self.processes.rank]]
        parts = torch.arange(len(own), dtype=torch.int64, device=self.device).tensor_split(len(chunks))
        embedded = embed_no_grad(embed, own, [part for part in parts if len(part)])
        keys = restore_order(by_process, [self.processes.gather_rows(embedded)])
        start = sum(counts[: self.processes.rank])
        return keys[start : start + len(patches)]

    def _chunks(self, rows: int, rng: np.random.Generator | None) -> list[Tensor]:
        """Assign rows to the chunks that ``chunk_images`` makes, each of which goes through the encoder at once."""
        config = self.config
        # From the config and not from ``rows``: processes that normalise together need the same number of chunks,
        # whatever each could not read.
        own = config.batch_images // self.processes.size // config.accumulate
        count = math.ceil(own / config.chunk_images) if config.chunk_images else 1
        if config.batch_norm == "local":
            rng = None
        chunks = assign_chunks(rows // config.compositions, config.compositions, count, rng)
        together = self.processes.size > 1 and config.batch_norm == "sync"
        return [send(chunk, self.device) for chunk in chunks if together or len(chunk)]

    def _generator(self, purpose: int) -> np.random.Generator:
        """Return a generator of this step, the same on all processes whatever another purpose has drawn on each."""
        return np.random.default_rng([purpose, self.config.seed, self.updates])

    def _embed_with(self, network: nn.ModuleDict) -> Any:
        """Return a function from (n, 3, s, s) uint8 patches to (n, D) float32 embeddings of unit length.

        Of the query network with terms (``qpt.pretraining.terms``), their columns follow the embedding.
        """
        terms, encoder = self._terms if network is self.query else {}, cast("Encoder", network["encoder"])

        def embed(patches: Tensor) -> Tensor:
            with self._autocast():
                if self._reads_stages:
                    maps = self._maps(encoder, patches)
                    features = stage_statistics(maps) if self.config.head_input == "stages" else stage_means(maps[-1:])
                else:
                    maps, features = [], encoder(self._normalised(patches))
                embedding = network["head"](features)
                columns = [term.outputs(features, maps).float() for term in terms.values()]
            values = nn.functional.normalize(embedding.float(), dim=1)
            return torch.cat([values, *columns], dim=1) if columns else values

        return embed

    def _maps(self, encoder: Any, patches: Tensor) -> Any:
        """Return the stages of (n, 3, s, s) uint8 patches by an encoder."""
        with self._autocast():
            return encoder.stages(self._normalised(patches))

    def _normalised(self, patches: Tensor) -> Tensor:
        return normalise(patches.contiguous(memory_format=self.memory_format), self._dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def _loss(self, queries: Tensor, keys: Tensor, ids: tuple[Tensor, ...]) -> Tensor:
        """Return the contrastive loss. ids: groups, images and, where positives are graded, severities of each row."""
        config, in_batch = self.config, self.key is None
        key_ids = tuple(rows.repeat_interleave(config.patches - (not in_batch), dim=0) for rows in ids)
        options: dict[str, Any] = {"pool": self.pool, "in_batch_negatives": config.in_batch_negatives}
        if in_batch:  # every patch is a query and a key: the very same tensors
            ids, options = key_ids, {"exclude_self": True}
        for name, rows, key_rows in zip(("groups", "images", "severities"), ids, key_ids, strict=False):
            options |= {f"query_{name}": rows, f"key_{name}": key_rows}
        if config.graded_positives:
            options["severity_width"] = config.graded_positives
        if self.processes.size > 1:
            options |= {"key_exchange": config.key_exchange, "pool_layout": config.pool_layout}
        call = contrastive_loss if self.processes.size == 1 else distributed_contrastive_loss
        return call(
            queries,
            keys,
            temperature=config.temperature,
            same_image_weight=config.same_image_weight,
            precision=config.loss_precision,
            **options,
        )

    def _similarities(self, parts: list[EmbeddedPairs]) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        in_batch = self.key is None or config.in_batch_negatives
        return mean_similarities(parts, config.compositions, config.patches - 1, in_batch, self.pool)

    def state_dict(self, *, own: bool = False) -> dict[str, Any]:
        """Return what a checkpoint holds, the same on every process, all of which must call this. No tensor is copied.

        own: of a sharded pool return this process's part alone, without calling another process.
        """
        pool = None if self.pool is None else self.pool.state_dict()
        sharded = self.config.pool_layout == "sharded"
        state = {
            "encoder": self.query["encoder"].state_dict(),
            "head": self.query["head"].state_dict(),
            "key": None if self.key is None else self.key.state_dict(),
            "pool": self.processes.gather(pool) if sharded and not own else pool,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
        }
        state |= {name: term.state_dict() for name, term in self._terms.items()}
        return state if self.frozen is None else {**state, "frozen": self.frozen.state_dict()}

    def saved_encoder(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the encoder that ``load_encoder`` finds in a checkpoint, of a ``state_dict``."""
        return joined_state(state["frozen"], state["encoder"]) if self.config.two_trunks else state["encoder"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a ``state_dict``. Raises InputError if a sharded pool is that of another number of processes."""
        self.query["encoder"].load_state_dict(state["encoder"])
        self.query["head"].load_state_dict(state["head"])
        for name, term in self._terms.items():
            term.load_state_dict(state[name])
        if self.frozen is not None:  # ``config.init`` may have changed, or be gone
            self.frozen.load_state_dict(state["frozen"])
        if self.key is not None:
            self.key.load_state_dict(state["key"])
        if self.pool is not None:
            pool = state["pool"]
            if isinstance(pool, list):
                if len(pool) != self.processes.size:
                    raise InputError(
                        f"pretrain: the number of processes must be {len(pool)}, as before, for a sharded pool, "
                        f"got {self.processes.size}"
                    )
                pool = pool[self.processes.rank]
            self.pool.load_state_dict(pool)
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state.get("updates", 0)
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
