"""Rows of the op table that deform the sampling grid. See ``qpt.degradations.op_table``."""

from __future__ import annotations

import math

from qpt.degradations.row import IMAGENET_C, KADID, REALESRGAN, Degradation, Parameter

_FACTOR = Parameter("factor", "size / reduced size", 1.0, 16.0, levels=(1.5, 2.0, 3.0, 5.0, 8.0))

GEOMETRY: tuple[Degradation, ...] = (
    Degradation(
        "rescale_nearest",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), NEAREST), resize((w, h), NEAREST), sides >= 1",
        halo="whole",
        doc="Down and up again without a filter: aliased, then blocky.",
        cost=4.0,
    ),
    Degradation(
        "rescale_bilinear",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BILINEAR), resize((w, h), BILINEAR); sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased triangle filter.",
        cost=9.0,
    ),
    Degradation(
        "rescale_bicubic",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BICUBIC), resize((w, h), BICUBIC), sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased cubic filter (a = -0.5).",
        cost=13.0,
    ),
    Degradation(
        "pixelate",
        "geometry",
        (Parameter("factor", "size / reduced size", 1.0, 16.0, levels=(1.67, 2.0, 2.5, 3.33, 4.0)),),
        source=IMAGENET_C + ", pixelate, with its five factors",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BOX), resize((w, h), BOX); sides >= 1",
        halo="whole",
        doc="Means over blocks of about factor pixels: down and up again with Pillow's box filter.",
        cost=7.0,
    ),
    Degradation(
        "resize_to",
        "geometry",
        (
            Parameter("scale", "working size / image size", 0.0625, 1.5, levels=(0.67, 0.5, 0.33, 0.2, 0.125)),
            Parameter("filter", "0 area, 1 bilinear, 2 bicubic", 0.0, 2.0, levels=((0.0, 1.0, 2.0),) * 5, integer=True),
        ),
        source=REALESRGAN + ", random resize; BSRGAN (Zhang et al., ICCV 2021) has the same three filters",
        oracle="cv2.resize(x, (floor(w scale), floor(h scale)), INTER_AREA, INTER_LINEAR or INTER_CUBIC), sides >= 1; "
        "8 bits after each of two passes",
        halo="whole",
        doc="Sets the working size of the ops after it. A row that ends at another size than its image's gets a last "
        "bicubic resize; a chain that is to choose its filter ends with scale 1. Bicubic has a = -0.75; bilinear and "
        "bicubic are not antialiased.",
        cost=10.0,
    ),
    Degradation(
        "spatial_jitter",
        "geometry",
        (Parameter("std_px", "px", 0.0, 8.0, levels=(0.05, 0.1, 0.2, 0.5, 1.0)),),
        source=KADID
        + ", jitter, with ARNIQA's (WACV 2024) five strengths; its five gathers in sequence, each by a normal "
        "step, replaced by one gather by their sum, whose std is sqrt(5) std_px",
        oracle="scipy.ndimage.map_coordinates(channel, at, order=1, mode='nearest') at the drawn places",
        halo=lambda p: math.ceil(13 * p[0]) + 1,  # a normal number is at most 5.77: sqrt(5) 5.77 = 12.9
        doc="Every pixel from a place some pixels away, by a normal step in rows and in columns, bilinear.",
        cost=32.0,
    ),
    Degradation(
        "non_eccentricity_patch",
        "geometry",
        (Parameter("patches", "squares of 16 px", 0.0, 1024.0, levels=(20.0, 40.0, 60.0, 80.0, 100.0), integer=True),),
        source=KADID + ", non-eccentricity patch: 16 px, up to 8 px away, 20 to 100 of them; taken from the unchanged "
        "image, border included, instead of from the result so far",
        oracle="Pillow: paste(crop((left, top, left + 16, top + 16)), to), for each in order",
        halo="whole",
        doc="Squares of 16 px put up to 8 rows and columns from where they were; later ones cover earlier ones.",
        cost=2.0,
    ),
    Degradation(
        "colour_block",
        "geometry",
        (Parameter("blocks", "squares of 32 px", 0.0, 1024.0, levels=(2.0, 4.0, 6.0, 8.0, 10.0), integer=True),),
        source=KADID + ", color block: 32 px, 2 to 10 of them",
        oracle="Pillow: ImageDraw.rectangle((left, top, left + 31, top + 31), fill=colour), for each in order",
        halo="whole",
        doc="Squares of 32 px of one random colour at random places; later ones cover earlier ones.",
        cost=2.0,
    ),
    Degradation(
        "rescale_area",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize",
        oracle="cv2.resize(x, (round(w / factor), round(h / factor)), INTER_AREA), cv2.resize(., (w, h), INTER_LINEAR)",
        halo="whole",
        doc="Down by the mean over each new pixel's area, up bilinear.",
        cost=9.0,
        revision=2,
    ),
    Degradation(
        "rescale_lanczos",
        "geometry",
        (_FACTOR,),
        source="Re-IQA (Saha, Mishra and Bovik, CVPR 2023), resize; Duchon, Lanczos filtering (1979)",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), LANCZOS), resize((w, h), LANCZOS), sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased Lanczos filter of three lobes: sharp, with ringing.",
        cost=20.0,
    ),
    Degradation(
        "elastic",
        "geometry",
        (
            Parameter("alpha_px", "px", 0.0, 512.0, levels=(6.0, 10.0, 15.0, 21.0, 29.0)),
            Parameter("sigma_px", "px", 0.1, 8.0, levels=(3.0,) * 5),
            Parameter("affine_px", "px", 0.0, 64.0, levels=(1.0, 2.0, 3.0, 4.0, 5.0)),
        ),
        source=IMAGENET_C + ", elastic transform, its two interpolations made one",
        oracle="scipy.ndimage.map_coordinates(channel, place + field, order=1, mode='mirror') with the drawn field",
        halo="whole",
        doc="Places moved by alpha times uniform noise blurred by sigma, and by a small random affine map; bilinear.",
        cost=53.0,
    ),
)
