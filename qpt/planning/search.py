"""The search behind ``qpt plan``: from traces of the step at a few sizes to the largest batch and pool that fit.

Every part of a step (``qpt.planning.tracker``) needs memory that grows in a straight line with the batch, or in one
line after another, so a few traces give it for any batch, and the batch that comes out is traced as well. With gradient
caching a trace walks every chunk, so a batch of many chunks is checked by one of a few. Called by the command.
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

DEVICE_BATCHES = 2  # regions of the batch under way and of the next one, which the feed copies meanwhile
MOST_CHUNK = 64  # photographs; larger chunks gain little speed
CHUNK_SHARE = 0.25  # of the memory, at most, that goes to a chunk's activations where the chunk is ours to choose
CHUNKS_TRACED = 4  # of a check
MOST_CHECKS = 4
# Not tensors, and not measured here: what a process needs beside them.
CONTEXT_BYTES = GIB // 2  # CUDA context and loaded kernels
LIBRARY_BYTES = GIB // 2  # workspaces of cuDNN and cuBLAS
FRAGMENTATION = 0.05  # of the memory: what the caching allocator cannot hand out


@dataclass(frozen=True)
class Allowance:
    """Bytes kept free for what no trace sees."""

    context: int
    libraries: int
    fragmentation: int

    @property
    def total(self) -> int:
        return self.context + self.libraries + self.fragmentation


@dataclass(frozen=True)
class Need:
    """A batch and its memory. images: photographs a step.  chunk: embedded at a time, 0 for all at once.  peak_bytes:
    of tensors; by_category: where they go.  checked_images: a batch that was traced to check the line through smaller
    ones, which had said predicted_bytes; the trace says traced_bytes."""

    images: int
    chunk: int
    peak_bytes: int
    by_category: dict[str, int]
    checked_images: int = 0
    predicted_bytes: int = 0
    traced_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Answer of ``plan``. asked: the config as it is; chunked: the same batch with gradient caching.  plain, cached:
    the largest batches without and with it; None where not even the smallest fits.  pool_rows: the largest pool at the
    asked batch, 0 where there is no room; None without a pool.  full_logits_bytes: what the loss alone would need at
    the asked batch with its logits in memory, next to loss_bytes of this one."""

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
        """What tensors may take."""
        return self.gpu.memory_bytes - self.allowance.total

    @property
    def fits(self) -> bool:
        return self.asked.peak_bytes <= self.available_bytes


class Curve:
    """Peak memory against the number of photographs: straight lines between traced points, and beyond them."""

    def __init__(self, trace: Callable[[int], Peaks], *points: int) -> None:
        self._trace = trace
        self._points: dict[int, Peaks] = {}
        for images in points:
            self.add(images)

    def add(self, images: int) -> int:
        """Trace a batch; its peak bytes. From then on ``peak`` of it is exact."""
        if images not in self._points:
            self._points[images] = self._trace(images)
        return max(peak.bytes for peak in self._points[images].values())

    def peak(self, images: int) -> Peak:
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
        """The most photographs, a multiple of ``unit``, that fit; 0 if ``unit`` do not."""
        low, high = 0, 1
        while self.peak(high * unit).bytes <= available:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle * unit).bytes <= available else (low, middle)
        return low * unit


class _Search:
    def __init__(self, config: PretrainConfig, gpu: Gpu) -> None:
        self.config, self.gpu = config, gpu
        self.allowance = Allowance(CONTEXT_BYTES, LIBRARY_BYTES, round(FRAGMENTATION * gpu.memory_bytes))
        self.available = gpu.memory_bytes - self.allowance.total
        self.trace = StepTrace(config, Target(gpu=True, teams=gpu.multiprocessors, batches=DEVICE_BATCHES))
        self.parts = config.accumulate
        first = 2 * self.parts  # batch norm wants two photographs at least
        self.plain = Curve(lambda images: self.trace.peaks(images, 0), first, 32 * self.parts)
        self._cached: dict[int, Curve] = {}

    def cached(self, chunk: int) -> Curve:
        """Through batches of two and three chunks."""
        if chunk not in self._cached:
            whole = chunk * self.parts
            self._cached[chunk] = Curve(lambda images: self.trace.peaks(images, chunk), 2 * whole, 3 * whole)
        return self._cached[chunk]

    def chunk(self) -> int:
        """The config's, or the largest power of two that leaves most of the memory to the batch."""
        if self.config.chunk_images:
            return self.config.chunk_images
        base = self.plain.peak(0).bytes
        share = CHUNK_SHARE * max(0, self.available - base)
        sizes = [2**k for k in range(1, MOST_CHUNK.bit_length())]
        return max((size for size in sizes if self.plain.peak(size).bytes - base <= share), default=2)

    def need(self, images: int, chunk: int) -> Need:
        """Of a batch; traced unless it has many chunks."""
        if not chunk or chunk * self.parts >= images:
            self.plain.add(images)
            return _need(self.plain, images, 0)
        return _need(self.cached(chunk), images, chunk)

    def largest(self, chunk: int) -> Need | None:
        """The largest batch that fits, with its check; None if there is none."""
        curve = self.cached(chunk) if chunk else self.plain
        unit = self.parts * max(1, chunk)
        images = curve.largest(self.available, unit)
        for _ in range(MOST_CHECKS):
            if images < 2 * self.parts:
                return None
            check = min(images, CHUNKS_TRACED * unit) if chunk else images
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
    """What of ``config`` fits on ``gpu``, and what would. One process; of several, each has its share of the batch.

    Raises InputError if not even two photographs fit, which says what would.
    """
    search = _Search(config, gpu)
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
    """Queries and keys, the pool's among them, of one loss at the config's batch."""
    rows = config.batch_images * config.compositions // config.accumulate
    if config.mode == "in_batch":
        return rows * config.patches, rows * config.patches
    return rows, rows * (config.patches - 1) + config.pool_size


def key_bytes(config: PretrainConfig) -> int:
    """Bytes of a key in the pool, with its ids."""
    return config.projection_dim * getattr(torch, config.pool_dtype).itemsize + 16


def _largest_pool(config: PretrainConfig, spare: int) -> int:
    return max(0, min(MAX_CAPACITY, config.pool_size + spare // key_bytes(config)))


def _nothing_fits(search: _Search) -> str:
    config, gpu = search.config, search.gpu
    need = search.plain.peak(2 * config.accumulate).bytes
    pool = config.pool_size * key_bytes(config) if config.mode == "moco" else 0
    what = f"{config.arch} at {config.patch_size} px, {config.precision}, {config.optimizer}"
    gib = f"{need / GIB:.2f} GiB of tensors for 2 photographs a step, where {gpu.name} has {search.available / GIB:.2f}"
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
    return f"plan: {what} needs {gib}; no GPU of the table has that: take a smaller encoder, patch, region or pool"
