"""Files behind URLs: listings, and whole and ranged reads, through fsspec.

Called by ``qpt.data.listing`` and ``qpt.data.sources``, and by what takes tables and single images. Every request is
tried again after a fault that may pass; then one error names the URL and the last cause. It needs the extra ``remote``,
which is imported when the first URL is read.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qpt.data.faults import RemoteError
from qpt.data.urls import is_http, is_url, plain
from qpt.errors import BackendError, InputError

T = TypeVar("T")

WAITS_S = (0.5, 1.0, 2.0, 4.0)  # before each attempt but the first; up to half as much again, by chance
TIMEOUT_S = 30.0  # without a byte, or until a connection is made
AT_ONCE = 16  # requests at a time
_LONGEST_WAIT_S = 60.0  # that a server may ask for (Retry-After)
BLOCK_BYTES = 1 << 20  # read of a tar at a time, when its headers are looked for
_PASSING = frozenset({408, 425, 429, *range(500, 600)})  # HTTP statuses after which another attempt may help
_jitter = random.Random()  # of its own: the caller's generator stays as it is


def read_file(url: str) -> bytes:
    """Return the content of a URL. Raises FileNotFoundError if there is none, RemoteError after the last attempt."""
    (content,) = read_ranges([url])
    if isinstance(content, Exception):
        raise content
    return content


def read_ranges(
    urls: Sequence[str], starts: Sequence[int] = (), ends: Sequence[int] = ()
) -> list[bytes | FileNotFoundError]:
    """Return bytes ``starts[i]`` to ``ends[i]`` of each URL, or whole files; ``AT_ONCE`` requests at a time.

    In the place of a URL that is not there is its FileNotFoundError. Raises RemoteError after the last attempt, and at
    once where a server has no ranged reads or denies access.
    """

    def ask(places: list[int]) -> list[bytes | Exception]:
        answers: dict[int, bytes | Exception] = {}
        systems: dict[int, tuple[Any, list[int]]] = {}
        for place in places:
            system = _filesystem(urls[place])
            systems.setdefault(id(system), (system, []))[1].append(place)
        for system, own in systems.values():
            found = system.cat_ranges(
                [system._strip_protocol(urls[place]) for place in own],
                [starts[place] for place in own] if starts else [None] * len(own),
                [ends[place] for place in own] if ends else [None] * len(own),
                on_error="return",
            )
            answers.update(zip(own, found, strict=True))
        if starts:
            for place, answer in answers.items():
                wanted = ends[place] - starts[place]
                if isinstance(answer, bytes) and len(answer) > wanted:
                    answers[place] = RemoteError(
                        f"{urls[place]} could not be read: the server gives no parts of a file"
                    )
                elif isinstance(answer, bytes) and len(answer) < wanted:
                    answers[place] = OSError(f"the answer has {len(answer):,} of {wanted:,} bytes")
        return [answers[place] for place in places]

    content: list[bytes | FileNotFoundError] = []
    for first in range(0, len(urls), AT_ONCE):
        chunk = range(first, min(first + AT_ONCE, len(urls)))
        content += _attempts(partial(_asked, ask, chunk), [urls[i] for i in chunk])
    return content


def _asked(ask: Callable[[list[int]], list[T]], places: Sequence[int], left: list[int]) -> list[T]:
    return ask([places[i] for i in left])


def describe_file(url: str) -> tuple[int, str]:
    """Return the size in bytes (-1 if unknown) and a text that changes with the content of a URL, if the server has
    any. Raises FileNotFoundError and RemoteError."""
    found = retried(url, lambda system, path: system.info(path))
    tag = next((found[key] for key in ("ETag", "etag", "Last-Modified", "LastModified", "mtime") if found.get(key)), "")
    size = found.get("size")
    return -1 if size is None else int(size), str(tag)


def list_folder(url: str) -> list[tuple[str, str, int]]:
    """Return (name, URL, size in bytes) of the files and folders in a folder; of a folder the name ends in a slash.

    A size of -1 is unknown, as those of HTTP are. Raises FileNotFoundError and RemoteError.
    """
    web = is_http(url)
    # With the slash, without which a server of files answers that the folder is elsewhere.
    listed = url.rstrip("/") + "/" if web and "?" not in url else url
    entries = retried(listed, lambda system, path: system.ls(path, detail=True))
    scheme = url.partition("://")[0]
    top = plain(url, _filesystem(url)._strip_protocol(url).rstrip("/"))
    found = []
    for entry in entries:
        given = entry["name"]
        name = plain(url, given.rstrip("/")).removeprefix(top)
        # A page may link anywhere, and an object store lists the folder itself.
        if not re.fullmatch(r"/[^/\0]+", name) or name in ("/.", "/..") or (web and re.search(r"[?#]", given)):
            continue
        if not plain(url, given).startswith(top + "/"):
            continue
        folder = "/" if entry["type"] == "directory" else ""
        own = given if is_url(given) else f"{scheme}://{given}"
        found.append((name[1:] + folder, own, -1 if entry.get("size") is None else int(entry["size"])))
    return sorted(found)


def match_urls(pattern: str) -> list[str]:
    """Return the sorted URLs that match a pattern with ``*`` or ``[...]``."""
    scheme = pattern.partition("://")[0]
    found = retried(pattern, lambda system, path: system.glob(path))
    return [name if is_url(name) else f"{scheme}://{name}" for name in sorted(found)]


def has_ranges(url: str) -> bool:
    """Return whether a part of a file can be read, without reading all of it."""
    if not is_http(url):
        return True

    def second_byte(system: Any, path: str) -> bool:
        try:
            with system.open(path, "rb", cache_type="none") as file:
                file.seek(1)
                file.read(1)
        except ValueError:  # what fsspec raises before it takes the answer
            return False
        return True

    return retried(url, second_byte)


def retried(url: str, call: Callable[[Any, str], T]) -> T:
    """Return ``call(filesystem, path)`` of a URL, with attempts as for reading."""

    def ask(places: list[int]) -> list[Any]:
        system = _filesystem(url)
        try:
            return [call(system, system._strip_protocol(url)) for _ in places]
        except Exception as error:
            return [error]

    (answer,) = _attempts(ask, [url])
    if isinstance(answer, Exception):
        raise answer
    return answer


class RangedFile(io.RawIOBase):
    """A file behind a URL that is read in ranges, within an ``io.BufferedReader``. size_bytes: of the file."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url, self._size, self._place = url, size_bytes, 0

    @classmethod
    def buffered(cls, url: str, size_bytes: int) -> io.BufferedReader:
        return io.BufferedReader(cls(url, size_bytes), BLOCK_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._place + len(buffer))
        if end <= self._place:
            return 0
        (content,) = read_ranges([self._url], [self._place], [end])
        if isinstance(content, Exception):
            raise content
        buffer[: len(content)] = content
        self._place = end
        return len(content)


