"""The named degradation spaces: one YAML file each beside this one, in the form that users write their own.

Read by ``DegradationSpace.preset`` and ``qpt degrade --presets``. Each file says where its rule and numbers come from
(``source``) and what is not as there (``differs``).
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("qpt", "kadid", "arniqa", "reiqa", "realesrgan", "bsrgan", "imagenet-c")


def path(name: str) -> Path:
    """The file of a preset."""
    return Path(__file__).parent / f"{name}.yaml"
