"""The problem that a contrastive loss solves: its arguments as one frozen tuple, built and checked once.

``api.py`` and ``distributed.py`` build a ``Problem`` from their public arguments; ``op.py`` flattens it for
``torch.library``; ``loss.py`` and the backends read it. Every refusal is one InputError that names the argument.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qpt.errors import InputError, as_number, check_untransformed, describe_tensor
from qpt.ops.contrastive.pool import NegativePool, check_rows_finite

BACKEND_NAMES = ("auto", "cpp", "triton", "torch")
PRECISIONS = ("auto", "ieee", "tf32", "tf32x3", "bf16x3")
MAX_SEVERITIES = 8  # numbers of a severity vector, in every backend
# Smallest width of graded positives. 1 / (2 width^2) stays far inside float32, and distinct levels in 0..1 are further
# apart than this.
LEAST_WIDTH = 1e-6
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Queries(NamedTuple):
    """vectors [N, D]; groups int64 [N] (-1: left out of the mean); images int64 [N] or None (no same-image pairs)."""

    vectors: Tensor
    groups: Tensor
    images: Tensor | None


class KeySet(NamedTuple):
    """Keys of one origin (the batch, another process, the pool), and which pairs with them count.

    vectors [M, D]; groups int64 [M] (-1: ignored); images int64 [M] or None. Pair (i, i + self_offset) is taken out;
    ``negatives=False`` keeps only the keys of the row's own group.
    """

    vectors: Tensor
    groups: Tensor
    images: Tensor | None
    self_offset: int | None = None
    negatives: bool = True

    def self_pairs(self, rows: int) -> tuple[slice, slice]:
        """Return the rows i of ``rows``, and the keys i + self_offset, for which both exist."""
        offset = self.self_offset
        assert offset is not None
        first = max(0, -offset)
        stop = max(first, min(rows, self.groups.numel() - offset))
        return slice(first, stop), slice(first + offset, stop + offset)

    def of_other_process(self, vectors: Tensor, groups: Tensor, images: Tensor | None) -> "KeySet":
        """Return the key set of another process's batch, in which no query has its self pair."""
        return KeySet(vectors, groups, images, None, self.negatives)


class GradedRows(NamedTuple):
    """One side of the pairs that graded positives weigh.

    severities float32 [N, S]; groups int64 [N] (-1: weight 0); images int64 [N], or None. Given for both sides, pairs
    of one image have weight 0.
    """

    severities: Tensor
    groups: Tensor
    images: Tensor | None


class GradedPairs(NamedTuple):
    """The pairs of queries and in-batch keys of other groups, which graded positives weigh by their severities.

    w_ij = exp(-|s_i - s_j|^2 / (2 width^2)), and 0 for a pair of one group, an ignored key or query, pair
    (i, i + self_offset), and a pair of one image where both sides have image ids.
    """

    queries: GradedRows
    keys: GradedRows
    width: float
    self_offset: int | None

    def transposed(self) -> "GradedPairs":
        """Return the pairs with keys as rows and queries as columns."""
        return GradedPairs(self.keys, self.queries, self.width, None if self.self_offset is None else -self.self_offset)


