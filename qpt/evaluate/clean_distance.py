"""The distance of an image's features to those of clean images: a measure of quality that no human score has fitted.

``CleanReference`` holds the mean and the covariance of the early-stage features of clean images, as NIQE (Mittal,
Soundararajan and Bovik, IEEE Signal Processing Letters 20(3), 2013) does for its own features. Called by ``qpt probe``
and by users; it reads image files, and the cache of features where one is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpt.data.listing import list_images
from qpt.errors import InputError, check_number, describe
from qpt.evaluate.features import STATISTICS, FeatureProtocol, extract
from qpt.models import Encoder

Array = NDArray[np.float64]

MIN_IMAGES = 10
#: The later stages hold what an image shows more than how clean it is.
EARLY_STAGES = 3
FULL_AND_HALF = 2
# Of the median deviation. Channels that hardly any clean image activates would decide the distance alone.
_SMALLEST_DEVIATION = 0.01


@dataclass(frozen=True, eq=False)
class CleanReference:
    """The mean and the covariance of the features of clean images; ``fit`` makes it.

    The features are means and standard deviations of the first three stages (of all, where an encoder has fewer) at
    full and half scale.  stage_dims: of the encoder.  images: how many were fitted.  mean, deviation: (d,), d = 4 x
    sum(stage_dims[:3]).  shrinkage: s of the covariance D ((1 - s) R + s I) D, where R is the correlation matrix of the
    features and D the diagonal matrix of their deviations.
    """

    stage_dims: tuple[int, ...]
    images: int
    mean: Array
    deviation: Array
    shrinkage: float
    axes: Array  # (r, d): orthonormal, those along which the standardised features of the clean images vary
    weights: Array  # (r,): what the inverse along an axis has beyond ``rest``, which is along every other direction
    rest: float

    @classmethod
    def fit(
        cls, features: NDArray[np.floating], stage_dims: Sequence[int], *, shrinkage: float = 1.0
    ) -> CleanReference:
        """Fit the mean and the covariance to the features of clean images.

        features: (n, 2 scales or more, 2 statistics, sum(stage_dims)), as ``extract`` gives them, n >= 10.
        shrinkage: 0 (the sample covariance; for more images than features only) to 1 (the features are taken as
        uncorrelated), above 0 a compromise of the two (Schäfer and Strimmer, Stat. Appl. Genet. Mol. Biol. 4(1), 2005,
        target D). Deviations (divisor n - 1) of less than a hundredth of their median are raised to it.
        Raises InputError for features of another shape or not finite, fewer than 10 images, images with equal features,
        a shrinkage out of range, or a covariance that has no inverse.
        """
        shrinkage = check_number("clean_distance", "shrinkage", shrinkage, least=0)
        if shrinkage > 1:
            raise InputError(f"clean_distance: shrinkage must be at most 1, got {shrinkage:g}")
        dims = tuple(stage_dims)
        x = _early(features, dims)
        if len(x) < MIN_IMAGES:
            raise InputError(f"clean_distance: clean images must be at least {MIN_IMAGES}, got {len(x)}")
        mean, deviation = x.mean(axis=0), x.std(axis=0, ddof=1)
        # Rounding of the mean leaves equal features a deviation of some units in the last place.
        varies = deviation > 1e-12 * np.abs(mean)
        if not varies.any():
            raise InputError(f"clean_distance: clean images must differ, got {len(x)} with equal features")
        deviation = np.maximum(deviation, _SMALLEST_DEVIATION * np.median(deviation[varies]))
        axes, weights, rest = np.empty((0, x.shape[1])), np.empty(0), 1.0
        if shrinkage < 1:
            # The correlation matrix is that of the singular vectors, so no d x d matrix is needed.
            _, singular, vectors = np.linalg.svd((x - mean) / deviation, full_matrices=False)
            variances = singular**2 / (len(x) - 1)
            kept = variances > 1e-10 * variances[0]
            if shrinkage == 0 and not (kept.all() and len(kept) == x.shape[1]):
                raise InputError(
                    f"clean_distance: shrinkage must be above 0 for a covariance without an inverse, "
                    f"got 0 with {len(x)} images of {x.shape[1]} features"
                )
            axes = vectors[kept]
            rest = 1 / shrinkage if shrinkage > 0 else 0.0
            weights = 1 / ((1 - shrinkage) * variances[kept] + shrinkage) - rest
        return cls(dims, len(x), mean, deviation, shrinkage, axes, weights, rest)

    def distances(self, features: NDArray[np.floating]) -> Array:
        """Return the Mahalanobis distance of each image to the mean of the clean ones: (n,), lower is cleaner.

        features: (n, 2 scales or more, 2 statistics, sum(stage_dims)), of the encoder and with the crops of the clean
        images. Raises InputError for another shape, or features that are not finite.
        """
        z = (_early(features, self.stage_dims) - self.mean) / self.deviation
        squares = self.rest * np.sum(z**2, axis=1) + (z @ self.axes.T) ** 2 @ self.weights
        return np.sqrt(squares.clip(0))


def clean_reference(
    encoder: Encoder,
    clean: str | Path,
    *,
    protocol: FeatureProtocol | None = None,
    shrinkage: float = 1.0,
    label: str = "clean photographs",
    quiet: bool = True,
) -> CleanReference:
    """Fit a ``CleanReference`` to the images below a folder.

    clean: at least 10 images without visible degradations, preferably of many subjects; small ones are padded as in
    ``image_features``.  protocol: the crops of large images.  label: of the progress bar, which ``quiet`` leaves out.
    Raises InputError for fewer images, for those that cannot be decoded, and for what ``CleanReference.fit`` refuses.
    """
    paths = list_images(clean)
    if len(paths) < MIN_IMAGES:
        raise InputError(f"clean_distance: clean must be a folder of at least {MIN_IMAGES} images, got {len(paths)}")
    features = extract(encoder, paths, protocol=protocol or FeatureProtocol(), label=label, quiet=quiet)
    return CleanReference.fit(features, encoder.stage_dims, shrinkage=shrinkage)


def clean_distances(
    encoder: Encoder,
    clean: str | Path,
    paths: Sequence[Path],
    *,
    protocol: FeatureProtocol | None = None,
    shrinkage: float = 1.0,
    quiet: bool = True,
) -> Array:
    """Return the distance of each image file to the clean images below a folder: (n,), lower is cleaner.

    A score, higher for better, is its negative.  paths: of any image files; the other arguments are those of
    ``clean_reference``.
    """
    protocol = protocol or FeatureProtocol()
    reference = clean_reference(encoder, clean, protocol=protocol, shrinkage=shrinkage, quiet=quiet)
    return reference.distances(extract(encoder, paths, protocol=protocol, label="photographs", quiet=quiet))


def _early(features: NDArray[np.floating], stage_dims: tuple[int, ...]) -> Array:
    """Take (n, scales, statistics, sum(stage_dims)) features to the (n, d) float64 of the early stages."""
    shape = np.shape(features)
    if len(shape) != 4 or shape[1] < FULL_AND_HALF or shape[2:] != (len(STATISTICS), sum(stage_dims)):
        raise InputError(
            f"clean_distance: features must be (n, {FULL_AND_HALF} scales or more, {len(STATISTICS)}, "
            f"{sum(stage_dims)}) for an encoder with stages of {', '.join(map(str, stage_dims))} channels, "
            f"got {describe(features)}"
        )
    chosen = np.asarray(features)[:, :FULL_AND_HALF, :, : sum(stage_dims[:EARLY_STAGES])]
    if not np.isfinite(chosen).all():
        raise InputError(f"clean_distance: features must be finite, got {np.count_nonzero(~np.isfinite(chosen))} not")
    return chosen.astype(np.float64).reshape(len(chosen), math.prod(chosen.shape[1:]))  # -1 would refuse n = 0
