"""In which order the rows of a program are started: the costly ones first, so that none is left alone at the end.

Used by ``qpt.ops.degrade.api`` and ``qpt.ops.degrade.cuda``; the result of a row does not depend on it. Relies on the
cost column of the op table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qpt.degradations import op_table
from qpt.degradations.program import Program


def row_costs(program: Program, windows: Tensor | None, height: int, width: int) -> np.ndarray:
    """(r,) float64: estimated nanoseconds per pixel of the image.

    windows: (r, 5) int32 as plan_windows gives them, or None where every op computes the whole image.
    """
    ops, levels = program.ops.numpy(), program.levels.numpy()
    each = op_table.arrays().cost[np.maximum(ops, 0), levels] * (ops >= 0)
    area = np.ones(ops.shape)
    if windows is not None:
        plan = windows.numpy()
        share = plan[:, 3:4] * plan[:, 4:5] / (height * width)
        area = np.where(np.arange(ops.shape[1]) >= plan[:, :1], share, area)
    resize = ops == op_table.op_id("resize_to")
    for at in np.flatnonzero(resize.any(axis=0)):  # what follows acts at that working size
        scale = program.params[:, at, :1].numpy()
        area[:, at + 1 :] = np.where(resize[:, at : at + 1], scale**2, area[:, at + 1 :])
    return (each * area).sum(axis=1)


def costly_first(program: Program, windows: Tensor | None, height: int, width: int) -> Tensor:
    """(r,) int32: the rows by falling cost, equal ones as they come."""
    order = np.argsort(-row_costs(program, windows, height, width), kind="stable")
    return torch.from_numpy(order.astype(np.int32))
