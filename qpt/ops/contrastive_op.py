"""The contrastive loss as a torch op: schema, fake (shapes only) and autograd of ``qpt::contrastive_forward``.

Called by ``qpt.ops.contrastive``, which has checked the arguments; values (nan, temperature) are checked here, because
an op may read data where a compiled graph may not. Calls ``contrastive_torch.py``. The forward op also returns what the
backward needs: the queries' gradient (from the same pass over the keys), log-sum-exps and numbers of positives.
"""

from typing import Any

import torch
from torch import Tensor

from qpt.ops import contrastive_torch
from qpt.ops.contrastive_inputs import accumulation_dtype, check_values


@torch.library.custom_op("qpt::contrastive_forward", mutates_args=())
def contrastive_forward(
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    pool: Tensor | None,
    pool_groups: Tensor | None,
    pool_images: Tensor | None,
    temperature: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    need_query_gradient: bool,
    need_similarity: bool,
    check_finite: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss [], valid_rows [], lse [N], positives [N], query gradient [N or 0, D], similarity [2]; see Result."""
    check_values(queries, keys, pool, temperature, check_finite)
    key_sets = [contrastive_torch.KeySet(keys, key_groups, key_images, not exclude_self, in_batch_negatives)]
    if pool is not None and pool_groups is not None:
        key_sets.append(contrastive_torch.KeySet(pool, pool_groups, pool_images))
    # Autocast would take any product that is not in place in half precision.
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        result = contrastive_torch.forward(
            queries,
            contrastive_torch.Queries(query_groups, query_images),
            key_sets,
            temperature,
            same_image_weight,
            accumulation_dtype(queries, keys, pool),
            need_query_gradient,
            need_similarity,
        )
    gradient = result.query_gradient
    if gradient is None:
        gradient = result.lse.new_empty((0, queries.shape[1]))
    return result.loss, result.valid_rows, result.lse, result.positives, gradient, result.similarity


@contrastive_forward.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    pool: Tensor | None,
    pool_groups: Tensor | None,
    pool_images: Tensor | None,
    temperature: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    need_query_gradient: bool,
    need_similarity: bool,
    check_finite: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dim = queries.shape
    real = queries.new_empty((), dtype=accumulation_dtype(queries, keys, pool))
    whole = query_groups.new_empty(())
    gradient = real.new_empty((rows if need_query_gradient else 0, dim))
    return real, whole, real.new_empty(rows), whole.new_empty(rows), gradient, real.new_empty(2)


@torch.library.custom_op("qpt::contrastive_backward", mutates_args=())
def contrastive_backward(
    upstream: Tensor,
    query_gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    temperature: Tensor,
    lse: Tensor,
    positives: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    need_queries: bool,
    need_keys: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """upstream (0-d) times the gradient of queries, keys and temperature; an empty tensor where it is not needed."""
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        # Outputs of an op must not share memory: an empty tensor each.
        for_queries, for_keys, for_temperature = (lse.new_empty(0) for _ in range(3))
        if need_queries:
            for_queries = (query_gradient * upstream).to(queries.dtype)
        if need_keys:
            key_set = contrastive_torch.KeySet(keys, key_groups, key_images, not exclude_self, in_batch_negatives)
            rows = contrastive_torch.Queries(query_groups, query_images)
            for_keys = contrastive_torch.key_gradient(
                queries, rows, key_set, temperature, same_image_weight, lse, positives
            )
            for_keys = for_keys.mul_(upstream).to(keys.dtype)
        if need_temperature:
            # Every z depends on tau through q_i.k_j / tau only: dL/dtau = -(1/tau) sum_i q_i . dL/dq_i.
            total = (queries.to(lse.dtype) * query_gradient).sum()
            for_temperature = (-total / temperature * upstream).to(temperature.dtype)
        return for_queries, for_keys, for_temperature


@contrastive_backward.register_fake
def _(
    upstream: Tensor,
    query_gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    temperature: Tensor,
    lse: Tensor,
    positives: Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    need_queries: bool,
    need_keys: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape) if need_queries else lse.new_empty(0),
        keys.new_empty(keys.shape) if need_keys else lse.new_empty(0),
        temperature.new_empty(temperature.shape) if need_temperature else lse.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, query_groups, key_groups, query_images, key_images, *_, temperature = inputs[:10]
    _, valid_rows, lse, positives, query_gradient, similarity = output
    ctx.save_for_backward(
        query_gradient, queries, keys, query_groups, key_groups, query_images, key_images, temperature, lse, positives
    )
    ctx.options = inputs[10:13]
    ctx.has_query_gradient = inputs[13]
    ctx.mark_non_differentiable(valid_rows, lse, positives, query_gradient, similarity)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    needed = (needs[0], needs[1], needs[9])
    if upstream is None or not any(needed):
        return (None,) * len(needs)
    if (needs[0] or needs[9]) and not ctx.has_query_gradient:
        raise RuntimeError("qpt::contrastive_forward: called without need_query_gradient, so it has no query gradient")
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
