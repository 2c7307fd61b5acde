"""Facts that pre-training, evaluation and reports share about a run: its name, and which settings are free."""

from __future__ import annotations

from pathlib import Path

from qpt.io import shown

#: Fields of ``PretrainConfig`` that may change when a run is resumed, because the result does not depend on them.
FREE_ON_RESUME = frozenset(
    {"data", "out", "workers", "cache_mib", "stall_seconds", "log_every", "observe_every", "checkpoint_every"}
    | {"keep_checkpoints", "tensorboard", "page"}
)
#: A run is data-bound from this share of its time spent waiting for the loader.
DATA_BOUND = 0.05


def run_name(run: str | Path) -> str:
    """Return the name of the run's directory, under which results list the run; that of a named encoder is its own."""
    from qpt.models.names import is_named  # qpt.models loads torch, which the command line does without

    if is_named(run):
        return str(run)
    path = Path(run).resolve()
    return shown(path.name if path.is_dir() else path.parent.name)
