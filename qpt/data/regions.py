"""The pre-training data set: one native-resolution square region per photograph and epoch, and what is drawn with it.

Used through ``torch.utils.data.DataLoader`` by ``qpt.pretrain``. Everything random about sample (epoch, index) — the
region, the patch boxes, the seed of its degradation program — derives from (seed, epoch, index) alone, so it does not
depend on workers, on the batch or on how often the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from qpt.data.boxes import check_boxes, draw_boxes
from qpt.data.images import UNREADABLE, load_rgb

_SAMPLE, _ORDER = 1, 2  # first word of a seed: what the stream is for


@dataclass(frozen=True)
class Region:
    """One sample. pixels (R, R, 3) uint8; boxes (compositions, patches, 2) int32 (top, left); seed for its programs."""

    index: int
    pixels: Tensor
    boxes: Tensor
    program_seed: int


@dataclass(frozen=True)
class Batch:
    """regions (B, R, R, 3) uint8 · images (B,) int64: position in the file list · boxes (B, compositions, patches, 2)
    int32 · program_seeds (B,) int64 · unreadable: (index, reason) of the files left out of this batch."""

    regions: Tensor
    images: Tensor
    boxes: Tensor
    program_seeds: Tensor
    unreadable: list[tuple[int, str]]


def cut_region(image: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A (size, size, 3) region at native resolution, uniform over positions; reflect-pads smaller images."""
    height, width = image.shape[:2]
    missing = (max(0, size - height), max(0, size - width))
    if any(missing):
        pad = [(total // 2, total - total // 2) for total in missing]
        image = np.pad(image, (*pad, (0, 0)), mode="reflect")
    top = int(rng.integers(0, image.shape[0] - size + 1))
    left = int(rng.integers(0, image.shape[1] - size + 1))
    return image[top : top + size, left : left + size]


def resize_shorter_side(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Antialiased (bicubic) resize so that the shorter side has ``side`` pixels."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC))


class RegionDataset(Dataset[Region | tuple[int, str]]):
    """Maps (epoch, index) to a Region, or to (index, reason) for a file that cannot be read.

    cache_mib: keep up to this much of decoded photographs in memory (per loader process); the first ones seen stay.
    """

    def __init__(
        self,
        files: list[Path],
        *,
        seed: int,
        region_size: int,
        patch_size: int,
        iou: tuple[float, float],
        compositions: int,
        patches: int = 2,
        shared_boxes: bool,
        resize_shorter: int,
        cache_mib: int,
    ) -> None:
        check_boxes(patches, patch_size, region_size, *iou)
        self.files = files
        self.seed = seed
        self.region_size = region_size
        self.patch_size = patch_size
        self.iou = iou
        self.compositions = compositions
        self.patches = patches
        self.shared_boxes = shared_boxes
        self.resize_shorter = resize_shorter
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self._room = cache_mib << 20

    def __len__(self) -> int:
        return len(self.files)

    def _photograph(self, index: int) -> NDArray[np.uint8]:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        image = load_rgb(self.files[index])
        if self.resize_shorter:
            image = resize_shorter_side(image, self.resize_shorter)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[index] = image
        return image

    def __getitem__(self, key: tuple[int, int]) -> Region | tuple[int, str]:
        epoch, index = key
        rng = np.random.default_rng([_SAMPLE, self.seed, epoch, index])
        try:
            image = self._photograph(index)
        except UNREADABLE as error:
            return index, f"{type(error).__name__}: {error}"
        pixels = cut_region(image, self.region_size, rng)
        drawn = [
            draw_boxes(rng, self.patches, self.patch_size, self.region_size, *self.iou)
            for _ in range(1 if self.shared_boxes else self.compositions)
        ]
        boxes = np.stack(drawn * (self.compositions if self.shared_boxes else 1))
        return Region(index, torch.from_numpy(pixels.copy()), torch.from_numpy(boxes), int(rng.integers(0, 2**63)))


def collate(samples: list[Region | tuple[int, str]]) -> Batch:
    """Stack the readable samples; without any the tensors have no rows, and a side of 1."""
    regions = [sample for sample in samples if isinstance(sample, Region)]
    unreadable = [sample for sample in samples if not isinstance(sample, Region)]
    pixels = [sample.pixels for sample in regions]
    boxes = [sample.boxes for sample in regions]
    return Batch(
        regions=torch.stack(pixels) if regions else torch.empty((0, 1, 1, 3), dtype=torch.uint8),
        images=torch.tensor([sample.index for sample in regions], dtype=torch.int64),
        boxes=torch.stack(boxes) if regions else torch.empty((0, 1, 2, 2), dtype=torch.int32),
        program_seeds=torch.tensor([sample.program_seed for sample in regions], dtype=torch.int64),
        unreadable=unreadable,
    )


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of each step from ``first_step`` on: a fresh permutation per epoch, its ragged end
    dropped. share: the part of each step's keys that is wanted, None for all."""

    def __init__(
        self, images: int, batch: int, seed: int, first_step: int, steps: int, share: slice | None = None
    ) -> None:
        self.images, self.batch, self.seed, self.first_step, self.steps = images, batch, seed, first_step, steps
        self.share = slice(None) if share is None else share

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.images // self.batch
        order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        drawn = -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != drawn:
                order, drawn = np.random.default_rng([_ORDER, self.seed, epoch]).permutation(self.images), epoch
            chosen = order[position * self.batch : (position + 1) * self.batch]
            yield [(epoch, int(index)) for index in chosen[self.share]]
