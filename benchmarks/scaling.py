"""A model of the time of a pre-training step on 1, 8 and 64 A100s, stage by stage, from measured and published figures.

Run by ``python -m benchmarks scaling``; docs/scaling.py writes the page from its JSON. Measured here is decoding, on
one core. Read from other results are the predicted degradation kernel (roofline_degrade.json) and loss
(contrastive.json). What is published, and what is assumed, stands in ``PUBLISHED`` and ``ASSUMED`` with its source. No
figure for a GPU was measured by this project.
"""

import io
import json
import math
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import RESULTS, Report, Row, Settings
from qpt.data import jpeg_regions
from qpt.data.images import DecodedImage, load_rgb, open_image
from qpt.data.regions import place_region
from qpt.data.sample_images import sample_images
from qpt.models import build_encoder, projection_head

HELP = "predicted photographs per second on 1, 8 and 64 GPUs, from measured decoding and published GPU figures"
GPU = "A100-SXM4-80GB"
GPUS = (1, 8, 64)
STAGES = ("copy", "degrade", "encode", "loss", "communicate")
IMAGES = 256  # a step and GPU, in one chunk
COMPOSITIONS, PATCH, REGION, POOL, DIM = 2, 160, 320, 65536, 128
SIZES = ((500, 375), (1280, 960), (4000, 3000))  # of photographs: about ImageNet's mean, a web photograph, a camera's
QUALITY = 90
REGION_OR_ALL = (f"a region of {REGION} px", "all")
SETS = {"ImageNet-1k": 1_281_167, "100 M photographs": 100_000_000}


@dataclass(frozen=True)
class Figure:
    value: float
    unit: str
    source: str


PUBLISHED = {
    "ResNet-50 training, 224 px, mixed precision": Figure(
        2470, "images/s", "NVIDIA DeepLearningExamples, ConvNets/resnet50v1.5, PyTorch, 1 x A100 80 GB"
    ),
    "the same on 8 GPUs": Figure(16621, "images/s", "the same table, 8 x A100 80 GB; not used, a check"),
    "all-reduce in a node, bus bandwidth": Figure(200, "GB/s", "NVIDIA/nccl-tests issue 149, 8 x A100 80 GB, NVLink"),
    "network of a node": Figure(200, "GB/s", "NVIDIA DGX A100 data sheet: 8 x 200 Gb/s"),
    "processor cores of a node of 8": Figure(128, "cores", "NVIDIA DGX A100 data sheet: 2 x EPYC 7742"),
    "PCI Express 4.0 x16": Figure(32, "GB/s", "PCI-SIG, one direction"),
}
ASSUMED = {
    "a backward pass costs two forward passes": Figure(2, "forward passes", "multiplications counted"),
    "share of the network and of PCI Express that is reached": Figure(0.8, "", "assumed"),
    "a small all-reduce in a node": Figure(30e-6, "s", "assumed"),
    "a small all-reduce between nodes": Figure(60e-6, "s", "assumed"),
}
NOT_MEASURED = (
    "Anything on a GPU: the degradation kernel and the loss are roofline predictions, the encoder is another project's "
    "figure scaled by multiplications.",
    "Reading: files are taken to come from memory or a disk that keeps up.",
    "Decoding in several processes at once on a many-core machine: one core's rate is multiplied.",
    "The optimiser, the EMA update and kernel launches; overlap of the gradients' message with the backward pass, "
    "which the engine does not do.",
    "Images that are not JPEG, and reduced-size decoding.",
)


def run(settings: Settings) -> Report:
    """Time decoding, then predict."""
    sizes = SIZES[:1] if settings.quick else SIZES
    whole = [_decoding(width, height, settings.rounds, REGION_OR_ALL[1]) for width, height in sizes]
    regions = [_decoding(width, height, settings.rounds, REGION_OR_ALL[0]) for width, height in sizes]
    return Report("scaling", [*whole, *regions], predictions=_predictions(regions), remarks=list(NOT_MEASURED))


def _decoding(width: int, height: int, rounds: int, part: str) -> Row:
    """Measure decoding an image of that size from a JPEG in memory, in processor time.

    part: all of it, or as the loader does, a region at a random place.
    """
    # An image repeated in mirror images has the detail of a photograph at any size, and a busy machine does not change
    # the processor time.
    tile = load_rgb(sample_images()[0])
    tile = np.concatenate([tile, tile[::-1]])
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    times = (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1)
    image = Image.fromarray(np.tile(tile, times)[:height, :width])
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    spent = []
    places = random.Random(0)
    for _ in range(rounds + 1):
        place = place_region(height, width, REGION, places)
        start = time.process_time()
        with open_image(io.BytesIO(encoded.getvalue())) as opened:
            decoded = DecodedImage(opened)
            if part == REGION_OR_ALL[0]:
                decoded.window(*place)
            else:
                decoded.rgb()
        spent.append((time.process_time() - start) * 1e3)
    first, median, third = np.percentile(spent[1:], (25, 50, 75))
    size = len(encoded.getvalue()) / 2**10
    note = f"processor time of one thread; {size:.0f} KiB, quality {QUALITY}"
    if part == REGION_OR_ALL[0] and not jpeg_regions.available():
        note += "; without nvImageCodec"
    numbers = {"median_ms": median, "iqr_ms": third - first, "min_ms": min(spent[1:]), "items_per_s": 1e3 / median}
    times_of = {name: float(value) for name, value in numbers.items()}
    return Row(
        f"decode {part}",
        "qpt",
        f"{width}x{height}",
        peak_mib=None,
        rounds=rounds,
        differences={},
        note=note,
        **times_of,
    )


