"""Functions that tests of several processes run in each of them; an assertion that fails there fails the test."""

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist

# What torch imports by itself once a group is up takes that group for the default of its arguments: gloo's threads then
# outlive it, and abort the process now and then (see qpt.pretraining.process_group.join_process_group).
import torch.distributed.nn.functional
from torch import nn

from benchmarks.harness import tensor_peak
from qpt import compat
from qpt.errors import InputError
from qpt.models.norm import synchronise, unrecorded_statistics
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.distributed import distributed_contrastive_loss
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.learner import Learner
from qpt.pretraining.process_group import ProcessGroup
from tests.test_contrastive import OPTIONS, problem
from tests.tolerance import assert_close

# Rows of each rank: uneven, one of them without any.
COUNTS = {1: [9], 2: [7, 4], 4: [5, 0, 6, 3]}


def start(rank: int, size: int, path: str, work: str, *arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    try:
        globals()[work](rank, size, *arguments)
    finally:
        compat.destroy_process_group()


def own(x: torch.Tensor, counts: list[int], rank: int) -> torch.Tensor:
    return x[sum(counts[:rank]) : sum(counts[: rank + 1])]


def equal_single_process(rank: int, size: int) -> None:
    counts = COUNTS[size]
    n = sum(counts)
    cases = itertools.product(
        OPTIONS.values(), ("gather", "ring"), (None, "replicated", "sharded"), (torch.float32, torch.float64)
    )
    for number, (options, exchange, layout, dtype) in enumerate(cases):
        tensors = {k: x.to(dtype) if x.is_floating_point() else x for k, x in problem(number, n, n, 40, 6).items()}
        pool = {k: x for k, x in tensors.items() if k.startswith("pool")}
        batch = {k: x for k, x in tensors.items() if not k.startswith("pool")}
        leaves = [batch.pop("queries").requires_grad_(), batch.pop("keys").requires_grad_()]
        tau = torch.tensor(0.2, dtype=dtype, requires_grad=True)
        truth = contrastive_loss(*leaves, temperature=tau, **batch, **(pool if layout else {}), **options)
        expected = torch.autograd.grad(truth * 2.5, [*leaves, tau])

        mine = [own(x.detach(), counts, rank).clone().requires_grad_() for x in leaves]
        ids = {k: own(x, counts, rank) for k, x in batch.items()}
        shard = pool if layout == "replicated" else {k: x[rank::size] for k, x in pool.items()}
        loss = distributed_contrastive_loss(
            *mine, temperature=tau, **ids, **(shard if layout else {}), **options, key_exchange=exchange,
            pool_layout=layout or "replicated",
        )  # fmt: skip
        assert_close(loss, truth.detach(), dtype)
        *gradients, for_tau = torch.autograd.grad(loss * 2.5, [*mine, tau])
        for gradient, whole in zip(gradients, expected, strict=False):
            # World size x the own rows' gradient; the bound is relative to all rows' gradient.
            error = (gradient / size - own(whole, counts, rank)).double().norm()
            assert error <= (1e-5 if dtype == torch.float32 else 1e-10) * whole.double().norm() + 1e-9
        dist.all_reduce(for_tau)
        assert_close(for_tau / size, expected[2], dtype, scale=10)


def equal_single_process_without_query_gradient(rank: int, size: int) -> None:
    """No weighted key sums are kept then: loss alone, and loss with the keys' gradient; rank 1 of 4 has no rows."""
    counts = COUNTS[size]
    for exchange, layout in itertools.product(("gather", "ring"), ("replicated", "sharded")):
        tensors = problem(5, sum(counts), sum(counts), 40, 6)
        pool = {k: tensors.pop(k) for k in list(tensors) if k.startswith("pool")}
        mine = {k: own(x, counts, rank).clone() for k, x in tensors.items()}
        shard = pool if layout == "replicated" else {k: x[rank::size] for k, x in pool.items()}
        truth = contrastive_loss(**tensors, **pool)
        given = {"key_exchange": exchange, "pool_layout": layout, **shard}
        assert_close(distributed_contrastive_loss(**mine, **given), truth, torch.float64)
        tensors["keys"].requires_grad_()
        mine["keys"].requires_grad_()
        (whole,) = torch.autograd.grad(contrastive_loss(**tensors, **pool), tensors["keys"])
        (gradient,) = torch.autograd.grad(distributed_contrastive_loss(**mine, **given), mine["keys"])
        assert_close(gradient / size, own(whole, counts, rank), torch.float64, scale=10)


def equal_single_process_under_ddp(rank: int, size: int) -> None:
    torch.manual_seed(0)
    encoder, x = nn.Linear(5, 4), torch.randn(6 * size, 5)
    groups = torch.arange(6 * size) // 2
    options = {"exclude_self": True, "temperature": 0.3}
    embedded = encoder(x)
    contrastive_loss(embedded, embedded, query_groups=groups, key_groups=groups, **options).backward()
    expected = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    parallel = nn.parallel.DistributedDataParallel(encoder)
    part = slice(6 * rank, 6 * rank + 6)
    for exchange in ("gather", "ring"):
        encoder.zero_grad()
        embedded = parallel(x[part])
        ids = {"query_groups": groups[part], "key_groups": groups[part]}
        distributed_contrastive_loss(embedded, embedded, **ids, **options, key_exchange=exchange).backward()
        for parameter, truth in zip(encoder.parameters(), expected, strict=True):
            assert_close(parameter.grad, truth, torch.float32)


def refuse_together(rank: int, size: int) -> None:
    tensors = problem(0, 4, 4, 0, 3)
    given = {k: x for k, x in tensors.items() if not k.startswith("pool")}
    wrong = dict(given)
    if rank == 1:
        wrong["keys"] = given["keys"].clone()
        wrong["keys"][2, 1] = float("nan")
    message = (
        "keys must be finite, got nan in row 2" if rank == 1 else "rank 1 was given something wrong: .*nan in row 2"
    )
    with pytest.raises(InputError, match=message):
        distributed_contrastive_loss(**wrong)
    with pytest.raises(InputError, match="exclude_self must be the same on all ranks"):
        distributed_contrastive_loss(**given, exclude_self=rank == 0)
    with pytest.raises(InputError, match="key_exchange must be one of gather, ring, got 'post'"):
        distributed_contrastive_loss(**given, key_exchange="post")
    with (
        pytest.warns(FutureWarning, match="keys_travel is now called key_exchange"),
        pytest.raises(InputError, match="key_exchange must be one of gather, ring, got 'post'"),
    ):
        distributed_contrastive_loss(**given, keys_travel="post")
    with pytest.raises(InputError, match="backend='triton' needs tensors on cuda"):
        distributed_contrastive_loss(**given, backend="triton" if rank == 1 else "torch")
    # A float64 pool on one rank would make its sums wider than the others expect them.
    single = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
    pool = {"pool": torch.ones(2, 3, dtype=(torch.float32, torch.float64)[rank]), "pool_groups": torch.arange(2)}
    with pytest.raises(InputError, match=r"accumulation dtype .* must be the same on all ranks"):
        distributed_contrastive_loss(**single, **pool, pool_layout="sharded")
    # No process is left waiting: the next call works.
    assert distributed_contrastive_loss(**given).isfinite()
    given["queries"].requires_grad_()
    loss = distributed_contrastive_loss(**given)
    (gradient,) = torch.autograd.grad(loss, given["queries"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        (loss + gradient.square().sum()).backward()


def measure_ring(rank: int, size: int, path: str) -> None:
    """Writes the high-water mark of a step with equal rows on every rank."""
    generator = torch.Generator().manual_seed(rank)
    queries, keys = (torch.randn(256, 64, generator=generator, requires_grad=True) for _ in range(2))
    groups = torch.arange(256) + 256 * rank

    def step() -> Any:
        loss = distributed_contrastive_loss(queries, keys, query_groups=groups, key_groups=groups, key_exchange="ring")
        return torch.autograd.grad(loss, [queries, keys])

    step()
    peak = tensor_peak(step)
    if rank == 0:
        torch.save(peak, path)


def normalise_together(rank: int, size: int) -> None:
    """Forward, backward and running statistics of batch norm over uneven batches, one of them empty."""
    counts = {1: [5], 2: [3, 4], 4: [3, 0, 2, 1]}[size]
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        whole = (torch.randn(sum(counts), 6, 5, 7, dtype=dtype) * 3 + 20).requires_grad_()
        upstream = torch.randn_like(whole)
        truth, ours = (nn.BatchNorm2d(6).to(dtype) for _ in range(2))
        with torch.no_grad():
            for norm in (truth, ours):
                norm.weight.copy_(torch.linspace(0.5, 2, 6))
        synchronise(ours, torch.device("cpu"))
        mine = own(whole.detach(), counts, rank).clone().requires_grad_()
        expected = truth(whole)
        expected.backward(upstream)
        answer = ours(mine)
        answer.backward(own(upstream, counts, rank))
        assert_close(answer, own(expected.detach(), counts, rank), dtype, scale=10)
        assert_close(mine.grad, own(whole.grad, counts, rank), dtype, scale=10)
        for parameter, wanted in zip(ours.parameters(), truth.parameters(), strict=True):
            dist.all_reduce(parameter.grad)  # each process has the part of its own rows
            assert_close(parameter.grad, wanted.grad, dtype, scale=10)
        for name, value in truth.named_buffers():
            assert torch.allclose(ours.state_dict()[name], value, rtol=1e-5), name
        before = ours.running_mean.clone()
        with unrecorded_statistics(ours):
            assert torch.equal(ours(mine), answer)
        assert torch.equal(ours.running_mean, before) and int(ours.num_batches_tracked) == 1
        ours.eval(), truth.eval()
        assert torch.allclose(ours(mine), truth(mine), rtol=1e-5)


def tell_each_other(rank: int, size: int) -> None:
    world = ProcessGroup(rank, size, rank, size)
    assert world.sum(rank, 1) == [3, 3] and world.gather(rank) == [0, 1, 2]
    assert world.share(6) == slice(2 * rank, 2 * rank + 2) and world.main == (rank == 0)
    rows = torch.full((rank, 2), float(rank))  # none of the first
    assert world.gather_rows(rows).tolist() == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    for number, parameter in enumerate(parameters[:2]):
        parameter.grad = torch.full_like(parameter, rank * 10.0 + number)
    world.average_gradients(parameters)
    assert parameters[0].grad.eq(10.0).all() and parameters[1].grad.eq(11.0).all() and parameters[2].grad is None

    def refuse() -> None:
        raise InputError("not here")

    with pytest.raises(InputError, match="not here"):
        world.on_main(refuse)
    world.on_main(lambda: None)


def shuffle_keys(rank: int, size: int) -> None:
    """Keys embedded by other processes come back to the rows they belong to."""
    config = PretrainConfig(
        "data", "out", arch="resnet18", width=4, projection_dim=8, patch_size=16, batch_images=8, pool_size=8,
        batch_norm="shuffled", chunk_images=2,
    )  # fmt: skip
    learner = Learner(config, torch.device("cpu"), ProcessGroup(rank, size, rank, size))
    assert learner.key is not None
    learner.key.eval()  # statistics of no batch: a key depends on its own patch alone
    images = 8 // size - (rank == 0)  # the first could not read one
    patches = torch.randint(0, 256, (2 * images, 2, 3, 16, 16), dtype=torch.uint8)  # two keys of a composition
    keys = learner._embed_keys(learner.key, patches, learner._chunks(2 * images, None))
    with torch.no_grad():
        assert torch.allclose(keys.flatten(0, 1), learner._embed_with(learner.key)(patches.flatten(0, 1)), atol=1e-5)
