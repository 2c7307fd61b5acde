"""The pre-training loader, decoding alone, and a plain torch ``DataLoader`` over Pillow: images per second.

Run by ``python -m benchmarks loader [--photographs FOLDER]``. All decode the same images in the same order: the
bare loops open and decode each file and keep nothing, in as many processes as the loaders have, one with Pillow and one
with the loader's decoder; both loaders also cut a region from each and make batches of them. Starting the processes is
part of each time. Before timing, both loaders must give the same regions. A last case decodes JPEGs that are to be
resized: reduced, as ``resize_shorter`` does, and whole.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Case, Contender, Disagreement, Report, Row, Settings, measure
from qpt.data.images import DecodedImage, load_rgb, open_image
from qpt.data.regions import RegionDataset, StepSampler, cut_region, sample_rng
from qpt.data.sample_images import sample_images
from qpt.data.sources import FolderSource
from qpt.pretraining.loader import BatchLoader

HELP = "images per second of the pre-training loader beside decoding alone and a plain torch DataLoader"
WORKERS = (0, 1, 2)
BATCH, BATCHES = 16, 256  # starting the processes is to be small beside it; an even number: two get as many each
REGION, PATCH = 320, 160
ALONE, DECODER, OURS, PLAIN = "decoding alone", "decoding alone, qpt's decoder", "qpt", "torch DataLoader"
RESIZED = 64  # shorter side, px
FAR = 4.0  # levels of 255 that a reduced decoding may be off on average


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photographs", type=Path, help="a folder (loader: photographs of wheels by default)")


def run(settings: Settings, options: argparse.Namespace) -> Report:
    """Time all of them with each number of loader processes."""
    torch.set_num_threads(1)  # no contender computes anything on tensors
    folder: Path | None = options.photographs
    files = sample_images() if folder is None else FolderSource(folder).files
    files = [file for file in files if _is_srgb(file)]
    batches = 2 if settings.quick else BATCHES
    dataset = _dataset(files, folder or Path("/"))
    per_epoch = len(files) // BATCH * BATCH
    if not per_epoch:  # a few files: each counts as several images
        dataset = _dataset(files * (BATCH // len(files) + 1), folder or Path("/"))
    sampler = StepSampler(len(dataset), BATCH, seed=0, first_step=0, steps=batches)
    cases = [_case(dataset, sampler, workers, batches, torch.device(settings.device)) for workers in WORKERS]
    jpegs = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")][: 2 if settings.quick else 100]
    if jpegs:
        cases.append(_resized_case(jpegs))
    rows = measure(cases, settings.rounds, warmup=1, device=settings.device)
    megapixels = np.mean([np.prod(_size(file)) for file in files]) / 1e6
    remarks = [
        f"{BATCH * batches} photographs of {len(files)} files, {megapixels:.2f} megapixels on average, regions of "
        f"{REGION} px, batches of {BATCH}.",
        *(_sentence(rows, workers) for workers in WORKERS),
        *(
            f"Reduced decoding is off by {row.differences['mean_levels']:.2f} of 255 levels on average, "
            f"{row.differences['worst_image_levels']:.2f} on the worst photograph."
            for row in rows
            if row.backend == "reduced"
        ),
    ]
    return Report("loader", rows, remarks=remarks)


def _dataset(files: list[Path], root: Path) -> RegionDataset:
    return RegionDataset(
        FolderSource(root, files),
        seed=0,
        region_size=REGION,
        patch_size=PATCH,
        iou=(0.1, 0.3),
        compositions=2,
        shared_boxes=True,
        resize_shorter=0,
        cache_mib=0,
    )


def _case(dataset: RegionDataset, sampler: StepSampler, workers: int, batches: int, device: torch.device) -> Case:
    keys = [key for batch in sampler for key in batch]
    paths = [dataset.source.open(index) for _, index in keys]

    def bare(decode: Callable[[list[Path]], None]) -> list[int]:
        if workers == 0:
            decode(paths)
            return []
        parts = [multiprocessing.Process(target=decode, args=(paths[part::workers],)) for part in range(workers)]
        for part in parts:
            part.start()
        for part in parts:
            part.join()
        return []

    def ours() -> list[int]:
        with BatchLoader(
            dataset,
            batch_images=BATCH,
            seed=sampler.seed,
            first_step=0,
            steps=batches,
            workers=workers,
            device=device,
            stall_seconds=0,
        ) as feed:
            found = (feed.next() for _ in range(batches))
            return [_lattice(fed[0].regions) for fed in found if fed is not None]

    def plain() -> list[int]:
        loader = DataLoader(_Plain(dataset), batch_sampler=sampler, num_workers=workers)
        return [_lattice(batch.to(device)) for batch in loader]

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        if len(answers[OURS]) != batches or answers[OURS] != answers[PLAIN]:
            raise Disagreement(f"loader: {workers} processes: the loaders' regions differ")
        return {}

    calls = {ALONE: lambda: bare(_decode), DECODER: lambda: bare(_decode_as_qpt), OURS: ours, PLAIN: plain}
    return Case(
        op="load",
        shape=f"{workers} loader processes",
        items=len(keys),
        contenders=[Contender(name, call) for name, call in calls.items()],
        agree=agree,
    )


def _resized_case(files: list[Path]) -> Case:
    def reduced() -> list[NDArray[np.uint8]]:
        return [load_rgb(file, shorter_side=RESIZED) for file in files]

    def whole() -> list[NDArray[np.uint8]]:
        return [_resize(load_rgb(file)) for file in files]

    def agree(answers: dict[str, Any]) -> dict[str, dict[str, float]]:
        pairs = zip(answers["reduced"], answers["whole"], strict=True)
        off = [float(np.abs(a.astype(np.int16) - b).mean()) for a, b in pairs]
        if not np.mean(off) < FAR:
            raise Disagreement(f"loader: reduced decoding is off by {np.mean(off):.2f} levels")
        return {"reduced": {"mean_levels": float(np.mean(off)), "worst_image_levels": max(off)}}

    return Case(
        op="decode JPEG, resize",
        shape=f"{len(files)} files to a shorter side of {RESIZED} px",
        items=len(files),
        contenders=[Contender("reduced", reduced), Contender("whole", whole)],
        agree=agree,
    )


def _resize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = RESIZED / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _decode(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.load()


def _decode_as_qpt(paths: list[Path]) -> None:
    for path in paths:
        with open_image(path) as image:
            DecodedImage(image).rgb()  # a JPEG may be decoded as late as this


class _Plain(Dataset[NDArray[np.uint8]]):
    """A plain data set: open, convert and crop, with the crop that ``RegionDataset`` draws."""

    def __init__(self, dataset: RegionDataset) -> None:
        self._open, self._seed = dataset.source.open, dataset.seed

    def __getitem__(self, key: tuple[int, int]) -> NDArray[np.uint8]:
        rng = sample_rng(self._seed, *key)
        with Image.open(self._open(key[1])) as image:
            return cut_region(np.array(image.convert("RGB")), REGION, rng)


def _lattice(regions: torch.Tensor) -> int:
    """Return a checksum of a few pixels."""
    # What it reads is in no cache: reading more would add to the time of the loader.
    return int(regions[:, ::79, ::83].sum())


def _sentence(rows: list[Row], workers: int) -> str:
    found = {row.backend: row.items_per_s for row in rows if row.shape.startswith(f"{workers} ")}
    return (
        f"{workers} processes: qpt gives {found[OURS] / found[ALONE]:.1%} of what decoding alone by Pillow allows "
        f"({found[ALONE]:.0f} images/s) and {found[OURS] / found[DECODER]:.1%} of its own decoder alone "
        f"({found[DECODER]:.0f}), the plain loader {found[PLAIN] / found[ALONE]:.1%} of Pillow alone."
    )


def _is_srgb(path: Path) -> bool:
    """Return whether a colour profile leaves the pixels as they are: the plain loaders do not apply any."""
    with Image.open(path) as image:
        return not image.info.get("icc_profile") or np.array_equal(np.array(image.convert("RGB")), load_rgb(path))


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
