"""Rows of the op table that deform the sampling grid. See ``qpt.degradations``."""

from __future__ import annotations

from qpt.optable.row import REALESRGAN, Degradation, Parameter

_FACTOR = Parameter("factor", "size / reduced size", 1.0, 16.0, levels=(1.5, 2.0, 3.0, 5.0, 8.0))

GEOMETRY: tuple[Degradation, ...] = (
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
)
