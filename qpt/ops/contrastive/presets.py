"""Three published losses as settings of ``contrastive_loss``: InfoNCE (MoCo), NT-Xent (SimCLR), SupCon.

Public through ``qpt``. Each function only checks what it needs to make the group ids, and calls
``qpt.ops.contrastive.api``, which checks the rest. Embeddings are used as given: normalise them before.
"""

from typing import Any

import torch
from torch import Tensor

from qpt.errors import InputError, describe
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.pool import NegativePool


def info_nce(
    queries: Tensor,
    keys: Tensor,
    pool: NegativePool | Tensor,
    *,
    temperature: float | Tensor = 0.2,
    backend: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """MoCo's loss: the positive of queries[i] is keys[i], its negatives are all keys of the pool; 0-d tensor.

    queries, keys [N, D]: floating point, usually of unit length (not normalised here). pool: a NegativePool, or a
    tensor [K, D] without gradient; its group and image ids do not matter here, except that a negative group id hides a
    row. temperature, backend, check_finite: as for ``contrastive_loss``.
    Raises InputError as ``contrastive_loss`` does. Source: He et al., CVPR 2020, equation 1 and Algorithm 1 (which has
    temperature 0.07; 0.2 is that of MoCo v2).
    """
    _check_pairs("info_nce", {"queries": queries, "keys": keys})
    ids = torch.arange(1, queries.shape[0] + 1, device=queries.device)
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
        check_finite=check_finite,
    )


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    backend: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """SimCLR's loss: first[i] and second[i] are two views of one sample, all other rows of both are negatives.

    first, second [N, D]: floating point, usually of unit length (not normalised here). Returns the 0-d mean over the
    2N rows. temperature, backend, check_finite: as for ``contrastive_loss``.
    Raises InputError as ``contrastive_loss`` does. Source: Chen et al., ICML 2020, equation 1 and Algorithm 1.
    """
    _check_pairs("nt_xent", {"first": first, "second": second})
    ids = torch.arange(first.shape[0], device=first.device).repeat(2)
    return _among_themselves(torch.cat((first, second)), ids, temperature, backend, check_finite)


def supcon(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    backend: str = "auto",
    check_finite: bool = False,
) -> Tensor:
    """Supervised contrastive loss (L_out): rows of one label are positives of each other, the others negatives.

    features [N, D], or [N, V, D] for V views of each sample: floating point, usually of unit length (not normalised
    here). labels [N]: int64 >= 0; -1 leaves a sample out. Returns the 0-d mean over rows that have a positive (the
    released code divides by all rows, and multiplies by temperature / 0.07). temperature, backend, check_finite: as
    for ``contrastive_loss``.
    Raises InputError as ``contrastive_loss`` does. Source: Khosla et al., NeurIPS 2020, equation 2.
    """
    if not isinstance(features, Tensor) or features.ndim not in (2, 3) or features.shape[-1] == 0:
        raise InputError(f"supcon: features must be (N, D) or (N, V, D) floating point, got {describe(features)}")
    samples = features.shape[0]
    if not isinstance(labels, Tensor) or labels.shape != (samples,) or labels.dtype != torch.int64:
        raise InputError(f"supcon: labels must be ({samples},) int64, got {describe(labels)}")
    if features.ndim == 3:
        labels = labels.repeat_interleave(features.shape[1])
        features = features.flatten(0, 1)
    return _among_themselves(features, labels, temperature, backend, check_finite)


def _among_themselves(rows: Tensor, ids: Tensor, temperature: float | Tensor, backend: str, finite: bool) -> Tensor:
    # The very same tensors as queries and keys: the symmetry of their similarities is then used.
    options: dict[str, Any] = {"temperature": temperature, "backend": backend, "check_finite": finite}
    return contrastive_loss(rows, rows, query_groups=ids, key_groups=ids, exclude_self=True, **options)


def _check_pairs(function: str, pair: dict[str, Tensor]) -> None:
    """Refuses two tensors whose rows do not belong together."""
    (one, first), (other, second) = pair.items()
    for name, value in pair.items():
        if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
            raise InputError(f"{function}: {name} must be (N, D) floating point, got {describe(value)}")
    if first.shape != second.shape:
        raise InputError(
            f"{function}: {one} and {other} must have the same shape, got {describe(first)} and {describe(second)}"
        )
    if first.device != second.device:
        raise InputError(f"{function}: {one} and {other} must be on one device, got {first.device}, {second.device}")
