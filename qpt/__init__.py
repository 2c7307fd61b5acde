"""Self-supervised pre-training of blind image quality assessment models.

``dir(qpt)`` lists the public names. They are stable; everything else may move. Each is imported when it is first used,
so that ``import qpt`` is quick and needs no compiled extension, GPU, Triton or CuPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import qpt.process  # noqa: F401 - what forked children do
from qpt.errors import BackendError, InputError
from qpt.version import __version__

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from qpt.degradations.program import Program as Program
    from qpt.degradations.space import DegradationSpace as DegradationSpace
    from qpt.evaluate.full_reference import reference_distance as reference_distance
    from qpt.evaluate.scorer import Scorer as Scorer
    from qpt.models import load_encoder as load_encoder
    from qpt.ops.contrastive.api import QualityContrastiveLoss as QualityContrastiveLoss
    from qpt.ops.contrastive.api import contrastive_loss as contrastive_loss
    from qpt.ops.contrastive.api import info_nce as info_nce
    from qpt.ops.contrastive.api import nt_xent as nt_xent
    from qpt.ops.contrastive.api import supcon as supcon
    from qpt.ops.contrastive.distributed import distributed_contrastive_loss as distributed_contrastive_loss
    from qpt.ops.contrastive.pool import NegativePool as NegativePool
    from qpt.ops.degrade.api import degrade as degrade
    from qpt.ops.degrade.api import degrade_patches as degrade_patches
    from qpt.ops.degrade.pairs import degrade_pairs as degrade_pairs
    from qpt.pretraining.config import PretrainConfig as PretrainConfig
    from qpt.pretraining.engine import pretrain as pretrain

_HOMES = {
    "DegradationSpace": "qpt.degradations.space",
    "NegativePool": "qpt.ops.contrastive.pool",
    "PretrainConfig": "qpt.pretraining.config",
    "Program": "qpt.degradations.program",
    "QualityContrastiveLoss": "qpt.ops.contrastive.api",
    "Scorer": "qpt.evaluate.scorer",
    "contrastive_loss": "qpt.ops.contrastive.api",
    "degrade": "qpt.ops.degrade.api",
    "degrade_pairs": "qpt.ops.degrade.pairs",
    "degrade_patches": "qpt.ops.degrade.api",
    "distributed_contrastive_loss": "qpt.ops.contrastive.distributed",
    "info_nce": "qpt.ops.contrastive.api",
    "load_encoder": "qpt.models",
    "nt_xent": "qpt.ops.contrastive.api",
    "pretrain": "qpt.pretraining.engine",
    "reference_distance": "qpt.evaluate.full_reference",
    "supcon": "qpt.ops.contrastive.api",
}

__all__ = ["BackendError", "InputError", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qpt' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
