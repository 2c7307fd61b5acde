"""The named recipes of pre-training: one YAML file each beside this one, in the form of a run's ``config.yaml``.

Read by ``qpt pretrain --recipe``. The first line of a file, a comment, says what it is for; the comments after it say
where each value comes from.
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("qpt-resnet50-imagenet", "laptop", "single-24gb", "eight-gpu")


def path(name: str) -> Path:
    """The file of a recipe."""
    return Path(__file__).parent / f"{name}.yaml"


def summary(name: str) -> str:
    """What a recipe is for, in a line."""
    return path(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
