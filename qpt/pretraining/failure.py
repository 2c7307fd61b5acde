"""A step that must not be taken: noticed before a weight has changed, and kept whole in the run's folder for replay.

Used by ``qpt.pretraining.engine`` around each step and by ``qpt.pretraining.replay``, which runs a kept step again.
A step fails when an embedding, the loss or a gradient is nan or infinite. With float16 an infinite gradient is the
scaler's business: it skips the update and lowers its scale.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpt.degradations.program import Program
from qpt.errors import InputError
from qpt.models.encoder import CHECKPOINT_FORMAT, load_plain, read_checkpoint
from qpt.ops.degrade.api import degrade_patches
from qpt.pretraining.checkpoint import NAME
from qpt.pretraining.learner import Learner


@dataclass(frozen=True)
class StepInput:
    """What a process gives to a step: regions (B, R, R, 3) uint8 and boxes (r, P, 2) int32, which ``program`` (r rows)
    makes patches of; groups and images (r,) int64; lr, the learning rate."""

    regions: Tensor
    boxes: Tensor
    program: Program
    groups: Tensor
    images: Tensor
    lr: float

    def patches(self, size: int, device: torch.device) -> Tensor:
        """(r, P, 3, size, size) uint8, the degraded patches."""
        regions = self.regions.to(device, non_blocking=True)
        return degrade_patches(regions, self.program, self.boxes, size, dtype=torch.uint8)


@dataclass(frozen=True)
class FailedStep:
    """What ``keep_failed_step`` wrote: the run's state before the step, the process's input, and notes (step, rank,
    processes, device, error, photographs)."""

    state: dict[str, Any]
    given: StepInput
    notes: dict[str, Any]


class StepGuard:
    """Stops a step at a gradient that is not finite, and takes back what a step changes before it can fail."""

    def __init__(self, learner: Learner) -> None:
        networks = [network for network in (learner.query, learner.key) if network is not None]
        self._statistics = [buffer for network in networks for buffer in network.buffers()]
        self._before = [buffer.clone() for buffer in self._statistics]
        learner.optimizer.register_step_pre_hook(lambda *_: check_gradients(learner.query))

    def remember(self) -> None:
        """Call before the step."""
        torch._foreach_copy_(self._before, self._statistics)

    def take_back(self) -> None:
        """The running statistics as they were; weights, optimiser and pool come after every check."""
        torch._foreach_copy_(self._statistics, self._before)


def check_gradients(network: nn.Module) -> None:
    """Raise InputError unless the norm of all gradients of ``network`` is finite; names the parameters that are not."""
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norm = float(torch.nn.utils.get_total_norm(gradients.values()))
    if math.isfinite(norm):
        return
    bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    raise InputError(f"pretrain: gradients must be finite, got {f'nan or inf in {named}' if bad else f'norm {norm}'}")


def failed_folder(run: Path, step: int) -> Path:
    """Where the failed step of that number, from 1, is kept."""
    return run / f"failed_step_{step}"


def keep_failed_step(
    run: Path, state: dict[str, Any], given: StepInput, learner: Learner, error: str, photographs: list[str]
) -> Path:
    """Write ``run/failed_step_N``, N from 1, which ``qpt pretrain --replay`` takes; returns the folder.

    state: a checkpoint's, of before the step (``load_encoder`` reads the folder too), with the process's own part of
    a sharded pool.  photographs: the batch's files.  Of several processes each that notices writes its own input; the
    rest of the state is the same on all, and one of them writes it. The others find the line cut when that one leaves,
    and write theirs because the folder is there.  Raises OSError when the disk is full.
    """
    world, step = learner.world, state["step"] + 1
    folder = failed_folder(run, step)
    folder.mkdir(exist_ok=True)
    tensors = {name: getattr(given, name).cpu() for name in ("regions", "boxes", "groups", "images")}
    if learner.config.pool_layout == "sharded":
        tensors["pool"] = state["learner"]["pool"]
    torch.save(tensors, folder / f"batch-{world.rank}.pt")
    given.program.save(folder / f"program-{world.rank}.npz")
    with suppress(FileExistsError), open(folder / f"{NAME}.part", "xb") as stream:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, stream)
        os.replace(folder / f"{NAME}.part", folder / NAME)
    notes = {
        "step": step,
        "lr": given.lr,
        "error": error,
        "rank": world.rank,
        "processes": world.size,
        "device": str(learner.device),
        "photographs": photographs,
    }
    (folder / f"step-{world.rank}.json").write_text(json.dumps(notes, indent=2) + "\n")
    return folder


def read_failed_step(path: str | Path, rank: int = 0) -> FailedStep:
    """Read what ``keep_failed_step`` wrote.

    path: the folder, or a file in it.  rank: whose input.  Raises InputError for anything else.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    ranks = sorted(int(file.stem.removeprefix("step-")) for file in folder.glob("step-*.json"))
    if not ranks:
        raise InputError(f"replay: path must be a folder that a failed step left (failed_step_N), got {path}")
    if rank not in ranks:
        raise InputError(
            f"replay: path must hold the input of process {rank}, got that of {', '.join(map(str, ranks))}"
        )
    notes = json.loads((folder / f"step-{rank}.json").read_text())
    tensors = load_plain("replay", folder / f"batch-{rank}.pt")
    state = read_checkpoint(folder)
    if "pool" in tensors:
        state["learner"]["pool"] = tensors.pop("pool")
    given = StepInput(**tensors, program=Program.load(folder / f"program-{rank}.npz"), lr=notes["lr"])
    return FailedStep(state, given, notes)
