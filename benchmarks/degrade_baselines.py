"""The ops of the table in OpenCV, Pillow and NumPy, an image at a time: baselines of ``bench_degrade``.

Kernels and lookup tables are cached by parameter, so that they are built before anything is timed. Other libraries are
in ``degrade_libraries``.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.special
from PIL import Image, ImageEnhance
from torch import Tensor

Pixels = np.ndarray  # uint8 [H, W, 3]
Values = Sequence[float]
Call = Callable[[Pixels, Values], Pixels]
BatchCall = Callable[[Tensor, Tensor], Tensor]  # float32 [n, 3, H, W] in 0..1, parameters [n, 4] -> the same


@dataclass(frozen=True)
class Baseline:
    """An op in another library.  call: takes an image, or a batch if ``batch``.  allowed: the largest difference that
    counts as equal: the mean absolute one in grey levels or, if ``spread`` (other random numbers, another definition,
    which ``note`` then says), the relative one of the size of the change."""

    library: str
    call: Call | BatchCall
    allowed: float
    spread: bool = False
    batch: bool = False
    note: str = ""


def _gaussian(x: np.ndarray, p: Values) -> np.ndarray:
    """Blur uint8 or floats with sigma p[0]."""
    side = 2 * int(np.ceil(3 * p[0])) + 1
    return cv2.GaussianBlur(x, (side, side), p[0], borderType=cv2.BORDER_REFLECT_101)


def _offsets(radius: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    return x, -y  # counter-clockwise angles as seen: y points up


@functools.lru_cache(maxsize=4096)
def aniso_kernel(sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    return _unit(np.exp(-0.5 * _squared_sigmas(int(np.ceil(3 * max(sigma_x, sigma_y))), sigma_x, sigma_y, angle)))


def _squared_sigmas(radius: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """Return the squared distance from the centre in sigmas, sigma_x along the angle."""
    right, up = _offsets(radius)
    turn = np.deg2rad(angle)
    along, across = right * np.cos(turn) + up * np.sin(turn), up * np.cos(turn) - right * np.sin(turn)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


@functools.lru_cache(maxsize=4096)
def motion_kernel(length: float, angle: float) -> np.ndarray:
    """Return points along the segment, each spread over its four neighbours."""
    steps = np.linspace(-length / 2, length / 2, 2 * int(np.ceil(length)) + 1)[:, None]
    at = np.arange(-int(np.ceil(length / 2)), int(np.ceil(length / 2)) + 1)
    columns, rows = (np.clip(1 - np.abs(at - steps * turn), 0, None) for turn in _turns(angle))
    return _unit(rows.T @ columns)


def _turns(angle: float) -> tuple[float, float]:
    """Return the parts to the right and down of the direction at an angle, counter-clockwise as seen."""
    return np.cos(np.deg2rad(angle)), -np.sin(np.deg2rad(angle))


@functools.lru_cache(maxsize=4096)
def disk_kernel(radius: float) -> np.ndarray:
    return _unit(np.clip(radius + 0.5 - np.hypot(*_offsets(int(np.ceil(radius)) + 1)), 0, 1))


def _unit(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def _filter(kernel: Callable[..., np.ndarray], parameters: int) -> Call:
    return lambda x, p: cv2.filter2D(x, -1, kernel(*p[:parameters]), borderType=cv2.BORDER_REFLECT_101)


def _draws(x: Pixels) -> np.random.Generator:
    """Return a generator seeded by the image."""
    # Whether a baseline agrees must not depend on chance.
    return np.random.default_rng(x[0, :4].ravel())


def _glass(x: Pixels, p: Values) -> Pixels:
    height, width = x.shape[:2]
    delta = int(p[0])
    moves = _draws(x).integers(-delta, delta + 1, (2, height, width)).astype(np.float32)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    moved = cv2.remap(x, columns + moves[0], rows + moves[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return _gaussian(moved, p[1:])


def _zoom(x: Pixels, p: Values) -> Pixels:
    total = np.zeros(x.shape, np.float32)
    for zoom in np.linspace(1, p[0], 16):
        total += _magnified(x, zoom)
    return cv2.convertScaleAbs(total, alpha=1 / 16)


def _magnified(x: np.ndarray, ratio: float) -> np.ndarray:
    height, width = x.shape[:2]
    about = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, ratio)
    return cv2.warpAffine(x, about, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _unsharp(x: Pixels, p: Values) -> Pixels:
    pixels = x.astype(np.float32)
    return _rounded(cv2.addWeighted(pixels, 1 + p[0], _gaussian(pixels, p[1:]), -p[0], 0))


def _rounded(x: np.ndarray) -> Pixels:
    """Round half to even and saturate, as OpenCV converts."""
    return cv2.add(x, np.zeros(4), dtype=cv2.CV_8U)


def _normal(shape: tuple[int, ...], std: float) -> np.ndarray:
    noise = np.empty(shape, np.float32)
    cv2.randn(noise, np.zeros(1), np.full(1, std))
    return noise


def _noise(x: Pixels, p: Values) -> Pixels:
    return cv2.add(x, _normal(x.shape, p[0]), dtype=cv2.CV_8U)


def _noise_grey(x: Pixels, p: Values) -> Pixels:
    return cv2.add(x, cv2.merge([_normal(x.shape[:2], p[0])] * 3), dtype=cv2.CV_8U)


_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])  # ITU-T T.871


def _noise_ycbcr(x: Pixels, p: Values) -> Pixels:
    return cv2.add(x, cv2.transform(_normal(x.shape, p[0]), _TO_RGB.astype(np.float32)), dtype=cv2.CV_8U)


def _speckle(x: Pixels, p: Values) -> Pixels:
    pixels = x.astype(np.float32)
    return _rounded(cv2.add(pixels, cv2.multiply(pixels, _normal(x.shape, p[0]))))


def _impulse(x: Pixels, p: Values) -> Pixels:
    draw = _draws(x).random(x.shape, np.float32)
    return np.where(draw < p[0] / 2, np.uint8(0), np.where(draw < p[0], np.uint8(255), x))


def _poisson(x: Pixels, p: Values) -> Pixels:
    counts = _draws(x).poisson(x * (p[0] / 255))
    return np.rint(np.minimum(counts * (255 / p[0]), 255)).astype(np.uint8)


def _jpeg(x: Pixels, p: Values) -> Pixels:
    settings = [cv2.IMWRITE_JPEG_QUALITY, int(p[0]), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]
    bgr = cv2.cvtColor(x, cv2.COLOR_RGB2BGR)
    decoded = cv2.imdecode(cv2.imencode(".jpg", bgr, settings)[1], cv2.IMREAD_COLOR)
    assert decoded is not None  # OpenCV's way to refuse a file, and this one it wrote itself
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _jpeg_pillow(x: Pixels, p: Values) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(x).save(file, format="JPEG", quality=int(p[0]))
    return np.asarray(Image.open(file))


def _rescale(method: Image.Resampling) -> Call:
    def resize(x: Pixels, p: Values) -> Pixels:
        height, width = x.shape[:2]
        small = Image.fromarray(x).resize((round(width / p[0]), round(height / p[0])), method)
        return np.asarray(small.resize((width, height), method))

    return resize


def _resize(down: int, up: int) -> Call:
    def resize(x: Pixels, p: Values) -> Pixels:
        height, width = x.shape[:2]
        small = cv2.resize(x, (round(width / p[0]), round(height / p[0])), interpolation=down)
        return cv2.resize(small, (width, height), interpolation=up)

    return resize


def _table(curve: Callable[[np.ndarray, Values], np.ndarray], parameters: int = 1) -> Call:
    """Return a lookup in the rounded curve of 0..255, by OpenCV."""

    @functools.lru_cache(maxsize=4096)
    def entries(*p: float) -> np.ndarray:
        return np.rint(np.clip(curve(np.arange(256.0), p), 0, 255)).astype(np.uint8)

    return lambda x, p: cv2.LUT(x, entries(*p[:parameters]))


def _sigmoid(x: np.ndarray, p: Values) -> np.ndarray:
    curve = 1 / (1 + np.exp(p[0] * (0.5 - x / 255)))
    return (curve - curve[0]) / (curve[-1] - curve[0]) * 255


def _contrast(x: Pixels, p: Values) -> Pixels:
    grey = round(cv2.mean(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY))[0])
    return cv2.LUT(x, np.rint(np.clip(grey + p[0] * (np.arange(256.0) - grey), 0, 255)).astype(np.uint8))


def _saturate(x: Pixels, p: Values) -> Pixels:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
    stronger = np.rint(np.clip(np.arange(256) * p[0], 0, 255)).astype(np.uint8)
    hsv[..., 1] = cv2.LUT(hsv[..., 1], stronger)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _turn(x: Pixels, p: Values) -> Pixels:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in steps of 2 degrees
    hsv[..., 0] = cv2.LUT(hsv[..., 0], ((np.arange(256) + round(p[0] / 2)) % 180).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _colour_diffusion(x: Pixels, p: Values) -> Pixels:
    pixels = x.astype(np.float32)
    blurred = _gaussian(pixels, p)
    luma = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (pixels, blurred)]
    return _rounded(cv2.add(cv2.multiply(blurred, np.full(4, p[1])), cv2.merge([luma[0] - p[1] * luma[1]] * 3)))


def _colour_shift(x: Pixels, p: Values) -> Pixels:
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


def _shaped(weight: Callable[[np.ndarray, float], np.ndarray]) -> Call:
    """Return a filter with a 21 x 21 kernel of a squared distance in sigmas and an exponent."""

    @functools.lru_cache(maxsize=4096)
    def kernel(sigma_x: float, sigma_y: float, angle: float, beta: float) -> np.ndarray:
        return _unit(weight(_squared_sigmas(10, sigma_x, sigma_y, angle), beta))

    return _filter(kernel, 4)


@functools.lru_cache(maxsize=4096)
def sinc_kernel(cutoff: float, radius: float) -> np.ndarray:
    distance = np.maximum(np.hypot(*_offsets(int(radius))), 1e-6)
    return _unit(scipy.special.j1(cutoff * distance) / distance)


def _high_sharpen(x: Pixels, p: Values) -> Pixels:
    luma = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = 2 * int(p[1]) + 1
    detail = p[0] * (luma - cv2.GaussianBlur(luma, (side, side), p[1], borderType=cv2.BORDER_REFLECT_101))
    return cv2.add(x, cv2.merge([detail] * 3), dtype=cv2.CV_8U)


def _bilateral(x: Pixels, p: Values) -> Pixels:
    return cv2.bilateralFilter(x, -1, p[0], p[1], borderType=cv2.BORDER_REFLECT_101)


def _denoise(x: Pixels, p: Values) -> Pixels:
    return _bilateral(_noise(x, p), p[1:])


def openjpeg(x: Pixels, ratio: float) -> Pixels:
    """Encode and decode by Pillow's JPEG 2000, with the colour transform (off by default) and the 9/7 wavelet."""
    file = io.BytesIO()
    options = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True, "mct": 1}
    Image.fromarray(x).save(file, format="JPEG2000", **options)
    return np.asarray(Image.open(file))


