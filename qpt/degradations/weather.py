"""Weather: fog, frost, snow, spatter and rain, an optional pack of degradations in NumPy, beside the op table.

Called by users alone: ``degrade_weather(images, "fog", 3)``. The rows have the form of the op table's, with the five
levels of ImageNet-C; they are no part of it, so that no space, program or checkpoint changes with them. Needs SciPy,
and for spatter of water OpenCV, whose edge detector is part of its definition (the extra ``weather``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from qpt.degradations.row import IMAGENET_C, LEVELS, Degradation, Parameter
from qpt.errors import BackendError, InputError, check_int, describe_tensor, hint

Array = NDArray[np.float64]
_TURQUOISE = np.array([175.0, 238.0, 238.0]) / 255  # of water
_BROWN = np.array([63.0, 42.0, 20.0]) / 255  # of mud
_ICE = np.array([0.86, 0.94, 1.0])
_STREAK_ANGLES = (-135.0, -45.0)  # degrees; -90 falls straight down


def _row(
    name: str, doc: str, parameters: dict[str, tuple[str, tuple[float, ...]]], source: str = IMAGENET_C
) -> Degradation:
    made = tuple(Parameter(key, unit, min(levels), max(levels), levels) for key, (unit, levels) in parameters.items())
    return Degradation(name, "texture", made, source, "none", "whole", doc)


#: The rows of the pack, in the order of their names' first use in the source; rain at the end.
WEATHER = (
    _row(
        "snow",
        "Flakes of thresholded noise, blurred along their fall and turned by half a circle, over a whitened image.",
        {
            "mean": ("of 1", (0.1, 0.2, 0.55, 0.55, 0.55)),
            "deviation": ("of 1", (0.3, 0.3, 0.3, 0.3, 0.3)),
            "zoom": ("factor", (3.0, 2.0, 4.0, 4.5, 2.5)),
            "threshold": ("of 1", (0.5, 0.5, 0.9, 0.85, 0.85)),
            "radius_px": ("px", (10, 12, 12, 12, 12)),
            "sigma_px": ("px", (4, 4, 8, 8, 12)),
            "share": ("of the image", (0.8, 0.7, 0.7, 0.65, 0.55)),
        },
    ),
    _row(
        "frost",
        "The image and a texture of ice, weighted. The source lays on photographs of frost; here it is ridged noise.",
        {"image": ("weight", (1.0, 0.8, 0.7, 0.65, 0.6)), "ice": ("weight", (0.4, 0.6, 0.7, 0.7, 0.75))},
        source=f"{IMAGENET_C}, with noise in place of its photographs",
    ),
    _row(
        "fog",
        "A plasma fractal is added, and the sum scaled back to the brightest value of the image.",
        {"density": ("of 1", (1.5, 2.0, 2.5, 2.5, 3.0)), "decay": ("factor", (2.0, 2.0, 1.7, 1.5, 1.4))},
    ),
    _row(
        "spatter",
        "Drops of water (levels 1 to 3) or mud (4 and 5): blurred noise above a threshold.",
        {
            "mean": ("of 1", (0.65, 0.65, 0.65, 0.65, 0.67)),
            "deviation": ("of 1", (0.3, 0.3, 0.3, 0.3, 0.4)),
            "sigma_px": ("px", (4, 3, 2, 1, 1)),
            "threshold": ("of 1", (0.69, 0.68, 0.68, 0.65, 0.65)),
            "strength": ("of 1 (water), px (mud)", (0.6, 0.6, 0.5, 1.5, 1.5)),
            "mud": ("0 or 1", (0, 0, 0, 1, 1)),
        },
    ),
    _row(
        "rain",
        "Bright streaks: sparse drops, blurred along a steep fall and added, over an image of less contrast.",
        {
            "density": ("drops per px", (0.002, 0.004, 0.006, 0.008, 0.012)),
            "length_px": ("px", (8, 12, 16, 20, 24)),
            "strength": ("of 1", (0.5, 0.6, 0.7, 0.8, 0.9)),
            "contrast": ("factor", (0.95, 0.9, 0.85, 0.8, 0.7)),
        },
        source="own definition: additive streaks of moving drops (Garg and Nayar, ACM Trans. Graphics 25(3), 2006)",
    ),
)
_ROWS = {row.name: row for row in WEATHER}


def degrade_weather(images: Tensor, op: str, level: int, *, seed: int = 0) -> Tensor:
    """Return images after one op of ``WEATHER``: (B, H, W, 3) uint8, a new tensor on the CPU.

    images: (B, H, W, 3) uint8 RGB on the CPU, of any size.  level: 1 (mildest) to 5.  seed: 0 or more; image i is a
    function of its pixels, op, level, seed and i.
    Raises InputError for other arguments, and BackendError for water without OpenCV.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
        raise InputError(f"weather: images must be (B, H, W, 3) uint8, got {describe_tensor(images)}")
    if op not in _ROWS:
        raise InputError(f"weather: op must be one of the pack, got {op!r}; {hint(op, list(_ROWS))}")
    level, seed = check_int("weather", "level", level, 1, LEVELS), check_int("weather", "seed", seed, 0)
    params = [float(parameter.alternatives(level)[0]) for parameter in _ROWS[op].parameters]
    result = torch.empty_like(images, device="cpu", memory_format=torch.contiguous_format)
    if not images.numel():
        return result
    for index, pixels in enumerate(images.cpu().numpy()):
        found = _OPS[op](pixels / 255.0, params, np.random.default_rng([seed, index]))
        result[index] = torch.from_numpy(np.rint(255 * found.clip(0, 1)).astype(np.uint8))
    return result


def plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> Array:
    """Return a plasma fractal of diamonds and squares on a torus, from 0 to 1: (height, width).

    The side is the least power of two that holds both. Each halving of the step fills the middles of squares, then
    those of edges, with the mean of four neighbours and a uniform number whose range is divided by ``decay`` squared.
    """
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    field = np.zeros((side, side))
    step, wobble = side, 100.0

    def middle(total: Array) -> Array:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = middle(pairs + np.roll(pairs, -1, 1))
        centres = field[half::step, half::step]
        # Of an edge: its two ends and the centres of the squares on both sides.
        field[::step, half::step] = middle(corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0))
        field[half::step, ::step] = middle(corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1))
        step, wobble = half, wobble / decay
    field -= field.min()
    field /= field.max()
    return field[:height, :width]


def streaked(image: Array, radius_px: int, sigma_px: float, angle_degrees: float, *, edges: str = "edge") -> Array:
    """Return an image blurred to one side along a line: half a Gaussian of 2 radius_px + 1 samples.

    edges: what lies beyond them, a mode of ``numpy.pad``; "edge" repeats them.
    """
    places = np.arange(2 * radius_px + 1)
    weights = np.exp(-(places**2) / (2.0 * sigma_px**2))
    weights /= weights.sum()
    angle = math.radians(angle_degrees)
    reach = len(places)
    padded = np.pad(image, reach, mode=edges)  # type: ignore[call-overload]
    height, width = image.shape
    result = np.zeros_like(image)
    for place, weight in zip(places, weights, strict=True):
        down = reach + math.ceil(place * math.sin(angle) - 0.5)
        right = reach + math.ceil(place * math.cos(angle) - 0.5)
        result += weight * padded[down : down + height, right : right + width]
    return result


def _fog(image: Array, params: list[float], rng: np.random.Generator) -> Array:
    density, decay = params
    height, width, _ = image.shape
    brightest = image.max()
    return (image + density * plasma(height, width, decay, rng)[..., None]) * brightest / (brightest + density)


def _frost(image: Array, params: list[float], rng: np.random.Generator) -> Array:
    image_weight, ice_weight = params
    height, width, _ = image.shape
    # Ridges where the fractal crosses the middle of its range, in two scales: needles on a haze.
    haze, needles = (1 - np.abs(2 * plasma(height, width, decay, rng) - 1) for decay in (1.8, 1.4))
    texture = (0.4 * haze + 0.6 * needles**3)[..., None] * _ICE
    return image_weight * image + ice_weight * texture


def _snow(image: Array, params: list[float], rng: np.random.Generator) -> Array:
    mean, deviation, zoom, threshold, radius, sigma, share = params
    flakes = _zoomed(rng.normal(mean, deviation, image.shape[:2]), zoom)
    flakes = np.where(flakes < threshold, 0.0, flakes.clip(0, 1))
    fallen = streaked(flakes, int(radius), sigma, rng.uniform(*_STREAK_ANGLES))[..., None]
    grey = (image @ (0.299, 0.587, 0.114))[..., None]
    whitened = share * image + (1 - share) * np.maximum(image, 1.5 * grey + 0.5)
    return whitened + fallen + fallen[::-1, ::-1]


def _spatter(image: Array, params: list[float], rng: np.random.Generator) -> Array:
    mean, deviation, sigma, threshold, strength, mud = params
    liquid = ndimage.gaussian_filter(rng.normal(mean, deviation, image.shape[:2]), sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    if mud:
        cover = ndimage.gaussian_filter((liquid > threshold).astype(np.float64), strength, mode="nearest")
        cover[cover < 0.8] = 0
        return image * (1 - cover[..., None]) + _BROWN * cover[..., None]
    drops = _water(liquid)
    most = drops.max()
    return image + _TURQUOISE * (strength * drops / most if most else drops)[..., None]


def _water(liquid: Array) -> Array:
    """Return the light on drops: their height times an embossed, equalised distance to their edges."""
    try:
        import cv2
    except ImportError as error:
        raise BackendError(f"weather: spatter of water needs OpenCV ({error}): pip install 'qpt[weather]'") from error
    height = (255 * liquid).clip(0, 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(height, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    light = cv2.blur(cv2.filter2D(distance, cv2.CV_8U, emboss), (3, 3))
    return height.astype(np.float64) * light


def _rain(image: Array, params: list[float], rng: np.random.Generator) -> Array:
    density, length, strength, contrast = params
    drops = (rng.random(image.shape[:2]) < density) * rng.uniform(0.5, 1.0, image.shape[:2])
    angle = rng.uniform(-105.0, -75.0)
    streaks = streaked(drops, round(length) // 2, length, angle, edges="constant")
    # As bright as a drop that covers its pixel for the whole exposure, whatever the length of its streak.
    streaks *= strength * (2 * (round(length) // 2) + 1) / 2
    mean = image.mean()
    return mean + contrast * (image - mean) + streaks[..., None]


def _zoomed(field: Array, factor: float) -> Array:
    """Return the middle of a field, magnified to the field's size with linear interpolation."""
    cut = []
    for side in field.shape:
        kept = min(side, math.ceil(side / factor))
        first = (side - kept) // 2
        cut.append(slice(first, first + kept))
    large = ndimage.zoom(field[tuple(cut)], factor, order=1)
    top, left = ((got - side) // 2 for got, side in zip(large.shape, field.shape, strict=True))
    large = large[max(0, top) :, max(0, left) :][: field.shape[0], : field.shape[1]]
    missing = [(0, side - got) for got, side in zip(large.shape, field.shape, strict=True)]
    return np.pad(large, missing, mode="edge")  # a rounded size may be a pixel short


_OPS: dict[str, Callable[[Array, list[float], np.random.Generator], Array]] = {
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "spatter": _spatter,
    "rain": _rain,
}
