"""The pre-training data set: one native-resolution square region per image and epoch, and what is drawn with it.

Used by ``qpt.pretraining.loader``. Everything random about sample (epoch, index), that is the region, the patch boxes
and the seed of its degradation program, derives from (seed, epoch, index) alone, so it does not depend on workers, on
the batch or on how often the run was interrupted.
"""

from __future__ import annotations

import mmap
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from qpt.data.boxes import RandomSource, check_boxes, draw_boxes, random_below
from qpt.data.faults import UnreadableError, explained, read_with_retries
from qpt.data.images import DecodedImage, decode_rgb, open_image
from qpt.data.sources import Source
from qpt.errors import InputError

_SAMPLE, _ORDER = 1, 2  # first word of a seed: the purpose of the stream
_STATE, _START, _HEIGHT, _WIDTH = range(4)  # columns of the cache's index
_FREE, _WRITING, _KEPT = range(3)


@dataclass(frozen=True)
class Region:
    """One sample: pixels (R, R, 3) uint8; boxes (compositions, patches, 2) int32 (top, left); seed of its programs."""

    index: int
    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int32]
    program_seed: int


@dataclass(frozen=True)
class Batch:
    """The samples of one step: regions (B, R, R, 3) uint8 · images (B,) int64: position in the file list · boxes (B,
    compositions, patches, 2) int32 · program_seeds (B,) int64 · unreadable: (index, reason) of the files left out.

    B is 0 if no file of the batch could be read.
    """

    regions: Tensor
    images: Tensor
    boxes: Tensor
    program_seeds: Tensor
    unreadable: list[tuple[int, str]]


def sample_rng(seed: int, epoch: int, index: int) -> random.Random:
    """Return the generator that everything random about a sample is drawn from."""
    return random.Random(((_SAMPLE << 64 | seed) << 64 | epoch) << 64 | index)


def place_region(height: int, width: int, size: int, rng: RandomSource) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of the part of an image that a region of side ``size`` takes, uniform over
    positions.

    An image that is smaller than the region on an axis is taken whole on that axis.
    """
    top, left = (random_below(rng, max(0, side - size) + 1) for side in (height, width))
    return top, left, min(height, size), min(width, size)


def pad_to(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Reflect an (H, W, 3) image at its edges until each side has at least ``size`` pixels.

    The pixels are those of ``numpy.pad`` in mode "reflect".
    """
    # numpy.pad has a fixed cost per call that shows beside the decoding of a small image.
    for axis in (1, 0):  # columns first: there are fewer rows then
        side = image.shape[axis]
        if side < size:
            before = (size - side) // 2
            period = max(1, 2 * (side - 1))  # reflection without repeated edges; one pixel repeats itself
            place = np.arange(-before, size - before) % period
            place = np.minimum(place, period - place)
            edges = (image.take(place[:before], axis), image, image.take(place[before + side :], axis))
            image = np.concatenate(edges, axis)
    return image


def cut_region(image: NDArray[np.uint8], size: int, rng: RandomSource) -> NDArray[np.uint8]:
    """Cut a (size, size, 3) region at native resolution, uniform over positions; smaller images are reflected."""
    top, left, height, width = place_region(image.shape[0], image.shape[1], size, rng)
    return pad_to(image[top : top + height, left : left + width], size)


