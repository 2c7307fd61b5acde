"""Features of an encoder for images: mean and standard deviation over positions, every stage, three scales.

Called by ``qpt.evaluate.run`` and reports (many images, cached) and by ``Scorer`` (one image). One pass over an image
takes what every read-out needs, of which ``ReadOut.select`` gives a part. It reads image files and writes the cache.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.data.arrays import read_npz
from qpt.data.normalise import normalise
from qpt.errors import InputError, check_int
from qpt.evaluate.image_crops import check_pixels, crop_boxes, crop_grid, map_images, scaled_images
from qpt.evaluate.table import ScoreTable
from qpt.io import write_whole
from qpt.models import Encoder
from qpt.models.folded import folded
from qpt.models.names import is_named
from qpt.process import keep_freed_memory

P = ParamSpec("P")
R = TypeVar("R")
Number = TypeVar("Number", np.float32, np.float64)
SCALES = ("full", "half", "quarter")
STATISTICS = ("mean", "std")
#: Changes whenever the numbers this file computes change, so that no cache outlives its definition.
DEFINITION = "qpt-features-2"
#: Definitions whose features equal those of this version at the scales that they have: a scorer of theirs still loads.
FORMER_DEFINITIONS = ("qpt-features-1",)
_IMAGES_AT_ONCE = 4  # bounds memory: the maps of an image that is seen whole take a few hundred MiB


@dataclass(frozen=True)
class FeatureProtocol:
    """The part of an image that the encoder gets.

    At each scale an image of more than crops x crop_px^2 pixels is seen through a grid of that many crops at native
    resolution, evenly spaced; a smaller one is seen whole. crop_px: >= 32.  crops: >= 1.
    """

    crop_px: int = 384
    crops: int = 9

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_px", check_int("features", "crop_px", self.crop_px, 32))
        object.__setattr__(self, "crops", check_int("features", "crops", self.crops, 1))

    def describe(self) -> dict[str, object]:
        """Return the entry ``protocol.features`` of a result."""
        return {**asdict(self), "scales": list(SCALES), "half_scale": "Pillow bicubic, antialiased", "id": DEFINITION}


@dataclass(frozen=True)
class ReadOut:
    """The part of the features that a regressor gets.

    stages: "last" or "all".  statistics: "mean", "std" or "mean+std".  scales: 2 (full and half) or 3 (and quarter).
    across: "values" gives the statistics at each scale; "differences" those of each scale minus those of the next
    smaller one; "full and differences" those at full scale beside these differences. Differences take 3 scales.
    """

    stages: str
    statistics: str
    scales: int = 2
    across: str = "values"

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(str(value) for value in allowed)
                raise InputError(f"read-out: {name} must be one of {choices}, got {getattr(self, name)!r}")
        if self.across != "values" and self.scales != len(SCALES):
            raise InputError(f"read-out: scales must be {len(SCALES)} for differences, got {self.scales}")

    def __str__(self) -> str:
        if self.across != "values":
            return f"{self.stages}, {self.statistics}, {self.across}"
        return f"{self.stages}, {self.statistics}" + f", {self.scales} scales" * (self.scales != 2)

    def select(self, features: NDArray[np.float32], stage_dims: Sequence[int]) -> NDArray[np.float64]:
        """Take (n, scales or more, 2 statistics, sum(stage_dims)) features to (n, d) float64."""
        chosen = features[:, : self.scales, self._statistics, self._first(stage_dims) :].astype(np.float64)
        if self.across != "values":
            differences = chosen[:, :-1] - chosen[:, 1:]
            first = chosen[:, :1] if self.across == "full and differences" else chosen[:, :0]
            chosen = np.concatenate([first, differences], axis=1)
        return chosen.reshape(len(features), -1)

    def coefficients(self, weights: NDArray[np.float64], stage_dims: Sequence[int]) -> NDArray[np.float64]:
        """Return the weights of the features themselves: (scales, 2 statistics, sum(stage_dims)).

        weights: (d,), of what ``select`` returns. The sum over all features times their coefficients is
        ``select(...) @ weights``.
        """
        first = self._first(stage_dims)
        found = np.zeros((self.scales, len(STATISTICS), sum(stage_dims)))
        kept = found[:, self._statistics, first:]  # a view
        if self.across == "values":
            kept += weights.reshape(kept.shape)
            return found
        parts = weights.reshape(-1, *kept.shape[1:])
        if self.across == "full and differences":
            kept[0] += parts[0]
            parts = parts[1:]
        kept[:-1] += parts
        kept[1:] -= parts
        return found

    @property
    def _statistics(self) -> slice:
        return {"mean": slice(0, 1), "std": slice(1, 2), "mean+std": slice(0, 2)}[self.statistics]

    def _first(self, stage_dims: Sequence[int]) -> int:
        return 0 if self.stages == "all" else sum(stage_dims[:-1])


_ALLOWED: dict[str, tuple[object, ...]] = {
    "stages": ("last", "all"),
    "statistics": ("mean", "std", "mean+std"),
    "scales": (2, 3),
    "across": ("values", "differences", "full and differences"),
}

#: The preferred ones first: of those that the labels cannot tell apart, the first is chosen. Differences across scales
#: cancel much of the content of an image, which few labels cannot average out; more labels make use of the deviations.
READ_OUTS = (
    ReadOut("all", "mean", 3, "full and differences"),
    ReadOut("all", "mean+std", 3),
    ReadOut("all", "mean+std"),
    ReadOut("all", "mean+std", 3, "full and differences"),
    ReadOut("all", "mean"),
    ReadOut("all", "std"),
    ReadOut("all", "mean", 3, "differences"),
    ReadOut("last", "mean"),
)


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that a compiler runs as it is, wherever it meets it, instead of tracing it."""
    # torch.compiler.disable would import the compiler, which takes seconds, for those who never compile.
    hidden = torch._disable_dynamo(function)

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        return (hidden if torch.compiler.is_dynamo_compiling() else function)(*args, **named)

    return call


