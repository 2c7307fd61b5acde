"""Build an encoder by name, and read one back from a checkpoint. Called by pre-training, evaluation and users."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from qpt.errors import InputError
from qpt.models.resnet import ARCHITECTURES, ResNet

CHECKPOINT_FORMAT = "qpt-checkpoint-1"


def build_encoder(arch: str = "resnet18", width: int = 64) -> ResNet:
    """A freshly initialised encoder; draws its weights from torch's global generator.

    arch: one of ``ARCHITECTURES``.  width: channels of the first stage, >= 1 (64 = the standard network).
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"build_encoder: arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise InputError(f"build_encoder: width must be a positive int, got {width!r}")
    return ResNet(arch, width)


def load_plain(kind: str, path: str | Path) -> Any:
    """What ``torch.save`` wrote to a file, on the CPU; only tensors and plain data are unpickled.

    Raises InputError, opening with ``kind``, if the file is damaged or carries code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{kind}: {path} must hold tensors and plain data, got: {reason}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint written by ``qpt pretrain`` onto the CPU; only tensors and plain data are unpickled.

    path: the checkpoint file, or a run directory that holds ``checkpoint.pt``.
    Raises InputError if the file is missing, truncated, carries code or was not written by QPT.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise InputError(f"checkpoint: path must be a checkpoint or a run directory that holds one, got {path}")
    state = load_plain("checkpoint", path)
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint: {path} must be a QPT checkpoint ({CHECKPOINT_FORMAT}), got another file")
    return state


def load_encoder(path: str | Path) -> ResNet:
    """The pre-trained encoder of a run, in eval mode on the CPU.

    path: ``checkpoint.pt`` or its run directory. Features: ``encoder(x)`` -> (N, feature_dim), or
    ``encoder.stages(x)``, for x (N, 3, H, W) float normalised with ImageNet mean and standard deviation.
    """
    state = read_checkpoint(path)
    encoder = build_encoder(state["config"]["arch"], state["config"]["width"])
    encoder.load_state_dict(state["encoder"])
    return encoder.eval()