def read_ahead(names: Sequence[str]) -> Iterator[tuple[str, str | io.BytesIO | FileNotFoundError]]:
    """Yield each name with what to open: of a URL its content, read before it is asked for; else the name itself."""
    if not any(map(is_url, names)):
        yield from ((name, name) for name in names)
        return
    with ThreadPoolExecutor(1, "qpt remote") as reader:

        def start(first: int) -> Any:
            return reader.submit(read_ranges, [name for name in names[first : first + AT_ONCE] if is_url(name)])

        following = start(0)
        for first in range(0, len(names), AT_ONCE):
            contents = iter(following.result())
            following = start(first + AT_ONCE)
            for name in names[first : first + AT_ONCE]:
                content = next(contents) if is_url(name) else name
                yield name, io.BytesIO(content) if isinstance(content, bytes) else content


def _attempts(ask: Callable[[list[int]], Sequence[T | Exception]], urls: Sequence[str]) -> list[Any]:
    """Return the answers of ``ask``, which is asked again for the places of answers that are passing faults.

    A FileNotFoundError is an answer. Raises the error of a fault that stays.
    """
    answers: list[T | Exception | None] = [None] * len(urls)
    left = list(range(len(urls)))
    for wait_s in (*WAITS_S, None):
        for place, answer in zip(list(left), ask(left), strict=True):
            answers[place] = answer
            if not isinstance(answer, Exception):
                left.remove(place)
            elif (final := _final(answer, urls[place])) is not None:
                if not isinstance(final, FileNotFoundError):
                    raise final from answer
                answers[place] = final
                left.remove(place)
        if not left:
            return answers
        last = answers[left[0]]
        assert isinstance(last, Exception)
        if wait_s is None:
            raise RemoteError(
                f"{urls[left[0]]} could not be read in {1 + len(WAITS_S)} attempts: {_reason(last)}"
            ) from last
        time.sleep(max(wait_s * (1 + _jitter.random() / 2), min(_LONGEST_WAIT_S, _asked_wait_s(last))))
    raise AssertionError("the last attempt returns or raises")


