"""A step that fails: noticed before a weight has changed, and saved in the run's folder for replay.

Used by ``qpt.pretraining.engine`` around each step and by ``qpt.pretraining.replay``, which runs a saved step again.
A step fails when an embedding, the loss or a gradient is nan or infinite. With float16 an infinite gradient is no
failure: the gradient scaler skips the update and lowers its scale.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpt.degradations.program import Program
from qpt.errors import InputError, as_number
from qpt.evaluate.measures import measure
from qpt.io import parse_json
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT, load_plain, read_checkpoint
from qpt.ops.degrade.api import degrade_patches
from qpt.pretraining.checkpoint import NAME
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.half_scale import ROWS_AT_ONCE, halve, wide_boxes
from qpt.pretraining.learner import Learner
from qpt.pretraining.targets import cut_patches, op_levels, severities


@dataclass(frozen=True)
class StepInput:
    """The input of a step in one process: regions (B, R, R, 3) uint8 and boxes (r, P, 2) int32, which ``program`` (r
    rows) makes patches of; groups and images (r,) int64; lr, the learning rate; half_scale (r,) int64, the place of the
    patch of each row that is seen at half scale, -1 for none."""

    regions: Tensor
    boxes: Tensor
    program: Program
    groups: Tensor
    images: Tensor
    lr: float
    half_scale: Tensor | None = None

    def patches(self, size: int, device: torch.device) -> Tensor:
        """Return the degraded patches, (r, P, 3, size, size) uint8."""
        regions = self.regions.to(device, non_blocking=True)
        patches = degrade_patches(regions, self.program, self.boxes, size, dtype=torch.uint8)

        def cut(rows: Tensor, boxes: Tensor) -> Tensor:
            return degrade_patches(regions, self.program.select(rows), boxes, 2 * size, dtype=torch.uint8)

        return self._with_half_scale(patches, cut)

    def measured(self, patches: Tensor) -> Tensor:
        """Return what a regression head predicts for the ``patches``, (r, P, COLUMNS) float32 on their device: their
        full-reference measures, and the levels of their ops (``qpt.pretraining.targets``)."""
        regions, source, size = self.regions.to(patches.device), self.program.source, patches.shape[-1]
        clean = self._with_half_scale(
            cut_patches(regions, source, self.boxes, size),
            lambda rows, boxes: cut_patches(regions, source[rows], boxes, 2 * size),
        )
        measures = measure(patches.flatten(0, 1), clean.flatten(0, 1)).unflatten(0, patches.shape[:2])
        levels = op_levels(self.program).to(patches.device)[:, None].expand(-1, patches.shape[1], -1)
        return torch.cat([measures, levels], dim=2)

    def further(self, config: PretrainConfig, patches: Tensor) -> dict[str, Tensor]:
        """Return what ``config`` makes a step of the ``patches`` need beside them, as arguments of
        ``Learner.gradients``."""
        found = {"measured": self.measured(patches)} if config.regression else {}
        if config.graded_positives:
            found["severities"] = severities(self.program).to(patches.device)
        return found

    def _with_half_scale(self, patches: Tensor, cut: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Replace the patches that are seen at half scale, in place. cut: gives patches of twice the size, of the given
        rows and boxes (n, 1, 2)."""
        if self.half_scale is None:
            return patches
        for rows in (self.half_scale >= 0).nonzero()[:, 0].split(ROWS_AT_ONCE):
            if len(rows):
                places = self.half_scale[rows]
                boxes = wide_boxes(self.boxes[rows, places], patches.shape[-1], self.regions.shape[1])
                patches[rows, places] = halve(cut(rows, boxes[:, None])[:, 0])
        return patches


@dataclass(frozen=True)
class FailedStep:
    """A step that ``save_failed_step`` wrote: the run's state before it, the process's input, and metadata (step, lr,
    rank, processes, device, error, photographs)."""

    state: dict[str, Any]
    step_input: StepInput
    metadata: dict[str, Any]


