"""NumPy definitions of noise and of JPEG. The random number that an element gets is part of the definition.

Imports nothing of qpt.
"""

import numpy as np
import scipy.stats

from tests.reference.colour import from_hsv, to_hsv
from tests.reference.definition import define
from tests.reference.jpeg import jpeg_round_trip
from tests.reference.philox import element_words, normals, words


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
    """The numbers of a pixel's three samples are those of Y, Cb and Cr."""
    noise = normals(image.size, seed, slot, tag=9).reshape(image.shape)
    return np.clip(image + params[0] * noise @ FROM_YCBCR.T, 0, 255)


def uniforms(image: np.ndarray, seed: int, slot: int, tag: int) -> np.ndarray:
    """Return a number in [0, 1) per sample, the word's highest 24 bits."""
    return (element_words(image.size, seed, slot, tag) >> np.uint32(8)).reshape(image.shape) / 2**24


@define
def impulse_noise(image, params, seed, slot):
    u = uniforms(image, seed, slot, tag=7)
    return np.select([u < params[0] / 2, u < params[0]], [0.0, 255.0], image.astype(np.float64))


def photons(u: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return Poisson counts: the smallest count whose cumulative probability exceeds the uniform number."""
    # ppf gives the smallest k with cdf(k) >= u, which differs from the definition only if the two are equal.
    count = np.where(mean > 0, scipy.stats.poisson.ppf(u, np.maximum(mean, 1e-9)), 0)
    return np.maximum(count, 0)  # ppf(0) is -1


@define
def poisson_noise(image, params, seed, slot):
    count = photons(uniforms(image, seed, slot, tag=8), params[0] * image / 255.0)
    return np.clip(count * 255 / params[0], 0, 255)


@define
def poisson_noise_grey(image, params, seed, slot):
    """One count per pixel, for the luma of ITU-R 601 as Pillow rounds it."""
    luma = (image @ np.array([19595, 38470, 7471]) + 32768) >> 16
    count = photons(uniforms(luma, seed, slot, tag=13), params[0] * luma / 255.0)
    return np.clip(image + (count * 255 / params[0] - luma)[..., None], 0, 255)


def covariance_quaternion(seed: int, slot: int) -> np.ndarray:
    """Return (4,) w, x, y, z, the Box-Muller numbers of the four words of counter 0, as in philox.normals."""
    drawn = words(1, seed, slot, tag=11)[0] >> np.uint32(8)
    radius = np.sqrt(-2 * np.log((drawn[::2].astype(np.float64) + 1) / 2**24))
    angle = 2 * np.pi * drawn[1::2].astype(np.float64) / 2**24
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


def covariance_spread(seed: int, slot: int) -> np.ndarray:
    """Return (3,) variances in [0, 1) along three axes of colour, the first three words of counter 1."""
    return (words(2, seed, slot, tag=11)[1, :3] >> np.uint32(8)) / 2**24


def random_mixing(seed: int, slot: int) -> np.ndarray:
    """Return m (3, 3) of covariance m m': the quaternion's rotation, each column times the root of a variance."""
    quaternion = covariance_quaternion(seed, slot)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )
    return rotation * np.sqrt(covariance_spread(seed, slot))


@define
def gaussian_noise_cov(image, params, seed, slot):
    noise = normals(image.size, seed, slot, tag=12).reshape(image.shape)
    return np.clip(image + params[0] * noise @ random_mixing(seed, slot).T, 0, 255)


def iso_numbers(image: np.ndarray, colour_shift: float, intensity: float, seed: int, slot: int):
    """Return two (H, W) arrays: turns of hue, and the share of the way to white by which the lightness is raised."""
    height, width, _ = image.shape
    lightness = image.max(axis=-1) / 2.0 + image.min(axis=-1) / 2.0
    turns = colour_shift * intensity * normals(height * width, seed, slot, tag=17).reshape(height, width)
    mean = np.full((height, width), intensity * lightness.std())
    return turns, photons(uniforms(lightness, seed, slot, tag=18), mean) / 255


@define
def iso_noise(image, params, seed, slot):
    """In HLS (Joblove and Greenberg, SIGGRAPH 1978), whose hue is HSV's."""
    turns, share = iso_numbers(image, *params[:2], seed, slot)
    high, low = image.max(axis=-1) / 255.0, image.min(axis=-1) / 255.0
    old = (high + low) / 2
    room = 1 - np.abs(2 * old - 1)
    saturation = (high - low) / np.where(room == 0, 1, room)
    lightness = old + share * (1 - old)
    chroma = saturation * (1 - np.abs(2 * lightness - 1))
    value = lightness + chroma / 2
    hue = (to_hsv(image)[0] + 6 * turns) % 6
    return 255 * from_hsv(hue, chroma / np.where(value == 0, 1, value), value)


@define
def jpeg(image, params, seed, slot):
    return jpeg_round_trip(image, int(params[0]))
