"""The files of a run that a report reads: its checkpoint, and the records beside it as far as they are there.

Called by ``qpt.report.build``; it reads run directories. ``training`` and the other sections get what is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.scorer import Scorer
from qpt.io import shown
from qpt.models import Encoder, load_encoder
from qpt.models.checkpoint_file import read_checkpoint
from qpt.models.names import is_named
from qpt.report.canvas import COLOURS
from qpt.report.measurements import OutOfFold
from qpt.runs.files import run_name
from qpt.runs.first_batch import FirstBatch, read_first_batch
from qpt.runs.history import read_history
from qpt.runs.log import read_log, read_summary
from qpt.runs.observations import Observation, read_observations


@dataclass
class RunRecord:
    """The records of a run.

    log: columns of log.csv, empty without one.  observations: step -> measurements.  history: its starts.  seen: of the
    first batch.  summary: summary.json of a finished run, empty before.  faults: sentences on what of these could not
    be read.  features, predictions, scorer: on the table.
    """

    name: str
    place: Path
    checkpoint: dict[str, Any]
    encoder: Encoder
    colour: str
    log: dict[str, list[float]]
    observations: dict[int, Observation] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seen: FirstBatch | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    features: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    predictions: OutOfFold | None = None
    scorer: Scorer | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings in the run's checkpoint; an older one may lack some."""
        return dict(self.checkpoint["config"])

    def space(self) -> DegradationSpace:
        """Return the degradation space of the run: from its file, else by the name in its settings, else ``qpt``.

        Raises InputError if it is a file that is gone.
        """
        written = self.place / "space.yaml"
        if written.is_file():
            return DegradationSpace.from_yaml(written)
        return DegradationSpace.named(self.config.get("space", "qpt"))


def read_runs(runs: Sequence[str | Path]) -> list[RunRecord]:
    """Read the records of run directories or checkpoint files; a named encoder has none.

    A damaged record beside a checkpoint is used as far as it can be read (``RunRecord.faults``). Raises InputError for
    no runs, too many, or a damaged checkpoint.
    """
    if not 1 <= len(runs) <= len(COLOURS):
        raise InputError(f"report: runs must be 1 to {len(COLOURS)} runs, got {len(runs)}")
    names = [run_name(run) for run in runs]
    records = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        name = name if names.count(name) == 1 else f"{name} #{number + 1}"
        place, checkpoint = Path(run), {"config": {}} if is_named(run) else read_checkpoint(run)
        record = RunRecord(name, place, checkpoint, load_encoder(run), COLOURS[number], {})
        record.log, record.summary = read_log(place, record.faults), read_summary(place, record.faults)
        record.observations = read_observations(place, record.faults)
        record.history = read_history(place, record.faults)
        try:
            record.seen = read_first_batch(place)
        except InputError as error:
            record.faults.append(str(error).removeprefix("run: "))
        try:
            if (place / "space.yaml").is_file():
                record.space()
        except (InputError, OSError) as error:
            record.faults.append(f"space.yaml of {shown(name)}: {' '.join(str(error).split())}")
        records.append(record)
    return records
