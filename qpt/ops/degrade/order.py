"""The order in which the rows of a program are started: by falling cost, so that no long row runs alone at the end.

Used by ``cpu.py`` and ``cuda.py``; the result of a row does not depend on it. Relies on the costs of the op table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qpt.degradations import op_table
from qpt.degradations.program import Program


def row_costs(program: Program, windows: Tensor | None, height: int, width: int) -> np.ndarray:
    """Return (r,) float64, the estimated nanoseconds per pixel of the image.

    windows: (r, 5) int32 as ``row_windows`` gives them, or None if every op computes the whole image.
    """
    ops, levels = program.ops.numpy(), program.levels.numpy()
    costs = op_table.costs()[np.maximum(ops, 0), levels] * (ops >= 0)
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
    order = np.argsort(-row_costs(program, windows, height, width), kind="stable")
    return torch.from_numpy(order.astype(np.int32))
