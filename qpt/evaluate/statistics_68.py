"""The 68 statistics of colour, sharpness and local contrast that stand for hand-made features beside BRISQUE.

Called by ``qpt.evaluate.classical``; it touches nothing but its arguments. ``image_statistics`` names each number.
Sources, by group:

- channels: opponent colours R - G and (R + G) / 2 - B, Hasler and Süsstrunk, SPIE 5007, 2003 (colourfulness);
- saturation: that of HSV; ``darkest``: the smallest of R, G and B, He, Sun and Tang, CVPR 2009 (haze), for one pixel;
- laplacian: Pech-Pacheco et al., ICPR 2000 (focus); gradient: Xue et al., IEEE TIP 23(2), 2014 (its magnitude);
- deviation: the local standard deviation of ``brisque``, Mittal et al., IEEE TIP 21(12), 2012, at four scales;
- opponent coefficients: the fit of ``brisque`` for opponent colours, Zhang, Zhang and Bovik, IEEE TIP 24(8), 2015.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.evaluate.brisque import fit_symmetric, half_plane, local_moments, normalise_locally

Plane = NDArray[np.float32]

SCALES = (1, 2, 4, 8)
STATISTICS_COUNT = 68
BRIGHT, DARK = 250, 5  # grey levels; a channel beyond counts as clipped


def image_statistics(pixels: NDArray[np.uint8], grey: NDArray[np.floating]) -> dict[str, float]:
    """Compute the 68 statistics: name -> value, in a fixed order.

    pixels: (H, W, 3) uint8 RGB; both sides >= 32 px.  grey: its (H, W) luminance, 0 to 255. All are in grey levels,
    shares of pixels, or the logarithm ln(1 + x) of grey levels (``log_``); a scale of 4 is a quarter of the sides.
    """
    red, green, blue = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    plane = grey.astype(np.float32)
    opponents = {"red_green": red - green, "yellow_blue": 0.5 * (red + green) - blue}
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    planes = {"luminance": plane, **opponents, "red": red, "green": green, "blue": blue}
    planes |= {"saturation": (brightest - darkest) / (brightest + 1), "darkest": darkest}
    values: dict[str, float | np.floating] = {}
    for name, channel in planes.items():
        values |= {f"{name}_mean": channel.mean(), f"{name}_std": channel.std()}
    values |= {"bright_share": (brightest > BRIGHT).mean(), "dark_share": (darkest < DARK).mean()}
    for scale in SCALES:
        if scale > 1:
            plane = half_plane(plane, Image.Resampling.BOX).astype(np.float32)
        values |= {f"scale_{scale}_{name}": value for name, value in _structure(plane).items()}
    for name, channel in opponents.items():
        coefficients, deviation = normalise_locally(channel.astype(np.float64), border="reflect")
        shape, variance = fit_symmetric(coefficients)
        values |= {f"{name}_mscn_shape": shape, f"{name}_mscn_variance": variance}
        values[f"log_{name}_deviation_mean"] = np.log1p(deviation.mean())
    return {name: float(value) for name, value in values.items()}


def _structure(plane: Plane) -> dict[str, np.floating]:
    """Return the 11 statistics of Laplacian, gradient magnitude and local deviation at one scale, as ln(1 + x)."""
    centre = plane[1:-1, 1:-1]
    above, below, left, right = plane[:-2, 1:-1], plane[2:, 1:-1], plane[1:-1, :-2], plane[1:-1, 2:]
    gradient = np.sqrt((right - left) ** 2 + (below - above) ** 2)
    _, deviation = local_moments(plane.astype(np.float64), border="reflect")
    values = {
        "log_laplacian_variance": np.var(above + below + left + right - 4 * centre),
        "log_gradient_mean": gradient.mean(),
        "log_gradient_std": gradient.std(),
        **_percentiles("log_gradient", gradient, (50, 90, 99)),
        "log_deviation_mean": deviation.mean(),
        "log_deviation_std": deviation.std(),
        **_percentiles("log_deviation", deviation, (10, 50, 90)),
    }
    return {name: np.log1p(value) for name, value in values.items()}


def _percentiles(name: str, plane: NDArray[np.floating], which: tuple[int, ...]) -> dict[str, np.floating]:
    """Return percentiles of every other pixel of every other row, which are enough for a share of them."""
    found = np.percentile(plane[::2, ::2], which)
    return {f"{name}_p{percent}": value for percent, value in zip(which, found, strict=True)}
