"""End-to-end fine-tuning of an encoder and a linear head on one split, with early stopping on a validation part.

Called by ``qpt.evaluate.run`` for each split when asked for; it reads image files. A training step takes random crops
at native resolution, never a resized image; a prediction is the mean over an evenly spaced grid of crops. Everything
random derives from a seed, so a split repeats on the same machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpt.data.normalise import normalise
from qpt.errors import InputError, check_int, check_number
from qpt.evaluate.image_crops import crop_grid, load_image
from qpt.evaluate.metrics import measure_rank_and_error
from qpt.models import Encoder
from qpt.process import tensors_on_cpu

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LOSSES = ("huber", "plcc")
CACHE_BYTES = 1 << 30  # of decoded images kept between epochs
_VAL_SHARE = 0.2


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning.

    epochs: at most.  patience: epochs without a better validation SRCC after which training stops.  batch: images per
    step.  crop_px: side of a crop, less where the smallest image is smaller.  test_crops: most crops of a prediction.
    lr: of the encoder at the start of a cosine to 0; the head's is 10 times that.  loss: "huber" on standardised MOS,
    or "plcc", 1 - Pearson correlation within the batch.
    """

    epochs: int = 30
    patience: int = 8
    batch: int = 16
    crop_px: int = 224
    test_crops: int = 4
    lr: float = 1e-4
    weight_decay: float = 1e-4
    loss: str = "huber"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"fine-tune: loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name, low in {"epochs": 1, "patience": 1, "test_crops": 1, "batch": 2, "crop_px": 32}.items():
            object.__setattr__(self, name, check_int("fine-tune", name, getattr(self, name), low))
        object.__setattr__(self, "lr", check_number("fine-tune", "lr", self.lr, above=0))
        decay = check_number("fine-tune", "weight_decay", self.weight_decay, least=0)
        object.__setattr__(self, "weight_decay", decay)

    def describe(self) -> dict[str, object]:
        """Return the entry ``protocol.fine_tuning`` of a result."""
        return {
            **asdict(self),
            "optimiser": "AdamW, cosine",
            "chosen_by": "SRCC of the validation part after each epoch",
        }


