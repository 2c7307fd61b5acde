"""The pre-training data set: a sample depends on (seed, epoch, index) and nothing else."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qpt.data.regions import ImageCache, Region, RegionDataset, StepSampler, cut_region, pad_to
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


def test_region_is_cut_from_the_image(files: list[Path]) -> None:
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
    for index, readable in enumerate((True, False, True)):
        sample = data[(0, index)]
        assert isinstance(sample, Region) if readable else sample == (index, sample[1])


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90))
def test_padding_is_numpys_reflection(height: int, width: int, size: int) -> None:
    image = np.arange(height * width * 3).reshape(height, width, 3).astype(np.uint8)
    missing = [max(0, size - side) for side in (height, width)]
    expected = np.pad(image, [*((each // 2, each - each // 2) for each in missing), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(pad_to(image, size), expected)


def test_a_long_strip_is_not_padded_whole(tmp_path: Path) -> None:
    """One pixel by 60,000, padded to 2,000 rows before it is cut, would be 360 MB."""
    Image.fromarray(np.zeros((1, 60_000, 3), np.uint8)).save(tmp_path / "strip.png")
    data = dataset([tmp_path / "strip.png"], region_size=2_000)
    tracemalloc.start()
    sample = data[(0, 0)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(sample, Region) and sample.pixels.shape == (2_000, 2_000, 3)
    assert peak < 60 << 20


def test_the_cache_is_one_for_all_processes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    cache = ImageCache(3, 3 * image.nbytes // 2)
    child = os.fork()
    if child == 0:
        cache.keep(1, image)
        os._exit(0)
    os.waitpid(child, 0)
    kept = cache.get(1)
    assert kept is not None
    np.testing.assert_array_equal(kept, image)
    assert not cache.has_room(image.nbytes)
    cache.keep(2, image)
    assert cache.get(2) is None and cache.get(0) is None
