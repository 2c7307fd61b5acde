"""A scorer: an encoder, the read-out chosen for it, and a ridge on its features; image in, score out.

The ridge is fitted on a score table, or without opinions on the damage of known degradations. Made by ``qpt fit``, used
by ``qpt score`` and as ``qpt.Scorer``; it reads images and writes scorer files, which hold tensors and plain data only.
Features are computed one image and one crop at a time, as in evaluation, so that the score of an image does not depend
on what else is scored.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

from qpt.errors import InputError, check_int, check_number, describe
from qpt.evaluate.calibration import LogisticCalibration, calibrate
from qpt.evaluate.features import (
    DEFINITION,
    FORMER_DEFINITIONS,
    READ_OUTS,
    STATISTICS,
    FeatureProtocol,
    ReadOut,
    image_features,
    outside_graphs,
    prepare,
    read_out_features,
)
from qpt.evaluate.image_crops import MAX_PIXELS, as_pixels
from qpt.evaluate.protocol import choose_read_out
from qpt.evaluate.ridge import fit_ridge
from qpt.evaluate.score_loss import ScoreLoss
from qpt.evaluate.table import ScoreTable
from qpt.io import write_whole
from qpt.models import Encoder
from qpt.models.checkpoint_file import load_plain
from qpt.models.encoder import stored_encoder
from qpt.models.folded import folded
from qpt.models.shipped import read_shipped
from qpt.models.two_trunks import TwoTrunks

SCORER_FORMAT = "qpt-scorer-2"
#: Arithmetic of the encoder. Everything after it, from the statistics over positions on, is float32 or better.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CHOICE_SEED = (0,)
#: A score that is further outside the labels than this share of their range is marked as extrapolated.
EXTRAPOLATED = 0.25
#: What is scored: a file, a Pillow image, or (H, W, 3) uint8 RGB pixels.
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


@dataclass
class Scorer:
    """A quality score for images on the scale of the labels it was fitted on; higher is better.

    encoder: in eval mode.  read_out, protocol: the features that the ridge gets.  weights: (d,) float64 and intercept:
    the ridge, on raw features.  mos_min, mos_max: the range of the labels; a score is not clipped to it, so an unusual
    image may fall outside (``extrapolates``).  fitted_on: name, sha256 and size of the table, and the choice made on
    it.  calibration: applied to the ridge's output, or None.  pretraining: the record of the encoder's run
    (``run_record``), if known.  seen: lowest and highest score of the images learnt from, if no opinions were.
    max_pixels: larger images are refused, with a side counted as at least 32 px; not kept
    in the file.

    An image of up to protocol.crops x protocol.crop_px^2 pixels is seen whole, a larger one through that many crops, at
    the two or three scales of its read-out; the score is the ridge on the statistics of all crops together, not a mean
    of scores of crops. Memory: 7 bytes for each pixel of a file, and the encoder's maps for one crop (or for the whole
    image, if it is small).
    """

    encoder: Encoder
    read_out: ReadOut
    protocol: FeatureProtocol
    weights: NDArray[np.float64]
    intercept: float
    mos_min: float
    mos_max: float
    fitted_on: dict[str, Any]
    calibration: LogisticCalibration | None = None
    pretraining: dict[str, Any] | None = None
    seen: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    @outside_graphs
    def __call__(self, image: ImageLike | None = None, *, photograph: ImageLike | None = None) -> float:
        """Return the score of one image.

        image: a file, turned upright as its EXIF orientation says, or a Pillow image, by the same rules, or
        (H, W, 3) uint8 RGB pixels; any size from 1x1 to ``max_pixels``. A side under 32 px is padded by mirroring.
        Raises InputError for a file that cannot be decoded, pixels of another form, an image that is too large, or an
        encoder that gives no finite features (float16 ends at 65,504). photograph: the former name of ``image``.
        """
        if photograph is not None:
            warnings.warn("scorer: photograph is now called image", FutureWarning, stacklevel=2)
            image = photograph
        pixels = as_pixels(image, max_pixels=self.max_pixels)
        score = self.head(image_features(self.encoder, pixels, self.protocol, self.read_out.scales))
        if not np.isfinite(score):
            raise InputError(f"scorer: encoder must give finite features, got none in {self.dtype}; try float32")
        return score

    def extrapolates(self, score: float) -> bool:
        """Return whether a score lies further outside the labels than ``EXTRAPOLATED`` times their range.

        The ridge is linear, so an image unlike all those of the fit can get any number; such a score means nothing. A
        scorer that has seen no opinions compares with the images learnt from (``seen``) instead, before calibration.
        """
        if self.seen is not None and self.calibration is not None:
            low, high = self.calibration.low, self.calibration.high
            place, least, most = scipy.special.logit((np.array([score, *self.seen]) - low) / (high - low))
            margin = EXTRAPOLATED * (most - least)
            return not least - margin <= place <= most + margin
        middle, spread = (self.mos_min + self.mos_max) / 2, self.mos_max - self.mos_min
        return bool(abs(score - middle) > (0.5 + EXTRAPOLATED) * spread)

    def head(self, features: NDArray[np.float32]) -> float:
        """Return the score of one image from its (read_out.scales, 2 statistics, sum(stage_dims)) features."""
        selected = self.read_out.select(features[None], self.encoder.stage_dims)[0]
        raw = selected @ self.weights + self.intercept
        return float(raw if self.calibration is None else self.calibration(raw))

    @property
    def dtype(self) -> str:
        """The dtype of the encoder: a name of ``DTYPES``."""
        return str(self.encoder.dtype).removeprefix("torch.")

    def in_dtype(self, dtype: str) -> Scorer:
        """Return the same scorer with a copy of the encoder in float32, float16 or bfloat16; from float32 only.

        Half precision halves the encoder's memory, and its time where the processor multiplies in it; without such
        instructions a CPU is several times slower. Scores move by at most 0.001 (float16) or 0.01 (bfloat16) of the
        range of the labels where the ridge's penalty is 1 per feature or more (tested); a smaller one, chosen on few
        images, magnifies the rounding of features.
        """
        if dtype not in DTYPES or self.dtype != "float32":
            allowed = ", ".join(DTYPES)
            raise InputError(
                f"scorer: dtype must be one of {allowed}, from a float32 scorer, got {dtype!r} from {self.dtype}"
            )
        encoder = prepare(copy.deepcopy(folded(self.encoder)).to(DTYPES[dtype]))  # folded in float32, rounded once
        return replace(self, encoder=encoder)

    def as_metric(self, *, as_loss: bool = False, loss_reduction: str = "mean") -> PyiqaMetric | ScoreLoss:
        """Return a ``torch.nn.Module`` with pyiqa's calling convention: see ``PyiqaMetric``.

        as_loss: one with a gradient, see ``ScoreLoss``: the score, reduced over images ("mean", "sum" or "none"), of
        which higher is better; minimise minus it.
        """
        return ScoreLoss(self, loss_reduction) if as_loss else PyiqaMetric(self)

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        table: ScoreTable,
        *,
        protocol: FeatureProtocol | None = None,
        calibration: bool = False,
        pretraining: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        quiet: bool = False,
    ) -> Scorer:
        """Fit on every image of a table; read-out and penalty come from the inner cross-validation of the evaluation.

        calibration: also fit a logistic on the out-of-fold predictions of that cross-validation; ``fitted_on`` then
        has the error with and without it.  pretraining: the record to keep.  cache: folder for features, None keeps
        none.  quiet: no progress bar.
        """
        protocol, cache = protocol or FeatureProtocol(), None if cache is None else Path(cache)
        features = read_out_features(encoder, table, protocol, label="features", cache=cache, quiet=quiet)
        chosen = choose_read_out(features, table.mos, table.groups, seed=_CHOICE_SEED)
        x = features[chosen.read_out]
        ridge = fit_ridge(x, table.mos, (chosen.penalty,))
        weights = ridge.weights[0] / ridge.scale
        fitted_on = {"name": table.name, "sha256": table.fingerprint, "images": len(table), **asdict(chosen)}
        mapping = None
        if calibration:
            mapping, fitted_on["calibration"] = calibrate(x, table.mos, table.groups, chosen.penalty, _CHOICE_SEED)
        return cls(
            encoder=prepare(encoder),
            read_out={str(read_out): read_out for read_out in READ_OUTS}[chosen.read_out],
            protocol=protocol,
            weights=weights,
            intercept=float(ridge.intercept - ridge.mean @ weights),
            mos_min=float(table.mos.min()),
            mos_max=float(table.mos.max()),
            fitted_on=fitted_on,
            calibration=mapping,
            pretraining=pretraining,
        )

    @classmethod
    def fit_unlabelled(
        cls,
        encoder: Encoder,
        folder: str | Path,
        *,
        images: int = 500,
        seed: int = 0,
        protocol: FeatureProtocol | None = None,
        pretraining: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        quiet: bool = False,
    ) -> Scorer:
        """Learn a score of 0 to 100 without opinions, from the images of a folder and what degradations do to them.

        folder: clean images, 10 or more; of more than ``images`` so many are taken, evenly spaced, and files that
        cannot be decoded are left out and counted in ``fitted_on``.  seed: of the degradations, which depend on it and
        on an image's pixels alone.  cache: folder for features, so that an interrupted fit goes on; None keeps none.
        The definition is in ``qpt.evaluate.unlabelled``. Takes about a second an image on one core. Raises InputError
        for fewer images, or an encoder that does not tell clean images from degraded ones.
        """
        from qpt.evaluate import unlabelled  # it brings the degradations, which nobody who only scores needs

        protocol, kept = protocol or FeatureProtocol(), None if cache is None else Path(cache)
        learnt = unlabelled.learn(encoder, folder, protocol=protocol, images=images, seed=seed, cache=kept, quiet=quiet)
        return cls(
            encoder=prepare(encoder),
            read_out=unlabelled.READ_OUT,
            protocol=protocol,
            weights=learnt.weights,
            intercept=learnt.intercept,
            mos_min=learnt.calibration.low,
            mos_max=learnt.calibration.high,
            fitted_on=learnt.record,
            calibration=learnt.calibration,
            pretraining=pretraining,
            seen=learnt.seen,
        )

    @property
    def opinions(self) -> bool:
        """Whether the scorer was fitted on opinions, and not on the damage of known degradations."""
        return bool(self.fitted_on.get("opinions", True))

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all. Raises InputError for a scorer in half precision."""
        if self.dtype != "float32":
            raise InputError(f"scorer: only a float32 scorer is saved, got {self.dtype}; choose the dtype when loading")
        state = {
            **self.plain_state(),
            "encoder": {name: value.contiguous() for name, value in self.encoder.state_dict().items()},
            "weights": torch.from_numpy(self.weights),
        }
        write_whole(Path(path), lambda unfinished: torch.save(state, unfinished))

    def plain_state(self) -> dict[str, Any]:
        """Return all that a file keeps but the tensors: plain data."""
        return {
            "format": SCORER_FORMAT,
            "features": DEFINITION,
            "arch": self.encoder.arch,
            "width": self.encoder.width,
            **({"two_trunks": True} if isinstance(self.encoder, TwoTrunks) else {}),
            "read_out": asdict(self.read_out),
            "protocol": asdict(self.protocol),
            "intercept": self.intercept,
            "mos_min": self.mos_min,
            "mos_max": self.mos_max,
            "fitted_on": self.fitted_on,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "pretraining": self.pretraining,
            **({} if self.seen is None else {"seen": list(self.seen)}),
        }

    @classmethod
    def load(cls, path: str | Path | None = None, *, dtype: str = "float32", max_pixels: int = MAX_PIXELS) -> Scorer:
        """Read a file written by ``save`` onto the CPU; only tensors and plain data are unpickled.

        path: None for the scorer that comes with the package, which has seen no opinions; a name that ends in
        .safetensors is a file of the same kind, made by ``python -m experiments model``.  dtype: see ``in_dtype``.
        max_pixels: of an image, >= 1. Raises InputError if the file is missing, damaged, carries code, or was not
        written by this version's ``save``.
        """
        max_pixels = check_int("scorer", "max_pixels", max_pixels, 1)
        if path is None or Path(path).suffix == ".safetensors":
            tensors, plain = read_shipped(None if path is None else Path(path))
            weights = tensors.pop("scorer.weights")
            scorer = replace(cls._from_state({**plain, "encoder": tensors, "weights": weights}), max_pixels=max_pixels)
            return scorer if dtype == "float32" else scorer.in_dtype(dtype)
        if not Path(path).is_file():
            raise InputError(
                f"scorer: path must be a scorer file, got {path}; "
                "make one with `qpt fit RUN --csv scores.csv --out scorer.pt`"
            )
        state = load_plain("scorer", path)
        made_by = (state.get("format"), state.get("features")) if isinstance(state, dict) else None
        if made_by not in [(SCORER_FORMAT, definition) for definition in (DEFINITION, *FORMER_DEFINITIONS)]:
            raise InputError(f"scorer: {path} must be a {SCORER_FORMAT} file of {DEFINITION}, got another file")
        try:
            scorer = replace(cls._from_state(state), max_pixels=max_pixels)
        except InputError as error:
            raise InputError(f"scorer: {path} is damaged: {error}") from None
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise InputError(f"scorer: {path} is damaged ({type(error).__name__}: {error})") from None
        return scorer if dtype == "float32" else scorer.in_dtype(dtype)

    @classmethod
    def _from_state(cls, state: Mapping[str, Any]) -> Scorer:
        encoder = stored_encoder(state, state["encoder"])
        read_out, calibration = ReadOut(**state["read_out"]), state["calibration"]
        weights = state["weights"].double().numpy()
        features = np.zeros((1, read_out.scales, len(STATISTICS), sum(encoder.stage_dims)), np.float32)
        if weights.shape != read_out.select(features, encoder.stage_dims).shape[1:] or not np.isfinite(weights).all():
            raise ValueError(f"weights must be finite and fit the read-out, got shape {weights.shape}")
        seen, fitted_on, pretraining = state.get("seen"), state["fitted_on"], state["pretraining"]
        numbers = {name: state[name] for name in ("intercept", "mos_min", "mos_max")} | (calibration or {})
        for name, value in (numbers | dict(enumerate(seen or ()))).items():
            check_number("scorer", str(name), value)
        if not isinstance(fitted_on["name"], str) or (seen is not None and len(seen) != 2):
            raise ValueError("fitted_on must have a name, and seen two numbers")
        if not isinstance(pretraining, dict | None):
            raise ValueError(f"pretraining must be a record, got {type(pretraining).__name__}")
        return cls(
            encoder=prepare(encoder),
            read_out=read_out,
            protocol=FeatureProtocol(**state["protocol"]),
            weights=weights,
            intercept=state["intercept"],
            mos_min=state["mos_min"],
            mos_max=state["mos_max"],
            fitted_on=fitted_on,
            calibration=None if calibration is None else LogisticCalibration(**calibration),
            pretraining=pretraining,
            seen=None if seen is None else tuple(seen),
        )