class ImageCache:
    """Decoded images by row number, kept up to CACHE_BYTES; the rest is decoded again each time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._bytes = 0

    def __call__(self, row: int) -> NDArray[np.uint8]:
        if row in self._kept:
            return self._kept[row]
        pixels = load_image(self._paths[row])
        if self._bytes + pixels.nbytes <= CACHE_BYTES:
            self._kept[row] = pixels
            self._bytes += pixels.nbytes
        return pixels


def hold_out(train: Index, mos: Array, groups: Index, seed: Sequence[int]) -> tuple[Index, Index]:
    """Divide a training part into (rows fitted on, rows for validation), a fifth of it.

    Whole groups are held out where there are at least five, else images. Both parts get at least two images of
    different MOS; InputError if none of 200 draws does.
    """
    generator = np.random.default_rng([*seed, 2])
    owners = groups[train] if len(np.unique(groups[train])) >= 5 else train
    names = np.unique(owners)
    for _ in range(200):
        chosen = generator.choice(
            names, max(1 if len(names) < len(train) else 2, round(_VAL_SHARE * len(names))), False
        )
        held = np.isin(owners, chosen)
        if all(len(np.unique(mos[train[part]])) > 1 for part in (held, ~held)):
            return train[~held], train[held]
    raise InputError(f"fine-tune: the training part must hold enough images to validate on, got {len(train)}")


@tensors_on_cpu()
@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def fine_tune(
    encoder: Encoder,
    load: Callable[[int], NDArray[np.uint8]],
    mos: Array,
    *,
    train: Index,
    val: Index,
    test: Index,
    config: FineTuning,
    seed: Sequence[int],
) -> tuple[Array, dict[str, Any]]:
    """Train a copy of ``encoder`` and a linear head on ``train``; predict ``test`` as of the best epoch on ``val``.

    load: row number -> (H, W, 3) uint8.  mos: (n,) of the whole table, of which train and val are read.  The best
    epoch has the highest SRCC on val, then the smallest error. Batch normalisation uses the statistics of each batch in
    training and its running ones in prediction. Returns (len(test),) predictions in MOS units, and best_epoch (from 1),
    epochs (run) and val_srcc (of the best).
    """
    mean, std = float(mos[train].mean()), float(mos[train].std())
    side = min([config.crop_px, *(min(load(row).shape[:2]) for row in train)])
    generator = np.random.default_rng([*seed, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**31)))
        model = nn.Sequential(
            copy.deepcopy(encoder), nn.Linear(encoder.feature_dim, 1, dtype=torch.float32, device="cpu")
        )
    # torch 2.13 on a CPU was seen to corrupt memory in the backward pass of a narrow channels-last network.
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    groups = [
        {"params": model[0].parameters(), "lr": config.lr},
        {"params": model[1].parameters(), "lr": 10 * config.lr},
    ]
    steps = -(-len(train) // config.batch)
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * steps)
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None = None
    epoch = 0
    for epoch in range(1, config.epochs + 1):
        model.train()
        # Equal parts: batch normalisation and PLCC are not defined for a batch of one image.
        for rows in np.array_split(generator.permutation(train), min(steps, max(1, len(train) // 2))):
            x = _normalised(np.stack([_random_crop(load(row), side, generator) for row in rows]))
            targets = torch.from_numpy((mos[rows] - mean) / std).float()
            optimiser.zero_grad()
            _loss(config.loss, model(x)[:, 0], targets).backward()
            optimiser.step()
            schedule.step()
        metrics = measure_rank_and_error(_predict(model, load, val, side, config), (mos[val] - mean) / std)
        srcc = -1.0 if math.isnan(metrics["srcc"]) else metrics["srcc"]
        if best is None or (srcc, -metrics["rmse"]) > best[0]:
            best = (srcc, -metrics["rmse"]), epoch, copy.deepcopy(model.state_dict())
        elif epoch - best[1] >= config.patience:
            break
    assert best is not None  # epochs >= 1
    model.load_state_dict(best[2])
    predicted = _predict(model, load, test, side, config) * std + mean
    if config.loss == "plcc":  # it leaves scale and offset open: a line fitted on val gives them
        on_val = _predict(model, load, val, side, config) * std + mean
        if np.ptp(on_val) > 0:
            slope, offset = np.polyfit(on_val, mos[val], 1)
            if slope > 0:  # a falling line would turn the order learnt
                predicted = predicted * slope + offset
    return predicted, {"best_epoch": best[1], "epochs": epoch, "val_srcc": best[0][0]}


def _random_crop(pixels: NDArray[np.uint8], side: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a crop at native resolution, mirrored half of the time."""
    height, width = pixels.shape[:2]
    top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
    crop = pixels[top : top + side, left : left + side]
    return crop[:, ::-1] if generator.integers(2) else crop


def _normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """Return (N, h, w, 3) uint8 as normalised (N, 3, h, w) float32."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return normalise(x).contiguous()  # as the network's weights: see fine_tune


def _loss(name: str, predicted: Tensor, targets: Tensor) -> Tensor:
    if name == "huber":
        return nn.functional.huber_loss(predicted, targets)
    a, b = predicted - predicted.mean(), targets - targets.mean()
    return 1 - (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-8)


@torch.no_grad()
def _predict(
    model: nn.Module, load: Callable[[int], NDArray[np.uint8]], rows: Index, side: int, config: FineTuning
) -> Array:
    """Return (len(rows),) standardised scores: the mean over a grid of crops, one image at a time."""
    model.eval()
    scores = []
    for row in rows:
        crops = crop_grid(load(row), side=side, count=config.test_crops)
        scores.append(float(np.mean([model(_normalised(crop[None])).double().item() for crop in crops])))
    return np.array(scores)
