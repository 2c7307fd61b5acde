"""The images that pre-training reads behind URLs: of folders and of tar shards, in the order that they have on disk.

Called by ``qpt.data.sources``. It reads through ``qpt.data.remote`` and keeps indexes in the cache folder.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qpt.data.faults import RemoteError
from qpt.data.listing import PassedOver, expand_braces, name_line, walk_urls
from qpt.data.remote import AT_ONCE, RangedFile, describe_file, has_ranges, match_urls, read_ranges
from qpt.data.remote_copies import copy_large, kept_index
from qpt.data.shards import ShardSource, member_fault, read_members, warn_damaged
from qpt.data.urls import url_path
from qpt.errors import InputError


def open_remote(data: str) -> RemoteFolderSource | RemoteShardSource:
    """Open the images behind a URL, as ``qpt.data.sources.open_source`` does."""
    if url_path(data).endswith(".tar") or re.search(r"[*\[{]", data):
        named = [match_urls(name) if re.search(r"[*\[]", name) else [name] for name in expand_braces(data)]
        urls = [url for found in named for url in found]
        if not urls:
            raise InputError(f"pretrain: data must be an existing folder, shard or pattern of shards, got {data}")
        return RemoteShardSource(urls)
    folder = data.rstrip("/")
    index, kept = kept_index(folder + "/", "", lambda: _folder_index(folder))
    if kept is not None:
        warnings.warn(f"{folder} is taken as it was on {index['made']}; to list it again, delete {kept}", stacklevel=4)
    if not index["names"]:
        if not index["shards"]:
            raise InputError(f"pretrain: data must be a folder with an image or a shard, got none below {data}")
        return RemoteShardSource(index["shards"])
    if index["passed_over"]:
        warnings.warn(f"{folder}: files that are passed over: {index['passed_over']}", stacklevel=4)
    return RemoteFolderSource(folder, index)


class _Fetched:
    """The content of the images that a source has read ahead, of which each is taken once."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes | FileNotFoundError] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_contents": {}}

    def keep(self, indices: Sequence[int], contents: Sequence[bytes | FileNotFoundError]) -> None:
        self._contents = dict(zip(indices, contents, strict=True))

    def take(self, index: int) -> io.BytesIO | None:
        content = self._contents.pop(index, None)
        if isinstance(content, Exception):
            raise content
        return None if content is None else io.BytesIO(content)


class RemoteFolderSource:
    """The images below the URL of a folder, in the order of ``list_images``: that of the same folder on disk.

    Names and sizes are kept as an index in the cache folder: a folder that has changed is listed again only when that
    file is deleted, of which a warning reminds.
    """

    def __init__(self, url: str, index: dict[str, Any]) -> None:
        self.url, self._names, self._urls, self._sizes = url, index["names"], index["urls"], index["sizes"]
        self._fetched = _Fetched()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return str(self._names[index])

    def prefetch(self, indices: Sequence[int]) -> None:
        indices = [index for index in indices if not member_fault(self._sizes[index])]
        contents = read_ranges([self._urls[index] for index in indices])
        for index, content in zip(indices, contents, strict=True):
            size = self._sizes[index]
            if isinstance(content, bytes) and size not in (-1, len(content)):
                found = f"it has {len(content):,} bytes, {size:,} when {self.url} was listed"
                raise RemoteError(f"{self._urls[index]} has changed: {found}")
        self._fetched.keep(indices, contents)

    def open(self, index: int) -> io.BytesIO:
        if fault := member_fault(self._sizes[index]):
            raise OSError(fault)
        return self._fetched.take(index) or self._fetched_now(index)

    def _fetched_now(self, index: int) -> io.BytesIO:
        self.prefetch([index])
        content = self._fetched.take(index)
        assert content is not None
        return content

    def lines(self) -> Iterator[bytes]:
        return map(name_line, self._names, self._sizes)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"\n".join(self.lines())).hexdigest()


