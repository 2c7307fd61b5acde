"""The named recipes of pre-training: one YAML file each beside this module, in the form of a run's ``config.yaml``.

Read by ``qpt pretrain --recipe``. The first line of a file, a comment, says what the recipe is for; the comments after
it give the source of each value.
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("qpt-resnet50-imagenet", "laptop", "imagenet-laptop", "single-24gb", "eight-gpu")


def path(name: str) -> Path:
    """Return the file of a recipe."""
    return Path(__file__).parent / f"{name}.yaml"


def summary(name: str) -> str:
    """Return the first line of a recipe's file, which says what it is for."""
    return path(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
