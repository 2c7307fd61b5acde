"""The images that pre-training reads: files of a folder or members of tar shards, as one numbered list.

``open_source(data)`` decides which; ``qpt.data.regions`` opens images by their number, and the engine names those that
cannot be read. The order of a source is part of what a run computes: its fingerprint is kept in checkpoints.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from qpt.data.faults import is_machine_fault
from qpt.data.listing import EXTENSIONS, PassedOver, is_hidden, list_images, match_files, name_line
from qpt.errors import InputError

MAX_MEMBER_BYTES = 1 << 30  # of one image's file in a shard, which is read whole
MAX_OPEN_SHARDS = 16  # by one process at a time


class Source(Protocol):
    """Images in a fixed order, numbered from 0."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image in messages: its path below the data."""

    def open(self, index: int) -> Path | BinaryIO:
        """Return what ``load_rgb`` takes. Raises OSError for an image that is no longer there."""

    def lines(self) -> Iterator[bytes]:
        """Yield the ``name_line`` of each image in order."""

    def fingerprint(self) -> str:
        """Return the sha256 over the names and sizes (bytes) of all images in their order."""


def open_source(data: str | os.PathLike[str]) -> Source:
    """Open the images that ``data`` names.

    data: a folder of image files; a folder of tar shards, with no image file in it; one ``.tar`` file; or a pattern of
    tar files with ``{000..099}``, ``{a,b}``, ``*``, ``?`` or ``[...]``. Shards of a folder and of ``*`` are taken in
    the order of their names, those of braces in the order of the braces.
    Raises InputError if there is nothing there, or a shard is not a tar file.
    """
    data = os.fspath(data)
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
    if "://" in data or data.startswith("pipe:"):
        raise InputError(f"pretrain: data must be on a local or mounted disk (shards are read at random), got {data}")
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


class ShardSource:
    """The members of tar files that have an image's extension: shard after shard, each in its own order.

    shards: at least one; names are relative to the folder they share.  Every such member is an image, whatever key
    WebDataset would file it under (``0001.jpg``, ``train/0001.left.png``); other members are passed over.
    Raises InputError for a file that is not a tar, and if there is no image at all. Of a shard that is cut short or
    damaged, the members up to there are images (the one that is cut cannot be read); a warning says so.
    """

    # The headers are read once, at the start; an image is then one read at its offset. So the data order stays a
    # function of (seed, epoch, index), as for files, and a run resumes anywhere. The readers of the WebDataset library
    # are streams through a shuffle buffer, which would not allow that.

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards
        self._root = os.path.commonpath([shard.parent for shard in shards])
        self._descriptors: dict[int, int] = {}  # shard -> file descriptor of this process, the last one used at the end
        names, offsets, sizes, counts = [], [], [], []
        digest, passed_over = hashlib.sha256(), PassedOver()
        for shard in shards:
            members = _image_members(shard, passed_over)
            for member in members:
                names.append(member.name.encode(errors="surrogateescape"))
                offsets.append(member.offset_data)
                sizes.append(member.size)
                digest.update(name_line(f"{self._relative(shard)}/{member.name}", member.size) + b"\n")
            counts.append(len(members))
        self._names = b"".join(names)  # takes less memory than as many str; each ends at its place in _name_ends
        self._name_ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._offsets, self._sizes = np.array(offsets, np.int64), np.array(sizes, np.int64)
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # number of each shard's first image
        self._fingerprint = digest.hexdigest()
        if not offsets:
            kinds = " ".join(sorted(EXTENSIONS))
            raise InputError(f"pretrain: data must hold at least one image ({kinds}), got none in {len(shards)} shards")
        passed_over.warn(f"{len(shards)} shards")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}  # a descriptor means nothing in another process

    def name(self, index: int) -> str:
        start, end = self._name_ends[index : index + 2]
        member = self._names[start:end].decode(errors="surrogateescape")
        return f"{self._relative(self.shards[self._shard(index)])}/{member}"

    def open(self, index: int) -> io.BytesIO:
        shard, size = self._shard(index), int(self._sizes[index])
        if size > MAX_MEMBER_BYTES:
            raise OSError(f"{size:,} bytes are more than the limit of {MAX_MEMBER_BYTES:,}")
        # Taken out while it is read, so that no other thread closes it.
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            descriptor = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        try:
            # pread has no position of its own, so forked processes may share the descriptor.
            content = os.pread(descriptor, size, int(self._offsets[index]))
        except OSError:
            os.close(descriptor)  # an attempt after a fault of the network needs a new one
            raise
        if self._descriptors.setdefault(shard, descriptor) != descriptor:
            os.close(descriptor)
        while len(self._descriptors) > MAX_OPEN_SHARDS:
            oldest = self._descriptors.pop(next(iter(self._descriptors)), None)
            if oldest is not None:
                os.close(oldest)
        if len(content) < size:
            raise OSError(f"the shard ends after {len(content):,} of {size:,} bytes")
        return io.BytesIO(content)

    def lines(self) -> Iterator[bytes]:
        for index, size in enumerate(self._sizes.tolist()):
            yield name_line(self.name(index), size)

    def fingerprint(self) -> str:
        return self._fingerprint

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _relative(self, shard: Path) -> str:
        return Path(os.path.relpath(shard, self._root)).as_posix()


