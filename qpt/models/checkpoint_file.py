"""The checkpoint file of a run, as far as those who only read it need it. Called wherever a run is read.

``qpt.pretraining.checkpoint`` writes the file.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from qpt.data.faults import is_machine_fault
from qpt.errors import InputError
from qpt.models.names import is_named

CHECKPOINT_FORMAT = "qpt-checkpoint-1"


def load_plain(kind: str, path: str | Path, *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote to a file, onto the CPU; only tensors and plain data are unpickled.

    mmap: read a tensor's bytes only when they are used.
    Raises InputError, opening with ``kind``, if the file is damaged or carries code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if is_machine_fault(error):
            raise
        raise InputError(f"{kind}: {path} must hold tensors and plain data, got {_got(path)}") from error


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
