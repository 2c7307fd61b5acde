"""NumPy definitions of noise and compression. Which random number an element gets is part of the definition.

Imports nothing of qpt.
"""

import numpy as np
import scipy.stats

from tests.reference.definition import define
from tests.reference.jpeg import jpeg_round_trip
from tests.reference.philox import element_words, normals


@define
def gaussian_noise(image, params, seed, slot):
    noise = normals(image.size, seed, slot, tag=4).reshape(image.shape)
    return np.clip(image + params[0] * noise, 0, 255)


@define
def gaussian_noise_grey(image, params, seed, slot):
    height, width, _ = image.shape
    noise = normals(height * width, seed, slot, tag=5).reshape(height, width, 1)
    return np.clip(image + params[0] * noise, 0, 255)


@define
def speckle_noise(image, params, seed, slot):
    noise = normals(image.size, seed, slot, tag=6).reshape(image.shape)
    return np.clip(image + image * params[0] * noise, 0, 255)


# RGB = M (Y, Cb - 128, Cr - 128) of ITU-T T.871 (JFIF): from K_R = 0.299, K_B = 0.114
FROM_YCBCR = np.array(
    [[1, 0, 1.402], [1, -1.772 * 0.114 / 0.587, -1.402 * 0.299 / 0.587], [1, 1.772, 0]],
)


@define
def gaussian_noise_ycbcr(image, params, seed, slot):
    """A pixel's numbers, in the order Y, Cb, Cr, are those of its samples."""
    noise = normals(image.size, seed, slot, tag=9).reshape(image.shape)
    return np.clip(image + params[0] * noise @ FROM_YCBCR.T, 0, 255)


def uniforms(image: np.ndarray, seed: int, slot: int, tag: int) -> np.ndarray:
    """One number in [0, 1) per sample: the word's highest 24 bits."""
    return (element_words(image.size, seed, slot, tag) >> np.uint32(8)).reshape(image.shape) / 2**24


@define
def impulse_noise(image, params, seed, slot):
    u = uniforms(image, seed, slot, tag=7)
    return np.select([u < params[0] / 2, u < params[0]], [0.0, 255.0], image.astype(np.float64))


@define
def poisson_noise(image, params, seed, slot):
    """Inversion: the smallest count whose cumulative probability exceeds the sample's uniform number."""
    u = uniforms(image, seed, slot, tag=8)
    mean = params[0] * image / 255.0
    # ppf gives the smallest k with cdf(k) >= u; where they are equal the next one is meant
    count = np.where(mean > 0, scipy.stats.poisson.ppf(u, np.maximum(mean, 1e-9)), 0)
    count = np.maximum(count, 0)  # ppf(0) is -1
    return np.clip(count * 255 / params[0], 0, 255)


@define
def jpeg(image, params, seed, slot):
    return jpeg_round_trip(image, int(params[0]))
