"""How others do the ops of the table: OpenCV, Pillow, NumPy, Albumentations an image at a time, Kornia a batch.

Used by ``benchmarks/bench_degrade.py``. A rival gets what it likes best: its own dtype and layout, kernels and lookup
tables built beforehand (they are cached by parameter), a pool over images with its own threading off. Libraries that
are not installed (extra ``bench``) leave their rows out.
"""

import functools
import importlib
import importlib.util
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

Picture = np.ndarray  # uint8 [H, W, 3]
Values = Sequence[float]
Call = Callable[[Picture, Values], Picture]
BatchCall = Callable[[Tensor, Tensor], Tensor]  # float32 [n, 3, H, W] in 0..1, parameters [n, 4] -> the same


@dataclass(frozen=True)
class Rival:
    """One library's way. call: of an image, or of a batch if ``batch``.  allowed: the largest difference that still
    counts as the same: mean absolute in grey levels, or, if ``spread``, of the size of the change, relatively (other
    random numbers; another definition of the same thing, which ``note`` then says)."""

    library: str
    call: Call | BatchCall
    allowed: float
    spread: bool = False
    batch: bool = False
    note: str = ""


# --- OpenCV, Pillow, NumPy --------------------------------------------------------------------------------------------


def _gaussian(x: Picture, p: Values) -> Picture:
    side = 2 * int(np.ceil(3 * p[0])) + 1
    return cv2.GaussianBlur(x, (side, side), p[0], borderType=cv2.BORDER_REFLECT_101)


def _offsets(radius: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    return x, -y  # counter-clockwise angles as seen: y points up


@functools.lru_cache(maxsize=4096)
def aniso_kernel(sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    right, up = _offsets(int(np.ceil(3 * max(sigma_x, sigma_y))))
    turn = np.deg2rad(angle)
    along, across = right * np.cos(turn) + up * np.sin(turn), up * np.cos(turn) - right * np.sin(turn)
    return _unit(np.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2)))


@functools.lru_cache(maxsize=4096)
def motion_kernel(length: float, angle: float) -> np.ndarray:
    """Points along the segment, each spread over its four neighbours."""
    steps = np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1)[:, None]
    at = np.arange(-int(np.ceil(length / 2)), int(np.ceil(length / 2)) + 1)
    columns, rows = (np.clip(1 - np.abs(at - steps * turn), 0, None) for turn in _turns(angle))
    return _unit(rows.T @ columns)


def _turns(angle: float) -> tuple[float, float]:
    """To the right and down along the angle, which is counter-clockwise as seen."""
    return np.cos(np.deg2rad(angle)), -np.sin(np.deg2rad(angle))


@functools.lru_cache(maxsize=4096)
def disk_kernel(radius: float) -> np.ndarray:
    return _unit(np.clip(radius + 0.5 - np.hypot(*_offsets(int(np.ceil(radius)) + 1)), 0, 1))


