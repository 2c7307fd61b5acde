"""What a run directory holds: names that pre-training, evaluation and reports share."""

from __future__ import annotations

from pathlib import Path

#: Fields of ``PretrainConfig`` that may change when a run is resumed: they do not touch what is computed.
FREE_ON_RESUME = frozenset(
    {"data", "out", "workers", "cache_mib", "stall_seconds", "log_every", "observe_every", "checkpoint_every"}
    | {"keep_checkpoints", "tensorboard", "page"}
)
#: Share of a run's time spent waiting for the loader, from which on the loader sets the pace.
DATA_BOUND = 0.05


def run_name(run: str | Path) -> str:
    """What results call a run: the name of its directory."""
    path = Path(run).resolve()
    return path.name if path.is_dir() else path.parent.name
