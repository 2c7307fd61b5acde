"""The progress bar of evaluation and reports, on standard error where that is a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], label: str, quiet: bool) -> Iterable[T]:
    """Yield the items under a progress bar; ``quiet`` leaves the bar out."""
    console = Console(stderr=True)
    return track(items, label, disable=quiet or not console.is_terminal, console=console, transient=True)
