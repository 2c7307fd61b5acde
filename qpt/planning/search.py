"""The search behind ``qpt plan``: from traces of the step at a few sizes to the largest batch and pool that fit.

The memory of every part of a step (``qpt.planning.tracker``) is piecewise linear in the batch, so a few traces give it
for any batch, and the batch that comes out is traced as well. With gradient caching a trace takes every chunk, so a
batch of many chunks is checked by one of a few. Called by ``qpt.commands.plan``.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qpt.errors import InputError
from qpt.ops.contrastive.pool import MAX_CAPACITY
from qpt.planning.gpus import GIB, Gpu, known_gpus
from qpt.planning.trace import StepTrace, Target, full_logits_bytes
from qpt.planning.tracker import Peak, Peaks
from qpt.pretraining.config import PretrainConfig

DEVICE_BATCHES = 2  # regions of the batch of this step and of the next one, which the loader copies meanwhile
MAX_CHUNK = 64  # images; larger chunks gain little speed
MAX_CHUNK_SHARE = 0.25  # of the memory, for a chunk's activations, where the config leaves the chunk open
CHECK_CHUNKS = 4  # chunks of the batch that checks one of many
MAX_CHECKS = 4
# Memory of a process beside its tensors; these three are estimates, not measured here.
CONTEXT_BYTES = GIB // 2  # CUDA context and loaded kernels
LIBRARY_BYTES = GIB // 2  # workspaces of cuDNN and cuBLAS
FRAGMENTATION = 0.05  # share of the memory that the caching allocator cannot use


@dataclass(frozen=True)
class Allowance:
    """Bytes reserved for memory that no trace counts."""

    context: int
    libraries: int
    fragmentation: int

    @property
    def total(self) -> int:
        return self.context + self.libraries + self.fragmentation


@dataclass(frozen=True)
class Need:
    """A batch and its memory. images: per step.  chunk: images embedded at a time, 0 for all at once.  peak_bytes: of
    tensors, and by_category.  checked_images: a batch that was traced to check the interpolation between others, which
    had given predicted_bytes, and the trace traced_bytes."""

    images: int
    chunk: int
    peak_bytes: int
    by_category: dict[str, int]
    checked_images: int = 0
    predicted_bytes: int = 0
    traced_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """The answer of ``plan``. asked: the config as it is; chunked: its batch with gradient caching.  plain, cached: the
    largest batches without and with it; None where not even the smallest fits.  pool_rows: the largest pool at the
    asked batch, 0 where there is no room; None without a pool.  full_logits_bytes: memory of the loss alone at the
    asked batch with its logits in memory; loss_bytes: of this project's loss."""

    gpu: Gpu
    config: PretrainConfig
    allowance: Allowance
    asked: Need
    chunked: Need
    plain: Need | None
    cached: Need | None
    pool_rows: int | None
    full_logits_bytes: int
    loss_bytes: int

    @property
    def available_bytes(self) -> int:
        """Memory for tensors."""
        return self.gpu.memory_bytes - self.allowance.total

    @property
    def fits(self) -> bool:
        return self.asked.peak_bytes <= self.available_bytes


class Curve:
    """Peak memory by the number of images: linear between traced points, and beyond them."""

    def __init__(self, trace: Callable[[int], Peaks], *points: int) -> None:
        self._trace = trace
        self._points: dict[int, Peaks] = {}
        for images in points:
            self.add(images)

    def add(self, images: int) -> int:
        """Trace a batch, of which ``peak`` is exact from then on; return its peak bytes."""
        if images not in self._points:
            self._points[images] = self._trace(images)
        return max(peak.bytes for peak in self._points[images].values())

    def peak(self, images: int) -> Peak:
        """Interpolate the peak of every part of the step at a batch, and return the highest."""
        known = sorted(self._points)
        place = min(max(bisect.bisect_left(known, images), 1), len(known) - 1)
        low, high = known[place - 1], known[place]
        share = (images - low) / (high - low)

        def between(first: int, second: int) -> int:
            return max(0, round(first + (second - first) * share))

        parts = []
        for part, first in self._points[low].items():
            second = self._points[high][part]
            names = {**first.by_category, **second.by_category}
            categories = {
                name: between(first.by_category.get(name, 0), second.by_category.get(name, 0)) for name in names
            }
            parts.append(Peak(between(first.bytes, second.bytes), categories))
        return max(parts, key=lambda peak: peak.bytes)

    def largest(self, available: int, unit: int) -> int:
        """Return the largest number of images, a multiple of ``unit``, that fits; 0 if ``unit`` does not."""
        low, high = 0, 1  # bisection: ``low`` fits, ``high`` does not
        while self.peak(high * unit).bytes <= available:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle * unit).bytes <= available else (low, middle)
        return low * unit


