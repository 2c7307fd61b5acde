"""Run a kept step again and say where it went wrong: ``qpt pretrain --replay RUN/failed_step_N``.

Every module of both encoders is watched on the way forward and, through its output's gradient, on the way back; the
first tensor that is not finite is named. Nothing is updated. Relies on ``qpt.pretraining.failure`` for what was kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpt.errors import InputError
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.failure import FailedStep, check_gradients, read_failed_step
from qpt.pretraining.learner import Learner
from qpt.pretraining.process_group import World, join, threads


@dataclass
class Replay:
    """What a replayed step did.

    failure: why the step cannot be taken, None when it went through.  before: tensors of the state that were not
    finite before the step.  forward, backward: the first module output, and the first gradient of one, that is not
    finite.  loss: None if it was not reached.  norms: gradient norm of each part of the network.
    """

    step: int
    lr: float
    device: str
    error: str
    before: list[str]
    forward: str | None = None
    backward: str | None = None
    loss: float | None = None
    norms: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def reproduced(self) -> bool:
        """Whether the step failed again."""
        return self.failure is not None

    def __str__(self) -> str:
        lines = [
            f"step {self.step}, learning rate {self.lr:g}, on {self.device}; it had failed with:",
            f"  {self.error}",
            f"not finite before the step: {', '.join(self.before) or 'nothing'}",
            f"first not finite on the way forward: {self.forward or 'nothing'}",
            f"loss: {'not reached' if self.loss is None else f'{self.loss:.9g}'}",
            f"first not finite on the way back: {self.backward or ('nothing' if self.norms else 'not reached')}",
            *[f"  gradient norm {norm:.6g}  {name}" for name, norm in self.norms.items()],
            f"reproduced: {self.failure}" if self.reproduced else "not reproduced: the step went through",
        ]
        return "\n".join(lines)


def replay(path: str | Path, device: str = "auto") -> Replay:
    """Run the step kept in ``path`` (a folder ``failed_step_N`` or a file in it) again, up to the update of weights.

    device: where; auto for where it failed, if that is here, else the CPU. With the same device, number of threads and
    version the step is the same, byte for byte; but a compiled encoder is run uncompiled. A step of several processes
    needs as many: start this with torchrun.
    Raises InputError if ``path`` holds no failed step, the device is not usable or the number of processes another.
    """
    recorded = read_failed_step(path).notes["device"]
    if device == "auto" and (torch.cuda.is_available() or not recorded.startswith("cuda")):
        device = recorded
    with join(device) as (world, here):
        kept = read_failed_step(path, world.rank)
        if world.size != (processes := kept.notes["processes"]):
            raise InputError(
                f"replay: the step needs {processes} processes (torchrun --nproc_per_node), got {world.size}"
            )
        with threads(kept.state["threads"], 1):
            return _replay(kept, world, here)


def _replay(kept: FailedStep, world: World, device: torch.device) -> Replay:
    config = dataclasses.replace(PretrainConfig.from_dict(kept.state["config"]), init="", compile=False)
    learner = Learner(config, device, world)
    learner.load_state_dict(kept.state["learner"])
    given, notes = kept.given, kept.notes
    where = f"{device}, process {world.rank} of {world.size}" if world.size > 1 else str(device)
    result = Replay(notes["step"], notes["lr"], where, notes["error"], _not_finite(kept.state["learner"]))
    patches = given.patches(config.patch_size, device)
    try:
        with _watching(learner, result):
            loss, _ = learner.gradients(patches, given.groups.to(device), given.images.to(device))
        result.loss = float(loss)
        result.norms = _norms(learner.query, learner.scaler.get_scale())
        if not math.isfinite(result.loss):
            raise InputError(f"the loss must be finite, got {result.loss}")
        if config.precision != "float16":  # its scaler takes care of infinite gradients
            check_gradients(learner.query)
    except InputError as error:
        result.failure = str(error).removeprefix("pretrain: ")
    return result


@contextmanager
def _watching(learner: Learner, result: Replay) -> Iterator[None]:
    """Note in ``result`` the first module whose output, and whose output's gradient, is not finite."""

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if result.forward is None and (count := _bad(output)):
                result.forward = f"output of {name}, {count} of {output.numel()} values"
            if output.requires_grad:
                output.register_hook(watch_gradient)

        def watch_gradient(gradient: Tensor) -> None:
            if result.backward is None and (count := _bad(gradient)):
                result.backward = f"gradient of the output of {name}, {count} of {gradient.numel()} values"

        return hook

    handles = []
    for side, network in (("query", learner.query), ("key", learner.key)):
        if network is not None:
            for name, module in network.named_modules(prefix=side):
                handles.append(module.register_forward_hook(watch(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bad(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum())


def _not_finite(state: Any, name: str = "") -> list[str]:
    """Names of the floating-point tensors in a nested state that hold nan or infinity."""
    if isinstance(state, Tensor):
        return [f"{name} ({count} of {state.numel()} values)"] if (count := _bad(state)) else []
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return [found for key, part in parts for found in _not_finite(part, f"{name}.{key}".lstrip("."))]


def _norms(network: nn.Module, scale: float) -> dict[str, float]:
    """Gradient norm of the network's parts, one or two names deep: encoder.layer1, head; gradients are ``scale`` times
    what they stand for."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            first, *rest = name.split(".")
            parts.setdefault(f"{first}.{rest[0]}" if first == "encoder" else first, []).append(parameter.grad)
    return {name: float(torch.nn.utils.get_total_norm(gradients)) / scale for name, gradients in parts.items()}
