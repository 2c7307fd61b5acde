"""Checkpoints that survive a crash: written aside, flushed to disk, then renamed over the old one.

Called by ``qpt.pretraining.engine``; read back by it on resume and by ``qpt.models.load_encoder`` (which checks the
format).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from qpt.errors import InputError
from qpt.models.encoder import CHECKPOINT_FORMAT, read_checkpoint
from qpt.pretraining.config import PretrainConfig

NAME = "checkpoint.pt"


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Replace ``run/checkpoint.pt`` atomically; after a crash or on a full disk the old one is still whole."""
    target = run / NAME
    aside = target.with_suffix(".pt.part")
    try:
        with open(aside, "wb") as stream:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(run, os.O_RDONLY)  # the rename itself must reach the disk too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_for_resume(run: Path, config: PretrainConfig, data_fingerprint: str, table: str, space: str) -> dict[str, Any]:
    """The last checkpoint of ``run``, after checking that it continues the same computation.

    data_fingerprint, table, space: fingerprints of the file list, the op table and the degradation space.
    Raises InputError naming every setting, and each of these, that differ from those the checkpoint was made with.
    """
    if not (run / NAME).is_file():
        raise InputError(f"pretrain: out must hold {NAME} for --resume, got {run} without one")
    state = read_checkpoint(run / NAME)
    changed = PretrainConfig.from_dict(state["config"]).differences(config)
    if state["data_fingerprint"] != data_fingerprint:
        changed.append("data: the folder's file list is not the one the run was started on")
    if state["table"] != table:
        changed.append("degradations: the op table is not the one the run was started with")
    elif state.get("space", space) != space:  # older checkpoints have presets only, which the table vouches for
        changed.append("space: its rules or numbers are not those the run was started with; they are in space.yaml")
    if changed:
        raise InputError("pretrain: --resume must keep the run's settings, got\n  " + "\n  ".join(changed))
    return state
