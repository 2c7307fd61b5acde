"""The named degradation spaces: a YAML file for each beside this one, in the form in which users write their own.

Read by ``DegradationSpace.preset`` and ``qpt degrade --presets``. Each file names the source of its rule and values
(``source``) and says what differs from it (``differs``). A preset whose values change gets another revision; the file
of an earlier one moves to ``revision_N/`` and has the name ``NAME@N``.
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("qpt", "kadid", "arniqa", "reiqa", "realesrgan", "bsrgan", "imagenet-c")


def path(name: str) -> Path:
    """Return the file of a preset, or of one of its earlier revisions: ``kadid`` or ``kadid@1``."""
    preset, at, revision = name.partition("@")
    return Path(__file__).parent / (f"revision_{revision}/{preset}.yaml" if at else f"{preset}.yaml")


def earlier() -> tuple[str, ...]:
    """Return the names of the earlier revisions, ``NAME@N``."""
    files = sorted(Path(__file__).parent.glob("revision_*/*.yaml"))
    return tuple(f"{file.stem}@{file.parent.name.removeprefix('revision_')}" for file in files)


def is_preset(name: str) -> bool:
    """Return True for the name of a preset or of an earlier revision of one."""
    return name in NAMES or name in earlier()
