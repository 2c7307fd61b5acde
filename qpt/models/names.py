"""The names of encoders. Imports nothing heavy, so that settings can be checked before torch is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from qpt.errors import InputError

#: Networks whose ``width`` is a setting.
OURS = ("resnet18", "resnet34", "resnet50")
LITE0 = "efficientnet_lite0"
#: The encoder that comes with the package.
SHIPPED = f"{LITE0}-qpt"
#: Encoders with weights that ``load_encoder`` takes in place of a run, besides ``timm:NAME`` and ``torchvision:NAME``.
NAMED = (f"{LITE0}-imagenet", SHIPPED)
_FORM = re.compile(rf"{'|'.join(OURS)}|{LITE0}|(timm|torchvision):\w[\w.-]*")
CHOICES = f"{', '.join(OURS)}, {LITE0}, timm:NAME, torchvision:NAME"


def check_arch(area: str, arch: object, width: int = 64) -> str:
    """Return ``arch`` if it has the form of an encoder's name that may have this width, else raise InputError.

    Whether a library has a network of that name shows only when the encoder is built.
    """
    if not isinstance(arch, str) or not _FORM.fullmatch(arch):
        raise InputError(f"{area}: arch must be one of {CHOICES}, got {arch!r}")
    if width != 64 and arch not in OURS:
        raise InputError(f"{area}: width must be 64 for {arch} (only {', '.join(OURS)} have other widths), got {width}")
    return arch


def is_named(source: str | Path) -> bool:
    """Return True for the name of an encoder with weights, False for a path."""
    text = str(source)
    return text in NAMED or (":" in text and text.startswith(("timm:", "torchvision:")))
