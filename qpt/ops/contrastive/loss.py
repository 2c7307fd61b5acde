"""The contrastive loss and its gradients, put together from a backend's passes over pairs.

Called by the ops (``op.py``) and by the distributed form (``distributed.py``); chooses the backend. Here are the
positives, the mean over rows and the gradients; the formulas are derived in docs/loss.md. No array exceeds N x D.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from qpt import compat
from qpt.errors import BackendError, InputError
from qpt.ops import extension
from qpt.ops.contrastive.backend_cpp import CppBackend
from qpt.ops.contrastive.backend_torch import (
    IdIndex,
    LossTerms,
    SoftmaxSums,
    TorchBackend,
    excluded_positives,
    group_sums,
    lookup_parts,
)
from qpt.ops.contrastive.backend_triton import TritonBackend
from qpt.ops.contrastive.problem import KeySet, Problem, Queries, check_finite_result, check_values

BACKENDS: dict[str, TorchBackend] = {"torch": TorchBackend(), "cpp": CppBackend(), "triton": TritonBackend()}
_DEVICE = {"cpp": "cpu", "triton": "cuda"}


def choose(problem: Problem) -> TorchBackend:
    """Return the backend that ``problem.backend`` names.

    "auto": C++ on the CPU, Triton on CUDA; plain torch for float64, on other devices, and with one warning where the
    native code cannot be used. Raises InputError for a device, a dtype or a precision that does not fit, BackendError
    for what is missing.
    """
    backend = _choose_form(problem)
    if problem.precision not in ("auto", "ieee"):
        device = problem.temperature.device
        known = backend.precisions_on(device)
        if problem.precision not in known:
            raise InputError(
                f"contrastive_loss: precision must be {' or '.join(known)} with backend={backend.name!r} "
                f"(on {device}), got {problem.precision!r}"
            )
    return backend.with_precision(problem.precision)


def _choose_form(problem: Problem) -> TorchBackend:
    """Return the backend, whatever the precision."""
    name, device = problem.backend, problem.temperature.device
    double = problem.temperature.dtype == torch.float64
    if name == "auto":
        native = next((key for key, kind in _DEVICE.items() if kind == device.type), None)
        if native is None or double:
            return BACKENDS["torch"]
        reason = _reason_unusable(native)
        if reason is None:
            return BACKENDS[native]
        _warn_once(f"contrastive_loss: {reason}; the slower torch form is used (backend='torch' silences this)")
        return BACKENDS["torch"]
    if name != "torch":
        if device.type != _DEVICE[name]:
            raise InputError(f"contrastive_loss: backend={name!r} needs tensors on {_DEVICE[name]}, got {device}")
        if double:
            raise InputError(f"contrastive_loss: backend={name!r} accumulates in float32, got float64 embeddings")
        reason = _reason_unusable(name)
        if reason is not None:
            raise BackendError(f"contrastive_loss: {reason}")
    return BACKENDS[name]


def _reason_unusable(name: str) -> str | None:
    return compat.triton_fault() if name == "triton" else extension.available()


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def loss_forward(problem: Problem, *, need_gradient: bool, need_similarity: bool) -> LossTerms:
    """Return the loss of one process against its batch and its pool, with the queries' gradient where needed."""
    backend = choose(problem)
    check_values(problem, "queries", "keys", "query_severities", "key_severities")
    queries, key_sets = problem.query_rows(), [problem.batch_keys(), *problem.pool_keys()]
    terms = None
    if problem.query_severities is None:
        terms = backend.loss_forward(queries, key_sets, problem.temperature, problem.log_weight, need_gradient)
    if terms is None:
        check_values(problem, "pool")
        sums = RunningSums(queries, problem, backend, need_gradient)
        sums.add_graded()
        for keys in key_sets:
            sums.add(queries, keys)
        terms = _mean_over_rows(sums, queries, need_gradient)
        if terms.gradient.is_cpu and not terms.gradient.isfinite().all():
            terms.loss.fill_(math.nan)
    check_finite_result(problem, terms.loss)
    return _with_negatives(terms, queries, key_sets) if need_similarity else terms


