"""The 36 features of BRISQUE: statistics of locally normalised luminance, at full and half scale.

Called by ``qpt.evaluate.classical``, which sends them through the same splits and regressor as an encoder's features;
``statistics_68`` uses the local normalisation and the fit. It touches nothing but its arguments.

Source: Mittal, Moorthy and Bovik, No-reference image quality assessment in the spatial domain, IEEE TIP 21(12), 2012.
The fits match moments: Sharifi and Leon-Garcia, IEEE TCSVT 5(1), 1995, and for the asymmetric one Lasmar, Stitou and
Berthoumieu, ICIP 2009.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import gamma

Plane = NDArray[np.float64]

SIGMA_PX = 7 / 6
RADIUS_PX = 3  # a window of 7 x 7
STABILISER = 1.0  # grey levels of 0 to 255, the paper's C
PAIRS = ("horizontal", "vertical", "main_diagonal", "secondary_diagonal")
#: The names of the 36 features in order: at each scale 2 of the coefficients, then 4 of each paired product.
BRISQUE_NAMES = tuple(
    f"{scale}_{name}"
    for scale in ("full", "half")
    for name in (
        "mscn_shape",
        "mscn_variance",
        *(f"{p}_{v}" for p, v in product(PAIRS, ("shape", "mean", "left_variance", "right_variance"))),
    )
)

# E[|x|]^2 / E[x^2] of the generalised Gaussian rises with its shape, from 0.2 to 10 as in the authors' release.
_SHAPES = np.arange(0.2, 10.0005, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def brisque_features(grey: NDArray[np.floating]) -> Plane:
    """Return the 36 features of ``BRISQUE_NAMES``, (36,) float64. grey: (H, W) luminance, 0 to 255; both sides >= 8."""
    plane = grey.astype(np.float64)
    values: list[float] = []
    for scaled in (plane, half_plane(plane, Image.Resampling.BICUBIC)):
        # The window sees zeros outside the image, as in the authors' release (MATLAB's filter2).
        coefficients, _ = normalise_locally(scaled, border="constant")
        values += fit_symmetric(coefficients)
        for products in (
            coefficients[:, :-1] * coefficients[:, 1:],
            coefficients[:-1] * coefficients[1:],
            coefficients[:-1, :-1] * coefficients[1:, 1:],
            coefficients[1:, :-1] * coefficients[:-1, 1:],
        ):
            values += fit_asymmetric(products)
    return np.array(values)


def half_plane(plane: NDArray[np.floating], resampling: Image.Resampling) -> Plane:
    """Return the (H // 2, W // 2) plane of Pillow's antialiased resize; bicubic, it is MATLAB's imresize."""
    height, width = plane.shape
    return np.asarray(
        Image.fromarray(plane.astype(np.float32)).resize((width // 2, height // 2), resampling), np.float64
    )


def normalise_locally(plane: Plane, *, border: str) -> tuple[Plane, Plane]:
    """Return the mean-subtracted contrast-normalised (MSCN) coefficients and the local standard deviation.

    The coefficients are (plane - mean) / (deviation + 1); arguments as for ``local_moments``.
    """
    mean, deviation = local_moments(plane, border=border)
    coefficients = np.subtract(plane, mean, out=mean)
    coefficients /= deviation + STABILISER
    return coefficients, deviation


def local_moments(plane: Plane, *, border: str) -> tuple[Plane, Plane]:
    """Return the local mean and standard deviation, weighted by a Gaussian window of 7 x 7 px and sigma 7/6 px.

    plane: (H, W) float64, in grey levels.  border: what the window sees outside, a mode of ``scipy.ndimage``.
    """
    # In float32 the difference below would be off by grey levels where the image is flat and bright.
    mean = gaussian_filter(plane, SIGMA_PX, radius=RADIUS_PX, mode=border)
    square = gaussian_filter(plane * plane, SIGMA_PX, radius=RADIUS_PX, mode=border)
    square -= mean * mean
    return mean, np.sqrt(np.abs(square, out=square), out=square)


def fit_symmetric(values: Plane) -> tuple[float, float]:
    """Fit a generalised Gaussian of mean 0: shape, 0.2 to 10, and variance. Constant zeros give (0.2, 0)."""
    variance = float(np.mean(values * values))
    return _shape(_ratio(np.abs(values), variance)), variance


def fit_asymmetric(values: Plane) -> tuple[float, float, float, float]:
    """Fit an asymmetric generalised Gaussian: shape (0.2 to 10), mean, and the variances left and right of 0."""
    negative = values < 0
    squares = values * values
    count, total, left_total = int(negative.sum()), float(squares.sum()), float(squares[negative].sum())
    left = left_total / max(count, 1)
    right = max(total - left_total, 0.0) / max(values.size - count, 1)
    # (g^3 + 1)(g + 1) / (g^2 + 1)^2 for g = sqrt(left / right), multiplied by right^2: a side may be empty.
    a, b = np.sqrt(left), np.sqrt(right)
    correction = (a**3 + b**3) * (a + b) / (left + right) ** 2 if left + right > 0 else 1.0
    shape = _shape(_ratio(np.abs(values), total / values.size) * correction)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float((b - a) * scale * gamma(2 / shape) / gamma(1 / shape)), left, right


def _ratio(magnitudes: Plane, variance: float) -> float:
    """Return E[|x|]^2 / E[x^2], 0 where all is 0."""
    return float(np.mean(magnitudes)) ** 2 / variance if variance > 0 else 0.0


def _shape(ratio: float) -> float:
    """Return the shape of the generalised Gaussian of this moment ratio, clamped to 0.2 to 10."""
    return float(np.interp(ratio, _RATIOS, _SHAPES))