class StepGuard:
    """Stops a step at a gradient that is not finite, and undoes what a step changes before it can fail."""

    def __init__(self, learner: Learner) -> None:
        networks = [network for network in (learner.query, learner.key) if network is not None]
        self._statistics = [buffer for network in networks for buffer in network.buffers()]
        self._before = [buffer.clone() for buffer in self._statistics]
        learner.optimizer.register_step_pre_hook(lambda *_: check_gradients(learner.query))

    def snapshot(self) -> None:
        """Copy the running statistics; call before the step."""
        if self._statistics:  # a network with layer norm has none
            torch._foreach_copy_(self._before, self._statistics)

    def restore(self) -> None:
        """Restore the running statistics of the last snapshot."""
        # They are all there is to undo: weights, optimiser and pool change after every check.
        if self._statistics:
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
    """Return the folder of the failed step of that number, from 1."""
    return run / f"failed_step_{step}"


def save_failed_step(
    run: Path, state: dict[str, Any], step_input: StepInput, learner: Learner, error: str, files: list[str]
) -> Path:
    """Write ``run/failed_step_N``, N from 1, which ``qpt pretrain --replay`` reads; return the folder.

    state: a checkpoint's, of before the step (``load_encoder`` reads the folder too), with the process's own part of
    a sharded pool.  files: names of the batch's images.  Raises OSError when the disk is full.
    """
    # Of several processes, those that notice the failure come here first; the others lose the connection when one of
    # them leaves, see the folder, and come here as well. Each writes its own input.
    processes, step = learner.processes, state["step"] + 1
    folder = failed_folder(run, step)
    folder.mkdir(exist_ok=True)
    tensors = {name: getattr(step_input, name).cpu() for name in ("regions", "boxes", "groups", "images")}
    if step_input.half_scale is not None:
        tensors["half_scale"] = step_input.half_scale
    if learner.config.pool_layout == "sharded":
        tensors["pool"] = state["learner"]["pool"]
    torch.save(tensors, folder / f"batch-{processes.rank}.pt")
    step_input.program.save(folder / f"program-{processes.rank}.npz")
    # The rest of the state is the same on all processes, and any of them may be the first: exclusive creation lets one
    # write it, which ``write_whole`` would not.
    with suppress(FileExistsError), open(folder / f"{NAME}.part", "xb") as stream:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, stream)
        os.replace(folder / f"{NAME}.part", folder / NAME)
    metadata = {
        "step": step,
        "lr": step_input.lr,
        "error": error,
        "rank": processes.rank,
        "processes": processes.size,
        "device": str(learner.device),
        "photographs": files,
    }
    (folder / f"step-{processes.rank}.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return folder


def read_failed_step(path: str | Path, rank: int = 0) -> FailedStep:
    """Read what ``save_failed_step`` wrote.

    path: the folder, or a file in it.  rank: the process whose input to read.  Raises InputError for anything else.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    stems = [file.stem.removeprefix("step-") for file in folder.glob("step-*.json")]
    ranks = sorted(int(stem) for stem in stems if stem.isdecimal())
    if not ranks:
        raise InputError(f"replay: path must be a folder that a failed step left (failed_step_N), got {path}")
    if rank not in ranks:
        raise InputError(
            f"replay: path must hold the input of process {rank}, got that of {', '.join(map(str, ranks))}"
        )
    try:
        metadata = parse_json((folder / f"step-{rank}.json").read_bytes())
        device, _, number = str(metadata["device"]).partition(":")
        numbers = [metadata["step"], metadata["lr"], metadata["processes"], int(number or 0)]
        if device not in ("cpu", "cuda") or None in map(as_number, numbers):
            raise ValueError("step, lr, processes and device must be those of a step")
        tensors = load_plain("replay", folder / f"batch-{rank}.pt")
        state = read_checkpoint(folder)
        if "pool" in tensors:
            state["learner"]["pool"] = tensors.pop("pool")
        program = Program.load(folder / f"program-{rank}.npz")
        return FailedStep(state, StepInput(**tensors, program=program, lr=metadata["lr"]), metadata)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"replay: {folder} is damaged ({type(error).__name__}: {error})") from None
