"""The pre-training data set: what is drawn for a sample depends on (seed, epoch, index) and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from qpt.data.regions import Batch, Region, RegionDataset, StepSampler, collate, cut_region
from qpt.data.sources import FolderSource


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(path)
    return paths


def dataset(files: list[Path], **options: object) -> RegionDataset:
    settings: dict[str, object] = {
        "seed": 3,
        "region_size": 48,
        "patch_size": 24,
        "iou": (0.1, 0.3),
        "compositions": 2,
        "shared_boxes": True,
        "resize_shorter": 0,
        "cache_mib": 0,
        **options,
    }
    return RegionDataset(FolderSource(files[0].parent, files), **settings)  # type: ignore[arg-type]


def same(a: object, b: object) -> bool:
    assert isinstance(a, Region) and isinstance(b, Region)
    return np.array_equal(a.pixels, b.pixels) and np.array_equal(a.boxes, b.boxes) and a.program_seed == b.program_seed


def test_a_sample_depends_on_its_key_only(files: list[Path]) -> None:
    one, other = dataset(files), dataset(files, cache_mib=64)
    for key in ((0, 0), (5, 6), (0, 3)):
        assert same(one[key], other[key]) and same(other[key], one[key])  # the second look-up comes from the cache
    assert not same(one[(0, 0)], one[(1, 0)])
    assert not same(one[(0, 0)], dataset(files, seed=4)[(0, 0)])


def test_region_is_cut_from_the_photograph(files: list[Path]) -> None:
    sample = dataset(files)[(0, 2)]
    assert isinstance(sample, Region)
    whole, region = np.asarray(Image.open(files[2])), sample.pixels
    windows = np.lib.stride_tricks.sliding_window_view(whole, (48, 48), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    assert (windows == region).all(axis=(2, 3, 4)).sum() == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (47, 48), (48, 48), (20, 100)])
def test_small_images_are_reflected(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    region = cut_region(image, 48, np.random.default_rng(0))
    assert region.shape == (48, 48, 3)
    assert set(map(tuple, region.reshape(-1, 3))) <= set(map(tuple, image.reshape(-1, 3)))


def test_boxes_are_shared_or_not(files: list[Path]) -> None:
    shared, independent = dataset(files)[(0, 0)], dataset(files, shared_boxes=False)[(0, 0)]
    assert isinstance(shared, Region) and isinstance(independent, Region)
    assert shared.boxes.shape == independent.boxes.shape == (2, 2, 2)
    assert np.array_equal(shared.boxes[0], shared.boxes[1])
    assert not np.array_equal(independent.boxes[0], independent.boxes[1])


def test_workers_give_the_same_batches(files: list[Path]) -> None:
    def batches(workers: int) -> list[Batch]:
        loader = DataLoader(
            dataset(files), batch_sampler=StepSampler(7, 3, 0, 0, 5), collate_fn=collate, num_workers=workers
        )
        return list(loader)

    for a, b in zip(batches(0), batches(2), strict=True):
        assert torch.equal(a.regions, b.regions) and torch.equal(a.images, b.images)
        assert torch.equal(a.program_seeds, b.program_seeds) and torch.equal(a.boxes, b.boxes)


def test_sampler_covers_each_epoch_and_resumes_anywhere() -> None:
    steps = list(StepSampler(10, 3, seed=5, first_step=0, steps=9))
    for epoch in range(3):
        keys = [key for step in steps[3 * epoch : 3 * epoch + 3] for key in step]
        assert len({index for _, index in keys}) == 9 and {key[0] for key in keys} == {epoch}
    assert list(StepSampler(10, 3, seed=5, first_step=4, steps=9)) == steps[4:]
    assert steps[0] != steps[3]


def test_unreadable_files_are_listed_not_fatal(files: list[Path]) -> None:
    files[1].write_bytes(b"not an image")
    data = dataset(files)
    batch = collate([data[(0, index)] for index in range(3)])
    assert batch.images.tolist() == [0, 2]
    assert [index for index, _ in batch.unreadable] == [1]
    none = collate([data[(0, 1)]])
    assert none.unreadable == [data[(0, 1)]] and len(none.images) == len(none.regions) == len(none.boxes) == 0
