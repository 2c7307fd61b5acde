"""Features of an encoder for images: mean and standard deviation over positions, four stages, two scales.

Called by ``qpt.evaluate.run`` and reports (many images, cached) and by ``Scorer`` (one image). One pass over an image
yields what every read-out needs, which ``ReadOut.select`` slices afterwards. It reads image files and writes the cache.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from itertools import product
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.data.normalise import normalise
from qpt.errors import InputError, check_int
from qpt.evaluate.image_crops import check_pixels, crop_grid, half_scale, load_images, mirror_pad
from qpt.evaluate.table import ScoreTable
from qpt.io import write_whole
from qpt.models import Encoder
from qpt.models.names import is_named

P = ParamSpec("P")
R = TypeVar("R")
SCALES = ("full", "half")
STATISTICS = ("mean", "std")
#: Changes whenever the numbers this file computes change, so that no cache outlives its definition.
DEFINITION = "qpt-features-1"


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
    """The part of the features that a regressor gets, always of both scales.

    stages: "last" or "all".  statistics: "mean" or "mean+std".
    """

    stages: str
    statistics: str

    def __post_init__(self) -> None:
        if self.stages not in ("last", "all") or self.statistics not in ("mean", "mean+std"):
            raise InputError(f"read-out: must be last|all and mean|mean+std, got {self.stages} and {self.statistics}")

    def __str__(self) -> str:
        return f"{self.stages}, {self.statistics}"

    def select(self, features: NDArray[np.float32], stage_dims: Sequence[int]) -> NDArray[np.float64]:
        """Slice (n, 2 scales, 2 statistics, sum(stage_dims)) features to (n, d) float64."""
        first = 0 if self.stages == "all" else sum(stage_dims[:-1])
        kept = 1 if self.statistics == "mean" else 2
        return features[:, :, :kept, first:].reshape(len(features), -1).astype(np.float64)


READ_OUTS = tuple(ReadOut(stages, statistics) for stages, statistics in product(("last", "all"), ("mean", "mean+std")))


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
    encoder: Encoder, pixels: NDArray[np.uint8], protocol: FeatureProtocol | None = None
) -> NDArray[np.float32]:
    """Compute the features of one image: (2 scales, 2 statistics, sum(stage_dims)) float32.

    encoder: in eval mode (``prepare``); it may be float16 or bfloat16.  pixels: (H, W, 3) uint8; a side under 32 px is
    padded (``mirror_pad``). The statistics of a stage are taken over the positions of all crops together; std is the
    population's. They are float32 or better whatever the encoder is.
    """
    protocol = protocol or FeatureProtocol()
    check_pixels(pixels)
    pixels = mirror_pad(pixels)
    rows = []
    for scaled in (pixels, half_scale(pixels)):
        crops = crop_grid(scaled, side=protocol.crop_px, count=protocol.crops)
        # One crop at a time is faster on a CPU than a batch of them (its maps stay in cache) and takes less memory.
        with torch.autocast(encoder.device.type, enabled=False):  # the caller's setting must not change the dtype
            moments = torch.stack([_moments(encoder.stages(_to_input(crop).to(encoder.dtype))) for crop in crops])
        # Crops have one size, so their moments average; float64 keeps E[x^2] - E[x]^2 from cancelling.
        mean, square = moments.mean(0)
        rows.append(torch.stack([mean, (square - mean * mean).clamp_min(0).sqrt()]))
    return torch.stack(rows).float().numpy()


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
    """Compute or read features of many images: (n, 2 scales, 2 statistics, sum(stage_dims)) float32.

    cache: a folder for ``NAME.npz`` keyed by encoder weights, ``images_key`` (names, order, contents) and protocol;
    None keeps nothing. A damaged cache file is computed again.  quiet: no progress bar. Raises InputError listing every
    image that cannot be decoded.
    """
    encoder = prepare(encoder)
    file = cache / f"{_cache_key(encoder, protocol, images_key)}.npz" if cache is not None else None
    shape = (len(paths), len(SCALES), len(STATISTICS), sum(encoder.stage_dims))
    if file is not None and (stored := _read_cache(file, shape)) is not None:
        return stored
    features = np.empty(shape, np.float32)
    for index, pixels in enumerate(load_images(paths, label=label, quiet=quiet)):
        features[index] = image_features(encoder, pixels, protocol)
    if not np.isfinite(features).all():
        raise InputError(f"features: encoder must give finite features, got NaN or infinity from {label}")
    if file is not None:
        _write_cache(file, features)
    return features


def read_out_features(
    encoder: Encoder, table: ScoreTable, protocol: FeatureProtocol, *, label: str, cache: Path | None, quiet: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the features of every read-out of an encoder for a table: name -> (n, d) float64."""
    # The fingerprint is of a set; features also depend on the order of its rows.
    key = hashlib.sha256("\n".join((table.fingerprint, *table.images)).encode()).hexdigest()
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
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _to_input(crop: NDArray[np.uint8]) -> Tensor:
    """Return (h, w, 3) uint8 as normalised (1, 3, h, w) float32; the permuted tensor already is channels-last."""
    return normalise(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None])


def _moments(maps: Iterable[Tensor]) -> Tensor:
    """Return the first and second moment over positions of (1, C_i, h_i, w_i) maps: (2, sum C_i) float64."""
    pairs = [torch.var_mean(stage[0].flatten(1).float(), dim=1, correction=0) for stage in maps]
    mean = torch.cat([mean for _, mean in pairs]).double()
    return torch.stack([mean, torch.cat([variance for variance, _ in pairs]).double() + mean * mean])


def _cache_key(encoder: Encoder, protocol: FeatureProtocol, images_key: str) -> str:
    parts = (weights_hash(encoder), images_key, repr(protocol), DEFINITION)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read_cache(file: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            features = stored["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return features if features.shape == shape and features.dtype == np.float32 else None


def _write_cache(file: Path, features: NDArray[np.float32]) -> None:
    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as stream:  # given a name, NumPy would add its own extension
            np.savez(stream, features=features)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, write)
    except OSError as error:  # it costs the cache, not the result
        warnings.warn(f"features are not kept for the next time: {error}", stacklevel=3)
