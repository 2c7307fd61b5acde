"""The batch loader: the same batches, in order, for any number of processes, and an error when one stalls."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from qpt.data.regions import Batch, Region, RegionDataset, StepSampler
from qpt.data.sources import FolderSource
from qpt.errors import StalledError
from qpt.pretraining.loader import BatchLoader, Prefetch, SlotSampler

SIZE, IMAGES, STEPS = 24, 7, 9


class NoiseDataset(RegionDataset):
    """Regions of images of noise; ``sleep_at`` delays the decoding of a key."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        files = [folder / f"{index}.png" for index in range(IMAGES)]
        for file in files:
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(file)
        super().__init__(
            FolderSource(folder, files),
            seed=3,
            region_size=SIZE,
            patch_size=12,
            iou=(0.1, 0.3),
            compositions=2,
            shared_boxes=False,
            resize_shorter=0,
            cache_mib=0,
        )
        self.sleep_at: dict[tuple[int, int], float] = {}

    def __getitem__(self, key: tuple[int, int]) -> Region | tuple[int, str]:
        time.sleep(self.sleep_at.get(key, 0.0))
        return super().__getitem__(key)


@pytest.fixture
def dataset(tmp_path: Path) -> NoiseDataset:
    return NoiseDataset(tmp_path)


def load(dataset: RegionDataset, **options: object) -> BatchLoader:
    settings: dict[str, object] = {
        "batch_images": 3,
        "seed": 5,
        "first_step": 0,
        "steps": STEPS,
        "workers": 0,
        "device": torch.device("cpu"),
        "stall_seconds": 60,
        **options,
    }
    return BatchLoader(dataset, **settings)  # type: ignore[arg-type]


def batches(dataset: RegionDataset, **options: object) -> list[Batch]:
    """All batches, each copied when it comes: its memory is used again."""
    found = []
    with load(dataset, **options) as loader:
        for _ in range(int(options.get("first_step", 0)), STEPS):  # type: ignore[call-overload]
            loaded = loader.next()
            assert loaded is not None
            found.append(Batch(**{**vars(loaded[0]), "regions": loaded[0].regions.clone()}))
        with pytest.raises(StopIteration):
            loader.next()
    return found


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("regions", "images", "boxes", "program_seeds"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.unreadable == b.unreadable


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_samples_of_each_step(dataset: NoiseDataset, workers: int) -> None:
    """Whatever the number of processes, and when some files take longer than others and some cannot be read."""
    dataset.sleep_at = {(0, 1): 0.3, (1, 4): 0.2}
    dataset.source.open(2).write_bytes(b"not an image")
    found = batches(dataset, workers=workers)
    dataset.sleep_at = {}
    for keys, batch in zip(StepSampler(IMAGES, 3, 5, 0, STEPS), found, strict=True):
        samples = [dataset[key] for key in keys]
        regions = [sample for sample in samples if isinstance(sample, Region)]
        assert batch.unreadable == [sample for sample in samples if not isinstance(sample, Region)]
        assert batch.images.tolist() == [region.index for region in regions]
        assert batch.program_seeds.tolist() == [region.program_seed for region in regions]
        np.testing.assert_array_equal(batch.regions, np.stack([region.pixels for region in regions]))
        np.testing.assert_array_equal(batch.boxes, np.stack([region.boxes for region in regions]))
    assert any(batch.unreadable for batch in found)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_starts_at_any_step(dataset: NoiseDataset, workers: int) -> None:
    for a, b in zip(batches(dataset)[4:], batches(dataset, workers=workers, first_step=4), strict=True):
        assert_same(a, b)


def test_a_batch_without_readable_files_is_empty(dataset: NoiseDataset) -> None:
    for index in range(IMAGES):
        dataset.source.open(index).write_bytes(b"")
    for batch in batches(dataset):
        assert len(batch.images) == len(batch.regions) == len(batch.boxes) == len(batch.program_seeds) == 0
        assert batch.boxes.shape == (0, dataset.compositions, dataset.patches, 2)
        assert len(batch.unreadable) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_each_batch(dataset: NoiseDataset, world_size: int, workers: int) -> None:
    """Put together in rank order, the parts are the batch of one process."""
    parts = [
        batches(
            dataset,
            batch_images=6,
            workers=workers,
            share=slice(rank * 6 // world_size, (rank + 1) * 6 // world_size),
        )
        for rank in range(world_size)
    ]
    for step, whole in enumerate(batches(dataset, batch_images=6)):
        shares = [rank[step] for rank in parts]
        for name in ("regions", "images", "boxes", "program_seeds"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(share, name) for share in shares]))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_batch_keeps_its_memory_until_the_second_call_after_it(dataset: NoiseDataset, workers: int) -> None:
    with load(dataset, workers=workers, batch_images=1, steps=40) as loader:
        before: tuple[Batch, torch.Tensor] | None = None
        for _ in range(40):
            loaded = loader.next()
            assert loaded is not None
            time.sleep(0.005)  # so that the processes run as far ahead as they may
            if before is not None:
                assert torch.equal(before[0].regions, before[1])
            before = loaded[0], loaded[0].regions.clone()


