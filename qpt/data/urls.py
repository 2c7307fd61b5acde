"""The names of files behind URLs: their parts, and what they mean as paths. Nothing is read.

Called by everything that takes a file or folder by name; relies on the standard library alone.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import quote, unquote


def is_url(name: object) -> bool:
    """Return whether a name is a URL, ``scheme://...``, of another scheme than ``file``."""
    return isinstance(name, str) and bool(re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://", name))


def without_file_scheme(name: str) -> str:
    """Return the path of a ``file://`` URL, and every other name as it is."""
    if not name.startswith("file://"):
        return name
    path = name.removeprefix("file://").removeprefix("localhost")
    return path if os.path.lexists(path) else unquote(path)


def join(folder: str, name: str) -> str:
    """Return the URL of a file that is named relative to the URL of a folder; of a URL, itself.

    The query of the folder's URL is dropped, and a name that leads above the host's root stays below it.
    """
    if is_url(name):
        return name
    start = without_query(folder)
    scheme, _, rest = start.partition("://")
    host, _, path = rest.partition("/")
    named = quote(name, errors="surrogateescape") if is_http(folder) else name
    return f"{scheme}://{host}{posixpath.normpath(f'/{path}/{named}')}"


def parent(url: str) -> str:
    """Return the URL of the folder of a file."""
    return without_query(url).rpartition("/")[0]


def last_name(url: str) -> str:
    """Return the last name in the path of a URL, unquoted; empty for a URL that ends in a slash."""
    return url_path(url).rpartition("/")[2]


def is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def without_query(url: str) -> str:
    return re.split(r"[?#]", url, maxsplit=1)[0] if is_http(url) else url


def url_path(url: str) -> str:
    """Return the path of a URL, unquoted, without its host."""
    return plain(url, without_query(url).partition("://")[2].partition("/")[2])


def plain(url: str, path: str) -> str:
    """Return a path or URL as ``url``'s scheme means it: that of HTTP is unquoted."""
    return unquote(path, errors="surrogateescape") if is_http(url) else path
