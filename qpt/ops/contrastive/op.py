"""The contrastive loss as torch ops: schemas, fakes (shapes only) and autograd, for any keys and for the same rows.

Called by ``api.py`` with a checked ``Problem``, which is flattened here for ``torch.library``; calls ``loss.py``, which
checks values (nan, temperature), because an op may read data where a compiled graph may not. A forward op also returns
what its backward needs: the queries' gradient (from the same pass over the keys), log-sum-exps, numbers of positives.
"""

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from qpt.ops.contrastive import loss
from qpt.ops.contrastive.arithmetic import own_arithmetic
from qpt.ops.contrastive.backend_torch import LossTerms
from qpt.ops.contrastive.problem import Problem
from qpt.ops.dispatch import needs_dispatcher

_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", bool: "bool", str: "str"}
_SCHEMA = {name: f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(Problem).items()}
FIELDS = tuple(_SCHEMA)
# Where queries and keys are the same rows, the queries' fields stand for these.
_OF_KEYS = ("keys", "key_groups", "key_images", "key_severities")
SELF_FIELDS = tuple(name for name in FIELDS if name not in (*_OF_KEYS, "exclude_self"))


def _self_problem(values: tuple[Any, ...]) -> Problem:
    given = dict(zip(SELF_FIELDS, values, strict=True))
    rows = ("queries", "query_groups", "query_images", "query_severities")
    same = {name: given[row] for name, row in zip(_OF_KEYS, rows, strict=True)}
    return Problem(**given, **same, exclude_self=True)


