"""Trace the training step with fake tensors: its peak memory, without computing and without a GPU.

``StepTrace`` holds a ``Learner`` whose tensors have shapes and no values; ``peaks(images)`` runs what the engine runs
for a batch (degrade, cut, ``Learner.step``) under the memory tracker. Used by ``qpt.planning.search`` and tests.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from qpt.degradations import op_table
from qpt.degradations.op_table import MAX_PARAMS
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.ops import workspace
from qpt.ops.contrastive.pool import NegativePool
from qpt.ops.degrade.api import degrade_patches
from qpt.planning.tracker import MemoryTracker, Peaks
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.half_scale import ROWS_AT_ONCE, halve
from qpt.pretraining.learner import Learner
from qpt.pretraining.targets import COLUMNS, KINDS

# The tensors are fake CPU tensors, because autocast refuses a device that is not there. What differs on a GPU is set
# here: optimisers work on all tensors at once, the loader holds one batch ahead, and the workspaces are those of CUDA.

#: Categories of memory, in the order of the printed plan.
CATEGORIES = (
    "weights",
    "gradients",
    "optimiser",
    "EMA encoder",
    "pool",
    "regions",
    "patches and degradation",
    "activations",
    "loss",
)


@dataclass(frozen=True)
class Target:
    """The device of the step. gpu: a GPU with ``teams`` multiprocessors, otherwise a CPU with as many threads.
    batches: number of batches whose regions are held at a time (the loader copies one ahead of the step on CUDA)."""

    gpu: bool
    teams: int
    batches: int


class StepTrace:
    """The fake learner of ``config`` on ``target``, made once and traced at any number of sizes.

    batch_images and chunk_images of the config are replaced by the arguments of ``peaks``. The pool is full, and the
    optimiser has its state, as after the first steps of a run. ``compile`` is ignored.
    """

    def __init__(self, config: PretrainConfig, target: Target) -> None:
        if config.precision == "auto":  # bfloat16 on most GPUs; the larger of the two is planned for
            config = dataclasses.replace(config, precision="float32")
        self.config, self.target = config, target
        space = DegradationSpace.named(config.space)
        self._resizes = "resize_to" in space.names
        self._slots = space.sample(1, generator=torch.Generator().manual_seed(0)).ops.shape[1]
        small = dataclasses.replace(config, pool_size=0, compile=False, init="", device="cpu")
        real = Learner(small, torch.device("cpu"))
        self._hooks: list[Any] = []
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(self._mode):
            self._learner = copy.deepcopy(real)
        # A GradScaler reads a value to find out whether the gradient overflowed; a fake tensor has none.
        self._learner.scaler = torch.amp.GradScaler("cpu", enabled=False)
        if target.gpu:
            for group in self._learner.optimizer.param_groups:
                group["foreach"] = True  # torch's choice on CUDA
        with self._mode:
            if config.mode == "moco" and config.pool_size:
                self._learner.pool = _full_pool(config)
            self._run(2 * config.accumulate, 0)  # the optimiser makes its state in its first step

    def peaks(self, images: int, chunk_images: int) -> Peaks:
        """Return the peaks of a step of ``images`` images, embedded ``chunk_images`` at a time (0: at once)."""
        with self._mode:
            return self._run(images, chunk_images)

    def _run(self, images: int, chunk_images: int) -> Peaks:
        """Run what ``qpt.pretraining.engine`` runs for one batch."""
        learner, target = self._learner, self.target
        config = learner.config = dataclasses.replace(self.config, batch_images=images, chunk_images=chunk_images)
        rows, slots, side = images * config.compositions, self._slots, config.region
        # The program is on the host; its copy on the device is counted in the op's workspace.
        program = Program(
            ops=torch.zeros((rows, slots), dtype=torch.int16, device="cpu"),
            levels=torch.zeros((rows, slots), dtype=torch.int8, device="cpu"),
            params=torch.zeros((rows, slots, MAX_PARAMS), dtype=torch.float32, device="cpu"),
            seeds=torch.zeros(rows, dtype=torch.int64, device="cpu"),
            source=torch.zeros(rows, dtype=torch.int32, device="cpu"),
            table=op_table.fingerprint(),
        )
        boxes = torch.zeros((rows, config.patches, 2), dtype=torch.int32, device="cpu")
        with MemoryTracker(self._workspace) as tracker:
            self._register(tracker)
            with tracker.category("regions"):
                shape = (images, side, side, 3)
                held = [torch.empty(shape, dtype=torch.uint8, device="cpu") for _ in range(target.batches)]
            patches = degrade_patches(held[0], program, boxes, config.patch_size, dtype=torch.uint8)
            if config.half_scale:
                some = slice(ROWS_AT_ONCE)
                with tracker.category("patches and degradation"):
                    size = 2 * config.patch_size
                    halve(degrade_patches(held[0], program[some], boxes[some, :1], size, dtype=torch.uint8)[:, 0])
            groups = torch.arange(rows, dtype=torch.int64, device="cpu")
            further = {}
            if config.regression:
                further["measured"] = torch.empty((rows, config.patches, COLUMNS), dtype=torch.float32, device="cpu")
            if config.graded_positives:
                further["severities"] = torch.empty((rows, len(KINDS)), dtype=torch.float32, device="cpu")
            learner.step(patches, groups, groups // config.compositions, config.lr, **further)
        return tracker.peaks

    def _register(self, tracker: MemoryTracker) -> None:
        """Assign the learner's tensors to their categories, and gradients when they are made."""
        learner = self._learner
        for network, name in ((learner.query, "weights"), (learner.frozen, "weights"), (learner.key, "EMA encoder")):
            for tensor in () if network is None else (*network.parameters(), *network.buffers()):
                tracker.assign(tensor, name)
        for state in learner.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    tracker.assign(value, "optimiser")
        for ring in learner.pool.ring if learner.pool is not None else ():
            tracker.assign(ring, "pool")
        for handle in self._hooks:
            handle.remove()
        self._hooks = [
            weight.register_post_accumulate_grad_hook(lambda weight: tracker.assign(weight.grad, "gradients"))
            for weight in learner.query.parameters()
        ]

    def _workspace(self, op: str, arguments: tuple[Any, ...]) -> tuple[int, str]:
        """See ``MemoryTracker``."""
        config, native = self.config, not self.target.gpu
        if op == "degrade_patches":
            rows, slots = arguments[1].shape
            teams, side = self.target.teams, config.region
            size = workspace.degrade_bytes(
                rows, slots, config.patches, side, resizes=self._resizes, teams=teams, gpu=self.target.gpu
            )
            return size, "patches and degradation"
        queries, size = arguments[0], 0
        if op == "contrastive_forward":
            pool = arguments[6]
            keys = 0 if pool is None else len(pool)
            graded = config.graded_positives > 0
            size = workspace.contrastive_forward_bytes(*_sizes(queries, keys), native=native, graded=graded)
        elif op == "contrastive_self_forward":
            size = workspace.contrastive_self_forward_bytes(*queries.shape, native=native)
        elif op == "contrastive_self_backward":
            size = workspace.contrastive_self_backward_bytes(*queries.shape, native=native)
        return size, "loss"

    def loss_bytes(self, rows: int) -> int:
        """Return the memory of the loss alone for ``rows`` queries: outputs and workspace of its ops."""
        dim, native = self.config.projection_dim, not self.target.gpu
        pool = 0 if self._learner.pool is None else len(self._learner.pool)
        output = rows * (dim * 4 + 12)  # gradient of the queries, log-sum-exps, numbers of positives
        if self.config.mode != "in_batch":
            graded = self.config.graded_positives > 0
            return output + workspace.contrastive_forward_bytes(rows, pool, dim, native=native, graded=graded)
        forward = workspace.contrastive_self_forward_bytes(rows, dim, native=native)
        return output + max(forward, workspace.contrastive_self_backward_bytes(rows, dim, native=native))


def full_logits_bytes(queries: int, keys: int, pool: int, dim: int) -> int:
    """Return the peak bytes of the loss as MoCo's code has it, with N x (M + K) logits in memory: similarities over
    temperature, cross entropy, backward. A mask of same-image pairs would add to it."""
    with FakeTensorMode(), MemoryTracker(lambda *_: (0, "")) as tracker:
        embedded = torch.empty((queries, dim), dtype=torch.float32, device="cpu", requires_grad=True)
        logits = embedded @ torch.empty((keys + pool, dim), dtype=torch.float32, device="cpu").T / 0.2
        targets = torch.arange(queries, dtype=torch.int64, device="cpu")
        nn.functional.cross_entropy(logits, targets).backward()
    return tracker.peaks["step"].bytes


def _sizes(queries: Tensor, keys: int) -> tuple[int, int, int]:
    rows, dim = queries.shape
    return rows, keys, dim


def _full_pool(config: PretrainConfig) -> NegativePool:
    """Return a pool that counts as full."""
    pool = NegativePool(config.pool_size, config.projection_dim, dtype=getattr(torch, config.pool_dtype), device="cpu")
    pool.load_state_dict({**pool.state_dict(), "count": config.pool_size})
    return pool
