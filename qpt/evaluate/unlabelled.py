"""A score without opinions: a ridge from an encoder's features to the damage that known degradations do to images.

Called by ``Scorer.fit_unlabelled``; it reads images and writes the cache. Each image of a folder is degraded by random
compositions of several spaces. The damage is the gradient magnitude similarity deviation (GMSD; Xue et al., IEEE TIP
2014, arXiv 1308.3052) of the degraded region from the region as it was. No human score is used anywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from qpt.data.listing import list_images
from qpt.data.regions import cut_region
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError, check_int
from qpt.evaluate.calibration import LogisticCalibration
from qpt.evaluate.features import (
    FeatureProtocol,
    ReadOut,
    compute_rows,
    fill_or_read,
    hash_of,
    image_features,
    prepare,
    weights_hash,
)
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.measures import MEASURES, measure
from qpt.models import Encoder
from qpt.models.two_trunks import TwoTrunks
from qpt.ops.degrade.api import degrade

Array = NDArray[np.float64]

#: A composition of each is drawn for an image; the image itself is an example too. Compositions of one op (kadid,
#: arniqa), of several (qpt), and those that restoration is trained on (bsrgan, realesrgan).
SPACES = ("qpt", "qpt", "qpt", "kadid", "realesrgan", "bsrgan", "arniqa")
REGION_PX = 320
#: The statistics at full and half scale.
READ_OUT = ReadOut("all", "mean+std")
#: Per feature, as in ``qpt.evaluate.ridge``. Held-out degradations prefer a smaller one; a strong one carries over to
#: images of other cameras and faults than those that are learnt from.
PENALTY = 0.2
#: Prior variances of weights, beside 1 for means at half scale of a trunk that was pre-trained. Large photographs need
#: the half scale: the images that are learnt from are small, as sharp at full scale as a large one is at its half.
FULL_SCALE, DEVIATIONS, FROZEN = 0.1, 0.5, 0.3
#: Of the scale from 0 to 100: what the median clean image and the worst twentieth of the degraded ones get.
CLEAN_SCORE, WORST_SCORE = 85.0, 15.0
#: Images are computed and kept in the cache so many at a time.
_CHUNK = 50
_HELD_OUT = 5  # of the images, one in so many, for the figure and the scale
#: Changes whenever the numbers that this file computes for an image change.
_DEFINITION = "qpt-unlabelled-1"


@dataclass(frozen=True)
class Learnt:
    """What ``learn`` returns.

    weights: (d,) and intercept: the ridge on the features of ``READ_OUT``.  calibration: from its output to 0 to 100.
    seen: lowest and highest score of the images learnt from.  record: counts, names and the SRCC with the damage to
    images held out.
    """

    weights: Array
    intercept: float
    calibration: LogisticCalibration
    seen: tuple[float, float]
    record: dict[str, Any]


def learn(
    encoder: Encoder,
    folder: str | Path,
    *,
    protocol: FeatureProtocol,
    images: int,
    seed: int,
    cache: Path | None,
    quiet: bool,
) -> Learnt:
    """Learn a score from the images of a folder, which should be clean ones; arguments as ``Scorer.fit_unlabelled``."""
    images, seed = check_int("unlabelled", "images", images, 10), check_int("unlabelled", "seed", seed, 0)
    encoder = prepare(encoder)
    paths, unreadable = _choose(folder, images)
    parts = [
        _examples(encoder, paths[start : start + _CHUNK], protocol, seed, cache, quiet)
        for start in range(0, len(paths), _CHUNK)
    ]
    rows = np.concatenate(parts)
    count = rows.shape[1]
    features = rows[..., :-1].reshape(len(paths) * count, READ_OUT.scales, 2, -1)
    x, damage = READ_OUT.select(features, encoder.stage_dims), rows[..., -1].reshape(-1).astype(np.float64)
    image = np.repeat(np.arange(len(paths)), count)
    held = image % _HELD_OUT == _HELD_OUT - 1
    prior = _prior(encoder)
    weights, intercept = _fit(x[~held], -damage[~held], prior)
    checked = x[held] @ weights + intercept
    weights, intercept = _fit(x, -damage, prior)
    calibration = _scale(checked, is_clean=(np.arange(len(x)) % count == 0)[held])
    scores = calibration(x @ weights + intercept)
    record = {
        "name": "the damage of known degradations",
        "opinions": False,
        "images": len(paths),
        "unreadable": unreadable,
        "examples": len(x),
        "read_out": str(READ_OUT),
        "penalty": PENALTY,
        "seed": seed,
        "spaces": list(SPACES),
        "srcc": float(spearmanr(checked, -damage[held])[0]),
        "folds": "one image in five held out",
    }
    return Learnt(
        weights=weights,
        intercept=intercept,
        calibration=calibration,
        seen=(float(scores.min()), float(scores.max())),
        record=record,
    )


def _prior(encoder: Encoder) -> Array:
    """Return the prior variance of the weight of each feature of READ_OUT, (d,)."""
    trunks = np.ones(sum(encoder.stage_dims))
    if isinstance(encoder, TwoTrunks):
        pairs = zip(encoder.frozen.stage_dims, encoder.tuned.stage_dims, strict=True)
        trunks = np.concatenate([np.repeat([FROZEN, 1.0], pair) for pair in pairs])
    scales, statistics = np.array([FULL_SCALE, 1.0]), np.array([1.0, DEVIATIONS])
    return np.einsum("i,j,k->ijk", scales, statistics, trunks).reshape(-1)


def _fit(x: Array, y: Array, prior: Array) -> tuple[Array, float]:
    """Return weights and intercept, for features as they are, of a ridge on standardised ones with prior variances."""
    scaler, root = StandardScaler().fit(x), np.sqrt(prior)
    ridge = Ridge(alpha=PENALTY * x.shape[1]).fit(scaler.transform(x) * root, y)
    weights = ridge.coef_ * root / scaler.scale_
    return weights, float(ridge.intercept_ - scaler.mean_ @ weights)


def _choose(folder: str | Path, images: int) -> tuple[list[Path], int]:
    """Return at most ``images`` files of a folder that can be decoded, evenly spaced, and how many could not be."""
    files = list_images(folder, most=images)
    usable = []
    for path in files:
        try:
            load_image(path)
        except InputError:
            continue
        usable.append(path)
    if len(usable) < 2 * _HELD_OUT:
        raise InputError(
            f"unlabelled: folder must hold {2 * _HELD_OUT} images that can be decoded, got {len(usable)} in {folder}"
        )
    return usable, len(files) - len(usable)


def _examples(
    encoder: Encoder, paths: Sequence[Path], protocol: FeatureProtocol, seed: int, cache: Path | None, quiet: bool
) -> NDArray[np.float32]:
    """Compute or read features and damage of the examples of images: (n, 1 + len(SPACES), features + 1) float32."""
    spaces = [DegradationSpace.preset(name) for name in SPACES]
    length = READ_OUT.scales * 2 * sum(encoder.stage_dims) + 1
    rows = np.empty((len(paths), 1 + len(spaces), length), np.float32)

    def compute(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        # Of the pixels and not of the file's place: another folder or order gives an image the same examples.
        key = int.from_bytes(hashlib.sha256(pixels.tobytes() + seed.to_bytes(8, "little")).digest()[:6], "little")
        generator = torch.Generator().manual_seed(key)
        clean = cut_region(pixels, REGION_PX, random.Random(key))
        region = torch.from_numpy(np.ascontiguousarray(clean))[None]
        found = np.empty(rows.shape[1:], np.float32)
        for row, space in zip(found, (None, *spaces), strict=True):
            degraded = region if space is None else degrade(region, space.sample(1, generator=generator))
            pixels = degraded[0].numpy()
            row[:-1] = image_features(encoder, pixels, protocol, READ_OUT.scales).reshape(-1)
            row[-1] = _gmsd(pixels, clean)
        return found

    file = None
    if cache is not None:
        contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        key = hash_of(_DEFINITION, weights_hash(encoder), repr(protocol), str(seed), *contents)
        file = cache / f"{key[:32]}.npz"

    def fill() -> None:
        compute_rows(rows, compute, paths, "degraded images", quiet)
        if not np.isfinite(rows).all():
            raise InputError("features: encoder must give finite features, got NaN or infinity from degraded images")

    return fill_or_read(rows, fill, file)


def _gmsd(degraded: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the GMSD of (H, W, 3) pixels from their undegraded selves."""
    pair = (torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()) for pixels in (degraded, clean))
    return float(measure(*pair)[0, MEASURES.index("gmsd")])


def _scale(raw: Array, is_clean: NDArray[np.bool_]) -> LogisticCalibration:
    """Return the map to 0 to 100 that gives CLEAN_SCORE and WORST_SCORE to the quantiles they name."""
    clean, worst = float(np.median(raw[is_clean])), float(np.quantile(raw[~is_clean], 0.05))
    if not clean > worst:
        raise InputError("unlabelled: encoder must tell clean images from degraded ones, got one that does not")
    low, high = (np.log(score / (100 - score)) for score in (WORST_SCORE, CLEAN_SCORE))
    width = (clean - worst) / (high - low)
    return LogisticCalibration(low=0.0, high=100.0, centre=float(clean - high * width), width=float(width))
