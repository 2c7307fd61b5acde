"""A scorer: an encoder, the read-out chosen for it, and a ridge fitted on a table of scores; photograph in, score out.

Made by ``qpt fit``, used by ``qpt score`` and as ``qpt.Scorer``. Relies on the same feature code as evaluation, one
photograph at a time, so that a photograph's score does not depend on what else is scored. Files hold tensors and
plain data only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qpt.errors import InputError
from qpt.evaluate.features import DEFINITION, READ_OUTS, FeatureProtocol, ReadOut, photograph_features, prepare
from qpt.evaluate.photograph import load_photograph
from qpt.evaluate.protocol import choose
from qpt.evaluate.ridge import fit_ridge
from qpt.evaluate.run import encoder_views
from qpt.evaluate.table import ScoreTable
from qpt.models import ResNet, build_encoder
from qpt.models.encoder import load_plain

SCORER_FORMAT = "qpt-scorer-1"


@dataclass
class Scorer:
    """Scores photographs on the scale of the labels it was fitted on; higher is better.

    encoder: in eval mode.  read_out, protocol: what it sees.  weights: (d,) float64 and intercept: the ridge, on raw
    features.  mos_min, mos_max: the range of the labels; a score is not clipped to it, so an unusual photograph may
    fall slightly outside.  fitted_on: name, sha256 and size of the table, and the choice made on it.
    """

    encoder: ResNet
    read_out: ReadOut
    protocol: FeatureProtocol
    weights: NDArray[np.float64]
    intercept: float
    mos_min: float
    mos_max: float
    fitted_on: dict[str, Any]

    def __call__(self, photograph: str | Path | NDArray[np.uint8]) -> float:
        """The score of one photograph. photograph: a file, or (H, W, 3) uint8 RGB pixels; both sides >= 32 px.

        Raises InputError for a file that cannot be decoded or pixels of another form.
        """
        pixels = load_photograph(photograph) if isinstance(photograph, (str, Path)) else photograph
        features = photograph_features(self.encoder, pixels, self.protocol)
        seen = self.read_out.select(features[None], self.encoder.stage_dims)[0]
        return float(seen @ self.weights + self.intercept)

    @classmethod
    def fit(
        cls,
        encoder: ResNet,
        table: ScoreTable,
        *,
        protocol: FeatureProtocol | None = None,
        cache: Path | None = None,
        quiet: bool = False,
    ) -> Scorer:
        """Fit on every image of a table; read-out and penalty by the inner cross-validation of the evaluation.

        cache: folder for features, None keeps none.  quiet: no progress bar.
        """
        protocol = protocol or FeatureProtocol()
        views = encoder_views(encoder, table, protocol, label="features", cache=cache, quiet=quiet)
        choice = choose(views, table.mos, table.groups, seed=(0,))
        ridge = fit_ridge(views[choice.read_out], table.mos, (choice.penalty,))
        weights = ridge.weights[0] / ridge.scale
        return cls(
            encoder=prepare(encoder),
            read_out={str(read_out): read_out for read_out in READ_OUTS}[choice.read_out],
            protocol=protocol,
            weights=weights,
            intercept=float(ridge.intercept - ridge.mean @ weights),
            mos_min=float(table.mos.min()),
            mos_max=float(table.mos.max()),
            fitted_on={"name": table.name, "sha256": table.fingerprint, "images": len(table), **asdict(choice)},
        )

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all."""
        target = Path(path)
        state = {
            "format": SCORER_FORMAT,
            "features": DEFINITION,
            "arch": self.encoder.arch,
            "width": self.encoder.width,
            "encoder": {name: value.contiguous() for name, value in self.encoder.state_dict().items()},
            "read_out": asdict(self.read_out),
            "protocol": asdict(self.protocol),
            "weights": torch.from_numpy(self.weights),
            "intercept": self.intercept,
            "mos_min": self.mos_min,
            "mos_max": self.mos_max,
            "fitted_on": self.fitted_on,
        }
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, target)

    @classmethod
    def load(cls, path: str | Path) -> Scorer:
        """Read a file written by ``save`` onto the CPU; only tensors and plain data are unpickled.

        Raises InputError if the file is missing, damaged, carries code, or was not written by this version's ``save``.
        """
        if not Path(path).is_file():
            raise InputError(
                f"scorer: path must be a scorer file, got {path}; "
                "make one with `qpt fit RUN --csv scores.csv --out scorer.pt`"
            )
        state = load_plain("scorer", path)
        made_by = (state.get("format"), state.get("features")) if isinstance(state, dict) else None
        if made_by != (SCORER_FORMAT, DEFINITION):
            raise InputError(f"scorer: {path} must be a {SCORER_FORMAT} file of {DEFINITION}, got another file")
        try:
            return cls._from_state(state)
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"scorer: {path} is damaged ({type(error).__name__}: {error})") from None

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Scorer:
        encoder = build_encoder(state["arch"], state["width"])
        encoder.load_state_dict(state["encoder"])
        return cls(
            encoder=prepare(encoder),
            read_out=ReadOut(**state["read_out"]),
            protocol=FeatureProtocol(**state["protocol"]),
            weights=state["weights"].numpy(),
            intercept=state["intercept"],
            mos_min=state["mos_min"],
            mos_max=state["mos_max"],
            fitted_on=state["fitted_on"],
        )
