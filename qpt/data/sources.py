"""Where pre-training's photographs come from: a folder of files or tar shards, as one numbered list.

``open_source(data)`` decides which; ``qpt.data.regions`` opens photographs by their number, and the engine names those
that cannot be read. The order of a source is part of what a run computes: its fingerprint is kept in checkpoints.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from typing import BinaryIO, Protocol

from qpt.data.images import list_images
from qpt.data.shards import ShardSource, expand_braces
from qpt.errors import InputError


class Source(Protocol):
    """Photographs in a fixed order, numbered from 0."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How messages call a photograph: its path below the data."""

    def open(self, index: int) -> Path | BinaryIO:
        """What ``load_rgb`` takes. Raises OSError for a photograph that is no longer there."""

    def fingerprint(self) -> str:
        """sha256 over the names and sizes (bytes) of all photographs in their order."""


class FolderSource:
    """The image files below a folder, in the order of ``list_images``."""

    def __init__(self, root: str | Path, files: list[Path] | None = None) -> None:
        self.root = Path(root)
        self.files = list_images(root) if files is None else files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].relative_to(self.root).as_posix()

    def open(self, index: int) -> Path:
        return self.files[index]

    def fingerprint(self) -> str:
        return data_fingerprint(self.root, self.files)


def data_fingerprint(root: Path, files: list[Path]) -> str:
    """sha256 over the sorted relative names and sizes of the photographs; a link to nothing has size -1."""
    listing = "\n".join(f"{path.relative_to(root).as_posix()} {_size(path)}" for path in files)
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def open_source(data: str) -> Source:
    """The photographs that ``data`` stands for.

    data: a folder of image files; a folder of tar shards, with no image file in it; one ``.tar`` file; or a pattern of
    tar files with ``{000..099}``, ``{a,b}``, ``*``, ``?`` or ``[...]``. Shards of a folder and of ``*`` are taken in
    the order of their names, those of braces in the order of the braces.
    Raises InputError if there is nothing there, or a shard is not a tar file.
    """
    path = Path(data)
    if path.is_dir():
        try:
            return FolderSource(path)
        except InputError:
            shards = sorted(path.rglob("*.tar"))
            if not shards:
                raise
            return ShardSource(shards)
    if path.is_file() and path.suffix != ".tar":
        raise InputError(f"pretrain: data must be a folder, a .tar shard or a pattern of shards, got the file {path}")
    if "://" in data or data.startswith("pipe:"):
        raise InputError(f"pretrain: data must be on a local or mounted disk (shards are read at random), got {data}")
    shards = [path] if path.is_file() else _matching(data)
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if not shards or missing:
        what = f"there is no {missing[0]}" if missing else "nothing matches"
        raise InputError(f"pretrain: data must be an existing folder, shard or pattern of shards, got {data}: {what}")
    return ShardSource(shards)


def _matching(pattern: str) -> list[Path]:
    found: list[Path] = []
    for name in expand_braces(pattern):
        found += map(Path, sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name])
    return found