def _final(error: Exception, url: str) -> Exception | None:
    """Return what to raise of a fault that stays, None for one that may pass."""
    if isinstance(error, (RemoteError, BackendError, InputError)):
        return error
    if isinstance(error, ImportError):
        return _missing(url, error)
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(cause, (FileNotFoundError, NotADirectoryError)) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "no such file", url)
    denied = isinstance(cause, PermissionError) or (status is not None and status >= 400 and status not in _PASSING)
    if denied or isinstance(cause, (NotImplementedError, IsADirectoryError)) or "Certificate" in type(cause).__name__:
        return RemoteError(f"{url} could not be read: {_reason(cause)}")
    if isinstance(cause, ValueError):
        return InputError(f"remote: a URL must be one that can be read, got {url}: {_reason(cause)}")
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE):
        return cause  # of this machine
    return None


def _cause(error: BaseException) -> BaseException:
    """Return what an error tells: fsspec makes FileNotFoundError of anything that befalls a request for a size."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    error = _cause(error)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"nothing came for {TIMEOUT_S:g} s"
    status, text = getattr(error, "status", None), str(error).strip().partition("\n")[0]
    if status:
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    if "Payload" in type(error).__name__ or "Disconnected" in type(error).__name__:
        return f"the connection was cut ({type(error).__name__})"
    return text or type(error).__name__


def _asked_wait_s(error: Exception) -> float:
    headers = getattr(_cause(error), "headers", None) or {}
    asked = str(headers.get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else 0.0


def _filesystem(url: str) -> Any:
    return _shared_filesystem(url.partition("://")[0].lower(), urlsplit(url).netloc, os.getpid())


@lru_cache(64)
def _shared_filesystem(scheme: str, host: str, process: int) -> Any:
    """Return fsspec's object for a host. process: a forked child must not use the connections of its parent."""
    url = f"{scheme}://{host}/"
    options: dict[str, Any] = {"skip_instance_cache": True}
    try:
        import fsspec

        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
            # As they are: a compressed answer has other offsets. trust_env: proxies of the environment.
            headers = {"Accept-Encoding": "identity"}
            options["client_kwargs"] = {"timeout": timeout, "headers": headers, "trust_env": True}
        return fsspec.core.url_to_fs(url, **options)[0]
    except ImportError as error:
        raise _missing(url, error) from error
    except ValueError as error:
        raise InputError(f"remote: a URL must have a scheme that fsspec knows, got {url}: {error}") from None


def _missing(url: str, error: ImportError) -> BackendError:
    extra = "s3" if url.startswith(("s3:", "s3a:")) else "remote"
    return BackendError(f"remote: to read {url} takes another package ({error}): pip install 'qpt[{extra}]'")