class RemoteShardSource(ShardSource):
    """A ``ShardSource`` of tar files behind URLs, of which each image is a ranged read.

    The places of members are kept as an index in the cache folder, and built anew for a shard that the server says has
    changed. A shard of a server without ranged reads is copied into the cache folder, with a warning.
    """

    def __init__(self, urls: list[str]) -> None:
        paths = [url_path(url) for url in urls]
        root = posixpath.commonpath(["/" + posixpath.dirname(path) for path in paths])
        with ThreadPoolExecutor(AT_ONCE, "qpt remote") as pool:
            indexes = list(pool.map(_shard_facts, urls))
        passed_over = PassedOver()
        self.urls = urls
        self.shards = [Path(index["copy"]) for index in indexes]  # "." of one that is read in ranges
        self._shard_sizes = [index["size"] for index in indexes]
        self._fetched = _Fetched()
        for url, index in zip(urls, indexes, strict=True):
            if index["copy"]:
                reason = "its server gives no parts of a file"
                warnings.warn(f"shard {url} is copied to {index['copy']}: {reason}", stacklevel=3)
            if not index["whole"]:
                warn_damaged(url, index["count"])
            passed_over.kinds.update(index["kinds"])
            passed_over.hidden += index["hidden"]
        names = [posixpath.relpath("/" + path, root) for path in paths]
        # Read again, one after the other: the members of all shards at once would take ten times the memory.
        members = (_shard_index(url, index)["members"] for url, index in zip(urls, indexes, strict=True))
        self._number_members(names, members, passed_over)

    def prefetch(self, indices: Sequence[int]) -> None:
        ranged = [index for index in indices if self._is_ranged(index) and not self._fault(index)]
        urls = [self.urls[self._shard(index)] for index in ranged]
        starts, ends = self._offsets[ranged].tolist(), (self._offsets[ranged] + self._sizes[ranged]).tolist()
        self._fetched.keep(ranged, read_ranges(urls, starts, ends))

    def open(self, index: int) -> io.BytesIO:
        if not self._is_ranged(index):
            return super().open(index)
        if fault := self._fault(index):
            raise OSError(fault)
        content = self._fetched.take(index)
        if content is None:
            self.prefetch([index])
            content = self._fetched.take(index)
        assert content is not None
        return content

    def _fault(self, index: int) -> str:
        """Return why a member cannot be read, empty for one that can."""
        start, size = int(self._offsets[index]), int(self._sizes[index])
        there = self._shard_sizes[self._shard(index)] - start
        return f"the shard ends after {there:,} of {size:,} bytes" if there < size else member_fault(size)

    def _is_ranged(self, index: int) -> bool:
        return self.shards[self._shard(index)] == Path()


def _folder_index(folder: str) -> dict[str, Any]:
    """List the images below a folder with their sizes, or the shards if there is no image."""
    passed_over = PassedOver()
    found = walk_urls(folder, passed_over)
    shards = [] if found else [url for _, url, _ in walk_urls(folder, PassedOver(), extension=".tar")]
    with ThreadPoolExecutor(AT_ONCE, "qpt remote") as pool:
        sizes = list(pool.map(lambda entry: entry[2] if entry[2] >= 0 else _remote_size(entry[1]), found))
    names, urls = [name for name, _, _ in found], [url for _, url, _ in found]
    return {"names": names, "urls": urls, "sizes": sizes, "shards": shards, "passed_over": str(passed_over)}


def _remote_size(url: str) -> int:
    try:
        return describe_file(url)[0]
    except FileNotFoundError:
        return -1  # as of a link to nothing


def _shard_facts(url: str) -> dict[str, Any]:
    """Return the index of a shard without its members; its copy is there, if the server has no ranged reads."""
    try:
        size, tag = describe_file(url)
    except FileNotFoundError:
        raise InputError(f"pretrain: data must be existing shards, got {url}: no such file") from None

    index = _shard_index(url, {"size": size, "tag": f"{size} {tag}"})
    if index["copy"]:
        copy_large(url, size)  # it may have been deleted
    return {key: value for key, value in index.items() if key != "members"}


def _shard_index(url: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the index of a shard. facts: its size in bytes, and the tag that changes with it."""
    size = facts["size"]

    def build() -> dict[str, Any]:
        passed_over = PassedOver()
        ranged = size > 0 and has_ranges(url)
        copy = "" if ranged else str(copy_large(url, size))
        with RangedFile.buffered(url, size) if ranged else open(copy, "rb") as file:
            members, whole = read_members(url, file, passed_over)
        counts = {"kinds": passed_over.kinds, "hidden": passed_over.hidden}
        return {"size": size, "copy": copy, "members": members, "count": len(members), "whole": whole, **counts}

    return kept_index(url, facts["tag"], build)[0]