def counted() -> dict[str, float]:
    """Count ResNet-50 and its head: parameters, batch norms, and multiplications at PATCH over those at 224 px."""
    flops = {}
    encoder = build_encoder("resnet50").eval().to("meta")  # no arithmetic: only operations are counted
    head = projection_head(encoder.feature_dim, DIM).to("meta")
    with torch.device("meta"):
        for side in (PATCH, 224):
            with FlopCounterMode(display=False) as counter:
                encoder(torch.empty(1, 3, side, side))
            flops[side] = counter.get_total_flops()
    return {
        "parameters": sum(p.numel() for p in (*encoder.parameters(), *head.parameters())),
        "norms": sum(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules()),
        "patch_share": flops[PATCH] / flops[224],
    }


def step_ms(gpus: int, *, caching: bool) -> dict[str, float]:
    """Predict the milliseconds of a step on one of ``gpus`` A100s by stage; ``copy`` runs beside the others."""
    facts = counted()
    rows = IMAGES * COMPOSITIONS
    forward_per_s = PUBLISHED["ResNet-50 training, 224 px, mixed precision"].value * 3 / facts["patch_share"]
    passes = 5 if caching else 4  # query forward (again with caching) and backward, key forward
    reached = ASSUMED["share of the network and of PCI Express that is reached"].value
    pairs = rows * (rows * gpus + POOL)
    return {
        "copy": IMAGES * REGION**2 * 3 / (PUBLISHED["PCI Express 4.0 x16"].value * 1e9 * reached) * 1e3,
        "degrade": _degrade_ms_per_row() * rows,
        "encode": rows * passes / forward_per_s * 1e3,
        "loss": _loss_ms_per_pair() * pairs,
        "communicate": _communication_s(gpus, facts, rows) * 1e3,
    }


def _communication_s(gpus: int, facts: dict[str, float], rows: int) -> float:
    """Predict the seconds of one message of all gradients, the gathered keys, and three messages of each batch norm."""
    if gpus == 1:
        return 0.0
    bandwidth, small = PUBLISHED["all-reduce in a node, bus bandwidth"].value * 1e9, "a small all-reduce in a node"
    if gpus > 8:
        reached = ASSUMED["share of the network and of PCI Express that is reached"].value
        bandwidth = min(bandwidth, PUBLISHED["network of a node"].value * 1e9 * reached)
        small = "a small all-reduce between nodes"
    share = (gpus - 1) / gpus
    gradients = 2 * share * facts["parameters"] * 4 / bandwidth
    keys = share * gpus * rows * (DIM * 4 + 16) / bandwidth
    return gradients + keys + 3 * facts["norms"] * ASSUMED[small].value


def _degrade_ms_per_row() -> float:
    """Return the predicted milliseconds of a whole region; patches need a part of it."""
    predictions = _result("roofline_degrade")["predictions"]
    found = next(p for p in predictions if p["op"] == "chains of preset qpt" and p["gpu"] == GPU)
    return float(found["predicted_ms"]) / 256  # rows of that prediction, of 320 x 320


def _loss_ms_per_pair() -> float:
    wanted = {"form": "float32", "shape": "N=1024 K=65536 D=128", "gpu": GPU}
    predictions = _result("roofline_loss")["predictions"]
    found = next(p for p in predictions if all(p[key] == value for key, value in wanted.items()))
    return float(found["predicted_ms"]) / (1024 * 65536)


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _predictions(rows: list[Row]) -> list[dict[str, Any]]:
    """Predict images per second by number of GPUs and image size: the slower of GPUs and processors limits them."""
    cores = PUBLISHED["processor cores of a node of 8"].value / 8
    found = []
    for gpus in GPUS:
        stages = step_ms(gpus, caching=False)
        busy = sum(stages.values()) - stages["copy"]
        device = IMAGES / max(busy, stages["copy"]) * 1e3
        for row in rows:
            host = cores * 1e3 / row.median_ms
            rate = min(device, host)
            longest = max((name for name in stages if name != "copy"), key=lambda name: stages[name])
            found.append(
                {
                    "gpus": gpus,
                    "image_size": row.shape,
                    "images_per_s": round(gpus * rate),
                    "gpu_limit_images_per_s": round(gpus * device),
                    "decode_limit_images_per_s": round(gpus * host),
                    "first_to_saturate": "decode" if host < device else longest,
                    "cores_per_gpu_needed": math.ceil(device * row.median_ms / 1e3),
                    **{f"{name}_ms": round(stages[name], 2) for name in STAGES},
                    "encode_with_caching_ms": round(step_ms(gpus, caching=True)["encode"], 2),
                    **{f"hours_per_epoch, {name}": round(n / (gpus * rate) / 3600, 4) for name, n in SETS.items()},
                }
            )
    return found