def _openjpeg(x: Pixels, p: Values) -> Pixels:
    return openjpeg(x, p[0])


def _jitter(x: Pixels, p: Values) -> Pixels:
    height, width = x.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    moves = [_normal((height, width), 5**0.5 * p[0]) for _ in range(2)]
    at = columns + moves[0], rows + moves[1]
    return cv2.remap(x, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _poisson_grey(x: Pixels, p: Values) -> Pixels:
    luma = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)
    noise = _draws(x).poisson(luma * (p[0] / 255)) * (255 / p[0]) - luma
    return cv2.add(x, cv2.merge([noise] * 3), dtype=cv2.CV_8U)


def _chroma(x: Pixels, p: Values) -> Pixels:
    lab = cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab[..., 1:] *= p[0]
    return cv2.convertScaleAbs(np.maximum(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), 0), alpha=255)


def _value(x: Pixels, p: Values) -> Pixels:
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = cv2.LUT(hsv[..., 2], np.rint(np.clip(np.arange(256) + 255 * p[0], 0, 255)).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _aberration(x: Pixels, p: Values) -> Pixels:
    out = x.copy()
    for channel, ratio in ((0, 1 + p[0]), (2, 1 - p[0])):
        out[..., channel] = _magnified(np.ascontiguousarray(x[..., channel]), ratio)
    return out


def _blocks(x: Pixels, p: Values) -> Pixels:
    height, width = x.shape[:2]
    draws = _draws(x)
    out = x.copy()
    for _ in range(int(p[0])):
        top, left = (int(draws.integers(0, side - 31)) for side in (height, width))
        colour = draws.integers(0, 256, 3).tolist()
        cv2.rectangle(out, (left, top), (left + 31, top + 31), colour, thickness=-1)
    return out


_HALF = "hue in steps of 2 degrees, as 8-bit HSV has it"

PER_IMAGE: dict[str, list[Baseline]] = {
    "gaussian_blur": [Baseline("opencv", _gaussian, 0.5)],
    "gaussian_blur_aniso": [Baseline("opencv", _filter(aniso_kernel, 3), 0.5)],
    "motion_blur": [Baseline("opencv", _filter(motion_kernel, 2), 0.5)],
    "defocus_blur": [Baseline("opencv", _filter(disk_kernel, 1), 0.5)],
    "median_blur": [Baseline("opencv", lambda x, p: cv2.medianBlur(x, 2 * int(p[0]) + 1), 0.0)],
    "glass_blur": [Baseline("opencv", _glass, 0.1, spread=True)],
    "zoom_blur": [Baseline("opencv", _zoom, 1.0)],
    "unsharp_mask": [Baseline("opencv", _unsharp, 0.5)],
    "gaussian_noise": [Baseline("opencv", _noise, 0.05, spread=True)],
    "gaussian_noise_grey": [Baseline("opencv", _noise_grey, 0.05, spread=True)],
    "gaussian_noise_ycbcr": [Baseline("opencv", _noise_ycbcr, 0.05, spread=True)],
    "speckle_noise": [Baseline("opencv", _speckle, 0.05, spread=True)],
    "impulse_noise": [Baseline("numpy", _impulse, 0.1, spread=True)],
    "poisson_noise": [Baseline("numpy", _poisson, 0.05, spread=True)],
    "jpeg": [Baseline("opencv", _jpeg, 1.0), Baseline("pillow", _jpeg_pillow, 1.0)],
    "rescale_nearest": [Baseline("pillow", _rescale(Image.Resampling.NEAREST), 0.0)],
    "rescale_bilinear": [
        Baseline("pillow", _rescale(Image.Resampling.BILINEAR), 0.0),
        Baseline("opencv", _resize(cv2.INTER_AREA, cv2.INTER_LINEAR), 3.0, note="INTER_AREA, then INTER_LINEAR"),
    ],
    "rescale_bicubic": [Baseline("pillow", _rescale(Image.Resampling.BICUBIC), 0.0)],
    "pixelate": [
        Baseline("pillow", _rescale(Image.Resampling.BOX), 0.0),
        Baseline("opencv", _resize(cv2.INTER_AREA, cv2.INTER_NEAREST), 5.0, note="INTER_AREA, INTER_NEAREST"),
    ],
    "brightness": [
        Baseline("opencv", lambda x, p: cv2.convertScaleAbs(x, alpha=p[0]), 0.1),
        Baseline("pillow", lambda x, p: np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(p[0])), 1.0),
    ],
    "mean_shift": [Baseline("opencv", lambda x, p: cv2.add(x, np.full(4, p[0])), 0.0)],
    "gamma": [Baseline("opencv", _table(lambda x, p: 255 * (x / 255) ** p[0]), 0.0)],
    "contrast": [
        Baseline("opencv", _contrast, 0.1),
        Baseline("pillow", lambda x, p: np.asarray(ImageEnhance.Contrast(Image.fromarray(x)).enhance(p[0])), 1.0),
    ],
    "contrast_curve": [Baseline("opencv", _table(_sigmoid), 0.1)],
    "saturation": [Baseline("opencv", _saturate, 2.0, note="8-bit HSV")],
    "hue": [Baseline("opencv", _turn, 3.0, note=_HALF)],
    "quantise": [Baseline("opencv", _table(lambda x, p: np.rint(x / 255 * (p[0] - 1)) * 255 / (p[0] - 1)), 0.1)],
    "colour_diffusion": [Baseline("opencv", _colour_diffusion, 0.5)],
    "colour_shift": [Baseline("opencv", _colour_shift, 0.0)],
    "box_blur": [
        Baseline("opencv", lambda x, p: cv2.blur(x, (2 * int(p[0]) + 1,) * 2, borderType=cv2.BORDER_REFLECT_101), 0.0)
    ],
    "generalised_blur": [Baseline("opencv", _shaped(lambda square, beta: np.exp(-0.5 * square**beta)), 0.5)],
    "plateau_blur": [Baseline("opencv", _shaped(lambda square, beta: 1 / (1 + square**beta)), 0.5)],
    "sinc_filter": [Baseline("opencv", _filter(sinc_kernel, 2), 0.5)],
    "high_sharpen": [Baseline("opencv", _high_sharpen, 1.0, note="luma rounded to 8 bits")],
    "bilateral": [Baseline("opencv", _bilateral, 0.1)],
    "denoise": [Baseline("opencv", _denoise, 0.05, spread=True)],
    "jpeg2000": [Baseline("pillow", _openjpeg, 12.0, note="OpenJPEG at the same ratio, with its entropy coder")],
    "rescale_area": [Baseline("opencv", _resize(cv2.INTER_AREA, cv2.INTER_LINEAR), 1.0)],
    "rescale_lanczos": [Baseline("pillow", _rescale(Image.Resampling.LANCZOS), 0.0)],
    "spatial_jitter": [Baseline("opencv", _jitter, 0.1, spread=True)],
    "poisson_noise_grey": [Baseline("numpy", _poisson_grey, 0.05, spread=True)],
    "chroma": [Baseline("opencv", _chroma, 1.5, note="float32 Lab")],
    "value_shift": [Baseline("opencv", _value, 2.0, note="8-bit HSV")],
    "posterise": [Baseline("opencv", _table(lambda x, p: x - x % 2 ** (8 - int(p[0]))), 0.0)],
    "chromatic_aberration": [Baseline("opencv", _aberration, 0.5)],
    "colour_block": [Baseline("opencv", _blocks, 0.2, spread=True)],
}