def self_loss_forward(problem: Problem, *, need_gradient: bool, need_similarity: bool) -> LossTerms:
    """Return the loss where queries and keys are the same rows; the gradient leaves the batch's softmax out."""
    backend = choose(problem)
    check_values(problem, "queries", "pool", "query_severities")
    queries, batch, pool = problem.query_rows(), problem.batch_keys(), problem.pool_keys()
    sums = RunningSums(queries, problem, backend, need_gradient)
    sums.add_graded()
    # x_i.x_j is symmetric: the backward gives the batch's softmax to both roles of a row in one pass.
    sums.add(queries, batch, weighted=False)
    for keys in pool:
        sums.add(queries, keys)
    terms = _mean_over_rows(sums, queries, need_gradient)
    check_finite_result(problem, terms.loss)
    return _with_negatives(terms, queries, [batch, *pool]) if need_similarity else terms


class RunningSums:
    """Running sums of N queries over the key sets added so far; the order of the additions is the order of the sums.

    row_max, row_sum [N]: log-sum-exp = row_max + log(row_sum), -inf and 0 before any eligible key. acc [N, D] or None:
    the softmax-weighted key sum relative to row_max. positive_sum [N, D], positives int64 [N]: sum and number of the
    keys of the row's group. graded [N] or None: sum of the weights of graded positives, which positive_sum holds too.
    """

    def __init__(self, queries: Queries, problem: Problem, backend: TorchBackend, weighted: bool):
        n, dim = queries.vectors.shape
        self.problem, self.backend, self.weighted = problem, backend, weighted
        real = problem.temperature
        self.row_max = real.new_full((n,), -math.inf)
        self.row_sum = real.new_zeros(n)
        self.acc: Tensor | None = None  # until keys with weights are added
        self.positive_sum = real.new_zeros((n, dim))
        self.positives = queries.groups.new_zeros(n)
        self.graded: Tensor | None = None
        self.empty = True  # of keys

    def add(self, queries: Queries, keys: KeySet, *, weighted: bool = True) -> None:
        """Add the keys of one origin. weighted=False leaves them out of ``acc`` (where there is one)."""
        if not queries.groups.numel() or not keys.groups.numel():
            return
        self.backend.add_positives(queries, keys, self.positive_sum, self.positives)
        temperature, log_weight = self.problem.temperature, self.problem.log_weight
        weighted = weighted and self.weighted
        self.merge(self.backend.lse_forward(queries, keys, temperature, log_weight, weighted=weighted))

    def add_graded(self) -> None:
        """Add the in-batch keys of other groups to the positives by their weights; nothing without severities."""
        pairs = self.problem.graded_pairs()
        if pairs is not None and self.positive_sum.numel():
            self.graded = self.backend.add_graded(pairs, self.problem.keys, self.positive_sum)

    def merge(self, sums: SoftmaxSums) -> None:
        """Add sums over other keys, relative to another maximum. Takes the tensors over."""
        row_max, row_sum, acc = sums
        if self.empty:
            self.empty, self.row_max, self.row_sum, self.acc = False, row_max, row_sum, acc
            return
        new_max = torch.maximum(self.row_max, row_max)
        # -inf where nothing was eligible on either side: 0 then, so that no exponential is nan.
        shift = new_max.masked_fill(new_max == -math.inf, 0)
        rescale, rescale_added = torch.exp(self.row_max - shift), torch.exp(row_max - shift)
        self.row_sum = torch.addcmul(self.row_sum * rescale, row_sum, rescale_added)
        if self.acc is not None:
            self.acc.mul_(rescale[:, None])
            if acc is not None:
                self.acc.addcmul_(acc, rescale_added[:, None])
        elif acc is not None:
            self.acc = acc.mul_(rescale_added[:, None])
        self.row_max = new_max

    def finish(self, queries: Queries) -> "RowTerms":
        """Return the terms of each row. Takes the positives' sums over."""
        positives = self.positives.masked_fill(queries.groups < 0, 0)
        valid = positives > 0
        if self.graded is not None:
            positives = torch.where(valid, positives + self.graded, 0)
        positive_mean = self.positive_sum.div_(positives.clamp(min=1)[:, None])
        wide = queries.vectors.to(positive_mean.dtype)
        positive_z = row_products(wide, positive_mean) / self.problem.temperature
        lse = self.row_max + self.row_sum.log()
        return RowTerms(torch.where(valid, lse, math.inf), torch.where(valid, positive_z, 0), positives, positive_mean)

    def query_gradient(self, rows: "RowTerms", valid_rows: Tensor) -> Tensor:
        """Return d loss / d queries [N, D] for a mean over ``valid_rows``, of the keys that were added with weights.

        (softmax-weighted key mean - positive mean) / tau, docs/loss.md.
        """
        scale = torch.where(rows.positives > 0, 1 / (valid_rows.clamp(min=1) * self.problem.temperature), 0)[:, None]
        gradient = rows.positive_mean * -scale
        if self.acc is not None:
            softmax = torch.where(rows.positives > 0, torch.exp(self.row_max - rows.lse), 0)
            gradient.addcmul_(self.acc, softmax[:, None] * scale)
        return gradient


