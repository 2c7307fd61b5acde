"""The optimisers of pre-training: SGD and AdamW are torch's, LARS is here.

``build_optimizer`` is called by ``qpt.pretraining.learner``. Momentum is 0.9 wherever there is one (MoCo, arXiv
1911.05722; SimCLR, arXiv 2002.05709).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qpt.pretraining.config import PretrainConfig

MOMENTUM = 0.9


def build_optimizer(config: PretrainConfig, network: nn.Module) -> Optimizer:
    """Return the optimiser that ``config`` names, over all parameters of ``network``, which has an ``encoder``."""
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if config.encoder_lr_scale != 1 or config.stage_lr_decay != 1:
        groups = rate_groups(network, config.encoder_lr_scale, config.stage_lr_decay)
    if config.optimizer == "sgd":
        optimizer: Optimizer = torch.optim.SGD(groups, config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay)
    elif config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = LARS(
            [{**group, **part} for group in groups for part in lars_groups(group["params"])],
            config.lr,
            momentum=MOMENTUM,
            weight_decay=config.weight_decay,
            trust_coefficient=config.trust_coefficient,
        )
    set_rate(optimizer, config.lr)
    return optimizer


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of every parameter group to ``lr`` times the group's ``lr_scale``, 1 where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def rate_groups(network: nn.Module, encoder_scale: float, stage_decay: float) -> list[dict[str, Any]]:
    """Return a parameter group for each stage of ``network.encoder`` and one for the rest, with their ``lr_scale``.

    A stage's scale is encoder_scale · stage_decay^(number of stages after it); the rest has 1.
    """
    encoder = network.get_submodule("encoder")
    stages = parameter_stages(encoder)
    last = max(stages.values())
    by_scale: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        inside = name.startswith("encoder.")
        scale = encoder_scale * stage_decay ** (last - stages[name.removeprefix("encoder.")]) if inside else 1.0
        by_scale.setdefault(scale, []).append(parameter)
    return [{"params": parameters, "lr_scale": scale} for scale, parameters in by_scale.items()]


def parameter_stages(encoder: nn.Module) -> dict[str, int]:
    """Return the stage, from 0, of each parameter of an encoder by its name.

    An encoder may say so itself with a method ``stage_of_parameter(name)``. The parameters of any other are divided,
    in the order in which its modules were made, into as many equal parts as it has stages.
    """
    names = [name for name, _ in encoder.named_parameters()]
    stage_of = getattr(encoder, "stage_of_parameter", None)
    if stage_of is not None:
        return {name: stage_of(name) for name in names}
    stages = len(encoder.stage_dims)  # type: ignore[arg-type]
    return {name: place * stages // len(names) for place, name in enumerate(names)}


def lars_groups(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Return the parameter groups of LARS: weights of layers; then biases and the weights of batch norm (at most one
    axis), which are neither decayed nor adapted (SimCLR, arXiv 2002.05709; BYOL, arXiv 2006.07733)."""
    parameters = list(parameters)
    layers = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": layers}, {"params": others, "weight_decay": 0.0, "adapt": False}]
    return [group for group in groups if group["params"]]


# torch has no LARS. timm has one, but needs torchvision, which cannot be installed beside the pinned torch.
class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg, 2017, arXiv 1708.03888, algorithm 1).

    For each parameter w with gradient g:  v <- momentum v + lr r (g + weight_decay w),  w <- w - v,  where
    r = trust_coefficient |w| / (|g| + weight_decay |w|), or 1 if either norm is 0 or the group has ``adapt=False``.

    parameters: tensors, or groups, whose own ``lr``, ``momentum``, ``weight_decay``, ``trust_coefficient`` and
    ``adapt`` take precedence.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = MOMENTUM,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, {**defaults, "trust_coefficient": trust_coefficient, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. Nothing is read back from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        move = gradient.add(parameter, alpha=decay)
        if group["adapt"]:
            weight, slope = parameter.norm(), gradient.norm()
            ratio = group["trust_coefficient"] * weight / (slope + decay * weight)
            move.mul_(torch.where((weight > 0) & (slope > 0), ratio, 1.0))
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        # The rate is inside the velocity, as in the paper, so that a change of it acts on new gradients only.
        parameter.sub_(state["velocity"].mul_(group["momentum"]).add_(move, alpha=group["lr"]))
