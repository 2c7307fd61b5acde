"""Files that are whole or not there. Used by whatever a run keeps in its folder, and by the study."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make ``path.part`` and rename it to ``path``, so that ``path`` is never half written.

    For one writer at a time. If ``write`` fails, the unfinished file stays; the next one replaces it.
    """
    aside = path.with_name(f"{path.name}.part")
    write(aside)
    os.replace(aside, path)