class _WithinItsSize(io.BufferedReader):
    """A file of which no more is asked for than there is: Python reserves what a damaged header asks for."""

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, max(0, left)))


def _image_members(shard: Path, passed_over: PassedOver) -> list[tarfile.TarInfo]:
    """Return the members of a tar that are regular files named like images, and count others. Only headers are read."""
    found = []
    try:
        # Uncompressed alone: a compressed tar has no offsets to read at.
        with _WithinItsSize(open(shard, "rb", buffering=0)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                place = -1
                while (member := tar.next()) is not None:
                    # Sizes that are negative would lead round in a circle.
                    if not place < tar.offset < 1 << 62 or member.offset_data < 0 or member.size < 0:
                        raise tarfile.ReadError("a member ends before it begins")
                    place = tar.offset
                    if member.isreg() and not member.issparse() and passed_over.takes(member.name):
                        found.append(member)
                    tar.members.clear()  # type: ignore[attr-defined] # it keeps every member otherwise
            except Exception as error:
                if isinstance(error, OSError) and is_machine_fault(error):
                    raise
                # ReadError: the last member reaches beyond the end of the file. Damaged headers raise anything.
                whole = False
            else:
                # At bytes that are not a header, tarfile stops as it does at the zeros that end a tar.
                assert tar.fileobj is not None
                tar.fileobj.seek(tar.offset)
                whole = not any(tar.fileobj.read(tarfile.BLOCKSIZE))
    except OSError as error:
        if is_machine_fault(error):
            raise
        raise InputError(f"pretrain: data must hold readable shards, got {shard}: {error.strerror}") from error
    except Exception as error:  # ReadError; of a damaged first header anything
        raise InputError(f"pretrain: data must hold uncompressed tar shards, got {shard}: {error}") from error
    if not whole:
        warnings.warn(f"shard {shard} is damaged: what follows its first {len(found)} images is left out", stacklevel=3)
    return found


def _matching(pattern: str) -> list[Path]:
    found: list[Path] = []
    for name in expand_braces(pattern):
        found += map(Path, match_files(name) if glob.has_magic(name) else [name])
    return found


def expand_braces(pattern: str) -> list[str]:
    """Expand ``a-{000..002}.tar`` to a-000.tar, a-001.tar, a-002.tar and ``{a,b}`` to a, b.

    Several braces multiply, the last one fastest. The rules are a shell's, without nesting; a range keeps the width of
    its zero-padded ends.
    """
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        parts = words.split(",")
    else:
        low, high = int(first), int(last)
        step = 1 if low <= high else -1
        padded = first.startswith("0") or last.startswith("0")
        width = max(len(first), len(last)) if padded else 0
        parts = [str(number).zfill(width) for number in range(low, high + step, step)]
    rests = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + part + rest for part in parts for rest in rests]
