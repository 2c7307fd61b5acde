"""The ops of the table in Albumentations and Variopinta (an image at a time) and Kornia (a batch): baselines of
``bench_degrade``.

A library that is not installed (extra ``bench``) has no rows. Kornia gets its own dtype and layout, and a parameter for
each image.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.contrastive_baselines import Unavailable, require_compiler
from benchmarks.degrade_baselines import (
    PER_IMAGE,
    Baseline,
    BatchCall,
    Values,
    aniso_kernel,
    disk_kernel,
    motion_kernel,
)

REMARK = (
    "Kornia gets and returns float32 NCHW: the conversions are not in its time; where named so it is compiled by "
    "torch.compile. Kernels and tables of all baselines are built before they are timed. Variopinta keeps Python's "
    "lock while it works on an array, except in its JPEG codec: one thread of the pool works at a time."
)

# --- Albumentations ---------------------------------------------------------------------------------------------------


def albumentations_calls() -> dict[str, list[Baseline]]:
    """Its transforms of the same meaning, their ranges closed to one value and cached by it; {} if not installed."""
    if importlib.util.find_spec("albumentations") is None:
        return {}
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer versions when imported
    library = importlib.import_module("albumentations")

    def baseline(make: Callable[..., object], parameters: int, allowed: float, spread: bool = False) -> Baseline:
        made = functools.lru_cache(maxsize=4096)(make)
        return Baseline("albumentations", lambda x, p: made(*p[:parameters])(image=x)["image"], allowed, spread)

    def side(radius: float) -> int:
        return 2 * int(radius) + 1

    return {
        "gaussian_blur": [baseline(lambda s: library.GaussianBlur(blur_limit=0, sigma_limit=(s, s), p=1), 1, 0.5)],
        "median_blur": [baseline(lambda r: library.MedianBlur(blur_limit=(side(r), side(r)), p=1), 1, 0.0)],
        "zoom_blur": [
            baseline(lambda z: library.ZoomBlur(max_factor=(z, z), step_factor=((z - 1) / 15,) * 2, p=1), 1, 0.5, True)
        ],
        "gaussian_noise": [baseline(lambda s: library.GaussNoise(std_range=(s / 255, s / 255), p=1), 1, 0.05, True)],
        "jpeg": [baseline(lambda q: library.ImageCompression(quality_range=(int(q), int(q)), p=1), 1, 4.0)],
        "gamma": [baseline(lambda g: library.RandomGamma(gamma_limit=(100 * g, 100 * g), p=1), 1, 1.0)],
    }


# --- Variopinta -------------------------------------------------------------------------------------------------------


def variopinta_calls() -> dict[str, list[Baseline]]:
    """Its transforms of the same meaning, as compiled pipelines of one, and its JPEG codec; {} if not installed.

    It has no motion_blur and no median_blur, and its saturation is a blend with the luma and not that of HSV, so that
    it cannot take part in the chains of five. Its antialiased resizing is Pillow's bilinear one, neither that of
    rescale_area nor of pixelate, and its dropout fills all its rectangles with one colour, unlike colour_block.
    """
    if importlib.util.find_spec("variopinta") is None:
        return {}
    library = importlib.import_module("variopinta")
    same = {f"{name}_range": (1.0, 1.0) for name in ("brightness", "contrast", "saturation")}
    nearest = {"interpolation": library.Interpolation.NEAREST}

    @functools.lru_cache(maxsize=4096)
    def compiled(make: Callable[..., list[object]], *values: float) -> Callable[[np.ndarray], np.ndarray]:
        return library.Pipeline(make(*values), seed=0).compile()

    def baseline(make: Callable[..., list[object]], allowed: float, spread: bool = False) -> list[Baseline]:
        return [Baseline("variopinta", lambda x, p: compiled(make, p[0])(x), allowed, spread)]

    def jitter(name: str, allowed: float, unit: float = 1) -> list[Baseline]:
        return baseline(lambda v: [library.ColorJitter(**{**same, f"{name}_range": (v / unit, v / unit)})], allowed)

    def rescale(allowed: float, down: dict[str, object], up: dict[str, object], note: str = "") -> list[Baseline]:
        def make(factor: float, height: int, width: int) -> list[object]:
            small = round(height / factor), round(width / factor)
            return [library.Resize(*small, **down), library.Resize(height, width, **up)]

        return [Baseline("variopinta", lambda x, p: compiled(make, p[0], *x.shape[:2])(x), allowed, note=note)]

    def jpeg(x: np.ndarray, p: Values) -> np.ndarray:
        return library.decode_image(library.encode_image(x, format="jpeg", quality=int(p[0])))

    def blur(sigma: float) -> list[object]:
        return [library.GaussianBlur(kernel_size=2 * int(np.ceil(3 * sigma)) + 1, sigma_range=(sigma, sigma))]

    def noise(std: float) -> list[object]:
        return [library.GaussianNoise(std_range=(std, std))]

    def grey_noise(std: float) -> list[object]:
        return [library.GaussianNoise(std_range=(std, std), per_channel=False)]

    return {
        "gaussian_blur": baseline(blur, 0.5),
        "gaussian_noise": baseline(noise, 0.05, True),
        "gaussian_noise_grey": baseline(grey_noise, 0.05, True),
        "jpeg": [Baseline("variopinta", jpeg, 1.0)],
        "rescale_nearest": rescale(3.0, nearest, nearest, "at a pixel's edge either neighbour"),
        "rescale_bilinear": rescale(0.5, {"antialias": True}, {}),
        "brightness": jitter("brightness", 0.1),
        "contrast": jitter("contrast", 0.5),
        "hue": jitter("hue", 0.1, unit=360),
        "posterise": baseline(lambda bits: [library.Posterize(int(bits))], 0.0),
    }


# --- Kornia -----------------------------------------------------------------------------------------------------------


def kornia_calls() -> dict[str, list[Baseline]]:
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

    def batch(call: BatchCall, allowed: float, spread: bool = False) -> list[Baseline]:
        return [Baseline("kornia", call, allowed, spread, batch=True)]

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


# Its functions that are one graph and gain by being compiled. The others read their parameters in Python (blurs,
# median, rescaling, and so the chains), gain nothing (JPEG, whose compilation takes 15 s) or lose (noise).
COMPILED = ("brightness", "gamma", "contrast", "saturation", "hue")


def compiled_kornia_calls(eager: dict[str, list[Baseline]]) -> dict[str, list[Baseline]]:
    """Return Kornia's functions of COMPILED under torch.compile; {} if there is no Kornia or no compiler.

    eager: what ``kornia_calls`` returned.
    """
    try:
        require_compiler()
    except Unavailable:
        return {}
    return {
        op: [replace(way, library="kornia compiled", call=torch.compile(way.call, dynamic=False)) for way in eager[op]]
        for op in COMPILED
        if op in eager
    }


def all_baselines() -> dict[str, list[Baseline]]:
    """op -> every baseline that is installed."""
    found: dict[str, list[Baseline]] = {op: list(baselines) for op, baselines in PER_IMAGE.items()}
    kornia = kornia_calls()
    for more in (albumentations_calls(), variopinta_calls(), kornia, compiled_kornia_calls(kornia)):
        for op, baselines in more.items():
            found.setdefault(op, []).extend(baselines)
    return found