class Problem(NamedTuple):
    """One contrastive loss; the fields are the public arguments of ``contrastive_loss``, which documents them.

    The pool is given by its tensors; ``temperature`` is a 0-d tensor on the embeddings' device, in the accumulation
    dtype. ``op.py`` derives the ops' schemas from these annotations.
    """

    queries: Tensor
    keys: Tensor
    query_groups: Tensor
    key_groups: Tensor
    query_images: Tensor | None
    key_images: Tensor | None
    pool: Tensor | None
    pool_groups: Tensor | None
    pool_images: Tensor | None
    query_severities: Tensor | None
    key_severities: Tensor | None
    temperature: Tensor
    same_image_weight: float
    severity_width: float  # 0 without severities
    exclude_self: bool
    in_batch_negatives: bool
    backend: str
    precision: str
    check_finite: bool

    @property
    def log_weight(self) -> float:
        """Logarithm of same_image_weight."""
        return math.log(self.same_image_weight) if self.same_image_weight > 0 else -math.inf

    def has_same_rows(self) -> bool:  # a method: torch.compile of torch 2.6 asks no property of a named tuple
        """Return True where queries and keys are the very same tensors (SimCLR, SupCon): similarities are symmetric."""
        pairs = (
            (self.keys, self.queries),
            (self.key_groups, self.query_groups),
            (self.key_images, self.query_images),
            (self.key_severities, self.query_severities),
        )
        return self.exclude_self and all(key is query for key, query in pairs)

    def without_idle_images(self) -> "Problem":
        """Return the problem without image ids where they change nothing: a weight of 1 adds log 1 = 0."""
        if self.same_image_weight != 1.0:
            return self
        # Not self._replace, which torch.compile of torch 2.6 cannot trace.
        values = zip(Problem._fields, self, strict=True)
        return Problem(*[None if name.endswith("_images") else value for name, value in values])  # type: ignore[arg-type]

    def without_pool(self) -> "Problem":
        """Return the part of the problem whose keys get a gradient."""
        return self._replace(pool=None, pool_groups=None, pool_images=None)

    def query_rows(self) -> Queries:
        return Queries(self.queries, self.query_groups, self.query_images)

    def batch_keys(self) -> KeySet:
        offset = 0 if self.exclude_self else None
        return KeySet(self.keys, self.key_groups, self.key_images, offset, self.in_batch_negatives)

    def graded_pairs(self) -> GradedPairs | None:
        """Return the pairs that are weighed by severity; None without severities."""
        if self.query_severities is None or self.key_severities is None:
            return None
        # Only where pairs of one image are taken out do image ids matter here.
        removed = self.same_image_weight == 0
        query_images, key_images = (self.query_images, self.key_images) if removed else (None, None)
        return GradedPairs(
            GradedRows(self.query_severities, self.query_groups, query_images),
            GradedRows(self.key_severities, self.key_groups, key_images),
            self.severity_width,
            0 if self.exclude_self else None,
        )

    def pool_keys(self) -> list[KeySet]:
        """Return the pool's key set; an empty list without a pool."""
        if self.pool is None or self.pool_groups is None:
            return []
        return [KeySet(self.pool, self.pool_groups, self.pool_images)]