def _unit(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def _filter(kernel: Callable[..., np.ndarray], parameters: int) -> Call:
    return lambda x, p: cv2.filter2D(x, -1, kernel(*p[:parameters]), borderType=cv2.BORDER_REFLECT_101)


def _glass(x: Picture, p: Values) -> Picture:
    height, width = x.shape[:2]
    delta = int(p[0])
    moves = np.random.default_rng().integers(-delta, delta + 1, (2, height, width)).astype(np.float32)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    moved = cv2.remap(x, columns + moves[0], rows + moves[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return _gaussian(moved, p[1:])


def _zoom(x: Picture, p: Values) -> Picture:
    height, width = x.shape[:2]
    total = np.zeros(x.shape, np.float32)
    for zoom in np.linspace(1, p[0], 16):
        about = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, zoom)
        total += cv2.warpAffine(x, about, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.convertScaleAbs(total, alpha=1 / 16)


def _unsharp(x: Picture, p: Values) -> Picture:
    side = 2 * int(np.ceil(3 * p[1])) + 1
    pixels = x.astype(np.float32)
    blurred = cv2.GaussianBlur(pixels, (side, side), p[1], borderType=cv2.BORDER_REFLECT_101)
    return _rounded(cv2.addWeighted(pixels, 1 + p[0], blurred, -p[0], 0))


def _rounded(x: np.ndarray) -> Picture:
    """Rounded half to even and saturated, as OpenCV converts."""
    return cv2.add(x, np.zeros(4), dtype=cv2.CV_8U)


def _normal(shape: tuple[int, ...], std: float) -> np.ndarray:
    noise = np.empty(shape, np.float32)
    cv2.randn(noise, np.zeros(1), np.full(1, std))
    return noise


def _noise_grey(x: Picture, p: Values) -> Picture:
    return cv2.add(x, cv2.merge([_normal(x.shape[:2], p[0])] * 3), dtype=cv2.CV_8U)


_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])  # ITU-T T.871


def _noise_ycbcr(x: Picture, p: Values) -> Picture:
    return cv2.add(x, cv2.transform(_normal(x.shape, p[0]), _TO_RGB.astype(np.float32)), dtype=cv2.CV_8U)


def _speckle(x: Picture, p: Values) -> Picture:
    pixels = x.astype(np.float32)
    return _rounded(cv2.add(pixels, cv2.multiply(pixels, _normal(x.shape, p[0]))))


def _impulse(x: Picture, p: Values) -> Picture:
    draw = np.random.default_rng().random(x.shape, np.float32)
    return np.where(draw < p[0] / 2, np.uint8(0), np.where(draw < p[0], np.uint8(255), x))


def _poisson(x: Picture, p: Values) -> Picture:
    counts = np.random.default_rng().poisson(x * (p[0] / 255))
    return np.rint(np.minimum(counts * (255 / p[0]), 255)).astype(np.uint8)


def _jpeg(x: Picture, p: Values) -> Picture:
    settings = [cv2.IMWRITE_JPEG_QUALITY, int(p[0]), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]
    bgr = cv2.cvtColor(x, cv2.COLOR_RGB2BGR)
    decoded = cv2.imdecode(cv2.imencode(".jpg", bgr, settings)[1], cv2.IMREAD_COLOR)
    assert decoded is not None  # OpenCV's way to refuse a file, and this one it wrote itself
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _jpeg_pillow(x: Picture, p: Values) -> Picture:
    file = io.BytesIO()
    Image.fromarray(x).save(file, format="JPEG", quality=int(p[0]))
    return np.asarray(Image.open(file))


def _rescale(method: Image.Resampling) -> Call:
    def resize(x: Picture, p: Values) -> Picture:
        height, width = x.shape[:2]
        small = Image.fromarray(x).resize((round(width / p[0]), round(height / p[0])), method)
        return np.asarray(small.resize((width, height), method))

    return resize


def _rescale_opencv(down: int, up: int) -> Call:
    def resize(x: Picture, p: Values) -> Picture:
        height, width = x.shape[:2]
        small = cv2.resize(x, (round(width / p[0]), round(height / p[0])), interpolation=down)
        return cv2.resize(small, (width, height), interpolation=up)

    return resize


def _table(curve: Callable[[np.ndarray, Values], np.ndarray], parameters: int = 1) -> Call:
    """A lookup in the rounded curve of 0..255, by OpenCV."""

    @functools.lru_cache(maxsize=4096)
    def entries(*p: float) -> np.ndarray:
        return np.rint(np.clip(curve(np.arange(256.0), p), 0, 255)).astype(np.uint8)

    return lambda x, p: cv2.LUT(x, entries(*p[:parameters]))


def _sigmoid(x: np.ndarray, p: Values) -> np.ndarray:
    curve = 1 / (1 + np.exp(p[0] * (0.5 - x / 255)))
    return (curve - curve[0]) / (curve[-1] - curve[0]) * 255


def _contrast(x: Picture, p: Values) -> Picture:
    grey = round(cv2.mean(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY))[0])
    return cv2.LUT(x, np.rint(np.clip(grey + p[0] * (np.arange(256.0) - grey), 0, 255)).astype(np.uint8))


def _saturate(x: Picture, p: Values) -> Picture:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
    stronger = np.rint(np.clip(np.arange(256) * p[0], 0, 255)).astype(np.uint8)
    hsv[..., 1] = cv2.LUT(hsv[..., 1], stronger)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _turn(x: Picture, p: Values) -> Picture:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in steps of 2 degrees
    hsv[..., 0] = cv2.LUT(hsv[..., 0], ((np.arange(256) + round(p[0] / 2)) % 180).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _colour_diffusion(x: Picture, p: Values) -> Picture:
    side = 2 * int(np.ceil(3 * p[0])) + 1
    pixels = x.astype(np.float32)
    blurred = cv2.GaussianBlur(pixels, (side, side), p[0], borderType=cv2.BORDER_REFLECT_101)
    luma = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (pixels, blurred)]
    return _rounded(cv2.add(cv2.multiply(blurred, np.full(4, p[1])), cv2.merge([luma[0] - p[1] * luma[1]] * 3)))