class RowTerms(NamedTuple):
    """The terms of each row. lse [N]: +inf where the row is left out of the mean, so that its softmax is exactly 0;
    positive_z [N]: weighted mean q.k / tau of its positives (0 there); positives [N]: number of them, int64, or with
    severities the sum of their weights (0 there); positive_mean [N, D]: their weighted mean."""

    lse: Tensor
    positive_z: Tensor
    positives: Tensor
    positive_mean: Tensor

    def loss_sum(self) -> Tensor:
        """Return the sum over the rows with a positive; 0-d."""
        return torch.where(self.positives > 0, self.lse - self.positive_z, 0).sum()


def _mean_over_rows(sums: RunningSums, queries: Queries, need_gradient: bool) -> LossTerms:
    temperature = sums.problem.temperature
    rows = sums.finish(queries)
    valid_rows = (rows.positives > 0).sum()
    counted = valid_rows.clamp(min=1).to(temperature.dtype)
    gradient = temperature.new_empty((0, queries.vectors.shape[1]))
    if need_gradient:
        gradient = sums.query_gradient(rows, valid_rows)
    similarity = temperature.new_zeros(2)
    similarity[0] = rows.positive_z.sum() * temperature / counted
    return LossTerms(rows.loss_sum() / counted, valid_rows, rows.lse, rows.positives, gradient, similarity)