class PyiqaMetric(nn.Module):
    """A scorer with pyiqa's calling convention: ``metric(x)`` returns (N, 1) float32 scores on the CPU.

    x is a file, a Pillow image, or an (N, 3, H, W) float tensor of values 0 to 1, which are rounded to 8 bits first, as
    a file's would be; what rounds to 0 or 255 may lie outside by as little. lower_better: False.  metric_mode: "NR", no
    reference.  score_range: "lowest, highest" label of the table it was fitted on, as text like pyiqa's. It has no
    gradient: it is a metric to look at, not a loss.
    """

    lower_better = False
    metric_mode = "NR"
    metric_name = "qpt"

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.score_range = f"{scorer.mos_min:g}, {scorer.mos_max:g}"

    @outside_graphs
    def forward(self, target: ImageLike | Tensor, ref: object = None) -> Tensor:
        """Return the scores of the images of ``target``; ``ref`` is there for the convention and is not used.

        ``torch.compile`` runs it as it is. Raises InputError for a tensor of another shape or type, one with values
        that do not round to 0..255, or without values of its own (inside ``torch.vmap``, ``torch.func.grad``,
        ``torch.export``, ``torch.jit.trace``), besides all that ``Scorer`` refuses.
        """
        if isinstance(target, (str, os.PathLike, Image.Image)):
            return torch.tensor([[self.scorer(target)]], dtype=torch.float32, device="cpu")
        if not isinstance(target, Tensor) or target.ndim != 4 or target.shape[1] != 3 or not target.is_floating_point():
            raise InputError(
                "metric: target must be a path or an (N, 3, H, W) float tensor of values 0 to 1, or a PIL.Image, got "
                f"{describe(target)}{_remedy(target)}"
            )
        if torch.jit.is_tracing() or isinstance(target, FakeTensor) or is_functorch_wrapped_tensor(target):
            raise InputError(
                "metric: target must hold values, got a tensor that torch traces or transforms; "
                "call the metric outside of vmap, func.grad, export and jit.trace: it has no gradient and no graph"
            )
        scores = np.empty((len(target), 1), np.float32)
        for index, image in enumerate(target.detach()):
            values = image.float().cpu()
            levels = (values * 255).round()
            if levels.numel() and not (levels.min() >= 0 and levels.max() <= 255):
                raise InputError(
                    f"metric: target must hold values from 0 to 1, got {values.min():.7g} to {values.max():.7g} in "
                    f"image {index}; divide values up to 255 by 255, or cut rounding errors off with clamp(0, 1)"
                )
            pixels = levels.to(torch.uint8).permute(1, 2, 0).contiguous()
            scores[index, 0] = self.scorer(pixels.numpy())
        return torch.from_numpy(scores)


def _remedy(target: object) -> str:
    if not isinstance(target, (Tensor, np.ndarray)):
        return ""
    if isinstance(target, np.ndarray):
        return "; an (H, W, 3) uint8 array goes to the scorer itself"
    if target.ndim == 3:
        return "; for one image: target[None]"
    if target.ndim == 4 and target.shape[1] == 3:
        return "; divide values up to 255 by 255"
    return "; channels come second: target.permute(0, 3, 1, 2)" if target.shape[3:] == (3,) else ""
