"""The contrastive loss's work over pairs in C++ (csrc/cpu/contrastive*.cpp): validated tensors in, buffers out.

Called by ``loss.py`` for float32, float16 and bfloat16 on the CPU; half-precision rows are widened a slab at a time.
``backend_torch.py`` documents the methods.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qpt.ops import extension
from qpt.ops.contrastive.backend_torch import LossTerms, SoftmaxSums, TorchBackend
from qpt.ops.contrastive.pool import check_rows_finite
from qpt.ops.contrastive.problem import GradedPairs, KeySet, Queries

_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # DType of csrc/cpu/contrastive.h
_STRIP, _BLOCK = 64, 256  # kStrip and kMaxTaskRows there
_LN2 = math.log(2)  # logits are in units of log 2 there
# Within this |z|, exp(z) and its sums are float32 numbers of full precision: no running maximum is needed.
_SAFE_LOGIT = 40.0
# For tests: the name of an instruction set (see ``qpt._C.contrastive_isas``); "" leaves the choice to the backend. It
# takes the best one: "" in C++; or the best one that multiplies float32: "float32" there.
isa = ""


class CppBackend(TorchBackend):
    """The passes, the positives, the whole loss in one call; and, where queries and keys are the same tensors, forms
    that compute each similarity once."""

    name = "cpp"

    def __init__(self, precision: str = "auto"):
        self.precision = precision

    def with_precision(self, precision: str) -> "CppBackend":
        return CppBackend(precision)

    @property
    def _isa(self) -> str:
        return isa or ("" if self.precision == "auto" else "float32")

    def lse_forward(
        self, queries: Queries, keys: KeySet, temperature: Tensor, log_weight: float, *, weighted: bool
    ) -> SoftmaxSums:
        tau = temperature.item()
        same = all(mine is theirs for mine, theirs in zip(queries, keys, strict=False))
        symmetric = same and keys.self_offset == 0 and keys.negatives and not weighted
        if symmetric and _bounded(queries.vectors, tau, log_weight):
            row_sum = _symmetric(queries, tau, log_weight, None)
            return SoftmaxSums(torch.zeros_like(row_sum).masked_fill_(row_sum <= 0, -math.inf), row_sum, None)
        rows, stream = _Side.of(queries), _Side.of(keys)
        same_group = not keys.negatives
        return _pass(
            self._isa, rows, stream, tau, log_weight, keys.self_offset, None, same_group=same_group, weighted=weighted
        )

    def key_gradient(
        self,
        queries: Queries,
        keys: KeySet,
        temperature: Tensor,
        log_weight: float,
        lse: Tensor,
        *,
        both_roles: bool = False,
    ) -> Tensor:
        tau, offset, same_group = temperature.item(), keys.self_offset, not keys.negatives
        if both_roles and keys.negatives and offset == 0 and _bounded(queries.vectors, tau, log_weight):
            return _symmetric(queries, tau, log_weight, torch.exp(-lse)).div_(tau)
        rows, stream = _Side.of(keys), _Side.of(queries)
        # The keys own their rows now: the logits' log-sum-exps come with the stream of queries.
        back = None if offset is None else -offset
        bias = lse * (-1 / _LN2)
        gradient = _pass(self._isa, rows, stream, tau, log_weight, back, bias, same_group=same_group, weighted=True).acc
        assert gradient is not None
        gradient.masked_fill_((keys.groups < 0)[:, None], 0)
        if both_roles:
            # The row's share as a query: its softmax-weighted key mean, with the log-sum-exp that is given.
            sums = _pass(self._isa, stream, rows, tau, log_weight, offset, None, same_group=same_group, weighted=True)
            assert sums.acc is not None
            softmax = torch.exp(sums.row_max - lse).nan_to_num_(0.0)  # -inf - inf where a row has no eligible key
            gradient.addcmul_(sums.acc, softmax[:, None])
        return gradient.div_(tau)

    def add_positives(self, queries: Queries, keys: KeySet, positive_sum: Tensor, positives: Tensor) -> None:
        """See ``TorchBackend``; both outputs are contiguous, positive_sum is float32."""
        rows, stream = _Side.of(Queries(positive_sum, queries.groups, None)), _Side.of(keys._replace(images=None))
        sums = (extension.buffer(positive_sum, torch.float32), extension.buffer(positives, torch.int64))
        native = extension.load()
        native.contrastive_positives(
            rows.fields, stream.fields, stream.dim, keys.self_offset, *sums, torch.get_num_threads()
        )

    def add_graded(self, pairs: GradedPairs, vectors: Tensor, total: Tensor) -> Tensor:
        """See ``TorchBackend``; ``total`` is contiguous float32."""
        rows, stream = (
            _Side.of(Queries(values, side.groups, side.images))
            for values, side in ((total, pairs.queries), (vectors, pairs.keys))
        )
        severities = [side.severities.contiguous() for side in (pairs.queries, pairs.keys)]
        weights = _floats(total.shape[0])
        extension.load().contrastive_graded(
            rows.fields,
            stream.fields,
            stream.dim,
            tuple(_floats_of(each) for each in severities),
            severities[0].shape[1],
            1 / (2 * pairs.width**2 * _LN2),
            pairs.self_offset,
            _floats_of(total),
            _floats_of(weights),
            isa,
            torch.get_num_threads(),
        )
        return weights

    def loss_forward(
        self,
        queries: Queries,
        key_sets: Sequence[KeySet],
        temperature: Tensor,
        log_weight: float,
        need_gradient: bool,
    ) -> LossTerms:
        # One call, because a small batch would pay more for the calls than for their arithmetic.
        n, dim = queries.vectors.shape
        real = temperature.new_empty
        terms = LossTerms(
            loss=real(()),
            valid_rows=queries.groups.new_empty(()),
            lse=real(n),
            positives=queries.groups.new_empty(n),
            gradient=real((n if need_gradient else 0, dim)),
            similarity=temperature.new_zeros(2),
        )
        rows = _Side.of(queries)
        sides = [_Side.of(keys) for keys in key_sets]
        sets = [
            (side.fields, keys.self_offset, not keys.negatives, place > 0)
            for place, (side, keys) in enumerate(zip(sides, key_sets, strict=True))
        ]
        whole = (torch.float32, torch.int64, torch.float32, torch.int64, torch.float32, torch.float32)
        buffers = [extension.buffer(term, dtype) for term, dtype in zip(terms, whole, strict=True)]
        buffers[4] = buffers[4] if need_gradient else (0, 0)
        problem = (rows.fields, sets, dim, temperature.item(), log_weight / _LN2, buffers)
        found = extension.load().contrastive_forward(*problem, self._isa, torch.get_num_threads())
        if found == -2:  # the gradient is not finite, which only its size can have caused
            terms.loss.fill_(math.nan)
        elif found >= 0:
            for keys in key_sets[1:]:
                check_rows_finite("contrastive_loss", "pool", keys.vectors)
        return terms


class _Side(NamedTuple):
    """A Side of csrc/cpu/contrastive.h, with the tensors that keep its pointers alive."""

    fields: tuple[Any, ...]
    vectors: Tensor
    groups: Tensor
    images: Tensor | None

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @staticmethod
    def of(rows: Queries | KeySet) -> "_Side":
        vectors, groups = rows.vectors, rows.groups.contiguous()
        images = None if rows.images is None else rows.images.contiguous()
        # C++ reads rows in place where their elements are neighbours.
        vectors = vectors if vectors.stride(1) == 1 or vectors.shape[1] == 1 else vectors.contiguous()
        (count, dim), stride = vectors.shape, vectors.stride(0)
        if not vectors.is_cpu:
            raise TypeError(f"qpt._C: embeddings must be on the CPU, got {vectors.device}")
        reach = ((count - 1) * stride + dim) * vectors.itemsize if count else 0
        ids = (extension.buffer(groups, torch.int64), extension.buffer(images, torch.int64))
        fields = ((vectors.data_ptr(), reach), stride, count, _DTYPE[vectors.dtype], *ids)
        return _Side(fields, vectors, groups, images)


def _pass(
    isa: str,
    rows: _Side,
    stream: _Side,
    tau: float,
    log_weight: float,
    self_offset: int | None,
    bias: Tensor | None,
    *,
    same_group: bool,
    weighted: bool,
) -> SoftmaxSums:
    """Return the sums of the rows over the stream; bias [stream], in units of log 2, fixes row_max at 0."""
    native = extension.load()
    count = rows.groups.numel()
    division = (1, 1) if same_group else native.contrastive_division(count, stream.groups.numel(), rows.dim)

    def empty(parts: int) -> SoftmaxSums:
        acc = _floats(parts * count, rows.dim) if weighted else None
        return SoftmaxSums(_floats(parts * count), _floats(parts * count), acc)

    out = empty(1)
    partial = empty(division[1]) if division[1] > 1 else out
    native.contrastive_pass(
        rows.fields,
        stream.fields,
        rows.dim,
        1 / (tau * _LN2),
        log_weight / _LN2,
        self_offset,
        bias is None,
        same_group,
        _floats_of(bias),
        division,
        [_floats_of(part) for part in partial],
        [_floats_of(part) for part in out],
        isa,
        torch.get_num_threads(),
    )
    return out


def _floats(*shape: int) -> Tensor:
    """Allocate what C++ writes: float32 on the CPU, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _floats_of(tensor: Tensor | None) -> tuple[int, int]:
    return extension.buffer(tensor, torch.float32)


