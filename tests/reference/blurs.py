"""NumPy definitions of blurs. Imports nothing of qpt."""

import numpy as np

from tests.reference.definition import define


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation with an odd square kernel; border reflect-101 (mirror about the edge pixels' centres)."""
    radius = kernel.shape[0] // 2
    height, width, _ = image.shape
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    out = np.zeros(image.shape)
    for dy, dx in zip(*np.nonzero(kernel), strict=True):
        out += kernel[dy, dx] * padded[dy : dy + height, dx : dx + width]
    return out


def offsets(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """dy, dx of a (2 radius + 1)^2 kernel."""
    grid = np.arange(-radius, radius + 1, dtype=np.float64)
    return np.meshgrid(grid, grid, indexing="ij")


def aniso_kernel(sigma_x: float, sigma_y: float, angle_deg: float) -> np.ndarray:
    """Gaussian with its sigma_x axis turned counter-clockwise by angle_deg as seen (y points down)."""
    dy, dx = offsets(int(np.ceil(3 * max(sigma_x, sigma_y))))
    angle = np.deg2rad(angle_deg)
    along = dx * np.cos(angle) - dy * np.sin(angle)
    across = dx * np.sin(angle) + dy * np.cos(angle)
    kernel = np.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return kernel / kernel.sum()


def motion_kernel(length: float, angle_deg: float) -> np.ndarray:
    """2 ceil(length) + 1 points, equally spaced from end to end of the segment, each spread bilinearly."""
    dy, dx = offsets(int(np.ceil(length / 2)))
    kernel = np.zeros(dx.shape)
    angle = np.deg2rad(angle_deg)
    for s in np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1):
        x, y = s * np.cos(angle), -s * np.sin(angle)
        kernel += np.maximum(1 - np.abs(dx - x), 0) * np.maximum(1 - np.abs(dy - y), 0)
    return kernel / kernel.sum()


def disk_kernel(disk: float) -> np.ndarray:
    dy, dx = offsets(int(np.ceil(disk)) + 1)
    kernel = np.clip(disk + 0.5 - np.hypot(dx, dy), 0, 1)
    return kernel / kernel.sum()


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, not rounded."""
    dy, dx = offsets(int(np.ceil(3 * sigma)))
    kernel = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    return correlate(image, kernel / kernel.sum())


@define
def gaussian_blur(image, params, seed, slot):
    return gaussian(image, params[0])


@define
def gaussian_blur_aniso(image, params, seed, slot):
    return correlate(image, aniso_kernel(*params[:3]))


@define
def motion_blur(image, params, seed, slot):
    return correlate(image, motion_kernel(*params[:2]))


@define
def defocus_blur(image, params, seed, slot):
    return correlate(image, disk_kernel(params[0]))
