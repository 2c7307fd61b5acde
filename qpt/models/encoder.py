"""Encoders by name, and from checkpoints. Called by pre-training, evaluation and users; it reads checkpoint files."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from qpt.errors import InputError, check_int
from qpt.models.base import Encoder
from qpt.models.names import check_arch
from qpt.models.resnet import ARCHITECTURES, ResNet
from qpt.models.two_trunks import TwoTrunks

CHECKPOINT_FORMAT = "qpt-checkpoint-1"


def build_encoder(arch: str = "resnet18", width: int = 64) -> Encoder:
    """Return a freshly initialised encoder; its weights are drawn from torch's global generator.

    arch: resnet18, resnet34, resnet50, efficientnet_lite0, ``timm:NAME`` or ``torchvision:NAME``.  width: channels of
    the first stage of a resnet, >= 1 (64 is the standard network); 64 for any other.
    Raises InputError for a name that is unknown or whose stages cannot be found, BackendError for a missing package.
    """
    width = check_int("build_encoder", "width", width, 1)
    if check_arch("build_encoder", arch, width) in ARCHITECTURES:
        return ResNet(arch, width)
    # Its packages are extras, and importing them takes seconds.
    from qpt.models.backbones import build_backbone

    return build_backbone(arch)


def untrained_encoder(arch: str, width: int, seed: int) -> Encoder:
    """Return an encoder with the initial weights of this seed, in eval mode; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(arch, width).eval()


def load_plain(kind: str, path: str | Path, *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote to a file, onto the CPU; only tensors and plain data are unpickled.

    mmap: read a tensor's bytes only when they are used.
    Raises InputError, opening with ``kind``, if the file is damaged or carries code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{kind}: {path} must hold tensors and plain data, got: {reason}") from error


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint written by ``qpt pretrain`` onto the CPU; only tensors and plain data are unpickled.

    path: the checkpoint file, or a run directory that holds ``checkpoint.pt``.  mmap: as for ``load_plain``.
    Raises InputError if the file is missing, truncated, carries code or was not written by QPT.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise InputError(f"checkpoint: path must be a checkpoint or a run directory that holds one, got {path}")
    state = load_plain("checkpoint", path, mmap=mmap)
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint: {path} must be a QPT checkpoint ({CHECKPOINT_FORMAT}), got another file")
    return state


def run_record(path: str | Path) -> dict[str, Any]:
    """Return the record of a run in its checkpoint, without paths, for results, scorer files and model cards.

    path: as for ``load_encoder``. The record is plain data: checkpoint_sha256, config (paths without their folders),
    and as far as the checkpoint has them steps, op_table, data_fingerprint, unreadable (a count), seconds and threads.
    """
    state, file = read_checkpoint(path), Path(path)
    file = file / "checkpoint.pt" if file.is_dir() else file
    is_path = {k: isinstance(v, str) and ("/" in v or "\\" in v) for k, v in state["config"].items()}
    config = {k: Path(v).name if is_path[k] else v for k, v in state["config"].items()}
    record: dict[str, Any] = {"checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "config": config}
    names = {"step": "steps", "table": "op_table", "data_fingerprint": "data_fingerprint", "threads": "threads"}
    record |= {new: state[old] for old, new in names.items() if old in state}
    if "seconds" in state:
        record["seconds"] = round(float(state["seconds"]), 1)
    if "unreadable" in state:
        record["unreadable"] = len(state["unreadable"])
    return record


def load_encoder(path: str | Path) -> Encoder:
    """Return the pre-trained encoder of a run, in eval mode on the CPU.

    path: ``checkpoint.pt`` or its run directory. Features: ``encoder(x)`` -> (N, feature_dim), or
    ``encoder.stages(x)``, for x (N, 3, H, W) float normalised with ImageNet mean and standard deviation.
    """
    state = read_checkpoint(path)
    encoder = build_encoder(state["config"]["arch"], state["config"]["width"])
    if state["config"].get("two_trunks"):
        encoder = TwoTrunks(encoder, build_encoder(state["config"]["arch"], state["config"]["width"]))
    encoder.load_state_dict(state["encoder"])
    return encoder.eval()
