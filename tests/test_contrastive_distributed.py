"""The loss over 1, 2 and 4 gloo processes equals the single-process loss and gradients; errors reach all processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from qpt.errors import InputError
from qpt.ops.contrastive.distributed import distributed_contrastive_loss
from tests import distributed_workers


def run(size: int, folder: Path, work: str, *arguments: Any) -> None:
    """Runs a function of tests/distributed_workers.py in ``size`` processes; raises what any of them raises."""
    rendezvous = folder / f"{work}-{size}"
    torch.multiprocessing.spawn(distributed_workers.start, (size, str(rendezvous), work, *arguments), nprocs=size)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_equals_the_single_process(size: int, tmp_path: Path) -> None:
    run(size, tmp_path, "equal_single_process")


def test_equals_the_single_process_without_query_gradients(tmp_path: Path) -> None:
    run(4, tmp_path, "equal_single_process_without_query_gradient")


def test_ddp_averages_to_the_single_process_gradient(tmp_path: Path) -> None:
    run(2, tmp_path, "equal_single_process_under_ddp")


def test_an_error_of_one_reaches_all(tmp_path: Path) -> None:
    run(2, tmp_path, "refuse_together")


def test_memory_of_the_ring_does_not_grow_with_the_world(tmp_path: Path) -> None:
    # From three processes on: the own block, the one in use and the one that arrives.
    peaks = []
    for size in (3, 4):
        path = tmp_path / f"peak-{size}"
        run(size, tmp_path, "measure_ring", str(path))
        peaks.append(torch.load(path))
    block = 256 * 64 * 4  # bytes of one process's keys
    assert peaks[1] <= peaks[0] + block // 8, peaks


def test_needs_a_process_group() -> None:
    ids = {"query_groups": torch.arange(2), "key_groups": torch.arange(2)}
    with pytest.raises(InputError, match="needs an initialised process group"):
        distributed_contrastive_loss(torch.ones(2, 3), torch.ones(2, 3), **ids)
