"""The checkpoint file of a run, as far as those who only read it need it. Called wherever a run is read.

``qpt.pretraining.checkpoint`` writes the file.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpt.data.faults import is_machine_fault
from qpt.errors import InputError
from qpt.models.names import is_named

CHECKPOINT_FORMAT = "qpt-checkpoint-1"


def load_plain(kind: str, path: str | Path, *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote to a file, onto the CPU; only tensors and plain data are unpickled.

    mmap: read a tensor's bytes only when they are used.
    Raises InputError, opening with ``kind``, if the file is damaged, carries code, or unpacks to more than its size.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > os.path.getsize(path):  # torch.save compresses nothing
                raise ValueError(f"{unpacked:,} bytes")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _check_extents(state)
        return state
    except Exception as error:  # whatever the readers of zip archives and pickles make of damage
        if isinstance(error, OSError) and is_machine_fault(error):
            raise
        raise InputError(f"{kind}: {path} must hold tensors and plain data, got {_got(path)}") from error


def _check_extents(state: Any) -> None:
    """Raise ValueError for a tensor that is larger than what is stored of it, as a stride of 0 makes it, or is not a
    plain one on the CPU."""
    waiting, seen = [state], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            if not plain or value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 0):
                raise ValueError("a tensor must be stored whole")
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _got(path: str | Path) -> str:
    """Say what a file is that torch refused; torch's own words advise to run the code of such a file."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        return f"one that cannot be read ({error.strerror})"
    if not start:
        return "an empty file"
    if not start.startswith(b"PK\x03\x04"):
        return "a file that torch.save did not write, or of before torch 1.6"
    if not zipfile.is_zipfile(path):
        return "a file that is cut short; copy it again"
    return "a damaged file, or one that carries code, which is never run"


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


def settings_in(state: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint keeps. Raises InputError for a damaged one that does not."""
    config = state.get("config")
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise InputError("checkpoint: it is damaged: its config must be a mapping of settings")
    return config


def run_record(path: str | Path) -> dict[str, Any]:
    """Return the record of a run in its checkpoint, without paths, for results, scorer files and model cards.

    path: as for ``load_encoder``. The record is plain data: checkpoint_sha256, config (paths without their folders),
    and as far as the checkpoint has them steps, op_table, data_fingerprint, unreadable (a count), seconds and threads.
    That of a named encoder is its name, under ``encoder``.
    """
    if is_named(path):
        return {"encoder": str(path)}
    state, file = read_checkpoint(path), Path(path)
    file = file / "checkpoint.pt" if file.is_dir() else file
    settings = settings_in(state)
    is_path = {k: isinstance(v, str) and ("/" in v or "\\" in v) for k, v in settings.items()}
    config = {k: Path(v).name if is_path[k] else v for k, v in settings.items()}
    record: dict[str, Any] = {"checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "config": config}
    names = {"step": "steps", "table": "op_table", "data_fingerprint": "data_fingerprint", "threads": "threads"}
    record |= {new: state[old] for old, new in names.items() if old in state}
    try:
        if "seconds" in state:
            record["seconds"] = round(float(state["seconds"]), 1)
        if "unreadable" in state:
            record["unreadable"] = len(state["unreadable"])
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint: {path} is damaged ({type(error).__name__}: {error})") from None
    return record