class _Search:
    def __init__(self, config: PretrainConfig, gpu: Gpu) -> None:
        self.gpu = gpu
        self.allowance = Allowance(CONTEXT_BYTES, LIBRARY_BYTES, round(FRAGMENTATION * gpu.memory_bytes))
        self.available = gpu.memory_bytes - self.allowance.total
        self.trace = StepTrace(config, Target(gpu=True, teams=gpu.multiprocessors, batches=DEVICE_BATCHES))
        self.config = config = self.trace.config  # its precision is no longer auto
        self.parts = config.accumulate
        first = 2 * self.parts  # batch norm needs at least two samples
        self.plain = Curve(lambda images: self.trace.peaks(images, 0), first, 32 * self.parts)
        self._cached: dict[int, Curve] = {}

    def cached(self, chunk: int) -> Curve:
        """Return the curve of batches in chunks, traced at two and three chunks."""
        if chunk not in self._cached:
            whole = chunk * self.parts
            self._cached[chunk] = Curve(lambda images: self.trace.peaks(images, chunk), 2 * whole, 3 * whole)
        return self._cached[chunk]

    def chunk(self) -> int:
        """Return the config's chunk, or the largest power of two that leaves most of the memory to the batch."""
        if self.config.chunk_images:
            return self.config.chunk_images
        base = self.plain.peak(0).bytes
        share = MAX_CHUNK_SHARE * max(0, self.available - base)
        sizes = [2**k for k in range(1, MAX_CHUNK.bit_length())]
        return max((size for size in sizes if self.plain.peak(size).bytes - base <= share), default=2)

    def need(self, images: int, chunk: int) -> Need:
        """Return the memory of a batch, traced unless it has many chunks."""
        if not chunk or chunk * self.parts >= images:
            self.plain.add(images)
            return _need(self.plain, images, 0)
        return _need(self.cached(chunk), images, chunk)

    def largest(self, chunk: int) -> Need | None:
        """Return the largest batch that fits, with its check; None if there is none."""
        curve = self.cached(chunk) if chunk else self.plain
        unit = self.parts * max(1, chunk)
        images = curve.largest(self.available, unit)
        # Each check adds a point to the curve, which may change the answer.
        for _ in range(MAX_CHECKS):
            if images < 2 * self.parts:
                return None
            check = min(images, CHECK_CHUNKS * unit) if chunk else images
            predicted = curve.peak(check).bytes
            traced = curve.add(check)
            found = curve.largest(self.available, unit)
            if found == images:
                break
            images = found
        return dataclasses.replace(
            _need(curve, images, chunk), checked_images=check, predicted_bytes=predicted, traced_bytes=traced
        )


def _need(curve: Curve, images: int, chunk: int) -> Need:
    peak = curve.peak(images)
    return Need(images, chunk, peak.bytes, peak.by_category)


def plan(config: PretrainConfig, gpu: Gpu) -> Plan:
    """Plan the memory of ``config`` on ``gpu`` for one process; of several, each has its share of the batch.

    Raises InputError if not even two images fit, which says what would.
    """
    search = _Search(config, gpu)
    config = search.config
    chunk = search.chunk()
    asked = search.need(config.batch_images, config.chunk_images)
    chunked = search.need(config.batch_images, chunk)
    plain, cached = search.largest(0), search.largest(chunk)
    if plain is None and cached is None:
        raise InputError(_nothing_fits(search))
    queries, keys = loss_shape(config)
    pool = config.pool_size if config.mode == "moco" else 0
    best = asked if asked.peak_bytes <= search.available else chunked
    return Plan(
        gpu=gpu,
        config=config,
        allowance=search.allowance,
        asked=asked,
        chunked=chunked,
        plain=plain,
        cached=cached,
        pool_rows=_largest_pool(config, search.available - best.peak_bytes) if pool else None,
        full_logits_bytes=full_logits_bytes(queries, keys - pool, pool, config.projection_dim),
        loss_bytes=search.trace.loss_bytes(queries),
    )


def loss_shape(config: PretrainConfig) -> tuple[int, int]:
    """Return the numbers of queries and of keys, the pool's among them, of one loss at the config's batch."""
    rows = config.batch_images * config.compositions // config.accumulate
    if config.mode == "in_batch":
        return rows * config.patches, rows * config.patches
    return rows, rows * (config.patches - 1) + config.pool_size


def key_bytes(config: PretrainConfig) -> int:
    """Return the bytes of a key in the pool, with its two int64 ids."""
    return config.projection_dim * getattr(torch, config.pool_dtype).itemsize + 16


def _largest_pool(config: PretrainConfig, spare: int) -> int:
    return max(0, min(MAX_CAPACITY, config.pool_size + spare // key_bytes(config)))


def _nothing_fits(search: _Search) -> str:
    config, gpu = search.config, search.gpu
    need = search.plain.peak(2 * config.accumulate).bytes
    pool = config.pool_size * key_bytes(config) if config.mode == "moco" else 0
    what = f"{config.arch} at {config.patch_size} px, {config.precision}, {config.optimizer}"
    gib = f"{need / GIB:.2f} GiB of tensors for 2 images a step, where {gpu.name} has {search.available / GIB:.2f}"
    left = search.available - (need - pool)
    if pool and left >= key_bytes(config):
        return (
            f"plan: {what} needs {gib}; what would fit: pool_size {left // key_bytes(config)} (of {config.pool_size})"
        )
    for other in known_gpus():
        if other.memory_bytes * (1 - FRAGMENTATION) - CONTEXT_BYTES - LIBRARY_BYTES >= need:
            return (
                f"plan: {what} needs {gib}; what would fit: the memory of {other.name}, or a smaller encoder or patch"
            )
    return f"plan: {what} needs {gib}; no known GPU has that: take a smaller encoder, patch, region or pool"
