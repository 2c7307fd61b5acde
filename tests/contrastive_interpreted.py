"""The work that tests/test_contrastive_triton.py runs in Triton's interpreter, and the dense definition it must equal.

The launchers' outputs and partials are poisoned with nan and lie between guard elements: what is not written, and what
is written outside, shows. Small blocks replace the launch table's: the interpreter's time goes by the element.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GUARD = 64


@dataclass(frozen=True)
class Case:
    """One call of the backend. queries [N, D], keys [M, D]; ids int64; lse [N] is what the key gradient gets."""

    queries: Tensor
    keys: Tensor
    query_groups: Tensor
    key_groups: Tensor
    query_images: Tensor | None = None
    key_images: Tensor | None = None
    temperature: float = 0.2
    log_weight: float = 0.0
    self_offset: int | None = None
    negatives: bool = True
    both_roles: bool = False


def case(n: int, m: int, dim: int, *, seed: int = 0, images: bool = True, scale: float = 1.0, **options: Any) -> Case:
    """Random unit rows times ``scale``, ids in small ranges with some -1; strided (neither side is contiguous)."""
    generator = torch.Generator().manual_seed(seed + 1000 * n + 10 * m + dim)

    def rows(count: int) -> Tensor:
        vectors = torch.randn(count, dim, generator=generator)
        return scale * vectors / vectors.norm(dim=1, keepdim=True)

    def ids(count: int, top: int) -> Tensor:
        return torch.randint(-1, top, (count,), generator=generator)

    wide = torch.full((m, 2 * dim + 1), 9e9)  # what lies between the keys' elements must not be read
    wide[:, 1::2] = rows(m)
    return Case(
        rows(n).T.contiguous().T,
        wide[:, 1::2],
        ids(n, 6),
        ids(m, 6),
        ids(n, 3) if images else None,
        ids(m, 3) if images else None,
        **options,
    )


def converted(case: Case, dtype: torch.dtype) -> Case:
    return replace(case, queries=case.queries.to(dtype), keys=case.keys.to(dtype))


def dense(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """In ``dtype`` throughout, with every N x M array: lse [N] (-inf where nothing is eligible), softmax-weighted key
    mean [N, D] (0 there), softmax key gradient [M, D] over the rows with a group and an eligible key."""
    queries, keys = case.queries.to(dtype), case.keys.to(dtype)
    z = queries @ keys.T / case.temperature
    same_group = case.query_groups[:, None] == case.key_groups[None]
    eligible = (case.key_groups >= 0)[None] & (same_group | case.negatives)
    if case.query_images is not None and case.key_images is not None:
        same_image = (case.query_images[:, None] == case.key_images[None]) & (case.query_images >= 0)[:, None]
        z = torch.where(same_image & ~same_group, z + case.log_weight, z)
    if case.self_offset is not None:
        row, column = torch.arange(len(queries))[:, None], torch.arange(len(keys))[None]
        eligible = eligible & (column != row + case.self_offset)
    z = z.masked_fill(~eligible, -torch.inf)
    softmax = torch.softmax(z, 1).nan_to_num(0.0)  # a row with nothing eligible
    counted = softmax * (case.query_groups >= 0)[:, None]
    gradient = counted.T @ queries / case.temperature
    if case.both_roles:
        gradient += counted @ keys / case.temperature
    return torch.logsumexp(z, 1), softmax @ keys, gradient


def sides(case: Case) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Queries and keys as the kernels take them."""
    keys = (case.keys, case.key_groups, case.key_images, case.self_offset, case.negatives)
    return (case.queries, case.query_groups, case.query_images), keys


def run(
    case: Case,
    truth_lse: Tensor,
    parts: int,
    block: int = 16,
    columns: int | None = None,
    precision: str = "auto",
) -> dict[str, Tensor]:
    """In the interpreter: lse, mean and gradient as ``dense`` has them; and the same lse without the weighted sum.

    truth_lse [N]: the key gradient's input, +inf put in for rows without a group or an eligible key.  parts: number of
    parts of the stream.  block: rows of a tile, on both sides.  columns: of one program, where D is cut in slices.
    """
    from qpt.kernels import contrastive as kernels
    from qpt.kernels import contrastive_launch

    def small(launch: Any) -> Any:
        step = launch.step if columns is None else columns
        return launch._replace(rows=block, stream=block, step=step, columns=columns or launch.columns)

    table = {key: small(launch) for key, launch in contrastive_launch.LAUNCHES.items()}
    temperature = torch.tensor(case.temperature, dtype=torch.float32)
    common = (*sides(case), temperature, case.log_weight)
    left_out = (case.query_groups < 0) | (truth_lse == -torch.inf)
    lse = truth_lse.masked_fill(left_out, torch.inf).float()
    with (
        mock.patch.object(contrastive_launch, "LAUNCHES", table),
        mock.patch.object(kernels, "parts_for", return_value=parts),
        guarded_outputs(),
        bfloat16_arithmetic(),
    ):
        row_max, row_sum, acc = kernels.lse_forward(*common, weighted=True, precision=precision)
        bare = kernels.lse_forward(*common, weighted=False, precision=precision)
        gradient = kernels.key_gradient(*common, lse, both_roles=case.both_roles, precision=precision)
    assert acc is not None
    assert bare[2] is None
    assert torch.isfinite(row_sum).all()
    assert torch.equal(row_max == -torch.inf, row_sum == 0)
    assert acc[row_sum == 0].abs().sum() == 0
    found = {
        "lse": row_max + row_sum.log(),
        "mean": acc / row_sum.clamp(min=1e-30)[:, None],
        "gradient": gradient,
        "bare_lse": bare[0] + bare[1].log(),
    }
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert not tensor.isnan().any(), name
    return found


@contextmanager
def bfloat16_arithmetic() -> Iterator[None]:
    """bfloat16 as the hardware has it: the interpreter multiplies its bit patterns as integers, and truncates."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return plain(self, widened(left), widened(right), *rest)

    def cast(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, source, kind)
        rounded = torch.from_numpy(np.array(source.data, np.float32)).bfloat16()
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    with (
        mock.patch.object(InterpreterBuilder, "create_dot", create_dot),
        mock.patch.object(InterpreterBuilder, "cast_impl", cast),
    ):
        yield


@contextmanager
def guarded_outputs() -> Iterator[None]:
    """Tensors made with ``new_empty(shape)`` are full of nan between two guards, which are checked at the end."""
    stores: list[Tensor] = []
    plain = torch.Tensor.new_empty

    def guarded(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        if options or not isinstance(shape[0], tuple):  # the interpreter's own
            return plain(self, *shape, **options)
        (size,) = shape
        count = int(torch.Size(size).numel())
        stores.append(torch.full((GUARD + count + GUARD,), torch.nan, dtype=self.dtype))
        return stores[-1][GUARD : GUARD + count].view(size)

    with mock.patch.object(torch.Tensor, "new_empty", guarded):
        yield
    assert stores, "no output was made with new_empty"
    for store in stores:
        assert store[:GUARD].isnan().all()
        assert store[-GUARD:].isnan().all()


def run_empty(n: int, m: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In the interpreter: row_max, row_sum, acc and key gradient where one side may have no rows."""
    from qpt.kernels import contrastive as kernels

    common = (*sides(case(n, m, dim)), torch.tensor(0.2), 0.0)
    row_max, row_sum, acc = kernels.lse_forward(*common, weighted=True)
    assert acc is not None
    return row_max, row_sum, acc, kernels.key_gradient(*common, torch.zeros(n))