def _colour_shift(x: Picture, p: Values) -> Picture:
    right, up = (np.rint(p[0] * turn(np.deg2rad(p[1]))) for turn in (np.cos, np.sin))
    move = np.array([[1, 0, right], [0, 1, -up]])
    out = x.copy()
    out[..., 1] = cv2.warpAffine(
        np.ascontiguousarray(x[..., 1]),
        move,
        x.shape[1::-1],
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return out


_HALF = "hue in steps of 2 degrees, as 8-bit HSV has it"

PER_IMAGE: dict[str, list[Rival]] = {
    "gaussian_blur": [Rival("opencv", _gaussian, 0.5)],
    "gaussian_blur_aniso": [Rival("opencv", _filter(aniso_kernel, 3), 0.5)],
    "motion_blur": [Rival("opencv", _filter(motion_kernel, 2), 0.5)],
    "defocus_blur": [Rival("opencv", _filter(disk_kernel, 1), 0.5)],
    "median_blur": [Rival("opencv", lambda x, p: cv2.medianBlur(x, 2 * int(p[0]) + 1), 0.0)],
    "glass_blur": [Rival("opencv", _glass, 0.1, spread=True)],
    "zoom_blur": [Rival("opencv", _zoom, 1.0)],
    "unsharp_mask": [Rival("opencv", _unsharp, 0.5)],
    "gaussian_noise": [Rival("opencv", lambda x, p: cv2.add(x, _normal(x.shape, p[0]), dtype=cv2.CV_8U), 0.05, True)],
    "gaussian_noise_grey": [Rival("opencv", _noise_grey, 0.05, spread=True)],
    "gaussian_noise_ycbcr": [Rival("opencv", _noise_ycbcr, 0.05, spread=True)],
    "speckle_noise": [Rival("opencv", _speckle, 0.05, spread=True)],
    "impulse_noise": [Rival("numpy", _impulse, 0.1, spread=True)],
    "poisson_noise": [Rival("numpy", _poisson, 0.05, spread=True)],
    "jpeg": [Rival("opencv", _jpeg, 1.0), Rival("pillow", _jpeg_pillow, 1.0)],
    "rescale_nearest": [Rival("pillow", _rescale(Image.Resampling.NEAREST), 0.0)],
    "rescale_bilinear": [
        Rival("pillow", _rescale(Image.Resampling.BILINEAR), 0.0),
        Rival("opencv", _rescale_opencv(cv2.INTER_AREA, cv2.INTER_LINEAR), 3.0, note="INTER_AREA, then INTER_LINEAR"),
    ],
    "rescale_bicubic": [Rival("pillow", _rescale(Image.Resampling.BICUBIC), 0.0)],
    "pixelate": [
        Rival("pillow", _rescale(Image.Resampling.BOX), 0.0),
        Rival("opencv", _rescale_opencv(cv2.INTER_AREA, cv2.INTER_NEAREST), 5.0, note="INTER_AREA, INTER_NEAREST"),
    ],
    "brightness": [
        Rival("opencv", lambda x, p: cv2.convertScaleAbs(x, alpha=p[0]), 0.1),
        Rival("pillow", lambda x, p: np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(p[0])), 1.0),
    ],
    "mean_shift": [Rival("opencv", lambda x, p: cv2.add(x, np.full(4, p[0])), 0.0)],
    "gamma": [Rival("opencv", _table(lambda x, p: 255 * (x / 255) ** p[0]), 0.0)],
    "contrast": [
        Rival("opencv", _contrast, 0.1),
        Rival("pillow", lambda x, p: np.asarray(ImageEnhance.Contrast(Image.fromarray(x)).enhance(p[0])), 1.0),
    ],
    "contrast_curve": [Rival("opencv", _table(_sigmoid), 0.1)],
    "saturation": [Rival("opencv", _saturate, 2.0, note="8-bit HSV")],
    "hue": [Rival("opencv", _turn, 3.0, note=_HALF)],
    "quantise": [
        Rival("opencv", _table(lambda x, p: np.rint(x / 255 * (p[0] - 1)) * 255 / (p[0] - 1)), 0.1),
    ],
    "colour_diffusion": [Rival("opencv", _colour_diffusion, 0.5)],
    "colour_shift": [Rival("opencv", _colour_shift, 0.0)],
}


# --- Albumentations ---------------------------------------------------------------------------------------------------


