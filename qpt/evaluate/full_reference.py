"""The distance of an image to its reference on the features of an encoder: full-reference quality assessment.

``reference_distance`` is called by ``qpt score --reference`` and by users; it reads image files. The definition is that
of DISTS (Ding, Ma, Wang and Simoncelli, IEEE TPAMI 44(5), 2022, arXiv 2004.07728), with the stages of any encoder in
place of VGG's and equal weights in place of learned ones, so that no human score has a part in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpt.data.normalise import normalise
from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol, outside_graphs, prepare
from qpt.evaluate.image_crops import MAX_PIXELS, MIN_SIDE, as_pixels, crop_grid, mirror_pad
from qpt.evaluate.scorer import ImageLike, Scorer
from qpt.models import Encoder

#: What keeps the quotients finite where a channel is 0 or constant, as in DISTS.
_CONSTANT = 1e-6


@outside_graphs
@torch.inference_mode()
def reference_distance(
    model: Encoder | Scorer,
    image: ImageLike,
    reference: ImageLike,
    *,
    protocol: FeatureProtocol | None = None,
    max_pixels: int = MAX_PIXELS,
) -> float:
    """Return how far an image is from its reference: 0 for equal images, at most 2; lower is better.

    model: an encoder, or a scorer, of which the encoder and the protocol are used and not the fit to scores.  image,
    reference: files, Pillow images or (H, W, 3) uint8 pixels, as ``Scorer`` takes them, of one size.  protocol: the
    crops through which large images are seen, default that of the scorer or ``FeatureProtocol()``; both are seen
    through the same ones, at full scale alone.

    With k over the image itself (values of 0 to 1) and the stages of the encoder, c over the channels of k, and means,
    variances and covariance over the positions of all crops,
    D = 1 - mean_k mean_c (l + s) / 2, where l = (2 m_x m_y + c1) / (m_x^2 + m_y^2 + c1) compares texture,
    s = (2 cov_xy + c2) / (var_x + var_y + c2) structure, and c1 = c2 = 10^-6. D is symmetric.

    Raises InputError for another model, images of two sizes, what ``Scorer`` refuses, or features that are not finite.
    """
    if isinstance(model, Scorer):
        encoder, protocol = model.encoder, protocol or model.protocol
    elif isinstance(model, Encoder):
        encoder, protocol = model, protocol or FeatureProtocol()
    else:
        raise InputError(f"reference_distance: model must be an encoder or a scorer, got {type(model).__name__}")
    first, second = (as_pixels(given, max_pixels=max_pixels, padded=False) for given in (image, reference))
    if first.shape != second.shape:
        sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (first, second)]
        raise InputError(
            f"reference_distance: reference must have the size of the image, {sizes[0]}, got {sizes[1]} px; "
            "resize or crop one of them"
        )
    prepare(encoder)
    dims = (3, *encoder.stage_dims)
    # One crop at a time, and one image at a time: equal pixels then have equal maps, bit for bit.
    pairs = zip(*(_crops(pixels, encoder, protocol) for pixels in (first, second)), strict=True)
    moments = torch.stack([_moments(_maps(encoder, one), _maps(encoder, other)) for one, other in pairs])
    texture, structure = _similarities(moments)
    similarity = torch.stack([part.mean() for part in ((texture + structure) / 2).split(dims)]).mean()
    if not similarity.isfinite():
        raise InputError(f"reference_distance: encoder must give finite features, got none in {encoder.dtype}")
    return float(1 - similarity)


def _crops(pixels: NDArray[np.uint8], encoder: Encoder, protocol: FeatureProtocol) -> NDArray[np.uint8]:
    padded = mirror_pad(pixels, max(MIN_SIDE, encoder.min_side))
    return crop_grid(padded, side=protocol.crop_px, count=protocol.crops)


def _maps(encoder: Encoder, crop: NDArray[np.uint8]) -> list[Tensor]:
    """Return the crop itself and the maps of the stages, (C_i, positions) each, float32 or better."""
    image = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
    with torch.autocast(encoder.device.type, enabled=False):  # the caller's setting must not change the dtype
        stages = encoder.stages(normalise(image).to(encoder.dtype))
    maps = chain([image.to(torch.float32) / 255], stages)
    return [values[0].flatten(1).to(torch.promote_types(values.dtype, torch.float32)) for values in maps]


def _moments(x: Iterable[Tensor], y: Iterable[Tensor]) -> Tensor:
    """Return m_x, m_y, var_x, var_y and cov_xy of each channel over the positions of a crop: (5, sum C_i) float64."""
    parts = []
    for one, other in zip(x, y, strict=True):
        means = [values.mean(1, keepdim=True) for values in (one, other)]
        a, b = one - means[0], other - means[1]
        parts.append(torch.stack([means[0][:, 0], means[1][:, 0], (a * a).mean(1), (b * b).mean(1), (a * b).mean(1)]))
    return torch.cat([part.double() for part in parts], dim=1)


def _similarities(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return l and s of each channel, (C,) each, from the (crops, 5, C) moments of crops of one size."""
    x, y, variance_x, variance_y, covariance = moments.mean(0)
    # Over all crops together, a covariance is the mean of those within crops plus that of the means of crops.
    a, b = moments[:, 0] - x, moments[:, 1] - y
    total = variance_x + (a * a).mean(0) + variance_y + (b * b).mean(0)
    covariance = covariance + (a * b).mean(0)
    return (2 * x * y + _CONSTANT) / (x * x + y * y + _CONSTANT), (2 * covariance + _CONSTANT) / (total + _CONSTANT)
