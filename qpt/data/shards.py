"""Tar shards on disk: their members as one numbered list of images, each read at its offset.

Called by ``qpt.data.sources``, and by ``qpt.data.remote_sources`` for shards behind URLs.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from qpt.data.faults import is_machine_fault
from qpt.data.listing import EXTENSIONS, PassedOver, name_line
from qpt.errors import InputError

MAX_MEMBER_BYTES = 1 << 30  # of one image's file in a shard, which is read whole
MAX_OPEN_SHARDS = 16  # by one process at a time


class Member(NamedTuple):
    """An image in a shard. offset, size: of its content in the tar, bytes."""

    name: str
    offset: int
    size: int


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
        root = os.path.commonpath([shard.parent for shard in shards])
        passed_over = PassedOver()
        self._number_members(
            [Path(os.path.relpath(shard, root)).as_posix() for shard in shards],
            (image_members(shard, passed_over) for shard in shards),
            passed_over,
        )

    def _number_members(
        self, shard_names: list[str], members_of_shards: Iterable[Iterable[Member]], passed_over: PassedOver
    ) -> None:
        self._descriptors: dict[int, int] = {}  # shard -> file descriptor of this process, the last one used at the end
        self._shard_names = shard_names
        names: list[bytes] = []
        offsets: list[int] = []
        sizes: list[int] = []
        counts: list[int] = []
        digest = hashlib.sha256()
        for shard_name, members in zip(shard_names, members_of_shards, strict=True):
            before = len(names)
            for name, offset, size in members:
                names.append(name.encode(errors="surrogateescape"))
                offsets.append(offset)
                sizes.append(size)
                digest.update(name_line(f"{shard_name}/{name}", size) + b"\n")
            counts.append(len(names) - before)
        self._names = b"".join(names)  # takes less memory than as many str; each ends at its place in _name_ends
        self._name_ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._offsets, self._sizes = np.array(offsets, np.int64), np.array(sizes, np.int64)
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # number of each shard's first image
        self._fingerprint = digest.hexdigest()
        if not offsets:
            kinds = " ".join(sorted(EXTENSIONS))
            raise InputError(f"pretrain: data must hold at least one image ({kinds}), got none in {len(counts)} shards")
        passed_over.warn("1 shard" if len(counts) == 1 else f"{len(counts)} shards")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}  # a descriptor means nothing in another process

    def name(self, index: int) -> str:
        start, end = self._name_ends[index : index + 2]
        member = self._names[start:end].decode(errors="surrogateescape")
        return f"{self._shard_names[self._shard(index)]}/{member}"

    def prefetch(self, indices: Sequence[int]) -> None:
        pass

    def open(self, index: int) -> io.BytesIO:
        shard, size = self._shard(index), int(self._sizes[index])
        if fault := member_fault(size):
            raise OSError(fault)
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


class _WithinItsSize(io.BufferedReader):
    """A file of which no more is asked for than there is: Python reserves what a damaged header asks for."""

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, max(0, left)))


def member_fault(size: int) -> str:
    """Return why an image's file of so many bytes is not read whole, empty for one that is."""
    return f"{size:,} bytes are more than the limit of {MAX_MEMBER_BYTES:,}" if size > MAX_MEMBER_BYTES else ""


def image_members(shard: Path, passed_over: PassedOver) -> list[Member]:
    """Return the images of a tar file on disk; see ``read_members``. A warning says if it is damaged."""
    found, whole = read_members(str(shard), None, passed_over)
    if not whole:
        warn_damaged(str(shard), len(found))
    return found


def warn_damaged(shard: str, images: int) -> None:
    warnings.warn(f"shard {shard} is damaged: what follows its first {images} images is left out", stacklevel=4)


def read_members(shard: str, file: IO[bytes] | None, passed_over: PassedOver) -> tuple[list[Member], bool]:
    """Return the members of a tar that are regular files named like images, and whether it is whole; count others.

    file: its content, None for the file on disk that ``shard`` names. Only headers are read. Raises InputError for a
    file that is not a tar.
    """
    found = []
    try:
        with ExitStack() as opened:
            content = file or opened.enter_context(_WithinItsSize(io.FileIO(shard)))
            # Uncompressed alone: a compressed tar has no offsets to read at.
            tar = opened.enter_context(tarfile.open(shard, "r:", content))
            try:
                place = -1
                while (member := tar.next()) is not None:
                    # Sizes that are negative would lead round in a circle.
                    if not place < tar.offset < 1 << 62 or member.offset_data < 0 or member.size < 0:
                        raise tarfile.ReadError("a member ends before it begins")
                    place = tar.offset
                    if member.isreg() and not member.issparse() and passed_over.takes(member.name):
                        found.append(Member(member.name, member.offset_data, member.size))
                    tar.members.clear()  # type: ignore[attr-defined] # it keeps every member otherwise
            except Exception as error:
                if is_machine_fault(error):
                    raise
                # tarfile.ReadError: the last member reaches beyond the end of the file. Damaged headers raise anything.
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
    return found, whole
