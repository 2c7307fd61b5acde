"""Rows of the op table that change colour and tone. See ``qpt.degradations``."""

from __future__ import annotations

from qpt.optable.row import Degradation, Parameter, no_halo

_HSV = "hexcone HSV (Smith, SIGGRAPH 1978)"

COLOUR: tuple[Degradation, ...] = (
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
        halo=no_halo,
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
        halo=no_halo,
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
        halo=no_halo,
        doc="HSV hue turned by shift_deg, either way, by chance.",
    ),
)
