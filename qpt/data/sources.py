"""The images that pre-training reads: files of a folder or members of tar shards, as one numbered list.

``open_source(data)`` decides which, on disk or behind URLs; ``qpt.data.regions`` opens images by their number, and the
engine names those that cannot be read. The order of a source is part of what a run computes: its fingerprint is kept in
checkpoints.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from qpt.data.faults import is_machine_fault
from qpt.data.listing import expand_braces, is_hidden, list_images, match_files, name_line
from qpt.data.remote_sources import open_remote
from qpt.data.shards import ShardSource
from qpt.data.urls import is_url, without_file_scheme
from qpt.errors import InputError


class Source(Protocol):
    """Images in a fixed order, numbered from 0."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image in messages: its path below the data."""

    def open(self, index: int) -> Path | BinaryIO:
        """Return what ``load_rgb`` takes. Raises OSError for an image that is no longer there."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Read the images that are opened next, at once, where reading one at a time would wait for a network."""

    def lines(self) -> Iterator[bytes]:
        """Yield the ``name_line`` of each image in order."""

    def fingerprint(self) -> str:
        """Return the sha256 over the names and sizes (bytes) of all images in their order."""


def open_source(data: str | os.PathLike[str]) -> Source:
    """Open the images that ``data`` names.

    data: a folder of image files; a folder of tar shards, with no image file in it; one ``.tar`` file; or a pattern of
    tar files with ``{000..099}``, ``{a,b}``, ``*``, ``?`` or ``[...]``. Shards of a folder and of ``*`` are taken in
    the order of their names, those of braces in the order of the braces. Each may be a URL, without ``?``.
    Raises InputError if there is nothing there, or a shard is not a tar file.
    """
    data = without_file_scheme(os.fspath(data))
    if is_url(data):
        return open_remote(data)
    path = Path(data)
    if path.is_dir():
        try:
            return FolderSource(path)
        except InputError:
            found = sorted(path.rglob("*.tar"))
            shards = [shard for shard in found if not any(map(is_hidden, shard.relative_to(path).parts))]
            if not shards:
                raise
            return ShardSource(shards)
    if path.is_file() and path.suffix != ".tar":
        raise InputError(f"pretrain: data must be a folder, a .tar shard or a pattern of shards, got the file {path}")
    if data.startswith("pipe:"):
        raise InputError(f"pretrain: data must be files or URLs (shards are read at random), got {data}")
    shards = [path] if path.is_file() else _matching(data)
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if not shards or missing:
        what = f"there is no {missing[0]}" if missing else "nothing matches"
        raise InputError(f"pretrain: data must be an existing folder, shard or pattern of shards, got {data}: {what}")
    return ShardSource(shards)


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

    def prefetch(self, indices: Sequence[int]) -> None:
        pass

    def lines(self) -> Iterator[bytes]:
        return (name_line(path.relative_to(self.root).as_posix(), _size(path)) for path in self.files)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"\n".join(self.lines())).hexdigest()


def data_fingerprint(root: Path, files: list[Path]) -> str:
    """Return the sha256 over the relative names and sizes of sorted image files; a link to nothing has size -1."""
    return FolderSource(root, files).fingerprint()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        if is_machine_fault(error):
            raise
        return -1


def _matching(pattern: str) -> list[Path]:
    found: list[Path] = []
    for name in expand_braces(pattern):
        found += map(Path, match_files(name) if glob.has_magic(name) else [name])
    return found