def loss_backward(
    problem: Problem,
    upstream: Tensor,
    query_gradient: Tensor,
    lse: Tensor,
    positives: Tensor,
    need_queries: bool,
    need_keys: bool,
    need_temperature: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return upstream (0-d) times the gradient of queries, keys and temperature; None where it is not needed."""
    backend, queries = choose(problem), problem.query_rows()
    for_queries = for_keys = for_temperature = None
    if need_temperature:
        # Every z depends on tau through q_i.k_j / tau only: dL/dtau = -(1/tau) sum_i q_i . dL/dq_i.
        total = row_products(queries.vectors.to(lse.dtype), query_gradient).sum() * upstream
        for_temperature = (-total / problem.temperature).to(problem.temperature.dtype)
    if need_keys:
        scale = upstream / (positives > 0).sum().clamp(min=1)
        gradient = full_key_gradient(queries, problem.batch_keys(), problem, backend, lse, positives)
        subtract_graded(gradient, problem, backend, positives)
        for_keys = gradient.mul_(scale).to(problem.keys.dtype)
    if need_queries:
        for_queries = (query_gradient * upstream).to(queries.vectors.dtype)
    return for_queries, for_keys, for_temperature


def self_loss_backward(
    problem: Problem,
    upstream: Tensor,
    query_gradient: Tensor,
    lse: Tensor,
    positives: Tensor,
    need_queries: bool,
    need_temperature: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return upstream (0-d) times the gradient of the rows, in both roles, and of the temperature."""
    backend, rows, keys, temperature = choose(problem), problem.query_rows(), problem.batch_keys(), problem.temperature
    scale = upstream / (positives > 0).sum().clamp(min=1)
    if lse.numel():
        both = backend.key_gradient(rows, keys, temperature, problem.log_weight, lse, both_roles=True)
    else:
        both = lse.new_zeros(rows.vectors.shape)
    for_queries = for_temperature = None
    if need_temperature:
        wide = rows.vectors.to(lse.dtype)
        total = row_products(wide, query_gradient).sum() * upstream
        # Half of it is the queries': sum_i q_i . dL/dq_i and sum_j k_j . dL/dk_j are one sum over pairs.
        total += row_products(wide, both).sum() * scale / 2
        for_temperature = (-total / temperature).to(temperature.dtype)
    if need_queries:
        subtract_positives(both, rows, keys, temperature, positives)
        subtract_graded(both, problem, backend, positives)
        for_queries = both.mul_(scale).addcmul_(query_gradient, upstream).to(rows.vectors.dtype)
    return for_queries, for_temperature


def full_key_gradient(
    queries: Queries, keys: KeySet, problem: Problem, backend: TorchBackend, lse: Tensor, positives: Tensor
) -> Tensor:
    """Return valid rows x d loss / d keys without graded positives, [M, D]; lse [N], positives [N] as in RowTerms."""
    if not queries.groups.numel() or not keys.groups.numel():
        return lse.new_zeros(keys.vectors.shape)
    gradient = backend.key_gradient(queries, keys, problem.temperature, problem.log_weight, lse)
    return subtract_positives(gradient, queries, keys, problem.temperature, positives)


def subtract_positives(
    gradient: Tensor, queries: Queries, keys: KeySet, temperature: Tensor, positives: Tensor
) -> Tensor:
    """Subtract sum_{i: j in P(i)} q_i / (tau W_i) from row j of ``gradient`` [M, D], in place; return it.

    positives [N]: W_i, the number of positives or the sum of their weights; 0 for rows left out.
    """
    scale = _pull(positives, temperature)
    groups = IdIndex(queries.groups)
    # The pull of all queries of a group on its keys, in the slot of the group.
    pulls = gradient.new_zeros(queries.vectors.shape)
    for part in lookup_parts(queries.groups):
        pulls.index_add_(0, groups.slots[part], queries.vectors[part].to(gradient.dtype) * scale[part, None])
    for part in lookup_parts(keys.groups):
        found, slots = groups.match(keys.groups[part])
        gradient[part].index_add_(0, found, pulls[slots], alpha=-1)
    if keys.self_offset is not None:
        # Pair (i, i + self_offset) is no pair: its pull went with its group's and comes back here.
        rows, columns = keys.self_pairs(positives.numel())
        excluded = excluded_positives(queries, keys)
        gradient[columns].addcmul_(queries.vectors[rows].to(gradient.dtype), (scale[rows] * excluded)[:, None])
    return gradient


def _pull(positives: Tensor, temperature: Tensor) -> Tensor:
    """Return 1 / (tau W_i), 0 for rows left out; W_i is never below 1 elsewhere."""
    return (positives > 0).to(temperature.dtype) / positives.clamp(min=1) / temperature


def subtract_graded(gradient: Tensor, problem: Problem, backend: TorchBackend, positives: Tensor) -> None:
    """Subtract sum_i w_ij q_i / (tau W_i) from row j of ``gradient`` [M, D], in place; nothing without severities."""
    pairs = problem.graded_pairs()
    if pairs is not None and gradient.numel():
        scale = _pull(positives, problem.temperature)
        backend.add_graded(pairs.transposed(), problem.queries.to(gradient.dtype) * -scale[:, None], gradient)


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """Return sum_d left[i, d] right[i, d], [N], without an N x D array of products."""
    return torch.einsum("nd,nd->n", left, right)


def _with_negatives(terms: LossTerms, queries: Queries, key_sets: Sequence[KeySet]) -> LossTerms:
    """Fill in the similarity of negatives: the mean over rows with a positive of the mean q.k to eligible keys of other
    groups, whatever their weight; rows without such a key are not counted, nan when no row has one."""
    dtype = terms.similarity.dtype
    vectors = queries.vectors.to(dtype)
    groups = IdIndex(queries.groups)
    sums, counts = torch.zeros_like(vectors), vectors.new_zeros(vectors.shape[0])
    for keys in key_sets:
        if not keys.negatives or not queries.groups.numel():
            continue
        # All eligible keys, less those of the row's group: no pass over pairs is needed.
        same_sum, same_count = group_sums(groups, keys, dtype)
        eligible = (keys.groups >= 0).to(dtype)
        everything = vectors.new_zeros(vectors.shape[1])
        for part in lookup_parts(eligible):
            everything.addmv_(keys.vectors[part].to(dtype).T, eligible[part])
        sums += everything
        counts += eligible.sum()
        if same_sum is not None and same_count is not None:
            sums -= same_sum[groups.slots]
            counts -= same_count[groups.slots]
        if keys.self_offset is not None:
            # The self pair is no pair: where its groups are equal it went with same_sum, elsewhere it goes here.
            rows, columns = keys.self_pairs(queries.groups.numel())
            other = eligible[columns] * (queries.groups[rows] != keys.groups[columns])
            sums[rows] -= keys.vectors[columns].to(dtype) * other[:, None]
            counts[rows] -= other
    row = (vectors * sums).sum(1) / counts.clamp(min=1)
    counted = (terms.positives > 0) & (counts > 0)
    terms.similarity[1] = torch.where(counted, row, 0).sum() / counted.sum()
    return terms
