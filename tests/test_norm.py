"""Batch norm over processes, as GPUs have it (``nn.SyncBatchNorm``), in the places that leave its statistics alone."""

import re

import pytest
import torch
from torch import Tensor, nn

from qpt.errors import InputError
from qpt.models.norm import synchronise, unrecorded_statistics
from qpt.pretraining.learner import Learner
from tests.test_embed import CPU, batch, settings

CUDA = torch.device("cuda")


def test_unrecorded_statistics_of_sync_batch_norm() -> None:
    """Its forward pass refuses a count of None; without a group of processes it runs on the CPU."""
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(network, CUDA)
    assert type(network[0]) is nn.SyncBatchNorm
    x = torch.randn(4, 3, 5, 6) * 3 + 1
    with unrecorded_statistics(network):
        answer = network(x)
    assert torch.equal(answer, nn.BatchNorm2d(3)(x))
    fresh = nn.BatchNorm2d(3).state_dict()
    for name, value in network[0].state_dict().items():
        assert torch.equal(value, fresh[name]), name
    network(x)
    assert int(network[0].num_batches_tracked) == 1


def test_a_batch_norm_without_running_statistics_stays_without() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    with unrecorded_statistics(norm):
        norm(torch.randn(2, 3, 4, 4))
    assert norm.num_batches_tracked is None


@pytest.mark.parametrize("options", [{"chunk_images": 2}, {"activation_checkpointing": True}], ids=str)
def test_steps_with_sync_batch_norm_have_the_same_gradient(options: dict[str, object]) -> None:
    config = settings(mode="in_batch", **options)
    plain, synchronised = Learner(config, CPU), Learner(config, CPU)
    synchronise(synchronised.query, CUDA)
    losses = [learner.gradients(*batch(config))[0] for learner in (plain, synchronised)]
    assert torch.equal(*losses)
    for (name, a), b in zip(plain.query.named_parameters(), synchronised.query.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.query.named_buffers(), synchronised.query.buffers(), strict=True):
        assert torch.equal(a, b), name


class NormWithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_batch_norm_that_does_more_is_refused(device: torch.device) -> None:
    """torch's conversion would leave the activation out without a word."""
    network = nn.Sequential(nn.BatchNorm2d(3), NormWithActivation(3))
    expected = "batch_norm must be local or shuffled for an encoder with NormWithActivation, which cannot be"
    with pytest.raises(InputError, match=re.escape(expected)):
        synchronise(network, device)
    assert type(network[0]) is nn.BatchNorm2d