class _LossOps:
    """The forward and the backward op of one form of the loss, and the same functions without torch's dispatcher.

    fields: the fields of Problem that the ops take, tensors first. restore: makes the Problem of their values.
    with_gradient: the fields that have a gradient. loss_forward, loss_backward: functions of ``loss.py``.
    """

    def __init__(
        self,
        name: str,
        fields: tuple[str, ...],
        restore: Callable[[tuple[Any, ...]], Problem],
        with_gradient: tuple[str, ...],
        loss_forward: Callable[..., LossTerms],
        loss_backward: Callable[..., tuple[Tensor | None, ...]],
    ):
        self.name, self.fields, self.restore = name, fields, restore
        self.loss_forward, self.loss_backward = loss_forward, loss_backward
        self.places = tuple(fields.index(field) for field in with_gradient)
        self.pool, self.options, self.count = fields.index("pool"), fields.index("temperature") + 1, len(fields)
        problem = ", ".join(_SCHEMA[field] for field in fields)
        needs = ", ".join(f"bool need_{field}" for field in with_gradient)
        self.forward_op = torch.library.custom_op(
            f"qpt::{name}_forward",
            self._forward,
            mutates_args=(),
            schema=f"({problem}, bool need_query_gradient, bool need_similarity) -> {_tensors(6)}",
        )
        self.backward_op = torch.library.custom_op(
            f"qpt::{name}_backward",
            self._backward,
            mutates_args=(),
            schema=f"({problem}, Tensor upstream, Tensor query_gradient, Tensor lse, Tensor positives, {needs}) -> "
            f"{_tensors(len(with_gradient))}",
        )
        self.forward_op.register_fake(self._forward_fake)
        self.forward_op.register_autograd(self._differentiate, setup_context=self._setup_context)
        self.backward_op.register_fake(self._backward_fake)
        self.backward_op.register_autograd(_refuse_second_derivative)

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
                output = self._forward(*inputs)
                self._setup_context(ctx, inputs, output)
                return output

            backward = staticmethod(self._differentiate)

        self.eager = Eager.apply

    def __call__(self, problem: Problem, need_query_gradient: bool, need_similarity: bool) -> tuple[Tensor, ...]:
        values = [getattr(problem, field) for field in self.fields]
        # The op where its calls must be seen; else the same function called directly.
        call = self.forward_op if needs_dispatcher(problem.queries) else self.eager
        return call(*values, need_query_gradient, need_similarity)

    def _forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        problem, (need_gradient, need_similarity) = self.restore(arguments[: self.count]), arguments[self.count :]
        with own_arithmetic(problem.queries.device):
            return tuple(self.loss_forward(problem, need_gradient=need_gradient, need_similarity=need_similarity))

    def _forward_fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        problem, need_gradient = self.restore(arguments[: self.count]), arguments[self.count]
        rows, dim = problem.queries.shape
        real, whole = problem.temperature.new_empty(()), problem.query_groups.new_empty(())
        gradient = real.new_empty((rows if need_gradient else 0, dim))
        counts = whole if problem.query_severities is None else real
        return real, whole, real.new_empty(rows), counts.new_empty(rows), gradient, real.new_empty(2)

    def _backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        problem, saved = self.restore(arguments[: self.count]), arguments[self.count :]
        lse = saved[2]
        with own_arithmetic(problem.queries.device):
            gradients = self.loss_backward(problem, *saved)
            # Outputs of an op must not share memory: an empty tensor each.
            return tuple(lse.new_empty(0) if gradient is None else gradient for gradient in gradients)

    def _backward_fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        lse, needs = arguments[self.count + 2], arguments[self.count + 4 :]
        inputs = [arguments[place] for place in self.places]
        return tuple(x.new_empty(x.shape) if need else lse.new_empty(0) for x, need in zip(inputs, needs, strict=True))

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, valid_rows, lse, positives, query_gradient, similarity = output
        ctx.has_query_gradient, ctx.options = inputs[self.count], inputs[self.options : self.count]
        # The pool has no gradient, and may be overwritten before the backward: it is not kept.
        tensors = (*inputs[: self.pool], None, None, None, *inputs[self.pool + 3 : self.options])
        ctx.save_for_backward(query_gradient, lse, positives, *tensors)
        ctx.mark_non_differentiable(valid_rows, lse, positives, query_gradient, similarity)
        ctx.set_materialize_grads(False)

    def _differentiate(self, ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        needs = tuple(ctx.needs_input_grad[place] for place in self.places)
        if upstream is None or not any(needs):
            return tuple(result)
        if (needs[0] or needs[-1]) and not ctx.has_query_gradient:  # queries, temperature
            name = f"qpt::{self.name}_forward"
            raise RuntimeError(f"{name}: called without need_query_gradient, so it has no query gradient")
        query_gradient, lse, positives, *tensors = ctx.saved_tensors
        if needs == (True, False, False) and not torch.is_grad_enabled():
            # Nothing but a product, and no graph of it is wanted: an op would cost a small batch more than the product.
            result[0] = (query_gradient * upstream).to(tensors[0].dtype)
            return tuple(result)
        saved = (upstream, query_gradient, lse, positives)
        gradients = self.backward_op(*tensors, *ctx.options, *saved, *needs)
        for place, need, gradient in zip(self.places, needs, gradients, strict=True):
            result[place] = gradient if need else None
        return tuple(result)


def _tensors(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "contrastive_loss: second derivatives are not implemented; for a gradient penalty on this loss, build the loss "
        "from torch operations on the N x K logits"
    )


# qpt::contrastive_forward and qpt::contrastive_backward.
LOSS = _LossOps(
    "contrastive",
    FIELDS,
    Problem._make,
    ("queries", "keys", "temperature"),
    loss.loss_forward,
    loss.loss_backward,
)
# qpt::contrastive_self_forward and ..._backward: queries and keys are the same rows (SimCLR, SupCon). Similarities are
# symmetric: log-sum-exps come first, and one pass in the backward serves both roles of a row.
SELF_LOSS = _LossOps(
    "contrastive_self",
    SELF_FIELDS,
    _self_problem,
    ("queries", "temperature"),
    loss.self_loss_forward,
    loss.self_loss_backward,
)


def contrastive(problem: Problem, need_similarity: bool) -> tuple[Tensor, ...]:
    """Return loss [], valid_rows [], lse [N], positives [N], query gradient [N or 0, D], similarity [2].

    See ``LossTerms``."""
    ops = SELF_LOSS if problem.has_same_rows() else LOSS
    problem = problem.without_idle_images()
    # An op cannot see whether its inputs need a gradient. The temperature's is a product with the queries' one.
    need_query_gradient = problem.queries.requires_grad or problem.temperature.requires_grad
    return ops(problem, torch.is_grad_enabled() and need_query_gradient, need_similarity)
