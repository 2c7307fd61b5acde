"""Facts that pre-training, evaluation and reports share about a run: its name, and which settings are free."""

from __future__ import annotations

from collections.abc import Sequence
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


def note_fault(faults: list[str] | None, run: Path, file: str, what: str) -> None:
    """Add to ``faults``, if they are wanted, a sentence on what of a run's record cannot be read."""
    if faults is not None:
        faults.append(f"{file} of {shown(run.name)}: {what}")


def note_unread_lines(faults: list[str] | None, run: Path, file: str, lines: Sequence[str], used: int) -> None:
    """Note how many of a record's whole ``lines`` were not used, and a record with nothing but a line cut short."""
    cut_short = not lines and (run / file).is_file() and (run / file).stat().st_size > 0
    if left_out := len(lines) - used + cut_short:
        note_fault(faults, run, file, f"{used} lines are used, {left_out} cannot be read")
