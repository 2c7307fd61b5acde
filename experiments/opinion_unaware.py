"""Peers of a score that has seen no opinion: NIQE, fitted on clean images here, and the package ``brisque``.

Called by ``experiments.model``; it reads images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bench_score import brisque
from qpt.evaluate.brisque import Plane, fit_asymmetric, fit_symmetric, half_plane, normalise_locally
from qpt.evaluate.classical import centre, luminance
from qpt.evaluate.features import fill_or_read, hash_of
from qpt.evaluate.image_crops import load_image

#: Side of a block of NIQE at full scale, px; half of it at half scale.
BLOCK_PX = 96
#: A block of a clean image counts where its mean local deviation exceeds this share of the image's sharpest block.
SHARP = 0.75
PEERS = ("niqe", "brisque")
_PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True)
class Niqe:
    """The distance of an image's natural scene statistics from those of clean images; lower is better.

    mean: (36,) and covariance: (36, 36) of the blocks of clean images. Source: Mittal, Soundararajan and Bovik, Making
    a completely blind image quality analyzer, IEEE SPL 20(3), 2013.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def fit(cls, paths: Sequence[Path]) -> Niqe:
        """Return the statistics of the sharp blocks of clean images; one smaller than a block is left out."""
        parts = []
        for path in paths:
            pixels = load_image(path)
            if min(pixels.shape[:2]) >= BLOCK_PX:
                features, sharpness = block_features(luminance(centre(pixels)).astype(np.float64))
                parts.append(features[sharpness > SHARP * sharpness.max()])
        blocks = np.concatenate(parts)
        return cls(blocks.mean(0), np.cov(blocks, rowvar=False))

    def __call__(self, pixels: NDArray[np.uint8]) -> float:
        """Return the distance of (H, W, 3) uint8 pixels, of whose sides a short one is enlarged to a block."""
        shortest = min(pixels.shape[:2])
        if shortest < BLOCK_PX:
            size = (max(BLOCK_PX, pixels.shape[1]), max(BLOCK_PX, pixels.shape[0]))
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        features, _ = block_features(luminance(centre(pixels)).astype(np.float64))
        covariance = np.cov(features, rowvar=False) if len(features) > 1 else np.zeros_like(self.covariance)
        difference = self.mean - features.mean(0)
        # Of few blocks the matrix is singular, and by rounding has small eigenvalues on both sides of 0.
        inverse = np.linalg.pinv((self.covariance + covariance) / 2, rcond=1e-12, hermitian=True)
        return float(np.sqrt(max(0.0, difference @ inverse @ difference)))


def block_features(grey: Plane) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 36 features of each block of (H, W) luminance, (n, 36), and its mean local deviation, (n,)."""
    rows, columns = grey.shape[0] // BLOCK_PX, grey.shape[1] // BLOCK_PX
    grey = grey[: rows * BLOCK_PX, : columns * BLOCK_PX]
    scales, sharpness = [], np.empty(0)
    for level, plane in enumerate((grey, half_plane(grey, Image.Resampling.BICUBIC))):
        coefficients, deviation = normalise_locally(plane, border="nearest")
        side = BLOCK_PX >> level
        scales.append([_features(block) for block in _blocks(coefficients, side)])
        if level == 0:
            sharpness = np.array([block.mean() for block in _blocks(deviation, side)])
    return np.concatenate(scales, axis=1), sharpness


def _blocks(plane: Plane, side: int) -> list[Plane]:
    tops, lefts = range(0, plane.shape[0], side), range(0, plane.shape[1], side)
    return [plane[top : top + side, left : left + side] for top in tops for left in lefts]


def _features(block: Plane) -> list[float]:
    """Return 18 features: shape and variance, and shape, mean and the two variances of four products of neighbours."""
    found = list(fit_symmetric(block))
    for shift in _PAIRS:
        shape, mean, left, right = fit_asymmetric(block * np.roll(block, shift, (0, 1)))
        found += [shape, mean, left, right]
    return found


def peer_scores(
    paths: Sequence[Path], clean: Sequence[Path], *, cache: Path, images_key: str
) -> dict[str, NDArray[np.float64]]:
    """Return the scores of images by PEERS, NIQE fitted on clean images; higher is better.

    cache: a folder for the scores.  images_key: of the images (``qpt.evaluate.features.images_key``).
    """
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in clean]
    file = cache / f"{hash_of('peers-1', images_key, *contents)[:32]}.npz"
    scores = np.empty((len(paths), len(PEERS)))

    def compute() -> None:
        package, niqe = brisque(), Niqe.fit(clean)
        for row, path in zip(scores, paths, strict=True):
            pixels = load_image(path)
            row[:] = -niqe(pixels), -float(package.score(pixels))

    return dict(zip(PEERS, fill_or_read(scores, compute, file).T, strict=True))
