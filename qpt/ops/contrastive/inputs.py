"""Argument checks of the contrastive loss, and the dtype it accumulates in.

Called by ``qpt.ops.contrastive.api`` (shapes, dtypes, devices: readable while a graph is compiled) and by
``qpt.ops.contrastive.op`` (values, which need data). Every refusal is one InputError that names the argument.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qpt.errors import InputError, describe
from qpt.ops.contrastive.pool import NegativePool, check_rows_finite

BACKENDS = ("auto", "cpp", "triton", "torch")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class PoolTensors(NamedTuple):
    """The pool as tensors, whichever way it was given: [K, D], [K], [K] or None; all None without a pool."""

    pool: Tensor | None
    pool_groups: Tensor | None
    pool_images: Tensor | None


def accumulation_dtype(queries: Tensor, keys: Tensor, pool: Tensor | None) -> torch.dtype:
    """float64 if any embedding is float64, else float32."""
    double = torch.float64 in (queries.dtype, keys.dtype, queries.dtype if pool is None else pool.dtype)
    return torch.float64 if double else torch.float32


def check_arguments(
    function: str,
    *,
    queries: Tensor,
    keys: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    query_images: Tensor | None,
    key_images: Tensor | None,
    pool: NegativePool | Tensor | None,
    pool_groups: Tensor | None,
    pool_images: Tensor | None,
    same_image_weight: float,
    exclude_self: bool,
    backend: str,
) -> PoolTensors:
    """Checks everything that does not need data; returns the pool's tensors. Raises InputError."""
    _check_embeddings(function, "queries", queries, "(N, D)")
    device, dim = queries.device, queries.shape[1]
    _check_embeddings(function, "keys", keys, f"(M, {dim})", device, dim)
    _check_ids(function, "query_groups", query_groups, queries)
    _check_ids(function, "key_groups", key_groups, keys)
    if query_images is not None:
        _check_ids(function, "query_images", query_images, queries)
    if key_images is not None:
        _check_ids(function, "key_images", key_images, keys)
    tensors = _check_pool(function, pool, pool_groups, pool_images, device, dim)
    if exclude_self and keys.shape[0] != queries.shape[0]:
        raise InputError(
            f"{function}: exclude_self needs queries and keys of the same rows, "
            f"got {queries.shape[0]} queries and {keys.shape[0]} keys"
        )
    if not isinstance(same_image_weight, (int, float)) or not 0 <= same_image_weight < math.inf:
        raise InputError(f"{function}: same_image_weight must be finite and >= 0, got {same_image_weight!r}")
    if backend not in BACKENDS:
        raise InputError(f"{function}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return tensors


def _check_pool(
    function: str,
    pool: NegativePool | Tensor | None,
    groups: Tensor | None,
    images: Tensor | None,
    device: torch.device,
    dim: int,
) -> PoolTensors:
    if pool is None or isinstance(pool, NegativePool):
        if groups is not None or images is not None:
            given = "none" if pool is None else "a NegativePool, which has its own"
            raise InputError(f"{function}: pool_groups and pool_images go with a pool tensor, got {given}")
        if pool is None:
            return PoolTensors(None, None, None)
        # A compiled graph sees the whole ring (unfilled rows are ignored by their ids): one shape, one compilation.
        whole = torch.compiler.is_compiling()
        pool, groups, images = pool.ring if whole else (pool.keys, pool.groups, pool.images)
    _check_embeddings(function, "pool", pool, f"(K, {dim})", device, dim)
    if pool.requires_grad:
        raise InputError(f"{function}: pool gets no gradient and must not require one; pass pool.detach()")
    if groups is None:
        raise InputError(f"{function}: a pool tensor needs pool_groups, int64 ({pool.shape[0]},), got None")
    _check_ids(function, "pool_groups", groups, pool)
    if images is not None:
        _check_ids(function, "pool_images", images, pool)
    return PoolTensors(pool, groups, images)


def _check_embeddings(
    function: str, name: str, value: Tensor, shape: str, device: torch.device | None = None, dim: int | None = None
) -> None:
    fits = isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] > 0 and dim in (None, value.shape[1])
    if not fits or value.dtype not in FLOATS:
        raise InputError(
            f"{function}: {name} must be {shape} float16, bfloat16, float32 or float64, got {describe(value)}"
        )
    if device is not None and value.device != device:
        raise InputError(f"{function}: {name} must be on the queries' device {device}, got {value.device}")


def _check_ids(function: str, name: str, value: Tensor, of: Tensor) -> None:
    rows = of.shape[0]
    if not isinstance(value, Tensor) or value.ndim != 1 or value.shape[0] != rows or value.dtype != torch.int64:
        raise InputError(f"{function}: {name} must be ({rows},) int64, got {describe(value)}")
    if value.device != of.device:
        raise InputError(f"{function}: {name} must be on the queries' device {of.device}, got {value.device}")


def temperature_tensor(function: str, temperature: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The temperature as a 0-d tensor of the accumulation dtype; a tensor keeps its graph. Raises InputError."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or temperature.ndim > 1 or temperature.dtype not in FLOATS:
            raise InputError(
                f"{function}: temperature must be a float or a floating-point tensor of one element, "
                f"got {describe(temperature)}"
            )
        if temperature.device != device:
            raise InputError(
                f"{function}: temperature must be on the queries' device {device}, got {temperature.device}"
            )
        return temperature.reshape(()).to(dtype)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise InputError(f"{function}: temperature must be a float or a tensor, got {describe(temperature)}")
    if not 0 < temperature < math.inf:
        raise InputError(f"{function}: temperature must be finite and > 0, got {temperature}")
    return torch.full((), float(temperature), dtype=dtype, device=device)


def check_values(
    queries: Tensor, keys: Tensor | None, pool: Tensor | None, temperature: Tensor, check_finite: bool
) -> None:
    """Refuses a temperature <= 0, nan and infinity: on the CPU always, elsewhere when asked (waits for the device)."""
    if queries.device.type != "cpu" and not check_finite:
        return
    value = temperature.item()
    if not 0 < value < math.inf:
        raise InputError(f"contrastive_loss: temperature must be finite and > 0, got {value:g}")
    check_rows_finite("contrastive_loss", "queries", queries)
    if keys is not None:
        check_rows_finite("contrastive_loss", "keys", keys)
    if pool is not None:
        check_rows_finite("contrastive_loss", "pool", pool)
