"""Rows of the op table that deform the sampling grid. See ``qpt.degradations``."""

from __future__ import annotations

from qpt.optable.row import IMAGENET_C, REALESRGAN, Degradation, Parameter

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
    ),
    Degradation(
        "rescale_bilinear",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BILINEAR), resize((w, h), BILINEAR); sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased triangle filter.",
    ),
    Degradation(
        "rescale_bicubic",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize; KADID-10k's non-uniform sampling",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BICUBIC), resize((w, h), BICUBIC), sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased cubic filter (a = -0.5).",
    ),
    Degradation(
        "pixelate",
        "geometry",
        (Parameter("factor", "size / reduced size", 1.0, 16.0, levels=(1.67, 2.0, 2.5, 3.33, 4.0)),),
        source=IMAGENET_C + ", pixelate, with its five factors",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), BOX), resize((w, h), BOX); sides >= 1",
        halo="whole",
        doc="Means over blocks of about factor pixels: down and up again with Pillow's box filter.",
    ),
    Degradation(
        "rescale_area",
        "geometry",
        (_FACTOR,),
        source=REALESRGAN + ", resize",
        oracle="cv2.resize(x, (round(w / factor), round(h / factor)), INTER_AREA), cv2.resize(., (w, h), INTER_LINEAR)",
        halo="whole",
        doc="Down by the mean over each new pixel's area, up bilinear.",
    ),
    Degradation(
        "rescale_lanczos",
        "geometry",
        (_FACTOR,),
        source="Re-IQA (Saha, Mishra and Bovik, CVPR 2023), resize; Duchon, Lanczos filtering (1979)",
        oracle="Pillow: resize((round(w / factor), round(h / factor)), LANCZOS), resize((w, h), LANCZOS), sides >= 1",
        halo="whole",
        doc="Down and up again with Pillow's antialiased Lanczos filter of three lobes: sharp, with ringing.",
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
    ),
)
