"""Forms of the contrastive loss: plain torch, published libraries, bare matrix products, and qpt itself.

``bench_contrastive.py`` times and compares the entries of ``FORMS``; ``memory.py`` runs one of them in a fresh
process, by name. An entry makes, from the same ``Inputs``, a call without arguments that returns (loss, gradient).
A library that is not installed or cannot be imported raises ``Unavailable`` with the reason.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qpt.ops.contrastive.api import contrastive_loss

TEMPERATURE = 0.2
BLOCK_KEYS = 2048  # of the forms that walk the pool in blocks, and of the bare products
BLOCK_ROWS = 256  # of the row-chunked form of NT-Xent

Answer = tuple[Tensor, Tensor | None]  # loss [], gradient of the queries [N, D] or None
Call = Callable[[], Answer]
Dtype = torch.dtype | None  # None: that of the inputs


class Unavailable(Exception):
    """A form cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Setting:
    """One size of one loss, in plain values that a fresh process can be given.

    kind "moco": N queries, their N own keys and K pool keys, gradient of the queries. kind "ntxent": N rows (two views
    of N / 2 images) against each other, gradient of the rows in both roles; k is 0.
    """

    kind: str
    n: int
    k: int
    gradient: bool
    dim: int = 128

    @property
    def shape(self) -> str:
        return f"N={self.n} K={self.k} D={self.dim}" if self.kind == "moco" else f"2N={self.n} D={self.dim}"


@dataclass(frozen=True)
class Inputs:
    """Unit-length rows and their ids; with kind "ntxent" queries and keys are one tensor and the pool is empty."""

    setting: Setting
    queries: Tensor
    keys: Tensor
    groups: Tensor
    pool: Tensor
    pool_groups: Tensor


def make_inputs(setting: Setting, device: str = "cpu") -> Inputs:
    """Draw random directions, the same for every device; a query and its own key (the other view of a row) have a
    cosine of about 0.9."""
    generator = torch.Generator().manual_seed(0)
    n, dim = setting.n, setting.dim
    images = n if setting.kind == "moco" else n // 2
    first = F.normalize(torch.randn((images, dim), generator=generator), dim=1)
    second = F.normalize(first + 0.5 / dim**0.5 * torch.randn((images, dim), generator=generator), dim=1)
    pool = torch.randn((setting.k, dim), generator=generator)
    pool /= pool.norm(dim=1, keepdim=True)
    groups = torch.arange(images)
    pool_groups = torch.arange(setting.k) + images
    first, second, pool, groups, pool_groups = (x.to(device) for x in (first, second, pool, groups, pool_groups))
    if setting.kind == "moco":
        return Inputs(setting, first.requires_grad_(setting.gradient), second, groups, pool, pool_groups)
    rows = torch.cat([first, second]).requires_grad_(setting.gradient)
    return Inputs(setting, rows, rows, torch.cat([groups, groups]), pool, pool_groups)


def _autograd(loss_of: Callable[[], Tensor], inputs: Inputs) -> Call:
    def call() -> Answer:
        if not inputs.setting.gradient:
            with torch.no_grad():
                return loss_of(), None
        loss = loss_of()
        return loss.detach(), torch.autograd.grad(loss, inputs.queries)[0]

    return call


def _qpt(inputs: Inputs, backend: str, pool: Dtype = None, rows: Dtype = None, negatives: bool = False) -> Call:
    # A pool would be kept in its dtype, and is cast here; the rows of a step have to be cast in each call.
    ids: dict[str, Any] = {"query_groups": inputs.groups, "key_groups": inputs.groups}
    if inputs.setting.kind == "ntxent":
        ids |= {"exclude_self": True}
    else:
        ids |= {"pool": inputs.pool.to(pool or inputs.pool.dtype)}
        ids |= {"pool_groups": inputs.pool_groups, "in_batch_negatives": negatives}

    def loss() -> Tensor:
        both = [x.to(rows or x.dtype) for x in (inputs.queries, inputs.keys)]  # the same tensor stays the same
        return contrastive_loss(*both, temperature=TEMPERATURE, backend=backend, **ids)

    return _autograd(loss, inputs)


def _moco_loss(queries: Tensor, keys: Tensor, pool: Tensor) -> Tensor:
    # He et al. 2020, algorithm 1.
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ pool.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


