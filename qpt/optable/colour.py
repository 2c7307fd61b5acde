"""Rows of the op table that change colour and tone. See ``qpt.degradations``."""

from __future__ import annotations

import math

from qpt.optable.row import ARNIQA, IMAGENET_C, KADID, Degradation, Parameter, no_halo

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
        grid_px=1,
        cost=11.0,
    ),
    Degradation(
        "mean_shift",
        "colour",
        (
            Parameter(
                "shift",
                "grey level of 255",
                -255.0,
                255.0,
                levels=((-10.0, 10.0), (-20.0, 20.0), (-30.0, 30.0), (-42.0, 42.0), (-58.0, 58.0)),
            ),
        ),
        source=KADID + ", mean shift; 20 and 38 levels in ARNIQA (WACV 2024)",
        oracle="cv2.add(x, shift), saturating",
        halo=no_halo,
        doc="A constant on every value, clipped: up or down, by chance.",
        grid_px=1,
        cost=3.0,
    ),
    Degradation(
        "gamma",
        "colour",
        (
            Parameter(
                "gamma",
                "exponent",
                0.1,
                8.0,
                levels=((0.87, 1.15), (0.75, 1.33), (0.62, 1.6), (0.5, 2.0), (0.38, 2.6)),
            ),
        ),
        source="power law of skimage.exposure.adjust_gamma",
        oracle="skimage.exposure.adjust_gamma(x / 255, gamma) * 255, rint",
        halo=no_halo,
        doc="255 (x / 255)^gamma: brighter or darker mid-tones, by chance; black and white stay.",
        grid_px=1,
        cost=3.0,
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
        cost=14.0,
    ),
    Degradation(
        "contrast_curve",
        "colour",
        (Parameter("gain", "slope of the logistic", 0.5, 32.0, levels=(4.0, 5.5, 7.5, 10.5, 15.0)),),
        source="Braun and Fairchild, Journal of Electronic Imaging 8(4), 1999; KADID-10k's nonlinear contrast change",
        oracle="skimage.exposure.adjust_sigmoid(x / 255, 0.5, gain), stretched to keep 0 and 1, * 255, rint",
        halo=no_halo,
        doc="Sigmoid tone curve about mid-grey: shadows and highlights crushed; black and white stay.",
        grid_px=1,
        cost=3.0,
    ),
    Degradation(
        "saturation",
        "colour",
        (Parameter("factor", "ratio", 0.0, 4.0, levels=((0.8, 1.4), (0.6, 1.8), (0.4, 2.2), (0.2, 2.6), (0.0, 3.0))),),
        source=_HSV + "; KADID-10k's colour saturation 1",
        oracle="skimage.color.rgb2hsv, S = clip(S * factor, 0, 1), hsv2rgb, rint",
        halo=no_halo,
        doc="HSV saturation times factor: paler (1 - s) or stronger (1 + 2 s), by chance.",
        grid_px=1,
        cost=16.0,
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
        grid_px=1,
        cost=25.0,
    ),
    Degradation(
        "quantise",
        "colour",
        (Parameter("levels", "values per channel", 2.0, 256.0, levels=(20.0, 16.0, 13.0, 10.0, 7.0), integer=True),),
        source=KADID + ", quantization, with ARNIQA's (WACV 2024) numbers of values, equally spaced",
        oracle="scipy.cluster.vq.vq(x, numpy.linspace(0, 255, levels)): the nearest, rint",
        halo=no_halo,
        doc="The nearest of a few equally spaced values in each channel: banding.",
        grid_px=1,
        cost=3.0,
    ),
    Degradation(
        "colour_diffusion",
        "colour",
        (
            Parameter("sigma_px", "px", 0.1, 8.0, levels=(2.0, 3.0, 4.5, 6.0, 8.0)),
            Parameter("gain", "ratio", 0.0, 16.0, levels=(1.1, 1.3, 1.6, 2.0, 2.5)),
        ),
        source=KADID + ", color diffusion, on Cb and Cr instead of a and b of CIELAB",
        oracle="numpy: Y + gain * (blurred - Y(blurred)), blurred by gaussian_blur's oracle, Y = ITU-R 601 luma",
        halo=lambda p: math.ceil(3 * p[0]),
        doc="Colour difference blurred and strengthened by gain; luma stays sharp.",
        grid_px=1,
        cost=(22.0, 26.0, 34.0, 40.0, 48.0),
    ),
    Degradation(
        "colour_shift",
        "colour",
        (
            Parameter("shift_px", "px", 0.0, 64.0, levels=(1.0, 3.0, 6.0, 8.0, 12.0)),
            Parameter("angle_deg", "degree", 0.0, 360.0),
        ),
        source=KADID + ", color shift, with ARNIQA's (WACV 2024) distances, everywhere instead of near edges",
        oracle="scipy.ndimage.shift(green, (-rint(shift sin), rint(shift cos)), order=0, mode='nearest')",
        halo=lambda p: math.ceil(p[0]),
        doc="Green moved by shift_px at angle_deg, counter-clockwise as seen; border replicated.",
        grid_px=1,
        cost=3.0,
    ),
    Degradation(
        "chroma",
        "colour",
        (Parameter("factor", "ratio", 0.0, 16.0, levels=(1.4, 2.0, 3.0, 6.0, 9.0)),),
        source=KADID + ", color saturation 2: factors 1, 2, 3, 6, 9, of which the first changes nothing",
        oracle="skimage.color.rgb2lab, a and b * factor, lab2rgb, rint",
        halo=no_halo,
        grid_px=1,
        doc="a and b of CIELAB times factor: hue and lightness stay until colours leave the RGB cube.",
        cost=36.0,
    ),
    Degradation(
        "value_shift",
        "colour",
        (Parameter("shift", "share of 255", -1.0, 1.0, levels=(0.1, 0.2, 0.3, 0.4, 0.5)),),
        source=IMAGENET_C + ", brightness, with its five shifts",
        oracle="skimage.color.rgb2hsv, V = clip(V + shift, 0, 1), hsv2rgb, rint",
        halo=no_halo,
        grid_px=1,
        doc="HSV value plus shift, clipped: hue and saturation stay, black becomes grey.",
        cost=9.0,
    ),
    Degradation(
        "brightness_curve",
        "colour",
        (
            Parameter(
                "amount",
                "twice the rise of mid-grey",
                -2.0,
                2.0,
                levels=((-0.05, 0.1), (-0.1, 0.2), (-0.2, 0.4), (-0.4, 0.7), (-0.8, 1.1)),
            ),
        ),
        source=KADID
        + ", brighten and darken, as "
        + ARNIQA
        + " has them, strengths too; clipped here instead of after",
        oracle="numpy.polyfit through (0, 0), (1/2, (1 + amount) / 2), (1, 1), clipped, on R, G, B; to brighten, a "
        "third of it on L of skimage.color.rgb2lab instead; rint",
        halo=no_halo,
        grid_px=1,
        doc="Parabolic tone curve that keeps black and white: brighter or darker, by chance.",
        cost=38.0,
    ),
    Degradation(
        "posterise",
        "colour",
        (Parameter("bits", "bits kept", 1.0, 8.0, levels=(6.0, 5.0, 4.0, 3.0, 2.0), integer=True),),
        source="Pillow ImageOps.posterize",
        oracle="PIL.ImageOps.posterize(x, bits)",
        halo=no_halo,
        grid_px=1,
        doc="The highest bits of every value.",
        cost=2.0,
    ),
    Degradation(
        "dither",
        "colour",
        (Parameter("levels", "values per channel", 2.0, 256.0, levels=(14.0, 9.0, 6.0, 4.0, 3.0), integer=True),),
        source=KADID
        + ", color quantization with dither; Bayer's ordered dither (IEEE ICC 1973) to equally spaced values "
        "instead of error diffusion, which is sequential, to a palette made for the image",
        oracle="numpy: floor(x (levels - 1) / 255 + (m + 1/2) / 64), m = Bayer's 8 x 8 matrix, tiled, as published",
        halo=no_halo,
        grid_px=8,
        doc="A few equally spaced values in each channel, mixed by an 8 x 8 matrix tied to the image's corner.",
        cost=7.0,
    ),
    Degradation(
        "chromatic_aberration",
        "colour",
        (
            Parameter(
                "ratio",
                "magnification - 1",
                -0.25,
                0.25,
                levels=((-0.005, 0.005), (-0.01, 0.01), (-0.017, 0.017), (-0.027, 0.027), (-0.04, 0.04)),
            ),
        ),
        source="lateral chromatic aberration (Boult and Wolberg, CVPR 1992), to the first order",
        oracle="scipy.ndimage.map_coordinates(channel, at, order=1, mode='nearest') of red and of blue",
        halo="whole",
        doc="Red magnified about the centre by 1 + ratio and blue by 1 - ratio, either way, by chance, bilinear.",
        cost=18.0,
    ),
)
