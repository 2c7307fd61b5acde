"""NumPy definitions of shaped blur kernels, sharpening, the bilateral filter and denoising. Imports nothing of qpt."""

import numpy as np
import scipy.special

from tests.reference.blurs import correlate, luma, offsets
from tests.reference.definition import define
from tests.reference.noise import gaussian_noise


@define
def box_blur(image, params, seed, slot):
    side = 2 * int(params[0]) + 1
    return correlate(image, np.full((side, side), 1 / side**2))


def squared_distance(sigma_x: float, sigma_y: float, angle_deg: float, radius: int = 10) -> np.ndarray:
    """Return (2 radius + 1)^2 squared distances from the centre in sigmas; the x axis is turned counter-clockwise."""
    dy, dx = offsets(radius)
    angle = np.deg2rad(angle_deg)
    along = dx * np.cos(angle) - dy * np.sin(angle)
    across = dx * np.sin(angle) + dy * np.cos(angle)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def generalised_kernel(sigma_x: float, sigma_y: float, angle_deg: float, beta: float) -> np.ndarray:
    kernel = np.exp(-0.5 * squared_distance(sigma_x, sigma_y, angle_deg) ** beta)
    return kernel / kernel.sum()


def plateau_kernel(sigma_x: float, sigma_y: float, angle_deg: float, beta: float) -> np.ndarray:
    kernel = 1 / (1 + squared_distance(sigma_x, sigma_y, angle_deg) ** beta)
    return kernel / kernel.sum()


def sinc_kernel(cutoff: float, radius: int) -> np.ndarray:
    """Return cutoff J1(cutoff r) / (2 pi r), which tends to cutoff^2 / (4 pi) at the centre, divided by the sum."""
    distance = np.hypot(*offsets(radius))
    distance[radius, radius] = 1
    kernel = cutoff * scipy.special.j1(cutoff * distance) / (2 * np.pi * distance)
    kernel[radius, radius] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()


@define
def generalised_blur(image, params, seed, slot):
    return correlate(image, generalised_kernel(*params[:4]))


@define
def plateau_blur(image, params, seed, slot):
    return correlate(image, plateau_kernel(*params[:4]))


@define
def sinc_filter(image, params, seed, slot):
    return np.clip(correlate(image, sinc_kernel(params[0], int(params[1]))), 0, 255)


@define
def high_sharpen(image, params, seed, slot):
    """The blur is a Gaussian whose sigma is its radius."""
    radius = int(params[1])
    dy, dx = offsets(radius)
    kernel = np.exp(-(dx**2 + dy**2) / (2 * radius**2))
    y = luma(image)
    return np.clip(image + params[0] * (y - correlate(y, kernel / kernel.sum())), 0, 255)


def bilateral_mean(image: np.ndarray, sigma_colour: float, sigma_px: float) -> np.ndarray:
    """Filter over the disk of radius round(1.5 sigma_px), at least 1; colours differ by the sum over their channels."""
    radius = max(round(1.5 * sigma_px), 1)
    height, width, _ = image.shape
    exact = image.astype(np.float64)
    padded = np.pad(exact, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    total, weights = np.zeros(image.shape), np.zeros((height, width, 1))
    for dy, dx in np.argwhere(np.hypot(*offsets(radius)) <= radius):
        shifted = padded[dy : dy + height, dx : dx + width]
        apart = ((dy - radius) ** 2 + (dx - radius) ** 2) / (2 * sigma_px**2)
        difference = np.abs(shifted - exact).sum(axis=2, keepdims=True)
        weight = np.exp(-apart - difference**2 / (2 * sigma_colour**2))
        total += weight * shifted
        weights += weight
    return total / weights


@define
def bilateral(image, params, seed, slot):
    return bilateral_mean(image, *params[:2])


@define
def denoise(image, params, seed, slot):
    """The noisy image is rounded to 8 bits in between."""
    return bilateral_mean(np.rint(gaussian_noise(image, params[:1], seed, slot)), *params[1:3])
