"""A small labelled set for evaluation tests: regions of scikit-image's images, blurred in known amounts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data
from threadpoolctl import threadpool_limits

from qpt.models import build_encoder
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Run a module that uses narrow encoders in one thread: at this size, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


HEADER = "image,mos,ref\n"


def image_regions() -> dict[str, np.ndarray]:
    """Return six (96, 128, 3) uint8 regions of different images."""
    cat, person, coffee, rocket = data.chelsea(), data.astronaut(), data.coffee(), data.rocket()
    return {
        "cat": cat[60:156, 100:228],
        "face": person[30:126, 160:288],
        "suit": person[300:396, 200:328],
        "cup": coffee[150:246, 200:328],
        "table": coffee[10:106, 20:148],
        "rocket": rocket[200:296, 250:378],
    }


def write_set(folder: Path, levels: int = 4) -> Path:
    """Write levels x 6 PNG files and scores.csv; MOS falls with the blur, groups are the originals. Returns the CSV."""
    (folder / "images").mkdir(parents=True)
    lines = [HEADER]
    for name, pixels in image_regions().items():
        for level in range(levels):
            blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8 * level))
            blurred.save(folder / "images" / f"{name}{level}.png")
            lines.append(f"images/{name}{level}.png,{90 - 20 * level + len(name)},{name}\n")
    csv = folder / "scores.csv"
    csv.write_text("".join(lines), encoding="utf-8")
    return csv


def write_run(folder: Path, seed: int = 5, width: int = 4) -> Path:
    """Write a run directory whose checkpoint holds a narrow, randomly initialised ResNet-18."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder("resnet18", width)
    config = {"arch": "resnet18", "width": width, "data": str(folder / "somewhere")}
    torch.save(
        {"format": CHECKPOINT_FORMAT, "config": config, "encoder": encoder.state_dict()}, folder / "checkpoint.pt"
    )
    return folder
