"""The quality-aware contrastive loss: ids instead of masks, many positives, a detached pool, no N x K array.

``contrastive_loss`` is the public function (``qpt.contrastive_loss``), ``QualityContrastiveLoss`` its module form; the
pre-training step calls the latter. The argument checks are in ``inputs.py``, the custom op with its fake
and autograd in ``op.py``, the loss in ``loss.py``, the choice of C++, Triton or torch for
the work over pairs in ``backends.py``. Formulas: docs/loss.md.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qpt.ops.contrastive.inputs import accumulation_dtype, check_arguments, temperature_tensor
from qpt.ops.contrastive.op import contrastive
from qpt.ops.contrastive.pool import NegativePool


class ContrastiveResult(NamedTuple):
    """What ``contrastive_loss_with_stats`` returns: 0-d tensors on the inputs' device; only ``loss`` has a gradient."""

    loss: Tensor
    valid_rows: Tensor  # int64: queries with at least one positive
    positive_similarity: Tensor  # mean q.k over positives, averaged per row first; 0 when valid_rows is 0
    negative_similarity: Tensor  # same for eligible keys of other groups, unweighted; nan when there are none


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None = None,
    key_images: Tensor | None = None,
    pool: NegativePool | Tensor | None = None,
    pool_groups: Tensor | None = None,
    pool_images: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    same_image_weight: float = 1.0,
    exclude_self: bool = False,
    in_batch_negatives: bool = True,
    backend: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Contrastive loss of N queries against M in-batch keys and K pool keys; returns a 0-d tensor.

    With z_ij = q_i.k_j / temperature, plus log(same_image_weight) where the image ids match and the groups differ:
    L = mean over queries with a positive of -1/|P| sum_{p in P} (z_ip - log sum_{j in E} exp z_ij), where E are the
    keys of group >= 0 and P those of E in the query's group. No such query: loss 0 and zero gradients. InfoNCE (MoCo),
    NT-Xent (SimCLR) and SupCon are settings of this.

    queries [N, D], keys [M, D]: float16, bfloat16, float32 or float64, used as given (normalise them before);
        N, M >= 0, any strides. Gradients flow to both. Sums are taken in float32, or in float64 if any of queries,
        keys or pool is float64; the loss has that dtype. Autocast changes nothing: no product in lower precision.
    query_groups [N], key_groups [M]: int64 ids of (image, composition). -1: a query left out, a key ignored.
    query_images [N], key_images [M]: int64 image ids, or None: no same-image pairs. A negative id matches nothing.
    pool: qpt.NegativePool, or a tensor [K, D] with pool_groups [K] (and pool_images [K]). Gets no gradient.
    temperature: > 0; a float, or a tensor of one element, which may require its gradient.
    same_image_weight: >= 0; multiplies exp(z) of negatives of the query's own image; 0 removes them.
    exclude_self: queries and keys are the same N rows (SimCLR, SupCon): pair (i, i) is in neither sum. When they are
        the very same tensors (ids too), the symmetry of their similarities is used.
    in_batch_negatives: False (MoCo): of the in-batch keys only those of the query's own group are eligible.
    backend: "auto", "cpp" (CPU), "triton" (CUDA) or "torch" (tiled torch, any device). "auto" takes C++ on the CPU,
        Triton on CUDA, and torch for float64.
    check_finite: on CUDA, also look for nan and infinity in the embeddings (waits for the device); the CPU always does.

    Raises InputError for a wrong shape, dtype, device or value. Gradients are exact; a second derivative raises
    RuntimeError. Sources: InfoNCE, He et al., CVPR 2020; NT-Xent, Chen et al., ICML 2020; SupCon (L_out), Khosla et
    al., NeurIPS 2020; the same-image negatives of Zhao et al., CVPR 2023.
    """
    args = (query_groups, key_groups, query_images, key_images, pool, pool_groups, pool_images)
    options = (temperature, same_image_weight, exclude_self, in_batch_negatives, backend, check_finite)
    return _call("contrastive_loss", queries, keys, *args, *options, False)[0]


def contrastive_loss_with_stats(
    queries: Tensor,
    keys: Tensor,
    *,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None = None,
    key_images: Tensor | None = None,
    pool: NegativePool | Tensor | None = None,
    pool_groups: Tensor | None = None,
    pool_images: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    same_image_weight: float = 1.0,
    exclude_self: bool = False,
    in_batch_negatives: bool = True,
    backend: str = "auto",
    check_finite: bool = False,
) -> ContrastiveResult:
    """``contrastive_loss`` (same arguments, same errors) with what a training log wants; costs one more pool read."""
    args = (query_groups, key_groups, query_images, key_images, pool, pool_groups, pool_images)
    options = (temperature, same_image_weight, exclude_self, in_batch_negatives, backend, check_finite)
    loss, valid_rows, similarity = _call("contrastive_loss_with_stats", queries, keys, *args, *options, True)
    return ContrastiveResult(loss, valid_rows, similarity[0], similarity[1])


class QualityContrastiveLoss(nn.Module):
    """``contrastive_loss`` with its options fixed; the temperature can be learnt.

    temperature: initial value, > 0. learn_temperature: keep log(temperature) as a parameter, so that it stays positive.
    The other options are those of ``contrastive_loss``. ``forward`` returns the loss, ``with_stats`` a
    ``ContrastiveResult``; both take the tensors of ``contrastive_loss``. Raises InputError as that does.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        learn_temperature: bool = False,
        same_image_weight: float = 1.0,
        exclude_self: bool = False,
        in_batch_negatives: bool = True,
        backend: str = "auto",
        check_finite: bool = False,
    ):
        super().__init__()
        value = temperature_tensor("QualityContrastiveLoss", temperature, torch.device("cpu"), torch.float64).item()
        self.fixed_temperature = None if learn_temperature else value
        self.log_temperature = nn.Parameter(torch.tensor(math.log(value))) if learn_temperature else None
        self.options: dict[str, Any] = {
            "same_image_weight": same_image_weight,
            "exclude_self": exclude_self,
            "in_batch_negatives": in_batch_negatives,
            "backend": backend,
            "check_finite": check_finite,
        }

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use: a float, or a 0-d tensor with a gradient when it is learnt."""
        return self.log_temperature.exp() if self.log_temperature is not None else self.fixed_temperature  # type: ignore[return-value]

    def forward(self, queries: Tensor, keys: Tensor, **tensors: Any) -> Tensor:
        """The 0-d loss. ``tensors``: query_groups, key_groups, and as wanted images, pool, pool ids."""
        return contrastive_loss(queries, keys, temperature=self.temperature, **tensors, **self.options)

    def with_stats(self, queries: Tensor, keys: Tensor, **tensors: Any) -> ContrastiveResult:
        """Loss, valid rows and mean similarities; arguments as in ``forward``."""
        return contrastive_loss_with_stats(queries, keys, temperature=self.temperature, **tensors, **self.options)

    def extra_repr(self) -> str:
        temperature = "learnt" if self.log_temperature is not None else f"{self.fixed_temperature:g}"
        return f"temperature={temperature}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


def _call(
    function: str,
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    pool: NegativePool | Tensor | None,
    pool_groups: Tensor | None,
    pool_images: Tensor | None,
    temperature: float | Tensor,
    same_image_weight: float,
    exclude_self: bool,
    in_batch_negatives: bool,
    backend: str,
    check_finite: bool,
    need_similarity: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks what can be checked without reading data, and calls the op: (loss, valid_rows, similarity)."""
    tensors = check_arguments(
        function,
        queries=queries,
        keys=keys,
        query_groups=query_groups,
        key_groups=key_groups,
        query_images=query_images,
        key_images=key_images,
        pool=pool,
        pool_groups=pool_groups,
        pool_images=pool_images,
        same_image_weight=same_image_weight,
        exclude_self=exclude_self,
        backend=backend,
    )
    dtype = accumulation_dtype(queries, keys, tensors.pool)
    tau = temperature_tensor(function, temperature, queries.device, dtype)
    # An op cannot see whether its inputs need a gradient. tau's gradient is a product with the queries' one.
    need_query_gradient = torch.is_grad_enabled() and (queries.requires_grad or tau.requires_grad)
    # A weight of 1 adds log 1 = 0: the image ids need not be looked at.
    weighted = same_image_weight != 1.0
    same_rows = exclude_self and keys is queries and key_groups is query_groups and key_images is query_images
    loss, valid_rows, _, _, _, similarity = contrastive(
        queries,
        None if same_rows else keys,
        query_groups,
        None if same_rows else key_groups,
        query_images if weighted else None,
        key_images if weighted and not same_rows else None,
        tensors.pool,
        tensors.pool_groups,
        tensors.pool_images if weighted else None,
        tau,
        float(same_image_weight),
        exclude_self,
        in_batch_negatives,
        backend,
        need_query_gradient,
        need_similarity,
        check_finite,
    )
    return loss, valid_rows, similarity
