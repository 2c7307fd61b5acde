"""The contrastive loss's public functions: the loss itself, its module form, and InfoNCE, NT-Xent and SupCon.

Public through ``qpt``; the pre-training step calls ``contrastive_loss``. Each function builds a checked ``Problem``
(``problem.py``) and calls the op (``op.py``). Formulas: docs/loss.md.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qpt.errors import InputError, check_number, describe, describe_tensor
from qpt.ops.contrastive.op import contrastive
from qpt.ops.contrastive.pool import NegativePool
from qpt.ops.contrastive.problem import make_problem, temperature_tensor


class ContrastiveResult(NamedTuple):
    """Results of ``contrastive_loss_with_stats``: 0-d tensors on the inputs' device; only ``loss`` has a gradient."""

    loss: Tensor
    valid_rows: Tensor  # int64: queries with at least one positive
    positive_similarity: Tensor  # (weighted) mean q.k over positives, averaged per row first; 0 when valid_rows is 0
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
    query_severities: Tensor | None = None,
    key_severities: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    same_image_weight: float = 1.0,
    severity_width: float | None = None,
    exclude_self: bool = False,
    in_batch_negatives: bool = True,
    backend: str = "auto",
    precision: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Return the contrastive loss of N queries against M in-batch keys and K pool keys, a 0-d tensor.

    With z_ij = q_i.k_j / temperature, plus log(same_image_weight) where the image ids match and the groups differ:
    L = mean over queries with a positive of -1/|P| sum_{p in P} (z_ip - log sum_{j in E} exp z_ij), where E are the
    keys of group >= 0 and P those of E in the query's group. No such query: loss 0 and zero gradients. InfoNCE (MoCo),
    NT-Xent (SimCLR) and SupCon are settings of this.

    With severities the positives are graded: in-batch keys of other groups are positives too, key j with the weight
    w_ij = exp(-|s_i - s_j|^2 / (2 severity_width^2)), and the mean of z_ip becomes the weighted mean of q_i.k_j /
    temperature. Keys of the query's group keep weight 1, pool keys of other groups have 0. E and the queries that count
    stay as they are.

    queries [N, D], keys [M, D]: float16, bfloat16, float32 or float64, used as given (normalise them before);
        N, M >= 0, any strides. Gradients flow to both. Sums are taken in float32, or in float64 if any of queries,
        keys or pool is float64; the loss has that dtype. Autocast, and torch's settings of float32 products such as
        TF32, change nothing.
    query_groups [N], key_groups [M]: int64 ids of (image, composition). -1: a query left out, a key ignored. Keys of
        the pool with a query's id are its positives: take new ids in every step, ``pool.new_groups(n)``.
    query_images [N], key_images [M]: int64 image ids, or None: no same-image pairs. A negative id matches nothing.
    pool: qpt.NegativePool, or a tensor [K, D] with pool_groups [K] (and pool_images [K]). Gets no gradient.
    query_severities [N, S], key_severities [M, S]: float32, S from 1 to 8, such as levels in 0..1 of the kinds of
        degradation of a row. They get no gradient. Not with in_batch_negatives=False.
    temperature: > 0; a float, or a tensor of one element, which may require its gradient.
    same_image_weight: >= 0; multiplies exp(z) of negatives of the query's own image; 0 removes them, also as graded
        positives. Any other value leaves w_ij as it is.
    severity_width: standard deviation of the weights w_ij in units of severity, >= 1e-6; given with severities alone.
    exclude_self: queries and keys are the same N rows (SimCLR, SupCon): pair (i, i) is in neither sum. When they are
        the very same tensors (ids and severities too), the symmetry of their similarities is used.
    in_batch_negatives: False (MoCo): of the in-batch keys only those of the query's own group are eligible.
    backend: "auto", "cpp" (CPU), "triton" (CUDA) or "torch" (tiled torch, any device). "auto" takes C++ on the CPU,
        Triton on CUDA, and torch for float64.
    precision: products of the Triton form; the others take "auto" and "ieee", which are the same there but on a CPU
        with AMX, where "auto" multiplies terms of bfloat16 that keep float32's accuracy. On CUDA, "auto": embeddings of
        one half-precision dtype are multiplied in it, others as "bf16x3". "ieee": float32. "bf16x3": on tensor cores,
        each number that is not a bfloat16 as the sum of two, which keeps 16 bits of it. "tf32x3": the same with TF32
        and 21 bits, at half the rate. "tf32": one TF32 product, 11 bits. All sums are float32.
    check_finite: on CUDA, also look for nan and infinity in the embeddings (waits for the device); the CPU always does.

    Raises InputError for a wrong shape, dtype, device or value. Gradients are exact; a second derivative raises
    RuntimeError. Sources: InfoNCE, He et al., CVPR 2020; NT-Xent, Chen et al., ICML 2020; SupCon (L_out), Khosla et
    al., NeurIPS 2020; the same-image negatives of Zhao et al., CVPR 2023; graded positives: y-Aware InfoNCE, Dufumier
    et al., MICCAI 2021 (arXiv 2106.08808).
    """
    problem = make_problem(
        "contrastive_loss", queries, keys, query_groups, key_groups, query_images, key_images,
        pool, pool_groups, pool_images, temperature, same_image_weight,
        exclude_self, in_batch_negatives, backend, check_finite,
        query_severities, key_severities, severity_width, precision,
    )  # fmt: skip
    return contrastive(problem, need_similarity=False)[0]


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
    query_severities: Tensor | None = None,
    key_severities: Tensor | None = None,
    temperature: float | Tensor = 0.2,
    same_image_weight: float = 1.0,
    severity_width: float | None = None,
    exclude_self: bool = False,
    in_batch_negatives: bool = True,
    backend: str = "auto",
    precision: str = "auto",
    check_finite: bool = False,
) -> ContrastiveResult:
    """Return ``contrastive_loss`` (same arguments, same errors) with the numbers of a training log.

    Costs one more read of the pool.
    """
    problem = make_problem(
        "contrastive_loss_with_stats", queries, keys, query_groups, key_groups, query_images, key_images,
        pool, pool_groups, pool_images, temperature, same_image_weight,
        exclude_self, in_batch_negatives, backend, check_finite,
        query_severities, key_severities, severity_width, precision,
    )  # fmt: skip
    loss, valid_rows, _, _, _, similarity = contrastive(problem, need_similarity=True)
    return ContrastiveResult(loss, valid_rows, similarity[0], similarity[1])


class QualityContrastiveLoss(nn.Module):
    """``contrastive_loss`` with its options fixed; the temperature can be learnt.

    temperature: initial value, > 0. learn_temperature: keep log(temperature) as a parameter, so that it stays positive.
    min_temperature: of a learnt one, > 0 and at most the initial one; a step that went below is taken back to it, as
    in CLIP (arXiv 2103.00020), since near 0 the loss has no slope to come back by. None: 0.01, or the initial
    temperature if that is lower.
    The other options are those of ``contrastive_loss``. ``forward`` returns the loss, ``with_stats`` a
    ``ContrastiveResult``; both take the tensors of ``contrastive_loss``. Raises InputError as that does.
    """

    @torch.inference_mode(False)  # else a temperature made in inference mode could not be learnt outside it
    def __init__(
        self,
        temperature: float = 0.2,
        *,
        learn_temperature: bool = False,
        min_temperature: float | None = None,
        same_image_weight: float = 1.0,
        severity_width: float | None = None,
        exclude_self: bool = False,
        in_batch_negatives: bool = True,
        backend: str = "auto",
        precision: str = "auto",
        check_finite: bool = False,
    ):
        super().__init__()
        value = temperature_tensor("QualityContrastiveLoss", temperature, torch.device("cpu"), torch.float64).item()
        self.min_temperature = min(0.01, value)
        if min_temperature is not None:
            name = "QualityContrastiveLoss"
            self.min_temperature = check_number(name, "min_temperature", min_temperature, above=0)
            if self.min_temperature > value:
                raise InputError(
                    f"{name}: min_temperature must be at most temperature {value:g}, got {min_temperature}"
                )
        self.fixed_temperature = None if learn_temperature else value
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(value), dtype=torch.float32, device="cpu"))
            if learn_temperature
            else None
        )
        self.options: dict[str, Any] = {
            "same_image_weight": same_image_weight,
            "severity_width": severity_width,
            "exclude_self": exclude_self,
            "in_batch_negatives": in_batch_negatives,
            "backend": backend,
            "precision": precision,
            "check_finite": check_finite,
        }

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use: a float, or a 0-d tensor with a gradient when it is learnt."""
        if self.log_temperature is None:
            return self.fixed_temperature  # type: ignore[return-value]
        # The parameter itself is moved back. A clamp in the graph would have no gradient below the floor.
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(self.min_temperature))
        return self.log_temperature.exp()

    def forward(self, queries: Tensor, keys: Tensor, **tensors: Any) -> Tensor:
        """Return the 0-d loss. ``tensors``: query_groups, key_groups, and as wanted images, pool, pool ids."""
        return contrastive_loss(queries, keys, temperature=self.temperature, **tensors, **self.options)

    def with_stats(self, queries: Tensor, keys: Tensor, **tensors: Any) -> ContrastiveResult:
        """Return loss, valid rows and mean similarities; arguments as in ``forward``."""
        return contrastive_loss_with_stats(queries, keys, temperature=self.temperature, **tensors, **self.options)

    def extra_repr(self) -> str:
        temperature = (
            f"learnt, >= {self.min_temperature:g}"
            if self.log_temperature is not None
            else f"{self.fixed_temperature:g}"
        )
        return f"temperature={temperature}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