def albumentations_calls() -> dict[str, list[Rival]]:
    """Its transforms of the same meaning, their ranges closed to one value and cached by it; {} if not installed."""
    if importlib.util.find_spec("albumentations") is None:
        return {}
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions when imported
    library = importlib.import_module("albumentations")

    def rival(make: Callable[..., object], parameters: int, allowed: float, spread: bool = False) -> Rival:
        made = functools.lru_cache(maxsize=4096)(make)
        return Rival("albumentations", lambda x, p: made(*p[:parameters])(image=x)["image"], allowed, spread)

    def side(radius: float) -> int:
        return 2 * int(radius) + 1

    return {
        "gaussian_blur": [rival(lambda s: library.GaussianBlur(blur_limit=0, sigma_limit=(s, s), p=1), 1, 0.5)],
        "median_blur": [rival(lambda r: library.MedianBlur(blur_limit=(side(r), side(r)), p=1), 1, 0.0)],
        "zoom_blur": [
            rival(lambda z: library.ZoomBlur(max_factor=(z, z), step_factor=((z - 1) / 15,) * 2, p=1), 1, 0.5, True)
        ],
        "gaussian_noise": [rival(lambda s: library.GaussNoise(std_range=(s / 255, s / 255), p=1), 1, 0.05, True)],
        "jpeg": [rival(lambda q: library.ImageCompression(quality_range=(int(q), int(q)), p=1), 1, 4.0)],
        "gamma": [rival(lambda g: library.RandomGamma(gamma_limit=(100 * g, 100 * g), p=1), 1, 1.0)],
    }


# --- Kornia -----------------------------------------------------------------------------------------------------------


def kornia_calls() -> dict[str, list[Rival]]:
    """Its batched functions, which take a parameter for each image of the batch; {} if not installed."""
    if importlib.util.find_spec("kornia") is None:
        return {}
    enhance = importlib.import_module("kornia.enhance")
    filters = importlib.import_module("kornia.filters")

    def gaussian(x: Tensor, p: Tensor) -> Tensor:
        side = 2 * int(np.ceil(3 * float(p[:, 0].max()))) + 1  # one size for the batch
        return filters.gaussian_blur2d(x, (side, side), p[:, :1].expand(-1, 2).contiguous(), "reflect")

    def filtered(kernel: Callable[..., np.ndarray], parameters: int) -> BatchCall:
        def call(x: Tensor, p: Tensor) -> Tensor:
            kernels = [kernel(*row[:parameters]) for row in p.tolist()]
            side = max(len(each) for each in kernels)
            padded = [np.pad(each, (side - len(each)) // 2) for each in kernels]
            return filters.filter2d(x, torch.from_numpy(np.stack(padded)), "reflect")

        return call

    def median(x: Tensor, p: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for radius in p[:, 0].unique():  # one size a call
            mine = p[:, 0] == radius
            out[mine] = filters.median_blur(x[mine], 2 * int(radius) + 1)
        return out

    def noise(x: Tensor, p: Tensor) -> Tensor:
        return (x + torch.randn_like(x) * p[:, 0, None, None, None] / 255).clamp_(0, 1)

    def rescale(x: Tensor, p: Tensor) -> Tensor:
        size, out = x.shape[2:], []
        for image, factor in zip(x, p[:, 0].tolist(), strict=True):  # one size a call
            small = [round(side / factor) for side in size]
            down = torch.nn.functional.interpolate(image[None], small, mode="bilinear", antialias=True)
            out.append(torch.nn.functional.interpolate(down, tuple(size), mode="bilinear"))
        return torch.cat(out)

    def batch(call: BatchCall, allowed: float, spread: bool = False) -> list[Rival]:
        return [Rival("kornia", call, allowed, spread, batch=True)]

    return {
        "gaussian_blur": batch(gaussian, 0.5),
        "gaussian_blur_aniso": batch(filtered(aniso_kernel, 3), 0.5),
        "motion_blur": batch(filtered(motion_kernel, 2), 0.5),
        "defocus_blur": batch(filtered(disk_kernel, 1), 0.5),
        "median_blur": batch(median, 0.5),
        "gaussian_noise": batch(noise, 0.05, True),
        "jpeg": batch(lambda x, p: enhance.jpeg_codec_differentiable(x, p[:, 0].contiguous()), 4.0),
        "rescale_bilinear": batch(rescale, 0.5),
        "brightness": batch(lambda x, p: enhance.adjust_brightness_accumulative(x, p[:, 0]), 0.5),
        "gamma": batch(lambda x, p: enhance.adjust_gamma(x, p[:, 0]), 0.5),
        "contrast": batch(lambda x, p: enhance.adjust_contrast_with_mean_subtraction(x, p[:, 0]), 3.0),
        "saturation": batch(lambda x, p: enhance.adjust_saturation(x, p[:, 0]), 0.5),
        "hue": batch(lambda x, p: enhance.adjust_hue(x, p[:, 0].deg2rad()), 0.5),
    }


def all_rivals() -> dict[str, list[Rival]]:
    """op -> every rival that is installed."""
    found: dict[str, list[Rival]] = {op: list(rivals) for op, rivals in PER_IMAGE.items()}
    for more in (albumentations_calls(), kornia_calls()):
        for op, rivals in more.items():
            found.setdefault(op, []).extend(rivals)
    return found
