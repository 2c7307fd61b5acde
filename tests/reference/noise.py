"""NumPy definitions of noise and compression. Which random number an element gets is part of the definition.

Imports nothing of qpt.
"""

import numpy as np

from tests.reference.definition import define
from tests.reference.jpeg import jpeg_round_trip
from tests.reference.philox import normals


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
def jpeg(image, params, seed, slot):
    return jpeg_round_trip(image, int(params[0]))