def make_problem(
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
    query_severities: Tensor | None = None,
    key_severities: Tensor | None = None,
    severity_width: float | None = None,
    precision: str = "auto",
) -> Problem:
    """Check everything that can be checked without reading data, in the name of the public ``function``."""
    _check_embeddings(function, "queries", queries, "(N, D)")
    device, dim = queries.device, queries.shape[1]
    _check_embeddings(function, "keys", keys, f"(M, {dim})", device, dim)
    _check_ids(function, "query_groups", query_groups, queries)
    _check_ids(function, "key_groups", key_groups, keys)
    if query_images is not None:
        _check_ids(function, "query_images", query_images, queries)
    if key_images is not None:
        _check_ids(function, "key_images", key_images, keys)
    if (pool is None or isinstance(pool, NegativePool)) and (pool_groups is not None or pool_images is not None):
        given = "none" if pool is None else "a NegativePool, which has its own"
        raise InputError(f"{function}: pool_groups and pool_images go with a pool tensor, got {given}")
    if isinstance(pool, NegativePool):
        # A compiled graph sees the whole ring (unfilled rows are ignored by their ids): one shape, one compilation.
        whole = torch.compiler.is_compiling()
        pool, pool_groups, pool_images = pool.ring if whole else (pool.keys, pool.groups, pool.images)
    if pool is not None:
        _check_pool(function, pool, pool_groups, pool_images, device, dim)
    if exclude_self and keys.shape[0] != queries.shape[0]:
        raise InputError(
            f"{function}: exclude_self needs queries and keys of the same rows, "
            f"got {queries.shape[0]} queries and {keys.shape[0]} keys"
        )
    weight = as_number(same_image_weight)
    if weight is None or not 0 <= weight < math.inf:
        raise InputError(f"{function}: same_image_weight must be finite and >= 0, got {same_image_weight!r}")
    width = _check_severities(function, queries, keys, query_severities, key_severities, severity_width)
    if query_severities is not None and not in_batch_negatives:
        raise InputError(f"{function}: in_batch_negatives must be True with severities, got {in_batch_negatives!r}")
    if backend not in BACKEND_NAMES:
        raise InputError(f"{function}: backend must be one of {', '.join(BACKEND_NAMES)}, got {backend!r}")
    if precision not in PRECISIONS:
        raise InputError(f"{function}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    double = torch.float64 in (queries.dtype, keys.dtype, queries.dtype if pool is None else pool.dtype)
    dtype = torch.float64 if double else torch.float32
    return Problem(
        queries,
        keys,
        query_groups,
        key_groups,
        query_images,
        key_images,
        pool,
        pool_groups,
        pool_images,
        query_severities,
        key_severities,
        temperature_tensor(function, temperature, device, dtype),
        weight,
        width,
        bool(exclude_self),
        bool(in_batch_negatives),
        backend,
        precision,
        bool(check_finite),
    )


def _check_severities(
    function: str,
    queries: Tensor,
    keys: Tensor,
    query_severities: Tensor | None,
    key_severities: Tensor | None,
    width: float | None,
) -> float:
    """Return the width; 0 without severities."""
    names = ("query_severities", "key_severities", "severity_width")
    given = [value is not None for value in (query_severities, key_severities, width)]
    if not any(given):
        return 0.0
    if not all(given):
        got = " and ".join(name for name, there in zip(names, given, strict=True) if there)
        raise InputError(f"{function}: {', '.join(names[:2])} and {names[2]} go together, got {got} alone")
    kinds = _check_severity(function, names[0], query_severities, queries, None)
    _check_severity(function, names[1], key_severities, keys, kinds)
    number = as_number(width)
    if number is None or not LEAST_WIDTH <= number < math.inf:
        raise InputError(f"{function}: severity_width must be finite and >= {LEAST_WIDTH:g}, got {width!r}")
    return number


def _check_severity(function: str, name: str, value: Any, vectors: Tensor, kinds: int | None) -> int:
    """Return the length of a severity vector; ``kinds`` is the one that it must have, None for any."""
    rows = vectors.shape[0]
    fits = isinstance(value, Tensor) and value.ndim == 2 and value.shape[0] == rows and value.dtype == torch.float32
    if not fits or not 1 <= value.shape[1] <= MAX_SEVERITIES or kinds not in (None, value.shape[1]):
        wanted = f"S), 1 <= S <= {MAX_SEVERITIES}" if kinds is None else f"{kinds})"
        raise InputError(f"{function}: {name} must be ({rows}, {wanted}, float32, got {describe_tensor(value)}")
    if value.device != vectors.device:
        raise InputError(f"{function}: {name} must be on the queries' device {vectors.device}, got {value.device}")
    if value.requires_grad:
        raise InputError(f"{function}: {name} gets no gradient and must not require one; pass {name}.detach()")
    return value.shape[1]


def _check_pool(
    function: str, pool: Tensor, groups: Tensor | None, images: Tensor | None, device: torch.device, dim: int
) -> None:
    _check_embeddings(function, "pool", pool, f"(K, {dim})", device, dim)
    if pool.requires_grad:
        raise InputError(f"{function}: pool gets no gradient and must not require one; pass pool.detach()")
    if groups is None:
        raise InputError(f"{function}: a pool tensor needs pool_groups, int64 ({pool.shape[0]},), got None")
    _check_ids(function, "pool_groups", groups, pool)
    if images is not None:
        _check_ids(function, "pool_images", images, pool)


def _check_embeddings(
    function: str, name: str, value: Tensor, shape: str, device: torch.device | None = None, dim: int | None = None
) -> None:
    check_untransformed(function, name, value, "its gradient comes from autograd, one batch at a time")
    fits = isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] > 0 and dim in (None, value.shape[1])
    if not fits or value.dtype not in FLOATS:
        raise InputError(
            f"{function}: {name} must be {shape} float16, bfloat16, float32 or float64, got {describe_tensor(value)}"
        )
    if device is not None and value.device != device:
        raise InputError(f"{function}: {name} must be on the queries' device {device}, got {value.device}")


