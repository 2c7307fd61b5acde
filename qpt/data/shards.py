"""Photographs in tar files as the WebDataset library writes them, read at random instead of in the shards' order.

``open_source`` makes a ``ShardSource``. The tars' headers are read once, at the start; a photograph is then one read at
its offset. So the data order stays a function of (seed, epoch, index), as for files, and a run resumes anywhere, which
a stream through a shuffle buffer would not allow (the library's readers are streams).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from qpt.data.images import EXTENSIONS
from qpt.errors import InputError

MAX_MEMBER_BYTES = 1 << 30  # of one photograph's file, which is read whole


class ShardSource:
    """The members of tar files that have an image's extension: shard after shard, each in its own order.

    shards: at least one; names are relative to the folder they share.  Every such member is a photograph, whatever key
    WebDataset would file it under (``0001.jpg``, ``train/0001.left.png``); what else is in a shard is passed over.
    Raises InputError for a file that is not a tar, and if there is no photograph at all. Of a shard that is cut short
    or damaged, the members up to there are photographs (the one that is cut cannot be read); a warning says so.
    """

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards
        self._root = os.path.commonpath([shard.parent for shard in shards])
        self._descriptors: dict[int, int] = {}  # shard -> file descriptor of this process, opened when first needed
        self._names: list[bytes] = []  # of each shard's photographs, one a line: small beside as many str
        offsets, sizes, counts = [], [], []
        digest = hashlib.sha256()
        for shard in shards:
            names = []
            for member in _photographs(shard):
                names.append(member.name)
                offsets.append(member.offset_data)
                sizes.append(member.size)
                digest.update(f"{self._relative(shard)}/{member.name} {member.size}\n".encode(errors="surrogateescape"))
            self._names.append("\n".join(names).encode(errors="surrogateescape"))
            counts.append(len(names))
        self._offsets, self._sizes = np.array(offsets, np.int64), np.array(sizes, np.int64)
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # number of each shard's first
        self._fingerprint = digest.hexdigest()
        if not offsets:
            kinds = " ".join(sorted(EXTENSIONS))
            raise InputError(f"pretrain: data must hold at least one image ({kinds}), got none in {len(shards)} shards")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}  # a descriptor means nothing in another process

    def name(self, index: int) -> str:
        shard = self._shard(index)
        member = self._names[shard].split(b"\n")[index - self._first[shard]]
        return f"{self._relative(self.shards[shard])}/{member.decode(errors='surrogateescape')}"

    def open(self, index: int) -> io.BytesIO:
        shard, size = self._shard(index), int(self._sizes[index])
        if size > MAX_MEMBER_BYTES:
            raise OSError(f"{size:,} bytes are more than the limit of {MAX_MEMBER_BYTES:,}")
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._descriptors[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        content = os.pread(descriptor, size, int(self._offsets[index]))  # has no position: processes may share it
        if len(content) < size:
            raise OSError(f"the shard ends after {len(content):,} of {size:,} bytes")
        return io.BytesIO(content)

    def fingerprint(self) -> str:
        return self._fingerprint

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _relative(self, shard: Path) -> str:
        return Path(os.path.relpath(shard, self._root)).as_posix()


def _photographs(shard: Path) -> list[tarfile.TarInfo]:
    """The members of a tar that are regular files named like images. Nothing but headers is read."""
    found = []
    try:
        with tarfile.open(shard, "r:") as tar:  # uncompressed: a compressed one has no places to go to
            try:
                while (member := tar.next()) is not None:
                    if member.isreg() and not member.issparse() and Path(member.name).suffix.lower() in EXTENSIONS:
                        found.append(member)
                    tar.members.clear()  # type: ignore[attr-defined] # it keeps every member otherwise
            except tarfile.ReadError:  # the last member reaches beyond the end of the file
                whole = False
            else:  # at something that is not a header, tarfile stops as it does at the zeros that end a tar
                assert tar.fileobj is not None
                tar.fileobj.seek(tar.offset)
                whole = not any(tar.fileobj.read(tarfile.BLOCKSIZE))
    except tarfile.ReadError as error:
        raise InputError(f"pretrain: data must hold uncompressed tar shards, got {shard}: {error}") from error
    except OSError as error:
        raise InputError(f"pretrain: data must hold readable shards, got {shard}: {error.strerror}") from error
    if not whole:
        warnings.warn(f"shard {shard} is damaged: what follows its first {len(found)} images is left out", stacklevel=3)
    return found


def expand_braces(pattern: str) -> list[str]:
    """``a-{000..002}.tar`` -> a-000.tar, a-001.tar, a-002.tar; ``{a,b}`` -> a, b; several multiply, the last fastest.

    As a shell does it, without nesting; a range keeps the width of its zero-padded ends.
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