def test_slots_are_used_in_turn() -> None:
    sampler = StepSampler(10, 4, 0, 0, 6)
    requests = list(SlotSampler(sampler, 4))
    assert [slot for slot, _ in requests] == [0, 1, 2, 3, 0, 1]
    assert [keys for _, keys in requests] == list(sampler) and len(SlotSampler(sampler, 4)) == 6


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_decoding_is_measured_where_it_happens(dataset: NoiseDataset, workers: int) -> None:
    dataset.sleep_at = {(0, index): 0.02 for index in range(IMAGES)}
    with load(dataset, workers=workers, steps=2) as loader:
        for _ in range(2):
            loaded = loader.next()
            assert loaded is not None
            times = loaded[1]
            assert times.images == 3 and times.copy_s == 0
            assert times.decode_s >= 0.06 and times.decode_cpu_s < times.decode_s  # sleeping takes no processor time


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stalled_loader_ends_with_the_file_it_is_at(dataset: NoiseDataset, workers: int) -> None:
    stuck = list(StepSampler(IMAGES, 3, 5, 0, 2))[1][2]
    dataset.sleep_at = {stuck: 60.0}
    started = time.monotonic()
    expected = pytest.raises(StalledError, match=rf"gave nothing for \d+ s .* at {stuck[1]}\.png for \d+ s")
    with expected, load(dataset, workers=workers, stall_seconds=1) as loader:
        for _ in range(2):
            assert loader.next() is not None
    assert time.monotonic() - started < 40  # the processes were not waited for


def test_a_dead_loader_process_is_named(dataset: NoiseDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that crashes takes its process along; the message says at which file."""
    _, (_, fatal), _ = next(iter(StepSampler(IMAGES, 3, 5, 0, 1)))
    decode = dataset.source.open

    def crash(index: int) -> Path:
        if index == fatal and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(index)

    monkeypatch.setattr(dataset.source, "open", crash)
    expected = pytest.raises(StalledError, match=rf"a loader process died: .* at {fatal}\.png")
    with expected, load(dataset, workers=1) as loader:
        loader.next()


def test_a_death_that_a_signal_handler_reports_is_named_too(dataset: NoiseDataset) -> None:
    """torch's own handler, there once any loader was made in the main thread, raises wherever the wait is."""
    dataset.sleep_at = dict.fromkeys(itertools.product([0], range(IMAGES)), 0.5)

    def handler() -> bool:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(StalledError, match="a loader process died: "), load(dataset, workers=1) as loader:
        loader.next(handler)


def test_waiting_ends_when_asked(dataset: NoiseDataset) -> None:
    dataset.sleep_at = dict.fromkeys(itertools.product([0], range(IMAGES)), 0.5)
    with load(dataset) as loader:
        asked = threading.Event()
        threading.Timer(0.1, asked.set).start()
        assert loader.next(asked.is_set) is None
        loaded = loader.next()  # the batch that was asked for is not lost
        assert loaded is not None
        assert loaded[0].images.tolist() == [index for _, index in next(iter(StepSampler(IMAGES, 3, 5, 0, 1)))]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_prefetch_keeps_the_order_and_runs_so_far_ahead(ahead: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    prefetch = Prefetch(items(), lambda number: -number, ahead=ahead)
    for number in range(20):
        assert prefetch.get(timeout=10) == -number
        time.sleep(0.01)
        assert len(made) <= number + 1 + ahead
        if number < 17:
            while len(made) < number + 1 + ahead:
                time.sleep(0.001)
    with pytest.raises(StopIteration):
        prefetch.get(timeout=10)
    prefetch.close()


def test_prefetch_passes_errors_on_in_their_place() -> None:
    def move(number: int) -> int:
        if number == 2:
            raise ValueError("the third")
        return number

    prefetch = Prefetch([0, 1, 2, 3], move, ahead=3)
    assert [prefetch.get(timeout=10), prefetch.get(timeout=10)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        prefetch.get(timeout=10)
    prefetch.close()


def test_prefetch_that_was_late_is_not_asked_twice() -> None:
    gate = threading.Event()
    prefetch = Prefetch([1, 2, 3], lambda number: (gate.wait(10), number)[1], ahead=0)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            prefetch.get(timeout=0.01)
    gate.set()
    assert [prefetch.get(timeout=10) for _ in range(3)] == [1, 2, 3]
    prefetch.close()
    assert not prefetch._thread.is_alive()


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu(dataset: NoiseDataset) -> None:
    device = torch.device("cuda")
    for a, b in zip(batches(dataset), batches(dataset, device=device, workers=2), strict=True):
        assert b.regions.device.type == b.images.device.type == "cuda"
        assert torch.equal(a.regions, b.regions.cpu()) and torch.equal(a.images, b.images.cpu())