def _bounded(vectors: Tensor, tau: float, log_weight: float) -> bool:
    """Return True where no logit of these rows among themselves exceeds _SAFE_LOGIT (Cauchy-Schwarz)."""
    largest = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).max().item()
    return largest * largest / tau + max(log_weight, 0.0) <= _SAFE_LOGIT


def _symmetric(rows: Queries, tau: float, log_weight: float, inverse: Tensor | None) -> Tensor:
    """Return sum_j exp(z_ij) [N]; or, with ``inverse`` = exp(-lse) [N], sum_j exp(z_ij) (inverse_i + inverse_j) x_j."""
    n, dim = rows.vectors.shape
    wide = rows.vectors.to(torch.float32)
    if dim % _STRIP:
        wide = F.pad(wide, (0, -dim % _STRIP))
    side = _Side.of(rows._replace(vectors=wide))
    out = (_floats(n) if inverse is None else _floats(n, side.dim)).zero_()
    packed = _floats((n + _STRIP) * side.dim)
    extension.load().contrastive_self(
        side.fields,
        side.dim,
        1 / (tau * _LN2),
        log_weight / _LN2,
        _floats_of(inverse),
        _floats_of(out if inverse is None else None),
        _floats_of(None if inverse is None else out),
        _floats_of(packed),
        _BLOCK,
        isa,
        torch.get_num_threads(),
    )
    return out if inverse is None or dim == side.dim else out[:, :dim].contiguous()
