"""Rows that reproduce what the published code of one source does, where an op of the other files serves another.

They came after version 0.1.0 and stand at the end of the op table, so that older ids keep their meaning. See
``qpt.degradations.op_table``; the presets that use them are compared with their sources by
``python -m benchmarks preset_fidelity``.
"""

from __future__ import annotations

import math

from qpt.degradations.row import ARNIQA, IMAGENET_C, KADID, Degradation, Parameter, no_halo

_IMAGECORRUPTIONS = IMAGENET_C + ", as the package imagecorruptions has it"

BY_SOURCE: tuple[Degradation, ...] = (
    Degradation(
        "motion_trail",
        "texture",
        (
            Parameter("radius_px", "px", 0.0, 24.0, levels=(10.0, 15.0, 15.0, 15.0, 20.0), integer=True),
            Parameter("sigma_px", "px", 0.1, 64.0, levels=(3.0, 5.0, 8.0, 12.0, 15.0)),
            Parameter("angle_deg", "degree", -45.0, 45.0),
        ),
        source=_IMAGECORRUPTIONS + ": motion blur",
        oracle="cv2.filter2D(x, -1, kernel, borderType=BORDER_REPLICATE), kernel = exp(-i^2 / 2 sigma^2) at the line's "
        "i-th pixel, sum 1",
        halo=lambda p: 2 * int(p[0]),
        grid_px=1,
        doc="Weighted mean along a line that starts at the pixel, so the picture also moves; border replicated.",
        cost=(42.0, 62.0, 62.0, 62.0, 82.0),
        variant_of="motion_blur",
    ),
    Degradation(
        "glass_shuffle",
        "texture",
        (
            Parameter("delta_px", "px", 1.0, 16.0, levels=(1.0, 1.0, 2.0, 3.0, 4.0), integer=True),
            Parameter("sigma_px", "px", 0.1, 8.0, levels=(0.5, 0.7, 0.9, 1.1, 1.5)),
            Parameter("rounds", "scans", 0.0, 8.0, levels=(1.0, 2.0, 2.0, 2.0, 2.0), integer=True),
        ),
        source=_IMAGECORRUPTIONS + ": glass blur. Its swaps of NumPy views copy one pixel and keep the other",
        oracle="gaussian_blur's, rint; numpy: x[i, j] = x[i + down, j + right] one after another, from the last row "
        "and column to the first; gaussian_blur's",
        halo="whole",
        doc="A Gaussian blur, pixels replaced one after another by one nearby, which may have been replaced before, "
        "and the blur again.",
        cost=40.0,
        variant_of="glass_blur",
    ),
    Degradation(
        "rescale_nearest_floor",
        "geometry",
        (Parameter("scale", "reduced size / size", 0.0625, 1.0, levels=(0.8869, 0.7843, 0.6988, 0.5693, 0.2902)),),
        source=ARNIQA + ", pixelate: 0.95 - s^0.6 for strengths s of 0.01 to 0.5",
        oracle="torch.nn.functional.interpolate(x, (floor(h scale), floor(w scale)), mode='nearest'), then (h, w); "
        "sides >= 1",
        halo="whole",
        doc="Down and up again without a filter, on PyTorch's grid: aliased, blocky, moved by half a small pixel.",
        cost=4.0,
        variant_of="rescale_nearest",
    ),
    Degradation(
        "repeated_jitter",
        "geometry",
        (
            Parameter("std_px", "px", 0.0, 8.0, levels=(0.05, 0.1, 0.2, 0.5, 1.0)),
            Parameter("rounds", "gathers", 1.0, 8.0, levels=(5.0,) * 5, integer=True),
            Parameter("drift", "1: the picture moves too", 0.0, 1.0, levels=(0.0,) * 5, integer=True),
        ),
        source=KADID + ", jitter, five gathers in sequence; rounded to 8 bits after each. " + ARNIQA + " pads rows and "
        "columns by each other's largest distance and so moves the picture by a pixel now and then: its drift",
        oracle="scipy.ndimage.map_coordinates(channel, at, order=1, mode='nearest'), rint, in each round",
        halo="whole",
        doc="Every pixel from a place some pixels away, bilinear, and again from the result, which also blurs.",
        cost=150.0,
        variant_of="spatial_jitter",
    ),
    Degradation(
        "patch_shuffle",
        "geometry",
        (
            Parameter("patches", "squares of 16 px", 0.0, 1024.0, levels=(20.0, 40.0, 60.0, 80.0, 100.0), integer=True),
            Parameter("in_place", "1: squares read what they write", 0.0, 1.0, levels=(0.0,) * 5, integer=True),
        ),
        source=KADID
        + ", non-eccentricity patch: from the result so far, 16 px inside; in "
        + ARNIQA
        + " squares overlap themselves, as PyTorch copies row by row",
        oracle="Pillow: paste(crop((left, top, left + 16, top + 16)), to), for each in order, on one image",
        halo="whole",
        doc="Squares of 16 px copied by up to 8 rows and columns, each from the result of those before it.",
        cost=(30.0, 60.0, 90.0, 120.0, 150.0),
        variant_of="non_eccentricity_patch",
    ),
    Degradation(
        "saturation_affine",
        "colour",
        (
            Parameter("factor", "ratio", -4.0, 32.0, levels=(0.4, 0.2, 0.1, 0.0, -0.4)),
            Parameter("offset", "share of 1", -1.0, 1.0, levels=(0.0,) * 5),
        ),
        source=KADID + ", color saturation 1, and " + IMAGENET_C + ", saturate",
        oracle="skimage.color.rgb2hsv, S = min(S * factor + offset, 1), hsv2rgb, clip, rint",
        halo=no_halo,
        grid_px=1,
        doc="HSV saturation times factor plus offset: grey turns reddish; below 0 colours turn into their complements.",
        cost=18.0,
        variant_of="saturation",
    ),
    Degradation(
        "tone_cubic",
        "colour",
        (
            Parameter("slope", "ratio", -4.0, 4.0, levels=(0.9, 0.75, 0.6, 0.4, 0.2)),
            Parameter("cubic", "ratio", -16.0, 16.0, levels=(0.0,) * 5),
        ),
        source=ARNIQA + ", both contrast changes: the line, and the spline through (0.3, y) and (0.7, 1 - y)",
        oracle="numpy.polynomial: 255 clip(1/2 + slope u + cubic u^3, 0, 1), u = x / 255 - 1/2, rint",
        halo=no_halo,
        grid_px=1,
        doc="Odd cubic tone curve about mid-grey: a line for cubic 0; black and white stay for slope = 1 - cubic / 4.",
        cost=3.0,
        variant_of="contrast",
    ),
    Degradation(
        "quantise_stretched",
        "colour",
        (Parameter("levels", "intervals", 2.0, 256.0, levels=(20.0, 16.0, 13.0, 10.0, 7.0), integer=True),),
        source=ARNIQA + ", quantization",
        oracle="numpy.digitize(x, linspace(0, 255, levels + 1), right=True), its extremes stretched to 0 and 255, rint",
        halo="whole",
        doc="The number of each value's interval, stretched over the image's own range: banding, and brighter.",
        cost=4.0,
        variant_of="quantise",
    ),
    Degradation(
        "colour_diffusion_lab",
        "colour",
        (
            Parameter("sigma_px", "px", 0.0, 20.0, levels=(3.5, 6.5, 11.0, 14.0, 20.0)),
            Parameter("gain", "ratio", 0.0, 16.0, levels=(1.0, 3.0, 6.0, 8.0, 12.0)),
            Parameter("swapped", "1: red and blue exchanged, rounded down", 0.0, 1.0, levels=(0.0,) * 5, integer=True),
        ),
        source=KADID
        + ", color diffusion; "
        + ARNIQA
        + " exchanges red and blue, in its color saturation 2 (sigma 0) too",
        oracle="skimage.color.rgb2lab, a and b by cv2.GaussianBlur of radius ceil(2 sigma) (BORDER_REFLECT_101) times "
        "gain, lab2rgb, rint",
        halo=lambda p: math.ceil(2 * p[0]),
        grid_px=1,
        doc="a and b of CIELAB blurred and strengthened by gain; lightness stays until colours are clipped.",
        cost=(90.0, 95.0, 105.0, 110.0, 125.0),
        variant_of="colour_diffusion",
    ),
    Degradation(
        "colour_shift_edges",
        "colour",
        (
            Parameter("shift_px", "px", 0.0, 64.0, levels=(1.0, 3.0, 6.0, 8.0, 12.0)),
            Parameter("angle_deg", "degree", 0.0, 360.0),
        ),
        source=KADID + ", color shift, as " + ARNIQA + " has it: without limits at percentiles",
        oracle="cv2.GaussianBlur(hypot of numpy.gradient of the luma, (17, 17), 4, borderType=BORDER_REPLICATE), "
        "stretched to 0 and 1: the share of the moved green",
        halo="whole",
        doc="Green moved where the image has edges: blended in by the blurred gradient of the luma.",
        cost=60.0,
        variant_of="colour_shift",
    ),
)