def info_nce(
    queries: Tensor,
    keys: Tensor,
    pool: NegativePool | Tensor,
    *,
    temperature: float | Tensor = 0.2,
    backend: str = "auto",
    precision: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Return MoCo's loss, 0-d: the positive of queries[i] is keys[i], its negatives are all keys of the pool.

    queries, keys [N, D]: floating point, usually of unit length (not normalised here). pool: a NegativePool, or a
    tensor [K, D] without gradient; its group and image ids do not matter here, except that a negative group id hides a
    row. temperature, backend, precision, check_finite: as for ``contrastive_loss``.
    Raises InputError as ``contrastive_loss`` does. Source: He et al., CVPR 2020, equation 1 and Algorithm 1 (which has
    temperature 0.07; 0.2 is that of MoCo v2).
    """
    _check_pairs("info_nce", {"queries": queries, "keys": keys})
    ids = torch.arange(1, queries.shape[0] + 1, dtype=torch.int64, device=queries.device)
    # Every pool row is a negative: group 0, which no query has, whatever the ids of earlier batches were.
    if isinstance(pool, NegativePool):
        rows, groups, _ = pool.ring if torch.compiler.is_compiling() else (pool.keys, pool.groups, None)
        pool, groups = rows, groups.clamp(max=0)
    elif isinstance(pool, Tensor) and pool.ndim == 2:
        groups = torch.zeros(pool.shape[0], dtype=torch.int64, device=pool.device)
    else:
        raise InputError(f"info_nce: pool must be a NegativePool or a (K, D) tensor, got {describe(pool)}")
    return contrastive_loss(
        queries,
        keys,
        query_groups=ids,
        key_groups=ids,
        pool=pool,
        pool_groups=groups,
        temperature=temperature,
        in_batch_negatives=False,
        backend=backend,
        precision=precision,
        check_finite=check_finite,
    )


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    backend: str = "auto",
    precision: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Return SimCLR's loss, 0-d: first[i] and second[i] are two views of a sample, all other rows are negatives.

    first, second [N, D]: floating point, usually of unit length (not normalised here). The mean is over the 2N
    rows. temperature, backend, precision, check_finite: as for ``contrastive_loss``.
    Raises InputError as ``contrastive_loss`` does. Source: Chen et al., ICML 2020, equation 1 and Algorithm 1.
    """
    _check_pairs("nt_xent", {"first": first, "second": second})
    ids = torch.arange(first.shape[0], dtype=torch.int64, device=first.device).repeat(2)
    return _same_rows_loss(torch.cat((first, second)), ids, temperature, backend, precision, check_finite)


def supcon(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    backend: str = "auto",
    precision: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Return the supervised contrastive loss (L_out), 0-d: rows of one label are positives, all others negatives.

    features [N, D], or [N, V, D] for V views of each sample: floating point, usually of unit length (not normalised
    here). labels [N]: int64 >= 0; -1 leaves a sample out. The mean is over rows that have a positive (the
    released code divides by all rows, and multiplies by temperature / 0.07). temperature, backend, precision,
    check_finite: as for ``contrastive_loss``.
    Raises InputError as ``contrastive_loss`` does. Source: Khosla et al., NeurIPS 2020, equation 2.
    """
    if not isinstance(features, Tensor) or features.ndim not in (2, 3) or features.shape[-1] == 0:
        raise InputError(
            f"supcon: features must be (N, D) or (N, V, D) floating point, got {describe_tensor(features)}"
        )
    samples = features.shape[0]
    if not isinstance(labels, Tensor) or labels.shape != (samples,) or labels.dtype != torch.int64:
        raise InputError(f"supcon: labels must be ({samples},) int64, got {describe_tensor(labels)}")
    if features.ndim == 3:
        labels = labels.repeat_interleave(features.shape[1])
        features = features.flatten(0, 1)
    return _same_rows_loss(features, labels, temperature, backend, precision, check_finite)


def _same_rows_loss(
    rows: Tensor, ids: Tensor, temperature: float | Tensor, backend: str, precision: str, check_finite: bool
) -> Tensor:
    # The very same tensors as queries and keys: the symmetry of their similarities is then used.
    options: dict[str, Any] = {"backend": backend, "precision": precision, "check_finite": check_finite}
    return contrastive_loss(
        rows, rows, query_groups=ids, key_groups=ids, exclude_self=True, temperature=temperature, **options
    )


def _check_pairs(function: str, pair: dict[str, Tensor]) -> None:
    """Refuse two tensors whose rows do not belong together."""
    (one, first), (other, second) = pair.items()
    for name, value in pair.items():
        if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
            raise InputError(f"{function}: {name} must be (N, D) floating point, got {describe_tensor(value)}")
    if first.shape != second.shape:
        raise InputError(
            f"{function}: {one} and {other} must have the same shape, got {describe(first)} and {describe(second)}"
        )
    if first.device != second.device:
        raise InputError(f"{function}: {one} and {other} must be on one device, got {first.device}, {second.device}")
