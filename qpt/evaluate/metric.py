"""A scorer with the calling convention of pyiqa's metrics, for code that is written for those.

Made by ``Scorer.as_metric()``. Relies on ``Scorer``: a photograph's score is the same number as there, one photograph
at a time, whatever batch it comes in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from qpt.errors import InputError, describe

if TYPE_CHECKING:
    from qpt.evaluate.scorer import Scorer


class Metric(nn.Module):
    """``metric(x) -> (N, 1)`` float32 scores on the CPU; x is a file or an (N, 3, H, W) float tensor of values 0 to 1.

    lower_better: False.  metric_mode: "NR", no reference.  score_range: "lowest, highest" label it was fitted on, as
    text like pyiqa's.  A tensor's values are rounded to 8 bits first, as a file's would be. Nothing here has a
    gradient: a metric to look at, not a loss.
    """

    lower_better = False
    metric_mode = "NR"
    metric_name = "qpt"

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.score_range = f"{scorer.mos_min:g}, {scorer.mos_max:g}"

    def forward(self, target: str | Path | Tensor, ref: object = None) -> Tensor:
        """Scores of the photographs of ``target``; ``ref`` is there for the convention and is not used.

        Raises InputError for a tensor of another shape or type, or with values outside 0 to 1 (or NaN), besides all
        that ``Scorer`` refuses.
        """
        if isinstance(target, (str, Path)):
            return torch.tensor([[self.scorer(target)]], dtype=torch.float32)
        if not isinstance(target, Tensor) or target.ndim != 4 or target.shape[1] != 3 or not target.is_floating_point():
            raise InputError(f"metric: target must be a path or an (N, 3, H, W) float tensor, got {describe(target)}")
        scores = np.empty((len(target), 1), np.float32)
        for index, image in enumerate(target.detach()):
            values = image.float().cpu()
            if values.numel() and not (values.min() >= 0 and values.max() <= 1):
                raise InputError(f"metric: target must hold values from 0 to 1, got others in image {index}")
            pixels = (values * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
            scores[index, 0] = self.scorer(pixels.numpy())
        return torch.from_numpy(scores)
