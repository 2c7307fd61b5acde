"""The contrastive loss inside activation checkpointing, and under other hooks of saved tensors."""

import functools

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from qpt.ops.contrastive.api import QualityContrastiveLoss, contrastive_loss, info_nce, nt_xent, supcon
from qpt.ops.contrastive.pool import NegativePool

IDS = torch.arange(12) // 2


def _rows(seed: int, count: int = 12) -> torch.Tensor:
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def _pool() -> NegativePool:
    pool = NegativePool(40, 16)
    pool.push(_rows(9, 30), pool.new_groups(30))
    return pool


def _learnt(queries, keys, temperature):
    return contrastive_loss(queries, keys, query_groups=IDS, key_groups=IDS, temperature=temperature)


def _module(queries, keys, temperature):
    module = QualityContrastiveLoss(learn_temperature=True)
    return module.with_stats(queries, keys, query_groups=IDS, key_groups=IDS).loss * temperature


LOSSES = {
    "nt_xent": lambda q, k, t: nt_xent(q, k, temperature=t),
    "nt_xent, torch": lambda q, k, t: nt_xent(q, k, temperature=t, backend="torch"),
    "supcon": lambda q, k, t: supcon(q, IDS, temperature=t) + k.sum(),
    "info_nce": lambda q, k, t: info_nce(q, k, _pool(), temperature=t),
    "keys without a gradient": lambda q, k, t: info_nce(q, k.detach(), _pool()) + k.sum() * t,
    "learnt temperature": _learnt,
    "module": _module,
}


def _checkpointed(form: str, function, *tensors):
    if form == "selective":  # under a dispatch mode, where the loss is an op
        policy = lambda context, op, *args, **kwargs: CheckpointPolicy.PREFER_RECOMPUTE  # noqa: E731
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(function, *tensors, use_reentrant=False, context_fn=contexts)
    if form == "nested":
        inner = functools.partial(checkpoint, function, use_reentrant=False)
        return checkpoint(inner, *tensors, use_reentrant=False)
    return checkpoint(function, *tensors, use_reentrant=form == "reentrant")


@pytest.mark.parametrize("form", ["recommended", "reentrant", "nested", "selective", "on the CPU"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_without_it(name, form):
    def gradients(run):
        tensors = (_rows(1), _rows(2), torch.tensor(0.3))
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
        value = run(LOSSES[name], *[tensor * 1.0 for tensor in tensors])
        value.backward()
        return [value.detach(), *(tensor.grad for tensor in tensors)]

    if form == "on the CPU":
        with torch.autograd.graph.save_on_cpu():
            found = gradients(lambda function, *tensors: function(*tensors))
    else:
        found = gradients(functools.partial(_checkpointed, form))
    for ours, plain in zip(found, gradients(lambda function, *tensors: function(*tensors)), strict=True):
        assert torch.equal(ours, plain)
