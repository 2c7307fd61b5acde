"""NumPy definitions of blurs, of sharpening and of colour diffusion. Imports nothing of qpt."""

import numpy as np

from tests.reference.definition import define
from tests.reference.philox import words


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate with an odd square kernel; the border is reflect-101 (mirrored about the edge pixels' centres)."""
    radius = kernel.shape[0] // 2
    height, width, _ = image.shape
    padded = np.pad(image.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    out = np.zeros(image.shape)
    for dy, dx in zip(*np.nonzero(kernel), strict=True):
        out += kernel[dy, dx] * padded[dy : dy + height, dx : dx + width]
    return out


def offsets(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return dy and dx of a (2 radius + 1)^2 kernel."""
    grid = np.arange(-radius, radius + 1, dtype=np.float64)
    return np.meshgrid(grid, grid, indexing="ij")


def aniso_kernel(sigma_x: float, sigma_y: float, angle_deg: float) -> np.ndarray:
    """Return a Gaussian whose sigma_x axis is turned counter-clockwise by angle_deg as seen (y points down)."""
    dy, dx = offsets(int(np.ceil(3 * max(sigma_x, sigma_y))))
    angle = np.deg2rad(angle_deg)
    along = dx * np.cos(angle) - dy * np.sin(angle)
    across = dx * np.sin(angle) + dy * np.cos(angle)
    kernel = np.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return kernel / kernel.sum()


def motion_kernel(length: float, angle_deg: float) -> np.ndarray:
    """Return the kernel of 2 ceil(length) + 1 points, equally spaced from end to end, each distributed bilinearly."""
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
    """Return the Gaussian blur, not rounded."""
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


@define
def median_blur(image, params, seed, slot):
    radius = int(params[0])
    height, width, _ = image.shape
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    window = [padded[dy : dy + height, dx : dx + width] for dy in range(2 * radius + 1) for dx in range(2 * radius + 1)]
    return np.sort(np.stack(window), axis=0)[len(window) // 2].astype(np.float64)


def glass_offsets(height: int, width: int, reach: int, seed: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns that each pixel is read at, not yet clipped: uniform in [-reach, reach] around it.

    Pixel p has words 0 and 1 of counter p of tag 10; a word w becomes floor(w (2 reach + 1) / 2^32) - reach.
    """
    drawn = words(height * width, seed, slot, tag=10)[:, :2].astype(np.int64)
    shift = (drawn * (2 * reach + 1) // 2**32 - reach).reshape(height, width, 2)
    return np.arange(height)[:, None] + shift[..., 0], np.arange(width) + shift[..., 1]


@define
def glass_blur(image, params, seed, slot):
    height, width, _ = image.shape
    rows, columns = glass_offsets(height, width, int(params[0]), seed, slot)
    moved = image[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return gaussian(moved, params[1])


def zoom_positions(size: int, zoom: float, steps: int = 16) -> np.ndarray:
    """Return the (steps, size) positions along an axis that views show, enlarged 1 to zoom times about its centre."""
    centre = (size - 1) / 2
    return centre + (np.arange(size) - centre) / np.linspace(1, zoom, steps)[:, None]


@define
def zoom_blur(image, params, seed, slot):
    """Views are bilinear: triangular weights about each position, along rows and along columns."""
    height, width, _ = image.shape

    def weights(size):
        return np.maximum(1 - np.abs(zoom_positions(size, params[0])[..., None] - np.arange(size)), 0)

    planes = np.moveaxis(image.astype(np.float64), -1, 0)
    views = [rows @ planes @ columns.T for rows, columns in zip(weights(height), weights(width), strict=True)]
    return np.moveaxis(np.mean(views, axis=0), 0, -1)


@define
def unsharp_mask(image, params, seed, slot):
    return np.clip(image + params[0] * (image - gaussian(image, params[1])), 0, 255)


def luma(image: np.ndarray) -> np.ndarray:
    """Return the ITU-R 601 luma, (H, W, 1)."""
    return (image @ np.array([0.299, 0.587, 0.114]))[..., None]


@define
def colour_diffusion(image, params, seed, slot):
    """Colour differences C = image - Y blurred and multiplied; Y itself stays."""
    sigma, gain = params[:2]
    blurred = gaussian(image - luma(image), sigma)
    return np.clip(luma(image) + gain * blurred, 0, 255)