def _check_ids(function: str, name: str, value: Tensor, vectors: Tensor) -> None:
    rows = vectors.shape[0]
    if not isinstance(value, Tensor) or value.ndim != 1 or value.shape[0] != rows or value.dtype != torch.int64:
        raise InputError(f"{function}: {name} must be ({rows},) int64, got {describe_tensor(value)}")
    if value.device != vectors.device:
        raise InputError(f"{function}: {name} must be on the queries' device {vectors.device}, got {value.device}")


def temperature_tensor(function: str, temperature: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the temperature as a 0-d tensor of ``dtype``; a tensor keeps its graph. Raises InputError."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or temperature.ndim > 1 or temperature.dtype not in FLOATS:
            raise InputError(
                f"{function}: temperature must be a float or a floating-point tensor of one element, "
                f"got {describe_tensor(temperature)}"
            )
        if temperature.device != device:
            raise InputError(
                f"{function}: temperature must be on the queries' device {device}, got {temperature.device}"
            )
        return temperature.reshape(()).to(dtype)
    value = as_number(temperature)
    if value is None:
        raise InputError(f"{function}: temperature must be a float or a tensor, got {describe_tensor(temperature)}")
    if not 0 < value < math.inf:
        raise InputError(f"{function}: temperature must be finite and > 0, got {temperature}")
    return torch.full((), value, dtype=dtype, device=device)


def check_finite_result(problem: Problem, loss: Tensor) -> None:
    """Refuse finite embeddings whose products, over the temperature, leave the range of the accumulation dtype.

    loss: 0-d, which is finite in every other case. The CPU always looks; other devices only under ``check_finite``.
    """
    # Looked at in the result, which costs nothing beside the work: bounds by norms would take another pass over keys.
    looks = loss.is_cpu or problem.check_finite
    if not looks or math.isfinite(loss.item()):
        return
    given = {name: getattr(problem, name) for name in ("queries", "keys", "pool")}
    norms = {name: torch.linalg.vector_norm(x.double(), dim=1) for name, x in given.items() if x is not None and len(x)}
    sizes = ", ".join(f"up to {norm.max():.3g} in {name}" for name, norm in norms.items())
    dtype, temperature = str(problem.temperature.dtype).removeprefix("torch."), problem.temperature.item()
    raise InputError(
        f"contrastive_loss: similarity / temperature and its gradient must be finite in {dtype}, got rows of norm "
        f"{sizes} at temperature {temperature:g}; normalise the rows"
    )


def check_values(problem: Problem, *names: str) -> None:
    """Refuse a temperature <= 0, and nan and infinity in the embeddings of these names.

    The CPU always looks; other devices only under ``check_finite``, because it waits for them.
    """
    if problem.queries.device.type != "cpu" and not problem.check_finite:
        return
    value = problem.temperature.item()
    if not 0 < value < math.inf:
        raise InputError(f"contrastive_loss: temperature must be finite and > 0, got {value:g}")
    for name in names:
        vectors = getattr(problem, name)
        if vectors is not None:
            check_rows_finite("contrastive_loss", name, vectors)
