"""Copies and indexes of files behind URLs in a cache folder, for what is read more than once.

Called by ``qpt.data.listing`` and ``qpt.data.sources``, and by the reader of score tables. It writes into the cache
folder alone, whole files at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qpt.data.remote import AT_ONCE, BLOCK_BYTES, read_ranges, retried
from qpt.data.urls import url_path
from qpt.io import parse_json, write_whole

_INDEX_FORMAT = "qpt-remote-index-1"


def cache_folder() -> Path:
    """Return the folder of copies and indexes: ``$QPT_REMOTE_CACHE``, else ``qpt/remote`` of the user's cache."""
    named = os.environ.get("QPT_REMOTE_CACHE")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qpt" / "remote")


def kept_index(url: str, tag: str, build: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Path | None]:
    """Return the index of a URL, plain data, and its file if it was kept; else it is built now.

    tag: one that was kept under another tag is built anew. Processes that want the same index build it one after the
    other, so that all but the first find it.
    """
    file = cache_folder() / "index" / f"{hashlib.sha256(url.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    state = {"format": _INDEX_FORMAT, "url": url, "tag": tag}

    def read() -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            kept = parse_json(file.read_bytes())
            if isinstance(kept, dict) and state.items() <= kept.items():
                return kept
        return None

    found = read()
    if found is not None:
        return found, file
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read()
        if found is None:
            found = {**state, "made": time.strftime("%Y-%m-%d %H:%M"), **build()}
            text = json.dumps(found)
            write_whole(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    return found, None


def copy_path(url: str) -> Path:
    """Return the place of the copy of a URL, which keeps its path below the cache folder."""
    parts = urlsplit(url)
    path = posixpath.normpath("/" + url_path(url)).lstrip("/")
    if parts.query:
        folder, name = posixpath.split(path)
        path = posixpath.join(folder, hashlib.sha256(parts.query.encode()).hexdigest()[:12], name)
    return cache_folder() / "files" / parts.scheme / (parts.netloc or "-") / path


def copy_files(urls: Sequence[str], *, anew: bool = False) -> list[Path]:
    """Return the copies of files, fetched where they are not there yet; a file that is missing has none.

    anew: fetch them in any case. Raises RemoteError after the last attempt.
    """
    copies = [copy_path(url) for url in urls]
    wanted = [place for place, copy in enumerate(copies) if anew or not copy.is_file()]
    for first in range(0, len(wanted), AT_ONCE):
        chunk = wanted[first : first + AT_ONCE]
        for place, content in zip(chunk, read_ranges([urls[place] for place in chunk]), strict=True):
            if isinstance(content, Exception):
                copies[place].unlink(missing_ok=True)
                continue
            copies[place].parent.mkdir(parents=True, exist_ok=True)
            write_whole(copies[place], partial(_write_bytes, content))
    return copies


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def copy_large(url: str, size_bytes: int) -> Path:
    """Return the copy of one file of any size, fetched unless a copy of that size is there."""
    copy = copy_path(url)
    if copy.is_file() and copy.stat().st_size == size_bytes:
        return copy

    def fetch(unfinished: Path) -> None:
        def attempt(system: Any, path: str) -> None:
            with system.open(path, "rb", block_size=0) as source, unfinished.open("wb") as target:
                shutil.copyfileobj(source, target, BLOCK_BYTES)
                if size_bytes >= 0 and target.tell() != size_bytes:
                    raise OSError(f"the answer has {target.tell():,} of {size_bytes:,} bytes")

        retried(url, attempt)

    copy.parent.mkdir(parents=True, exist_ok=True)
    write_whole(copy, fetch)
    return copy
