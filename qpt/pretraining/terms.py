"""Terms of the loss beside the contrastive one: distillation from the initial encoder, and regression on free targets.

A term compares columns that the query network gives for each patch with targets of that patch. The columns follow the
embedding in what the learner embeds, so gradient caching passes their gradients on like any other. The modules here
are parts of the learner's query network: what they have to keep (a head, running moments) is saved with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qpt.evaluate.measures import MEASURES
from qpt.models.base import Encoder
from qpt.models.heads import projection_head, stage_means
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.process_group import ProcessGroup
from qpt.pretraining.targets import COLUMNS, RunningMoments


class Regression(nn.Module):
    """A head that predicts standardised full-reference measures and the levels of ops.

    head: from the features that the projection head reads to ``COLUMNS`` values.
    """

    columns = COLUMNS

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.moments = RunningMoments(len(MEASURES), epsilon=1e-6)

    def outputs(self, features: Tensor, maps: list[Tensor]) -> Tensor:
        """Return the predictions (n, columns)."""
        return self.head(features)

    def targets(self, measured: Tensor, processes: ProcessGroup) -> Tensor:
        """Count the measures (n, columns) of a batch in and return them standardised; levels stay as they are."""
        measures, levels = measured.split([len(MEASURES), COLUMNS - len(MEASURES)], dim=1)
        self.moments.update(processes.gather_rows(measures))
        return torch.cat([self.moments.standardise(measures), levels], dim=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean smooth L1 distance of measures plus a tenth of the summed squared errors of levels."""
        # A row has few ops of the table: a mean over all of them would weigh next to nothing.
        count = len(MEASURES)
        measures = nn.functional.smooth_l1_loss(outputs[:, :count], targets[:, :count])
        return measures + (outputs[:, count:] - targets[:, count:]).square().sum(1).mean() / 10


class Distillation(nn.Module):
    """The distance of the encoder's stage means from those of the initial encoder.

    Channels are standardised by the initial encoder's moments over all patches so far, and stages count alike.
    """

    # Not the cosine of a stage's means: channels of large mean decide it, which are alike for all images.

    share: Tensor

    def __init__(self, stage_dims: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = sum(stage_dims)
        self.moments = RunningMoments(self.columns, epsilon=1e-4)
        share = [1 / (len(stage_dims) * dim) for dim in stage_dims for _ in range(dim)]
        self.register_buffer("share", torch.tensor(share, dtype=torch.float32, device="cpu"), persistent=False)

    def outputs(self, features: Tensor, maps: list[Tensor]) -> Tensor:
        """Return the stage means (n, columns)."""
        return stage_means(maps)

    def targets(self, means: Tensor, processes: ProcessGroup) -> Tensor:
        """Count the initial encoder's stage means (n, columns) of a batch in and return them."""
        self.moments.update(processes.gather_rows(means))
        return means

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over stages and channels of the squared distance of standardised means."""
        scale = self.moments.scale()
        return (((outputs - targets) * scale).square() * self.share).sum(1).mean()


def head_on(config: PretrainConfig, encoder: Encoder, outputs: int) -> nn.Sequential:
    """Return a head of ``outputs`` values on the features that ``config.head_input`` names."""
    stages = config.head_input == "stages"
    inputs = 2 * sum(encoder.stage_dims) if stages else encoder.feature_dim
    # The hidden layer of a ResNet-50 would have 7,680 units, and 59 million weights, if it were as wide as its input.
    return projection_head(inputs, outputs, encoder.feature_dim, layer_norm=stages)


def make_terms(config: PretrainConfig, encoder: Encoder) -> dict[str, Any]:
    """Return the terms that ``config`` weighs, by the setting of their weight. Weights derive from ``config.seed``."""
    terms: dict[str, Any] = {}
    if config.regression:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            terms["regression"] = Regression(head_on(config, encoder, Regression.columns))
    if config.distillation:
        terms["distillation"] = Distillation(encoder.stage_dims)
    return terms


def terms_loss(config: PretrainConfig, terms: dict[str, Any], columns: Tensor, targets: Tensor) -> Tensor:
    """Return the weighted sum of the terms of (N, C) columns and targets, 0-d; 0 for no rows."""
    if not len(columns):
        return columns.sum()
    widths = [term.columns for term in terms.values()]
    parts = zip(terms.items(), columns.split(widths, 1), targets.split(widths, 1), strict=True)
    return torch.stack([getattr(config, name) * term.loss(a, b) for (name, term), a, b in parts]).sum()