@outside_graphs
@torch.inference_mode()
def image_features(
    encoder: Encoder,
    pixels: NDArray[np.uint8],
    protocol: FeatureProtocol | None = None,
    scales: int = len(SCALES),
) -> NDArray[np.float32]:
    """Compute the features of one image: (scales, 2 statistics, sum(stage_dims)) float32.

    encoder: in eval mode (``prepare``); it may be float16 or bfloat16.  pixels: (H, W, 3) uint8; a side under 32 px is
    padded (``scaled_images``).  scales: how many of ``SCALES``, from the first. The statistics of a stage are taken
    over the positions of all crops together; std is the population's. They are float32 or better whatever the encoder
    is.
    """
    protocol = protocol or FeatureProtocol()
    check_pixels(pixels)
    encoder = folded(encoder)
    compute = partial(_crop_moments, encoder)
    with _crop_threads(encoder, pixels, protocol) as run:
        # A smaller scale is made while the crops of the one before are in work.
        found = [
            run(compute, crop_grid(scaled, side=protocol.crop_px, count=protocol.crops))
            for scaled in scaled_images(pixels, scales, encoder.min_side)
        ]
        return torch.stack([_statistics(moments) for moments in found]).float().numpy()


@torch.inference_mode(False)  # else weights converted in inference mode could not be trained outside it
def prepare(encoder: Encoder) -> Encoder:
    """Put an encoder in eval mode and channels-last, in which it is about three times faster on a CPU."""
    return encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def extract(
    encoder: Encoder,
    paths: Sequence[Path],
    *,
    protocol: FeatureProtocol,
    label: str,
    cache: Path | None = None,
    images_key: str = "",
    quiet: bool = False,
) -> NDArray[np.float32]:
    """Compute or read features of many images: (n, 3 scales, 2 statistics, sum(stage_dims)) float32.

    cache: a folder for ``NAME.npz`` keyed by encoder weights, ``images_key`` (names, order, contents) and protocol;
    None keeps nothing. A damaged cache file is computed again.  quiet: no progress bar. Raises InputError listing every
    image that cannot be decoded.
    """
    encoder = prepare(encoder)
    file = cache / f"{_cache_key(encoder, protocol, images_key)}.npz" if cache is not None else None
    features = np.empty((len(paths), len(SCALES), len(STATISTICS), sum(encoder.stage_dims)), np.float32)

    def compute() -> None:
        compute_rows(features, lambda pixels: image_features(encoder, pixels, protocol), paths, label, quiet)
        if not np.isfinite(features).all():
            raise InputError(f"features: encoder must give finite features, got NaN or infinity from {label}")

    return fill_or_read(features, compute, file)


def compute_rows(
    rows: NDArray[Number],
    compute: Callable[[NDArray[np.uint8]], NDArray[Number]],
    paths: Sequence[Path],
    label: str,
    quiet: bool,
) -> None:
    """Fill ``rows[i]`` with ``compute`` of the pixels of file i, several images at a time; see ``map_images``."""
    with image_threads(len(paths)) as (workers, start):
        found = map_images(compute, paths, workers=workers, label=label, quiet=quiet, start=start)
        for index, row in enumerate(found):
            rows[index] = row


