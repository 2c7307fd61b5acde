"""The order in which the rows of a program are started: by falling cost, so that no long row runs alone at the end.

Used by ``cpu.py`` and ``cuda.py``; the result of a row does not depend on it. Relies on the costs of the op table, or
for a GPU on ``gpu_costs.yaml``: an op that a GPU does well is not always one that a CPU does well.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qpt.degradations import op_table
from qpt.degradations.program import Program
from qpt.io import read_yaml

GPU_COSTS = Path(__file__).with_name("gpu_costs.yaml")  # written by `python -m benchmarks.gpu_costs`


@functools.cache
def gpu_costs() -> np.ndarray:
    """Return instructions per pixel on a GPU, float64 [n, LEVELS + 1], indexed by op id and level as ``costs()``."""
    return read_costs(GPU_COSTS)


@functools.cache
def gpu_barriers() -> np.ndarray:
    """Return the barriers between the blocks of a row that each op has, in the form of ``gpu_costs``."""
    return read_costs(GPU_COSTS, "barriers")


def read_costs(path: Path, what: str = "instructions") -> np.ndarray:
    """Read a table of ``gpu_costs.yaml``'s form; an op that it lacks has its CPU cost, scaled as the others' are."""
    counted = read_yaml(path)[what]
    cost, known = op_table.costs().copy(), np.array([name in counted for name in op_table.NAMES])
    numbers = np.array([counted[name] for name in op_table.NAMES if name in counted], dtype=np.float64)
    cost *= numbers.mean() / cost[known, 1:].mean()
    cost[known, 1:] = numbers
    cost[:, 0] = cost[:, (op_table.LEVELS + 1) // 2]
    return cost


def row_costs(
    program: Program, windows: Tensor | None, height: int, width: int, costs: np.ndarray | None = None
) -> np.ndarray:
    """Return (r,) float64, the estimated cost per pixel of the image: nanoseconds, or what ``costs`` holds.

    windows: (r, 5) int32 as ``row_windows`` gives them, or None if every op computes the whole image.
    costs: of ``op_table.costs()`` (the default) or ``gpu_costs()``.
    """
    ops, levels = program.ops.numpy(), program.levels.numpy()
    costs = (op_table.costs() if costs is None else costs)[np.maximum(ops, 0), levels] * (ops >= 0)
    area = np.ones(ops.shape)  # of what an op computes, as a share of the image's
    if windows is not None:
        first, _, _, h, w = windows.numpy().T[..., None]
        area = np.where(np.arange(ops.shape[1]) >= first, h * w / (height * width), area)
    resize = ops == op_table.op_id("resize_to")
    for at in np.flatnonzero(resize.any(axis=0)):  # the ops after resize_to act at its working size
        scale = program.params[:, at, :1].numpy()
        area[:, at + 1 :] = np.where(resize[:, at : at + 1], scale**2, area[:, at + 1 :])
    return (costs * area).sum(axis=1)


def costly_first(program: Program, windows: Tensor | None, height: int, width: int) -> Tensor:
    """Return (r,) int32, the rows by falling cost; rows of equal cost keep their order."""
    return falling(row_costs(program, windows, height, width))


def falling(costs: np.ndarray) -> Tensor:
    """Return (r,) int32, the rows by falling cost; rows of equal cost keep their order."""
    return torch.from_numpy(np.argsort(-costs, kind="stable").astype(np.int32))
