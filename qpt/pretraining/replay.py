"""Run a failed step again and report where it first went wrong: ``qpt pretrain --replay RUN/failed_step_N``.

Every module of both encoders is watched in the forward pass and, through its output's gradient, in the backward pass;
the first tensor that is not finite is named. Nothing is updated. Relies on ``qpt.pretraining.failure`` for the step.
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
from qpt.models.checkpoint_file import settings_in
from qpt.pretraining.checkpoint import restore
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.failure import FailedStep, check_gradients, read_failed_step
from qpt.pretraining.learner import Learner
from qpt.pretraining.process_group import ProcessGroup, join_process_group, use_threads


@dataclass
class Replay:
    """The outcome of a replayed step.

    error: of the original step.  failure: why the step fails again, None if it does not.  before: tensors of the state
    that were not finite before the step.  forward, backward: the first module output, and the first gradient of one,
    that is not finite.  loss: None if it was not reached.  norms: gradient norm of each part of the network.
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
        """True if the step failed again."""
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
    """Run the step in ``path`` (a folder ``failed_step_N`` or a file in it) again, up to the update of weights.

    device: as in ``PretrainConfig``; auto is the one where the step failed, or the CPU where there is none. With the
    same device, number of threads and version the step is the same, byte for byte; but a compiled encoder is run
    uncompiled. A step of several processes needs as many: start this with torchrun.
    Raises InputError if ``path`` holds no failed step, the device is not usable or the number of processes another.
    """
    recorded = read_failed_step(path).metadata["device"]
    if device == "auto" and (torch.cuda.is_available() or not recorded.startswith("cuda")):
        device = recorded
    with join_process_group(device) as (processes, own_device):
        failed = read_failed_step(path, processes.rank)
        if processes.size != (needed := failed.metadata["processes"]):
            raise InputError(
                f"replay: the step needs {needed} processes (torchrun --nproc_per_node), got {processes.size}"
            )
        with use_threads(failed.state["threads"], 1):
            return _replay(failed, processes, own_device)


def _replay(failed: FailedStep, processes: ProcessGroup, device: torch.device) -> Replay:
    config = dataclasses.replace(PretrainConfig.from_dict(settings_in(failed.state)), init="", compile=False)
    learner = Learner(config, device, processes)
    restore(learner, failed.state.get("learner"))
    step_input, metadata = failed.step_input, failed.metadata
    where = f"{device}, process {processes.rank} of {processes.size}" if processes.size > 1 else str(device)
    before = _not_finite(failed.state["learner"])
    result = Replay(metadata["step"], metadata["lr"], where, metadata["error"], before)
    patches = step_input.patches(config.patch_size, device)
    try:
        with _watch_modules(learner, result):
            ids = (step_input.groups.to(device), step_input.images.to(device))
            loss, _ = learner.gradients(patches, *ids, **step_input.further(config, patches))
        result.loss = float(loss)
        result.norms = _gradient_norms(learner.query, learner.scaler.get_scale())
        if not math.isfinite(result.loss):
            raise InputError(f"the loss must be finite, got {result.loss}")
        if config.precision != "float16":  # an infinite gradient is no failure there, see qpt.pretraining.failure
            check_gradients(learner.query)
    except InputError as error:
        result.failure = str(error).removeprefix("pretrain: ")
    return result


@contextmanager
def _watch_modules(learner: Learner, result: Replay) -> Iterator[None]:
    """Note in ``result`` the first module whose output, and whose output's gradient, is not finite."""

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if result.forward is None and (count := _count_not_finite(output)):
                result.forward = f"output of {name}, {count} of {output.numel()} values"
            if output.requires_grad:
                output.register_hook(watch_gradient)

        def watch_gradient(gradient: Tensor) -> None:
            if result.backward is None and (count := _count_not_finite(gradient)):
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


def _count_not_finite(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum())


def _not_finite(state: Any, name: str = "") -> list[str]:
    """List the tensors in a nested state that hold nan or infinity."""
    if isinstance(state, Tensor):
        return [f"{name} ({count} of {state.numel()} values)"] if (count := _count_not_finite(state)) else []
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return [found for key, part in parts for found in _not_finite(part, f"{name}.{key}".lstrip("."))]


def _gradient_norms(network: nn.Module, scale: float) -> dict[str, float]:
    """Return the gradient norm, divided by ``scale``, of the network's parts: encoder.layer1, ..., head."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            first, *rest = name.split(".")
            parts.setdefault(f"{first}.{rest[0]}" if first == "encoder" else first, []).append(parameter.grad)
    return {name: float(torch.nn.utils.get_total_norm(gradients)) / scale for name, gradients in parts.items()}