def _ntxent_loss(rows: Tensor) -> Tensor:
    # Chen et al. 2020, algorithm 1.
    logits = (rows @ rows.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, (torch.arange(len(rows), device=rows.device) + len(rows) // 2) % len(rows))


def _full_logits(inputs: Inputs) -> Call:
    if inputs.setting.kind == "ntxent":
        return _autograd(lambda: _ntxent_loss(inputs.queries), inputs)
    return _autograd(lambda: _moco_loss(inputs.queries, inputs.keys, inputs.pool), inputs)


@cache
def require_compiler() -> None:
    try:
        torch.compile(torch.sin)(torch.ones(8))
    except Exception as error:
        # Inductor has an exception of its own for each of its stages.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(f"torch.compile does not work here (it needs a C++ compiler): {reason[0]}") from error


def _compiled(inputs: Inputs) -> Call:
    require_compiler()
    torch._dynamo.reset()  # after 8 shapes of one function torch.compile would quietly run it uncompiled
    if inputs.setting.kind == "ntxent":
        ntxent = torch.compile(_ntxent_loss, dynamic=False)
        return _autograd(lambda: ntxent(inputs.queries), inputs)
    moco = torch.compile(_moco_loss, dynamic=False)
    return _autograd(lambda: moco(inputs.queries, inputs.keys, inputs.pool), inputs)


class _BlockedLogSumExp(torch.autograd.Function):
    """log sum_j exp(q_i.k_j) over the pool in blocks of keys; the backward computes the logits again."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor, pool: Tensor) -> Tensor:
        lse = scaled.new_full((len(scaled),), -torch.inf)
        buffer = scaled.new_empty(len(scaled) * BLOCK_KEYS)
        for block in pool.split(BLOCK_KEYS):
            lse = torch.logaddexp(lse, _log_sum_exp(_product(scaled, block, buffer)))
        ctx.save_for_backward(scaled, pool, lse)
        return lse

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        scaled, pool, lse = ctx.saved_tensors
        gradient, buffer = torch.zeros_like(scaled), scaled.new_empty(len(scaled) * BLOCK_KEYS)
        for block in pool.split(BLOCK_KEYS):
            gradient.addmm_(_product(scaled, block, buffer).sub_(lse[:, None]).exp_(), block)
        return gradient.mul_(upstream[0][:, None]), None


class _RowChunkedNtXent(torch.autograd.Function):
    """Sum over rows of NT-Xent's log-sum-exp, blocks of rows at a time; the backward computes the logits again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        lse, buffer = rows.new_empty(len(rows)), rows.new_empty(len(rows) * BLOCK_ROWS)
        for start in range(0, len(rows), BLOCK_ROWS):
            lse[start : start + BLOCK_ROWS] = _log_sum_exp(_masked(rows, start, buffer))
        ctx.save_for_backward(rows, lse)
        return lse.sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        rows, lse = ctx.saved_tensors
        gradient, buffer = torch.zeros_like(rows), rows.new_empty(len(rows) * BLOCK_ROWS)
        for start in range(0, len(rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            weights = _masked(rows, start, buffer).sub_(lse[part, None]).exp_()
            gradient[part].addmm_(weights, rows)  # these rows as queries
            gradient.addmm_(weights.T, rows[part])  # all rows as their keys
        return gradient.mul_(upstream[0] / TEMPERATURE)


def _product(rows: Tensor, keys: Tensor, buffer: Tensor) -> Tensor:
    return torch.mm(rows, keys.T, out=buffer[: len(rows) * len(keys)].view(len(rows), len(keys)))


def _log_sum_exp(logits: Tensor) -> Tensor:
    # Over the rows of a buffer that may be overwritten: torch.logsumexp would take two more of its size.
    highest = logits.amax(1)
    return logits.sub_(highest[:, None]).exp_().sum(1).log_().add_(highest)


def _masked(rows: Tensor, start: int, buffer: Tensor) -> Tensor:
    logits = _product(rows[start : start + BLOCK_ROWS], rows, buffer)
    logits[:, start : start + BLOCK_ROWS].fill_diagonal_(-torch.inf)
    return logits.div_(TEMPERATURE)


def _chunked(inputs: Inputs) -> Call:
    def moco() -> Tensor:
        positive = (inputs.queries * inputs.keys).sum(1) / TEMPERATURE
        others = _BlockedLogSumExp.apply(inputs.queries / TEMPERATURE, inputs.pool)
        return (torch.logaddexp(positive, others) - positive).mean()

    def ntxent() -> Tensor:
        first, second = inputs.queries.chunk(2)
        positive = 2 * (first * second).sum() / TEMPERATURE
        return (_RowChunkedNtXent.apply(inputs.queries) - positive) / len(inputs.queries)

    return _autograd(ntxent if inputs.setting.kind == "ntxent" else moco, inputs)


def _attend(queries: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax-weighted mean of the pool and the log-sum-exp, by the form that torch has for device and
    dtype."""
    scale = 1 / TEMPERATURE
    if not queries.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, pool, pool, scale=scale)
    if queries.dtype == torch.float32:
        form = torch.ops.aten._scaled_dot_product_efficient_attention
        return form(queries, pool, pool, None, True, scale=scale)[:2]
    return torch.ops.aten._scaled_dot_product_flash_attention(queries, pool, pool, scale=scale)[:2]


def _attention(inputs: Inputs, dtype: Dtype = None) -> Call:
    # Attention with values = keys gives the softmax-weighted key mean and the log-sum-exp: loss and gradient by hand.
    queries, keys, pool = inputs.queries.detach(), inputs.keys, inputs.pool.to(dtype or inputs.pool.dtype)

    def call() -> Answer:
        mean, lse = _attend(queries.to(pool.dtype)[None, None], pool[None, None])
        positive = (queries * keys).sum(1) / TEMPERATURE
        lse = lse[0, 0, : len(queries)]  # one of CUDA's forms pads it
        total = torch.logaddexp(positive, lse)
        loss = (total - positive).mean()
        if not inputs.setting.gradient:
            return loss, None
        away = mean[0, 0] * torch.exp(lse - total)[:, None]
        towards = keys * (1 - torch.exp(positive - total))[:, None]
        return loss, (away - towards) / (TEMPERATURE * len(queries))

    return call


@cache
def _lightly_loss() -> Any:
    """Return lightly's NTXentLoss, without torchvision, which its package imports and the loss never calls."""
    found = importlib.util.find_spec("lightly")
    if found is None or found.origin is None:
        raise Unavailable("lightly is not installed; run: pip install --no-deps lightly")
    if importlib.util.find_spec("torchvision") is None:
        # The packages by path, so that their __init__ does not run; models.utils only gathers between processes.
        for name in ("lightly.loss", "lightly.models", "lightly.models.modules", "lightly.models.utils"):
            module = types.ModuleType(name)
            module.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")[1:]))]
            sys.modules.setdefault(name, module)
    try:
        from lightly.loss.ntx_ent_loss import NTXentLoss
    except (ImportError, RuntimeError) as error:
        # RuntimeError: a torchvision built for another torch.
        raise Unavailable(f"lightly cannot be imported: {error}") from error
    return NTXentLoss


def _lightly(inputs: Inputs) -> Call:
    loss_class = _lightly_loss()
    if inputs.setting.kind == "ntxent":
        ntxent = loss_class(temperature=TEMPERATURE)
        return _autograd(lambda: ntxent(*inputs.queries.chunk(2)), inputs)
    moco = loss_class(temperature=TEMPERATURE, memory_bank_size=(1, inputs.setting.dim))
    moco.memory_bank.size = tuple(inputs.pool.shape)
    moco.memory_bank.bank = inputs.pool.clone()  # it writes into its bank
    return _autograd(lambda: moco(inputs.queries, inputs.keys), inputs)


def _metric_learning(inputs: Inputs) -> Call:
    try:
        from pytorch_metric_learning.losses import NTXentLoss
    except ImportError as error:
        raise Unavailable(f"pytorch-metric-learning cannot be imported: {error}") from error
    ntxent = NTXentLoss(temperature=TEMPERATURE)
    return _autograd(lambda: ntxent(inputs.queries, inputs.groups), inputs)


def _cut_cross_entropy(inputs: Inputs) -> Call:
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"cut-cross-entropy cannot be imported: {error}") from error
    require_compiler()
    torch._dynamo.reset()
    classes, targets = torch.cat([inputs.keys, inputs.pool]), torch.arange(inputs.setting.n, device=inputs.pool.device)
    return _autograd(
        lambda: linear_cross_entropy(inputs.queries / TEMPERATURE, classes, targets, impl="torch_compile"), inputs
    )


def _products(inputs: Inputs) -> Call:
    """Return the floor: queries times keys in blocks, into one buffer; with a gradient, each block times keys too."""
    queries = inputs.queries.detach()
    keys = inputs.pool if inputs.setting.kind == "moco" else queries
    buffer = torch.ones(len(queries) * BLOCK_KEYS, dtype=queries.dtype, device=queries.device)  # ones: its pages exist
    total = torch.ones_like(queries)

    def call() -> Answer:
        total.zero_()
        for block in keys.split(BLOCK_KEYS):
            logits = _product(queries, block, buffer)
            if inputs.setting.gradient:
                total.addmm_(logits, block)
        return total[:0], None

    return call


class Allowed(NamedTuple):
    """The largest relative differences of loss and gradient from the full logits that count as equal."""

    loss: float
    gradient: float


# float32 sums over up to 1,048,577 keys in different orders.
FLOAT32 = Allowed(1e-5, 1e-4)
# Twice the largest of N, K = 16, 512 to 1024, 65536, which are those of qpt: 5.9e-5 and 2.4e-3, because the gradient of
# queries in bfloat16 is in bfloat16 too. Attention, whose own keys stay in float32, is 3.5e-6 and 1.8e-4 off.
BFLOAT16 = Allowed(1.2e-4, 5e-3)


@dataclass(frozen=True)
class Form:
    """A form of the loss.  make: returns its call, with any copy of the inputs that it needs.

    gives: which loss it computes. "loss": that of the setting. "projected": the same, of normalised queries, whose
    gradient has no part along the query. "all keys": in-batch keys of other rows are negatives too. A dtype: the pool
    in that dtype. "": none, it is a floor. compiles: its first call at a size compiles, and is not to be measured.
    allowed: how far from what it gives it may be.
    """

    make: Callable[[Inputs], Call]
    gives: str = "loss"
    note: str = ""
    compiles: bool = False
    allowed: Allowed = FLOAT32


FLOOR = "bare products"
FORMS: dict[str, Form] = {
    "full logits": Form(_full_logits),
    "full logits compiled": Form(_compiled, note="torch.compile", compiles=True),
    "lightly": Form(_lightly, "projected", "normalises again: projected gradient"),
    "cut-cross-entropy": Form(
        _cut_cross_entropy, "all keys", "torch_compile path; own keys of other rows are negatives too", compiles=True
    ),
    "pytorch-metric-learning": Form(_metric_learning, "projected", "normalises again: projected gradient"),
    "chunked recompute": Form(_chunked, note="logits computed again for the gradient"),
    "qpt torch": Form(partial(_qpt, backend="torch")),
    "attention": Form(_attention, note="scaled_dot_product_attention, values = keys; gradient by hand"),
    "attention bfloat16": Form(
        partial(_attention, dtype=torch.bfloat16),
        note="queries cast in the call, the pool before it",
        allowed=BFLOAT16,
    ),
    "qpt bfloat16": Form(
        partial(_qpt, backend="auto", pool=torch.bfloat16, rows=torch.bfloat16),
        note="queries and keys cast in the call, the pool before it",
        allowed=BFLOAT16,
    ),
    "qpt bfloat16 pool": Form(partial(_qpt, backend="auto", pool=torch.bfloat16), "bfloat16", "half the pool"),
    "qpt float16 pool": Form(partial(_qpt, backend="auto", pool=torch.float16), "float16", "half the pool"),
    "qpt": Form(partial(_qpt, backend="auto")),
    FLOOR: Form(_products, "", "floor, not a loss"),
}


def expected(inputs: Inputs, gives: str) -> Answer:
    """Return what a form that ``gives`` this must return, from full logits (in their in-batch form: qpt torch)."""
    if gives == "all keys":
        return _qpt(inputs, "torch", negatives=True)()
    if gives in ("bfloat16", "float16"):
        rounded = inputs.pool.to(getattr(torch, gives)).float()
        return _full_logits(replace(inputs, pool=rounded))()
    loss, gradient = _full_logits(inputs)()
    if gives == "projected" and gradient is not None:
        queries = inputs.queries.detach()
        gradient = gradient - (gradient * queries).sum(1, keepdim=True) * queries
    return loss, gradient
