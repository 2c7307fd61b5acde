"""End-to-end fine-tuning of an encoder and a linear head on one split, with early stopping on a validation part.

Called by ``qpt.evaluate.run`` for each split when asked for. Relies on ``photograph`` for crops and on PyTorch. A
training step sees random crops at native resolution, never a resized photograph; a prediction is the mean over an
evenly spaced grid of crops. Everything random derives from a seed, so a split repeats on the same machine.
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
from qpt.errors import InputError
from qpt.evaluate.image_crops import crops, load_photograph
from qpt.evaluate.metrics import measure_rank_and_error
from qpt.models import ResNet

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LOSSES = ("huber", "plcc")
CACHE_BYTES = 1 << 30  # of decoded photographs kept between epochs
_VAL_SHARE = 0.2


@dataclass(frozen=True)
class FineTuning:
    """epochs: at most; patience: epochs without a better validation SRCC after which training stops.  batch: images per
    step.  crop_px: side of a crop, less where the smallest photograph is smaller.  test_crops: most crops of a
    prediction.  lr: of the encoder at the start of a cosine to 0; the head's is 10 times that.  loss: "huber" on
    standardised MOS, or "plcc", 1 - Pearson correlation within the batch."""

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
        if min(self.epochs, self.patience, self.test_crops) < 1 or self.batch < 2 or self.crop_px < 32:
            raise InputError(
                "fine-tune: epochs, patience and test_crops must be >= 1, batch >= 2 and crop_px >= 32, got "
                f"{self.epochs}, {self.patience}, {self.test_crops}, {self.batch} and {self.crop_px}"
            )
        if not (self.lr > 0 and math.isfinite(self.lr) and self.weight_decay >= 0):
            raise InputError(f"fine-tune: lr must be > 0 and weight_decay >= 0, got {self.lr} and {self.weight_decay}")

    def describe(self) -> dict[str, object]:
        """For the record of a result."""
        return {
            **asdict(self),
            "optimiser": "AdamW, cosine",
            "chosen_by": "SRCC of the validation part after each epoch",
        }


class Photographs:
    """Decoded photographs by row number, kept up to CACHE_BYTES; the rest is decoded again each time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._bytes = 0

    def __call__(self, row: int) -> NDArray[np.uint8]:
        if row in self._kept:
            return self._kept[row]
        pixels = load_photograph(self._paths[row])
        if self._bytes + pixels.nbytes <= CACHE_BYTES:
            self._kept[row] = pixels
            self._bytes += pixels.nbytes
        return pixels


def hold_out(train: Index, mos: Array, groups: Index, seed: Sequence[int]) -> tuple[Index, Index]:
    """(fitted on, validation): a fifth of the training part, whole groups where it has at least five, else images.

    Both get at least two images of different MOS, or InputError: such a part is too small to stop early on.
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


def fine_tune(
    encoder: ResNet,
    photograph: Callable[[int], NDArray[np.uint8]],
    mos: Array,
    *,
    train: Index,
    val: Index,
    test: Index,
    config: FineTuning,
    seed: Sequence[int],
) -> tuple[Array, dict[str, Any]]:
    """Train a copy of ``encoder`` and a linear head on ``train``; predict ``test`` as of the best epoch on ``val``.

    photograph: row number -> (H, W, 3) uint8.  mos: (n,) of the whole table, of which train and val are read.  The best
    epoch has the highest SRCC on val, then the smallest error; with the loss "plcc", which leaves scale and offset
    open, a line fitted on val gives them. Batch normalisation uses the statistics of each batch in training and its
    running ones in prediction. Returns (len(test),) predictions in MOS units, and best_epoch (from 1), epochs (run)
    and val_srcc (of the best).
    """
    level, spread = float(mos[train].mean()), float(mos[train].std())
    side = min([config.crop_px, *(min(photograph(row).shape[:2]) for row in train)])
    generator = np.random.default_rng([*seed, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**31)))
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(encoder.feature_dim, 1))
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
        # Equal parts, so that none is a single image, of which batch normalisation and PLCC make nothing.
        for rows in np.array_split(generator.permutation(train), min(steps, max(1, len(train) // 2))):
            x = _normalised(np.stack([_random_crop(photograph(row), side, generator) for row in rows]))
            wanted = torch.from_numpy((mos[rows] - level) / spread).float()
            optimiser.zero_grad()
            _loss(config.loss, model(x)[:, 0], wanted).backward()
            optimiser.step()
            schedule.step()
        found = measure_rank_and_error(_predict(model, photograph, val, side, config), (mos[val] - level) / spread)
        rank = -1.0 if math.isnan(found["srcc"]) else found["srcc"]
        if best is None or (rank, -found["rmse"]) > best[0]:
            best = (rank, -found["rmse"]), epoch, copy.deepcopy(model.state_dict())
        elif epoch - best[1] >= config.patience:
            break
    assert best is not None  # epochs >= 1
    model.load_state_dict(best[2])
    predicted = _predict(model, photograph, test, side, config) * spread + level
    if config.loss == "plcc":
        seen = _predict(model, photograph, val, side, config) * spread + level
        if np.ptp(seen) > 0:
            slope, offset = np.polyfit(seen, mos[val], 1)
            if slope > 0:  # a falling line would turn the order learnt
                predicted = predicted * slope + offset
    return predicted, {"best_epoch": best[1], "epochs": epoch, "val_srcc": best[0][0]}


def _random_crop(pixels: NDArray[np.uint8], side: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A crop at native resolution, mirrored half of the time."""
    height, width = pixels.shape[:2]
    top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
    crop = pixels[top : top + side, left : left + side]
    return crop[:, ::-1] if generator.integers(2) else crop


def _normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, h, w, 3) uint8 -> (N, 3, h, w) float32 with ImageNet mean and deviation."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return normalise(x).contiguous()  # as the network's weights: see fine_tune


def _loss(name: str, predicted: Tensor, wanted: Tensor) -> Tensor:
    if name == "huber":
        return nn.functional.huber_loss(predicted, wanted)
    a, b = predicted - predicted.mean(), wanted - wanted.mean()
    return 1 - (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-8)


@torch.no_grad()
def _predict(
    model: nn.Module, photograph: Callable[[int], NDArray[np.uint8]], rows: Index, side: int, config: FineTuning
) -> Array:
    """(len(rows),) standardised scores: the mean over a grid of crops, one photograph at a time."""
    model.eval()
    scores = []
    for row in rows:
        parts = crops(photograph(row), side=side, count=config.test_crops)
        scores.append(float(np.mean([model(_normalised(part[None])).double().item() for part in parts])))
    return np.array(scores)