@contextmanager
def image_threads(images: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """Give the number of threads that take an image each, and what each of them must call first.

    images: their number. Where there are few, fewer threads take one each, and each has more of its own.
    """
    # An image in each thread, and not all threads on one image: an encoder is a hundred short steps, after each of
    # which its threads would wait for the slowest. Their number may change the last digits of features.
    with _divided(max(1, min(_IMAGES_AT_ONCE, images))) as threads, keep_freed_memory():
        yield threads


@contextmanager
def _crop_threads(
    encoder: Encoder, pixels: NDArray[np.uint8], protocol: FeatureProtocol
) -> Iterator[Callable[[Callable[[NDArray[np.uint8]], Tensor], NDArray[np.uint8]], Iterable[Tensor]]]:
    """Give the map of a function over crops: in threads that take a crop each, where an image has several crops."""
    height, width = pixels.shape[:2]
    crops = len(crop_boxes(width, height, side=protocol.crop_px, count=protocol.crops))
    if encoder.device.type != "cpu" or min(crops, torch.get_num_threads()) == 1:
        yield map
        return
    with _divided(crops) as (workers, start), ThreadPoolExecutor(workers, initializer=start) as pool:
        yield pool.map


@contextmanager
def _divided(most: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """Divide torch's threads among at most so many workers: their number, and what each of them must call first."""
    threads = torch.get_num_threads()
    workers = min(threads, most)
    try:
        yield workers, partial(torch.set_num_threads, threads // workers)
    finally:
        torch.set_num_threads(threads)


def fill_or_read(features: NDArray[Number], compute: Callable[[], None], file: Path | None) -> NDArray[Number]:
    """Return what ``file`` keeps, if it is of the shape and dtype of ``features``; else fill and keep ``features``.

    compute: fills ``features``.  file: an ``.npz``; None keeps nothing.
    """
    if file is not None and (stored := _read_cache(file, features)) is not None:
        return stored
    compute()
    if file is not None:
        _write_cache(file, features)
    return features


def images_key(table: ScoreTable) -> str:
    """Return the hash of the names, order and contents of a table's images, which keys caches of their features."""
    # The fingerprint is of a set; features also depend on the order of its rows.
    return hash_of(table.fingerprint, *table.images)


def hash_of(*parts: str) -> str:
    """Return the sha256 of a few lines of text."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_out_features(
    encoder: Encoder, table: ScoreTable, protocol: FeatureProtocol, *, label: str, cache: Path | None, quiet: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the features of every read-out of an encoder for a table: name -> (n, d) float64."""
    key = images_key(table)
    features = extract(encoder, table.paths, protocol=protocol, label=label, cache=cache, images_key=key, quiet=quiet)
    return {str(read_out): read_out.select(features, encoder.stage_dims) for read_out in READ_OUTS}


def feature_cache(run: str | Path) -> Path:
    """Return the folder that keeps features of a run: ``features`` inside its directory.

    Features of a named encoder are kept in ``qpt/features`` of the user's cache folder.
    """
    if is_named(run):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qpt" / "features"
    path = Path(run)
    return (path if path.is_dir() else path.parent) / "features"


def weights_hash(encoder: Encoder) -> str:
    """Return the sha256 over the names, shapes and values of an encoder's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def _to_input(crop: NDArray[np.uint8]) -> Tensor:
    """Return (h, w, 3) uint8 as normalised (1, 3, h, w) float32; the permuted tensor already is channels-last."""
    return normalise(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None])


def _crop_moments(encoder: Encoder, crop: NDArray[np.uint8]) -> Tensor:
    """Return the ``_moments`` of all stages for one crop, in a thread of its own or in the caller's."""
    # One crop at a time is faster on a CPU than a batch of them (its maps stay in cache) and takes less memory. Both
    # settings are a thread's own, and the caller's autocast must not change the dtype.
    with torch.inference_mode(), torch.autocast(encoder.device.type, enabled=False):
        return _moments(encoder.stages(_to_input(crop).to(encoder.dtype)))


def _statistics(moments: Iterable[Tensor]) -> Tensor:
    """Return mean and deviation over the positions of all crops, (2, sum C_i), from the moments of each."""
    # Crops have one size, so their moments average; float64 keeps E[x^2] - E[x]^2 from cancelling.
    mean, square = torch.stack(list(moments)).mean(0)
    return torch.stack([mean, (square - mean * mean).clamp_min(0).sqrt()])


def _moments(maps: Iterable[Tensor]) -> Tensor:
    """Return the first and second moment over positions of (1, C_i, h_i, w_i) maps: (2, sum C_i) float64."""
    pairs = [torch.var_mean(stage[0].flatten(1).float(), dim=1, correction=0) for stage in maps]
    mean = torch.cat([mean for _, mean in pairs]).double()
    return torch.stack([mean, torch.cat([variance for variance, _ in pairs]).double() + mean * mean])


def _cache_key(encoder: Encoder, protocol: FeatureProtocol, images_key: str) -> str:
    return hash_of(weights_hash(encoder), images_key, repr(protocol), DEFINITION)[:32]


def _read_cache(file: Path, like: NDArray[Number]) -> NDArray[Number] | None:
    try:
        features = read_npz(file, ["features"])["features"]
    except (OSError, ValueError):
        return None
    return features if features.shape == like.shape and features.dtype == like.dtype else None


def _write_cache(file: Path, features: NDArray[Number]) -> None:
    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as stream:  # given a name, NumPy would add its own extension
            np.savez(stream, features=features)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, write)
    except OSError as error:  # it costs the cache, not the result
        warnings.warn(f"features are not kept for the next time: {error}", stacklevel=4)
