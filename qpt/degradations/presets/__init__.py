"""The named degradation spaces: a YAML file for each beside this one, in the form in which users write their own.

Read by ``DegradationSpace.preset`` and ``qpt degrade --presets``. Each file names the source of its rule and values
(``source``) and says what differs from it (``differs``).
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("qpt", "kadid", "arniqa", "reiqa", "realesrgan", "bsrgan", "imagenet-c")


def path(name: str) -> Path:
    """Return the file of a preset."""
    return Path(__file__).parent / f"{name}.yaml"
