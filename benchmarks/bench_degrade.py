"""Each degradation over a batch of 32 x 256 x 256, level 3, beside OpenCV or Pillow where these mean the same.

Run by ``python -m benchmarks degrade``. A rival gets the same parameters and as many threads (a pool over images, its
own threading off); its result must agree within the tolerance stated per op before anything is timed. An op without a
rival has none with the same definition.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import scipy.special
import torch
from PIL import Image, ImageEnhance

from benchmarks.harness import Case, Contender, Disagreement, Report, Settings, measure
from qpt.degradations import DEGRADATIONS
from qpt.ops.degrade import degrade
from qpt.program import Program
from qpt.space import DegradationSpace

HELP = "milliseconds per op and batch, beside OpenCV or Pillow"
LEVEL = 3
Picture = np.ndarray  # uint8 [H, W, 3]
Rival = tuple[str, Callable[[Picture, list[float]], Picture], float]


def _gaussian(x: Picture, p: list[float]) -> Picture:
    side = 2 * int(np.ceil(3 * p[0])) + 1
    return cv2.GaussianBlur(x, (side, side), p[0], borderType=cv2.BORDER_REFLECT_101)


def _offsets(radius: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    return x, -y  # counter-clockwise angles as seen: y points up


def _filter(x: Picture, kernel: np.ndarray) -> Picture:
    return cv2.filter2D(x, -1, (kernel / kernel.sum()).astype(np.float32), borderType=cv2.BORDER_REFLECT_101)


def _gaussian_aniso(x: Picture, p: list[float]) -> Picture:
    right, up = _offsets(int(np.ceil(3 * max(p[0], p[1]))))
    angle = np.deg2rad(p[2])
    along, across = right * np.cos(angle) + up * np.sin(angle), up * np.cos(angle) - right * np.sin(angle)
    return _filter(x, np.exp(-0.5 * ((along / p[0]) ** 2 + (across / p[1]) ** 2)))


def _defocus(x: Picture, p: list[float]) -> Picture:
    right, up = _offsets(int(np.ceil(p[0])) + 1)
    return _filter(x, np.clip(p[0] + 0.5 - np.hypot(right, up), 0, 1))


def _shape_distance(p: list[float]) -> np.ndarray:
    right, up = _offsets(10)
    angle = np.deg2rad(p[2])
    along, across = right * np.cos(angle) + up * np.sin(angle), up * np.cos(angle) - right * np.sin(angle)
    return (along / p[0]) ** 2 + (across / p[1]) ** 2


def _sinc(x: Picture, p: list[float]) -> Picture:
    right, up = _offsets(int(p[1]))
    distance = np.maximum(np.hypot(right, up), 1e-6)
    return _filter(x, scipy.special.j1(p[0] * distance) / distance)


def _bilateral(x: Picture, p: list[float]) -> Picture:
    return cv2.bilateralFilter(x, -1, p[0], p[1], borderType=cv2.BORDER_REFLECT_101)


def _rescale_area(x: Picture, p: list[float]) -> Picture:
    height, width = x.shape[:2]
    small = cv2.resize(x, (round(width / p[0]), round(height / p[0])), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _high_sharpen(x: Picture, p: list[float]) -> Picture:
    luma = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = 2 * int(p[1]) + 1
    detail = p[0] * (luma - cv2.GaussianBlur(luma, (side, side), p[1], borderType=cv2.BORDER_REFLECT_101))
    return np.rint(np.clip(x + detail[..., None], 0, 255)).astype(np.uint8)


def _noise(x: Picture, p: list[float]) -> Picture:
    noise = np.empty(x.shape, np.float32)
    cv2.randn(noise, np.zeros(3), np.full(3, p[0]))
    return np.rint(np.clip(x + noise, 0, 255)).astype(np.uint8)


def _jpeg(x: Picture, p: list[float]) -> Picture:
    settings = [cv2.IMWRITE_JPEG_QUALITY, int(p[0]), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]
    bgr = cv2.cvtColor(x, cv2.COLOR_RGB2BGR)
    decoded = cv2.imdecode(cv2.imencode(".jpg", bgr, settings)[1], cv2.IMREAD_COLOR)
    assert decoded is not None  # OpenCV's way to refuse a file, and this one it wrote itself
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _jpeg_pillow(x: Picture, p: list[float]) -> Picture:
    file = io.BytesIO()
    Image.fromarray(x).save(file, format="JPEG", quality=int(p[0]))
    return np.asarray(Image.open(file))


def _rescale(method: Image.Resampling) -> Callable[[Picture, list[float]], Picture]:
    def resize(x: Picture, p: list[float]) -> Picture:
        height, width = x.shape[:2]
        small = Image.fromarray(x).resize((round(width / p[0]), round(height / p[0])), method)
        return np.asarray(small.resize((width, height), method))

    return resize


def _hsv(change: Callable[[np.ndarray, float], None]) -> Callable[[Picture, list[float]], Picture]:
    def convert(x: Picture, p: list[float]) -> Picture:
        hsv = cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # hue in degrees, the others in [0, 1]
        change(hsv, p[0])
        return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)

    return convert


def _saturate(hsv: np.ndarray, factor: float) -> None:
    hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)


def _turn(hsv: np.ndarray, degrees: float) -> None:
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360


def _gamma(x: Picture, p: list[float]) -> Picture:
    return cv2.LUT(x, np.rint(255 * (np.arange(256) / 255) ** p[0]).astype(np.uint8))


# op -> (backend, call, largest mean absolute difference in grey levels that still counts as the same).
RIVALS: dict[str, list[Rival]] = {
    "gaussian_blur": [("opencv", _gaussian, 0.5)],
    "gaussian_blur_aniso": [("opencv", _gaussian_aniso, 0.5)],
    "defocus_blur": [("opencv", _defocus, 0.5)],
    "box_blur": [
        ("opencv", lambda x, p: cv2.blur(x, (2 * int(p[0]) + 1,) * 2, borderType=cv2.BORDER_REFLECT_101), 0.0)
    ],
    "generalised_blur": [("opencv", lambda x, p: _filter(x, np.exp(-0.5 * _shape_distance(p) ** p[3])), 0.5)],
    "plateau_blur": [("opencv", lambda x, p: _filter(x, 1 / (1 + _shape_distance(p) ** p[3])), 0.5)],
    "sinc_filter": [("opencv", _sinc, 0.5)],
    "bilateral": [("opencv", _bilateral, 0.1)],
    "high_sharpen": [("opencv float32", _high_sharpen, 0.5)],  # its luma is rounded
    "rescale_area": [("opencv", _rescale_area, 1.0)],
    "rescale_lanczos": [("pillow", _rescale(Image.Resampling.LANCZOS), 0.0)],
    "jpeg": [("opencv", _jpeg, 1.0), ("pillow", _jpeg_pillow, 1.0)],
    "rescale_bilinear": [("pillow", _rescale(Image.Resampling.BILINEAR), 0.0)],
    "rescale_bicubic": [("pillow", _rescale(Image.Resampling.BICUBIC), 0.0)],
    "rescale_nearest": [("pillow", _rescale(Image.Resampling.NEAREST), 0.0)],
    "pixelate": [("pillow", _rescale(Image.Resampling.BOX), 0.0)],
    "median_blur": [("opencv", lambda x, p: cv2.medianBlur(x, 2 * int(p[0]) + 1), 0.0)],
    "mean_shift": [("opencv", lambda x, p: cv2.add(x, np.full(4, p[0])), 0.0)],
    "gamma": [("opencv", _gamma, 0.0)],
    # Pillow truncates where the definition rounds.
    "brightness": [("pillow", lambda x, p: np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(p[0])), 1.0)],
    "contrast": [("pillow", lambda x, p: np.asarray(ImageEnhance.Contrast(Image.fromarray(x)).enhance(p[0])), 1.0)],
    "saturation": [("opencv float32", _hsv(_saturate), 0.1)],
    "hue": [("opencv float32", _hsv(_turn), 0.1)],
}
# Other random numbers: what must agree is the spread of the noise, relatively.
NOISE_RIVALS: dict[str, list[Rival]] = {"gaussian_noise": [("opencv randn", _noise, 0.02)]}


def run(settings: Settings) -> Report:
    """All ops of the table, then random chains of the preset."""
    count, side = (4, 48) if settings.quick else (32, 256)
    images = pictures(count, side)
    threads = torch.get_num_threads()
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(threads) as pool:
        cases = [_case(op, images, pool, threads) for op in range(len(DEGRADATIONS))]
        cases.append(_chains(images, threads))
        rows = measure(cases, settings.rounds)
    remarks = [
        f"Batches of {count} uint8 pictures of {side} x {side}, {threads} threads, level {LEVEL}, one value per op.",
        "Differences are recorded per row in the JSON: mean absolute, grey levels (noise: relative spread).",
    ]
    return Report("degrade", rows, remarks=remarks)


def pictures(count: int, side: int) -> torch.Tensor:
    """uint8 [count, side, side, 3] with smooth areas, edges and texture, so that ops meet what photographs have."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    blocks = torch.nn.functional.interpolate((coarse.flip(2) > 0.6).float(), (side, side), mode="nearest")
    texture = torch.rand((count, 3, side, side), generator=generator)
    mixed = 0.6 * smooth + 0.25 * blocks + 0.15 * texture
    return (mixed.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()


def _case(op: int, images: torch.Tensor, pool: ThreadPoolExecutor, threads: int) -> Case:
    entry = DEGRADATIONS[op]
    # Level 3, the first of two signs; a parameter that is drawn uniformly takes a fixed oblique value.
    params = [p.alternatives(LEVEL)[0] if p.levels else p.low + 0.17 * (p.high - p.low) for p in entry.parameters]
    count = len(images)
    program = Program.from_chains([[(entry.name, params)]] * count, seeds=range(count), source=range(count))
    arrays = list(images.numpy())

    def contender(backend: str, call: Callable[[Picture, list[float]], Picture]) -> Contender:
        return Contender(backend, lambda: np.stack(list(pool.map(lambda x: call(x, params), arrays))))

    rivals = RIVALS.get(entry.name, []) + NOISE_RIVALS.get(entry.name, [])

    def agree(answers: dict[str, Any]) -> dict[str, float]:
        return {
            backend: compare(entry.name, answers["qpt"].numpy(), answers[backend], images.numpy(), allowed)
            for backend, _, allowed in rivals
        }

    return Case(
        op=entry.name,
        shape="x".join(map(str, images.shape)),
        items=len(images),
        contenders=[
            Contender("qpt", lambda: degrade(images, program, threads=threads)),
            *(contender(backend, call) for backend, call, _ in rivals),
        ],
        agree=agree,
    )


def compare(op: str, ours: np.ndarray, theirs: np.ndarray, images: np.ndarray, allowed: float) -> float:
    """The recorded difference of two results; raises Disagreement where it is larger than ``allowed``."""
    if op in NOISE_RIVALS:
        # Away from black and white, where clipping shortens the noise.
        middle = (images > 100) & (images < 155)
        spreads = [(result.astype(np.float64) - images)[middle].std() for result in (ours, theirs)]
        difference = abs(spreads[0] / spreads[1] - 1)
    else:
        difference = float(np.abs(ours.astype(np.float64) - theirs).mean())
    if not difference <= allowed:
        raise Disagreement(f"degrade: {op}: results differ by {difference:.3g}, allowed {allowed:g}")
    return float(difference)


def _chains(images: torch.Tensor, threads: int) -> Case:
    program = DegradationSpace.preset("qpt").sample(len(images), generator=torch.Generator().manual_seed(0))
    return Case(
        op="random chains of the preset qpt",
        shape="x".join(map(str, images.shape)),
        items=len(images),
        contenders=[Contender("qpt", lambda: degrade(images, program, threads=threads), "0 to 5 ops a picture")],
        agree=lambda answers: {},
    )
