"""The op table: every degradation QPT knows, as data. The row's place in ``DEGRADATIONS`` is the op's id.

Read by ``qpt.space`` (sampling), ``qpt.program`` (printing, checking), ``qpt.pictures`` and the tests.
``csrc/ops/table.h`` lists the same names in the same order and ``qpt.ops.backend`` compares the two. A new op is one
row here, one function in its family's file in ``csrc/ops/``, one line in ``csrc/ops/table.h`` and one NumPy definition
in ``tests/reference/``.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qpt.errors import InputError

LEVELS = 5  # every op has levels 1..5, mildest first
SLOTS = 4  # float32 parameters a kernel receives per op; unused ones are 0

Family = Literal["texture", "geometry", "colour"]
Values = Sequence[float]
Halo = Callable[[Values], int] | Literal["whole"]


@dataclass(frozen=True)
class Parameter:
    """One number an op reads: ``low <= value <= high``, in ``unit``.

    levels: the value at levels 1..5; a tuple of values means one of them is drawn when a program is sampled (a sign,
    say). No levels: drawn uniformly from [low, high) whatever the level.
    """

    name: str
    unit: str
    low: float
    high: float
    levels: tuple[float | tuple[float, ...], ...] = ()
    integer: bool = False

    def alternatives(self, level: int) -> tuple[float, ...]:
        """The values that may be drawn at ``level`` (1..5); empty for a parameter drawn uniformly."""
        if not self.levels:
            return ()
        value = self.levels[level - 1]
        return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class Degradation:
    """One row of the op table.

    source: where the definition comes from.  oracle: the library call it must agree with, flags included.
    halo: pixels around an output pixel that it can depend on, from the op's parameters; ``"whole"`` when it needs
    whole-image statistics or a grid tied to the image's size.  revision: raised when the op's bytes change on purpose.
    """

    name: str
    family: Family
    parameters: tuple[Parameter, ...]
    source: str
    oracle: str
    halo: Halo
    doc: str
    revision: int = 1

    def halo_px(self, params: Values) -> int | None:
        """Halo in pixels for these parameters, or None for the whole image."""
        return None if self.halo == "whole" else self.halo(params)


def _no_halo(params: Values) -> int:
    return 0


def _jpeg_halo(params: Values) -> int:
    return 16  # a pixel's own 16-px block, and through chroma upsampling the block beside it


_SIGMA = Parameter("sigma_px", "px", 0.1, 8.0, levels=(0.6, 1.1, 1.8, 2.8, 4.2))
_ANGLE = Parameter("angle_deg", "degree", 0.0, 180.0)
_STD = Parameter("std", "grey level of 255", 0.0, 128.0, levels=(4.0, 8.0, 14.0, 22.0, 34.0))
_FACTOR = Parameter("factor", "size / reduced size", 1.0, 16.0, levels=(1.5, 2.0, 3.0, 5.0, 8.0))

_KADID = "KADID-10k (Lin, Hosu and Saupe, QoMEX 2019)"
_REALESRGAN = "Real-ESRGAN (Wang et al., ICCV Workshops 2021)"
_HSV = "hexcone HSV (Smith, SIGGRAPH 1978)"

DEGRADATIONS: tuple[Degradation, ...] = (
    Degradation(
        "gaussian_blur",
        "texture",
        (_SIGMA,),
        source=_KADID + ", Gaussian blur",
        oracle="cv2.GaussianBlur(x, (2r+1, 2r+1), sigma_px, borderType=BORDER_REFLECT_101), r = ceil(3 sigma_px)",
        halo=lambda p: math.ceil(3 * p[0]),
        doc="Isotropic Gaussian, taps exp(-d^2 / 2 sigma^2) out to ceil(3 sigma), sum 1, border reflect-101.",
    ),
    Degradation(
        "gaussian_blur_aniso",
        "texture",
        (
            Parameter("sigma_x_px", "px", 0.1, 8.0, levels=(0.8, 1.4, 2.2, 3.2, 4.6)),
            Parameter("sigma_y_px", "px", 0.1, 8.0, levels=(0.3, 0.5, 0.7, 1.0, 1.4)),
            _ANGLE,
        ),
        source=_REALESRGAN + ", anisotropic Gaussian kernel",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel of ceil(3 max(sigma)) radius, sum 1",
        halo=lambda p: math.ceil(3 * max(p[0], p[1])),
        doc="Gaussian whose sigma_x axis is turned by angle_deg, counter-clockwise as seen; border reflect-101.",
    ),
    Degradation(
        "motion_blur",
        "texture",
        (Parameter("length_px", "px", 1.0, 48.0, levels=(3.0, 6.0, 10.0, 15.0, 21.0)), _ANGLE),
        source=_KADID + ", motion blur",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REFLECT_101), kernel = segment with tent weights, sum 1",
        halo=lambda p: math.ceil(p[0] / 2) + 1,
        doc="Mean along a centred segment of length_px at angle_deg, counter-clockwise as seen; border reflect-101.",
    ),
    Degradation(
        "defocus_blur",
        "texture",
        (Parameter("radius_px", "px", 0.5, 16.0, levels=(1.0, 1.8, 2.8, 4.2, 6.5)),),
        source="ImageNet-C (Hendrycks and Dietterich, ICLR 2019), defocus blur, with an analytic edge",
        oracle="cv2.filter2D(x, -1, disk, borderType=BORDER_REFLECT_101), disk = clip(radius + 0.5 - d, 0, 1), sum 1",
        halo=lambda p: math.ceil(p[0]) + 1,
        doc="Mean over a disk of radius_px whose edge pixel is weighted by its distance; border reflect-101.",
    ),
    Degradation(
        "gaussian_noise",
        "texture",
        (_STD,),
        source=_KADID + ", white noise",
        oracle="numpy: rint(clip(x + std * n, 0, 255)), n ~ N(0, 1) per pixel and channel",
        halo=_no_halo,
        doc="Independent Gaussian noise on each channel; random numbers are indexed by image coordinates.",
    ),
    Degradation(
        "gaussian_noise_grey",
        "texture",
        (_STD,),
        source=_REALESRGAN + ", grey noise",
        oracle="numpy: rint(clip(x + std * n, 0, 255)), n ~ N(0, 1) per pixel",
        halo=_no_halo,
        doc="One Gaussian number per pixel, added to all three channels.",
    ),
    Degradation(
        "jpeg",
        "texture",
        (Parameter("quality", "libjpeg quality", 1.0, 100.0, levels=(75.0, 45.0, 28.0, 16.0, 8.0), integer=True),),
        source="ITU-T T.81 baseline, 4:2:0, with libjpeg-turbo's colour conversion and fancy upsampling",
        oracle="Pillow: Image.save(format='JPEG', quality=quality) then load (subsampling 4:2:0, its default)",
        halo=_jpeg_halo,
        doc="JPEG round trip without entropy coding (which loses nothing); blocks start at the image's corner.",
    ),
    Degradation(
        "rescale_bilinear",
        "geometry",
        (_FACTOR,),
        source=_REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BILINEAR), resize((w, h), BILINEAR); sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased triangle filter.",
    ),
    Degradation(
        "rescale_bicubic",
        "geometry",
        (_FACTOR,),
        source=_REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BICUBIC), resize((w, h), BICUBIC), sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased cubic filter (a = -0.5).",
    ),
    Degradation(
        "brightness",
        "colour",
        (
            Parameter(
                "factor",
                "ratio",
                0.0,
                4.0,
                levels=((0.88, 1.12), (0.78, 1.22), (0.66, 1.34), (0.52, 1.48), (0.35, 1.65)),
            ),
        ),
        source="Pillow's ImageEnhance.Brightness",
        oracle="Pillow: ImageEnhance.Brightness(x).enhance(factor), rounded instead of truncated",
        halo=_no_halo,
        doc="Each value times factor, clipped: darker or brighter, by chance.",
    ),
    Degradation(
        "contrast",
        "colour",
        (
            Parameter(
                "factor",
                "ratio",
                0.0,
                4.0,
                levels=((0.85, 1.15), (0.72, 1.28), (0.58, 1.42), (0.44, 1.56), (0.28, 1.72)),
            ),
        ),
        source="Pillow's ImageEnhance.Contrast",
        oracle="Pillow: ImageEnhance.Contrast(x).enhance(factor), rounded instead of truncated",
        halo="whole",
        doc="Blend with the rounded mean of the ITU-R 601 luma: flatter or harder, by chance.",
    ),
    Degradation(
        "saturation",
        "colour",
        (Parameter("factor", "ratio", 0.0, 4.0, levels=((0.8, 1.4), (0.6, 1.8), (0.4, 2.2), (0.2, 2.6), (0.0, 3.0))),),
        source=_HSV + "; KADID-10k's colour saturation 1",
        oracle="skimage.color.rgb2hsv, S = clip(S * factor, 0, 1), hsv2rgb, rint",
        halo=_no_halo,
        doc="HSV saturation times factor: paler (1 - s) or stronger (1 + 2 s), by chance.",
    ),
    Degradation(
        "hue",
        "colour",
        (
            Parameter(
                "shift_deg",
                "degree",
                -180.0,
                180.0,
                levels=((-10.0, 10.0), (-20.0, 20.0), (-35.0, 35.0), (-55.0, 55.0), (-90.0, 90.0)),
            ),
        ),
        source=_HSV,
        oracle="skimage.color.rgb2hsv, H = (H + shift_deg / 360) mod 1, hsv2rgb, rint",
        halo=_no_halo,
        doc="HSV hue turned by shift_deg, either way, by chance.",
    ),
)

NAMES: tuple[str, ...] = tuple(row.name for row in DEGRADATIONS)
_IDS = {name: index for index, name in enumerate(NAMES)}


def op_id(name: str, caller: str = "op_id") -> int:
    """The id of a named op. Raises InputError with the nearest names for an unknown one."""
    if name not in _IDS:
        near = difflib.get_close_matches(str(name), NAMES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMES)}"
        raise InputError(f"{caller}: op must be a name of the op table, got {name!r}; {hint}")
    return _IDS[name]


@functools.cache
def fingerprint() -> str:
    """16 hex digits that change whenever the meaning of an op id, a level or a parameter changes."""
    canonical = [
        [
            row.name,
            row.revision,
            [
                [p.name, p.unit, p.low, p.high, p.integer, [p.alternatives(v + 1) for v in range(len(p.levels))]]
                for p in row.parameters
            ],
        ]
        for row in DEGRADATIONS
    ]
    return hashlib.sha256(json.dumps(canonical, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Arrays:
    """The table as arrays, indexed by op id (and level - 1, parameter slot, alternative)."""

    low: np.ndarray  # float32 [n, SLOTS]; -inf for an unused slot
    high: np.ndarray  # float32 [n, SLOTS]; +inf for an unused slot
    integer: np.ndarray  # bool [n, SLOTS]
    uniform: np.ndarray  # bool [n, SLOTS]; drawn from [low, high)
    values: np.ndarray  # float64 [n, LEVELS, SLOTS, most alternatives]
    counts: np.ndarray  # int64 [n, LEVELS, SLOTS]; alternatives at that level, at least 1


@functools.cache
def arrays() -> Arrays:
    """The table as arrays, made once."""
    n = len(DEGRADATIONS)
    most = max(len(p.alternatives(v)) for row in DEGRADATIONS for p in row.parameters for v in range(1, LEVELS + 1))
    low = np.full((n, SLOTS), -np.inf, np.float32)
    high = np.full((n, SLOTS), np.inf, np.float32)
    integer = np.zeros((n, SLOTS), bool)
    uniform = np.zeros((n, SLOTS), bool)
    values = np.zeros((n, LEVELS, SLOTS, most))
    counts = np.ones((n, LEVELS, SLOTS), np.int64)
    for op, row in enumerate(DEGRADATIONS):
        for slot, p in enumerate(row.parameters):
            low[op, slot], high[op, slot] = p.low, p.high
            integer[op, slot], uniform[op, slot] = p.integer, not p.levels
            for v in range(LEVELS if p.levels else 0):
                drawn = p.alternatives(v + 1)
                values[op, v, slot, : len(drawn)] = drawn
                counts[op, v, slot] = len(drawn)
    return Arrays(low, high, integer, uniform, values, counts)


def draw_params(ops: np.ndarray, levels: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Parameters of each (op, level), given one uniform number in [0, 1) per slot.

    ops, levels: integers of one shape [...]; an op of -1 gets zeros.  u: float64 [..., SLOTS].
    Returns float32 [..., SLOTS].
    """
    table = arrays()
    op, level = np.maximum(ops, 0), np.maximum(levels, 1) - 1
    pick = (u * table.counts[op, level]).astype(np.int64)
    value = np.take_along_axis(table.values[op, level], pick[..., None], axis=-1)[..., 0]
    uniform = table.uniform[op]
    low, high = (np.where(uniform, bound[op], 0.0).astype(np.float64) for bound in (table.low, table.high))
    value = np.where(uniform, low + u * (high - low), value)
    return np.where(ops[..., None] < 0, 0.0, value).astype(np.float32)