class ImageCache:
    """Up to ``limit_bytes`` of (H, W, 3) uint8 images by their number below ``images``; those kept first stay.

    Made before the processes that share it are forked. Memory is taken as images come.
    """

    def __init__(self, images: int, limit_bytes: int) -> None:
        self._limit = limit_bytes
        if not limit_bytes:
            return
        self._lock = multiprocessing.get_context("fork").Lock()
        self._pixels = np.frombuffer(_shared(limit_bytes), np.uint8)
        self._index = np.frombuffer(_shared(32 * (images + 1)), np.int64).reshape(-1, 4)  # a row each, and a last one
        self._used = self._index[images]  # whose start is where the next image goes

    def has_room(self, size_bytes: int) -> bool:
        """Return whether an image of this size would be kept."""
        return bool(self._limit) and int(self._used[_START]) + size_bytes <= self._limit

    def get(self, number: int) -> NDArray[np.uint8] | None:
        """Return an image that is kept, as a read-only view."""
        if not self._limit:
            return None
        with self._lock:
            state, start, height, width = self._index[number].tolist()
        if state != _KEPT:
            return None
        image = self._pixels[start : start + 3 * height * width].reshape(height, width, 3)
        image.flags.writeable = False
        return image

    def keep(self, number: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return ``image``, kept for the next time if there is room."""
        if not self.has_room(image.nbytes):
            return image
        with self._lock:
            start = int(self._used[_START])
            if self._index[number, _STATE] != _FREE or start + image.nbytes > self._limit:
                return image
            self._used[_START] += image.nbytes
            self._index[number] = _WRITING, start, *image.shape[:2]
        self._pixels[start : start + image.nbytes] = image.reshape(-1)
        with self._lock:  # another process must not see the state before the pixels
            self._index[number, _STATE] = _KEPT
        return image


def _shared(size_bytes: int) -> mmap.mmap:
    """Return zeros in memory that processes forked from this one share, taken from the system page by page."""
    # Without a reserve: a limit larger than the memory costs nothing until it is used.
    try:
        return mmap.mmap(-1, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    except OSError as error:  # a limit on address space, as of `ulimit -v`
        found = f"{size_bytes >> 20} MiB: {error.strerror}"
        raise InputError(f"pretrain: cache_mib must fit into the memory of a process, got {found}") from None


class RegionDataset(Dataset[Region | tuple[int, str]]):
    """Maps (epoch, index) to a Region, or to (index, reason) for a file that cannot be read.

    source: the images.  resize_shorter: see ``PretrainConfig``.  cache_mib: keep up to this much of decoded images in
    memory, shared with the processes that are forked from this one; the first ones decoded stay.
    Raises ReadError, which names the file, when the disk or the machine is at fault, after three more attempts.
    """

    def __init__(
        self,
        source: Source,
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
        self.source = source
        self.seed = seed
        self.region_size = region_size
        self.patch_size = patch_size
        self.iou = iou
        self.compositions = compositions
        self.patches = patches
        self.shared_boxes = shared_boxes
        self.resize_shorter = resize_shorter
        self._cache = ImageCache(len(source), cache_mib << 20)

    def __len__(self) -> int:
        return len(self.source)

    def prefetch(self, keys: Sequence[tuple[int, int]]) -> None:
        """Read the files of keys that are asked for next, at once if they are behind URLs. Raises ReadError."""
        self.source.prefetch([index for _, index in keys if self._cache.get(index) is None])

    def __getitem__(self, key: tuple[int, int]) -> Region | tuple[int, str]:
        epoch, index = key

        def read() -> tuple[NDArray[np.uint8], random.Random]:
            rng = sample_rng(self.seed, epoch, index)  # anew for each attempt
            return self._region(index, rng), rng

        try:
            pixels, rng = read_with_retries(read, lambda: self.source.name(index))
        except UnreadableError as error:
            return index, str(error)
        drawn = [
            draw_boxes(rng, self.patches, self.patch_size, self.region_size, *self.iou)
            for _ in range(1 if self.shared_boxes else self.compositions)
        ]
        boxes = np.array(drawn * (self.compositions if self.shared_boxes else 1), np.int32)
        return Region(index, pixels, boxes, rng.getrandbits(63))

    def _region(self, index: int, rng: RandomSource) -> NDArray[np.uint8]:
        size = self.region_size
        image = self._cache.get(index)
        if image is None:
            with explained():
                file = self.source.open(index)
            if self.resize_shorter:
                image = self._cache.keep(index, decode_rgb(file, shorter_side=self.resize_shorter))
        if image is None:
            with open_image(file) as opened:
                decoded = DecodedImage(opened)
                # An image that will not be kept need not be converted outside the region.
                if not self._cache.has_room(3 * decoded.height * decoded.width):
                    return pad_to(decoded.window(*place_region(decoded.height, decoded.width, size, rng)), size)
                image = self._cache.keep(index, decoded.rgb())
        return cut_region(image, size, rng)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of each step from ``first_step`` on: a new permutation per epoch, whose incomplete last
    batch is dropped. share: the part of each step's keys that is wanted, None for all."""

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
