"""The contrastive loss as a torch op: schema, fake (shapes only) and autograd of ``qpt::contrastive_forward``.

Called by ``qpt.ops.contrastive.api``, which has checked the arguments; values (nan, temperature) are checked here,
because an op may read data where a compiled graph may not. Calls ``loss.py``. The forward op also returns what the
backward needs: the queries' gradient (from the same pass over the keys), log-sum-exps and numbers of positives.

``keys=None``: the keys are the queries (SimCLR, SupCon) and the queries' gradient is that of both roles. The matrix of
similarities is then symmetric: log-sum-exps first, and one pass in the backward for both roles.
"""

from typing import Any

import torch
from torch import Tensor

from qpt.ops.contrastive import loss
from qpt.ops.contrastive.backends import KeySet, Queries, choose
from qpt.ops.contrastive.inputs import check_values
from qpt.ops.contrastive.loss import Setting
from qpt.ops.dispatch import watched


def _forward(
    queries: Tensor,
    keys: Tensor | None,
    query_groups: Tensor,
    key_groups: Tensor | None,
    query_images: Tensor | None,
    key_images: Tensor | None,
    pool: Tensor | None,
    pool_groups: Tensor | None,
    pool_images: Tensor | None,
    temperature: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    backend: str,
    need_query_gradient: bool,
    need_similarity: bool,
    check_finite: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss [], valid_rows [], lse [N], positives [N], query gradient [N or 0, D], similarity [2]; see Result."""
    setting = Setting(choose(backend, temperature), temperature, same_image_weight)
    checked = pool if setting.backend.forward is None or keys is None else None
    check_values(queries, keys, checked, temperature, check_finite)
    rows = Queries(queries, query_groups, query_images)
    key_sets = [_in_batch(rows, keys, key_groups, key_images, exclude_self, in_batch_negatives)]
    if pool is not None and pool_groups is not None:
        key_sets.append(KeySet(pool, pool_groups, pool_images))
    # Autocast would take any product that is not in place in half precision.
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        terms = loss.loss_terms(rows, key_sets, setting, need_gradient=need_query_gradient, same=keys is None)
        if need_similarity:
            total, count = loss.negative_similarity(rows, key_sets, terms.positives > 0, setting.dtype)
            terms.similarity[1] = total / count  # nan when there are none
        return (*terms,)


contrastive_forward = torch.library.custom_op("qpt::contrastive_forward", _forward, mutates_args=())


def _in_batch(
    rows: Queries,
    keys: Tensor | None,
    groups: Tensor | None,
    images: Tensor | None,
    exclude_self: bool,
    in_batch_negatives: bool,
) -> KeySet:
    """The batch's own keys as a key set; those of ``rows`` themselves where ``keys`` is None."""
    offset = 0 if exclude_self else None
    if keys is None or groups is None:
        return KeySet(rows.vectors, rows.groups, rows.images, 0, in_batch_negatives)
    return KeySet(keys, groups, images, offset, in_batch_negatives)


@contrastive_forward.register_fake
def _(
    queries: Tensor,
    keys: Tensor | None,
    query_groups: Tensor,
    key_groups: Tensor | None,
    query_images: Tensor | None,
    key_images: Tensor | None,
    pool: Tensor | None,
    pool_groups: Tensor | None,
    pool_images: Tensor | None,
    temperature: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    backend: str,
    need_query_gradient: bool,
    need_similarity: bool,
    check_finite: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dim = queries.shape
    real = temperature.new_empty(())
    whole = query_groups.new_empty(())
    gradient = real.new_empty((rows if need_query_gradient else 0, dim))
    return real, whole, real.new_empty(rows), whole.new_empty(rows), gradient, real.new_empty(2)


@torch.library.custom_op("qpt::contrastive_backward", mutates_args=())
def contrastive_backward(
    upstream: Tensor,
    query_gradient: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    query_groups: Tensor,
    key_groups: Tensor | None,
    query_images: Tensor | None,
    key_images: Tensor | None,
    temperature: Tensor,
    lse: Tensor,
    positives: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    backend: str,
    need_queries: bool,
    need_keys: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """upstream (0-d) times the gradient of queries, keys and temperature; an empty tensor where it is not needed."""
    setting = Setting(choose(backend, temperature), temperature, same_image_weight)
    rows = Queries(queries, query_groups, query_images)
    key_set = _in_batch(rows, keys, key_groups, key_images, exclude_self, in_batch_negatives)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        # Outputs of an op must not share memory: an empty tensor each.
        for_queries, for_keys, for_temperature = (lse.new_empty(0) for _ in range(3))
        # Every z depends on tau through q_i.k_j / tau only: dL/dtau = -(1/tau) sum_i q_i . dL/dq_i.
        wide = queries.to(lse.dtype)
        total = loss.row_products(wide, query_gradient).sum() * upstream if need_temperature else None
        if keys is None or need_keys:
            scale = upstream / (positives > 0).sum().clamp(min=1)
        if keys is None:
            both = loss.softmax_gradient(rows, key_set, setting, lse, both_roles=True)
            if total is not None:
                # Half of it is the queries': sum_i q_i . dL/dq_i and sum_j k_j . dL/dk_j are one sum over pairs.
                total += loss.row_products(wide, both).sum() * scale / 2
            if need_queries:
                loss.subtract_positives(both, rows, key_set, setting, positives)
                for_queries = both.mul_(scale).addcmul_(query_gradient, upstream).to(queries.dtype)
        else:
            if need_keys:
                gradient = loss.softmax_gradient(rows, key_set, setting, lse)
                loss.subtract_positives(gradient, rows, key_set, setting, positives)
                for_keys = gradient.mul_(scale).to(keys.dtype)
            if need_queries:
                for_queries = (query_gradient * upstream).to(queries.dtype)
        if total is not None:
            for_temperature = (-total / temperature).to(temperature.dtype)
        return for_queries, for_keys, for_temperature


@contrastive_backward.register_fake
def _(
    upstream: Tensor,
    query_gradient: Tensor,
    queries: Tensor,
    keys: Tensor | None,
    query_groups: Tensor,
    key_groups: Tensor | None,
    query_images: Tensor | None,
    key_images: Tensor | None,
    temperature: Tensor,
    lse: Tensor,
    positives: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    backend: str,
    need_queries: bool,
    need_keys: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape) if need_queries else lse.new_empty(0),
        keys.new_empty(keys.shape) if need_keys and keys is not None else lse.new_empty(0),
        temperature.new_empty(temperature.shape) if need_temperature else lse.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, query_groups, key_groups, query_images, key_images, *_, temperature = inputs[:10]
    _, valid_rows, lse, positives, query_gradient, similarity = output
    ctx.save_for_backward(
        query_gradient, queries, keys, query_groups, key_groups, query_images, key_images, temperature, lse, positives
    )
    ctx.options = inputs[10:14]
    ctx.has_query_gradient = inputs[14]
    ctx.mark_non_differentiable(valid_rows, lse, positives, query_gradient, similarity)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    needed = (needs[0], needs[1], needs[9])  # queries, keys (None has no gradient), temperature
    if upstream is None or not any(needed):
        return (None,) * len(needs)
    if (needs[0] or needs[9]) and not ctx.has_query_gradient:
        raise RuntimeError("qpt::contrastive_forward: called without need_query_gradient, so it has no query gradient")
    query_gradient, queries, keys = ctx.saved_tensors[:3]
    if needed == (True, False, False) and keys is not None and not torch.is_grad_enabled():
        # Nothing but a product, and no graph of it is wanted: an op would cost a small batch more than the product.
        return ((query_gradient * upstream).to(queries.dtype), *(None,) * (len(needs) - 1))
    gradients = contrastive_backward(upstream, *ctx.saved_tensors, *ctx.options, *needed)
    result: list[Tensor | None] = [None] * len(needs)
    for place, need, gradient in zip((0, 1, 9), needed, gradients, strict=True):
        result[place] = gradient if need else None
    return tuple(result)


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "contrastive_loss: second derivatives are not implemented; for a gradient penalty on this loss, build the loss "
        "from torch operations on the N x K logits"
    )


contrastive_forward.register_autograd(_differentiate, setup_context=_setup_context)
contrastive_backward.register_autograd(_refuse_second_derivative)


class _Eager(torch.autograd.Function):
    """The op without torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_differentiate)


def contrastive(queries: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The op ``contrastive_forward`` wherever somebody may be watching; otherwise the same function called directly.
    Same arguments, results and gradients."""
    return contrastive_forward(queries, *arguments) if watched(queries) else _Eager.apply(queries, *arguments)
