"""Find image files by folder, pattern or name. Called by everything that takes a folder of images; it opens none.

What is left out is counted and said in one warning: files with other extensions, and the hidden and companion files
that systems leave beside photographs.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from qpt.data.faults import explained, is_machine_fault
from qpt.data.remote import list_folder, match_urls
from qpt.data.remote_copies import copy_files, copy_path
from qpt.data.urls import is_url, last_name, without_file_scheme
from qpt.errors import InputError

#: Extensions of the formats that ``qpt.data.formats`` opens.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
)
#: Folders, besides hidden ones, in which systems keep thumbnails, companions of files and what was deleted.
_SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information"})
_MOST_KINDS = 8  # extensions that a warning names


def is_hidden(name: str) -> bool:
    """Return whether a part of a path is left out of folders: it begins with a dot, or is a folder of the system."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Return whether a file has an image's extension, in any case."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class PassedOver:
    """A count of the files that were not taken: others by their extension, and hidden ones."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.hidden = 0

    def takes(self, path: str) -> bool:
        """Return whether ``path``, relative and with slashes, is of an image that is not hidden; count it if not."""
        if any(map(is_hidden, PurePosixPath(path).parts)):
            self.hidden += 1
        elif is_image_name(path):
            return True
        else:
            self.kinds[os.path.splitext(path)[1].lower() or "without extension"] += 1
        return False

    def __str__(self) -> str:
        named = [f"{count} {kind}" for kind, count in self.kinds.most_common(_MOST_KINDS)]
        rest = self.kinds.total() - sum(count for _, count in self.kinds.most_common(_MOST_KINDS))
        named += [f"{rest} others"] if rest else []
        return ", ".join([*named, *([f"{self.hidden} hidden or of the system"] if self.hidden else [])])

    def warn(self, where: str) -> None:
        """Say in one warning what was passed over, if anything was."""
        if self.kinds or self.hidden:
            warnings.warn(f"{where}: files that are passed over: {self}", stacklevel=3)


def list_images(folder: str | Path, *, most: int | None = None) -> list[Path]:
    """List every file below ``folder`` with an image's extension, nested folders included, sorted by relative path.

    most: if there are more, so many of them, evenly spaced. Of a folder behind a URL, the images are copied into the
    cache folder (``qpt.data.remote_copies``), and the copies listed.

    Symbolic links are followed. A folder that several links (or a loop of them) lead to is taken once: under its own
    name if that is below ``folder``, else under the first link's. A link to nothing is listed, to be reported as
    unreadable like any other broken file. A folder that may not be read is left out with a warning; so are hidden files
    and folders (``is_hidden``), and other files, in one warning that counts them.
    Raises InputError if ``folder`` is not a folder or holds no such file, and ReadError if the disk fails.
    """
    if is_url(folder):
        names, urls, _ = list_urls(str(folder))
        places = evenly_spaced(len(names), most)
        return copy_files([urls[place] for place in places])
    root = images_root(folder)
    if not root.is_dir():
        raise InputError(f"list_images: folder must be an existing folder of images, got {root}")
    found: list[Path] = []
    passed_over = PassedOver()
    with explained():
        for _, place, folders, names in _folders_once([str(root)]):
            passed_over.hidden += sum(map(is_hidden, folders))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for path in [Path(place, name) for name in names if passed_over.takes(name)]:
                if _may_be_file(path):
                    found.append(path)
                else:
                    passed_over.kinds["pipes and devices"] += 1
    if not found:
        kinds, got = " ".join(sorted(EXTENSIONS)), f" but {passed_over}" if str(passed_over) else ""
        raise InputError(f"list_images: folder must hold at least one image ({kinds}), got none below {root}{got}")
    passed_over.warn(str(root))
    found.sort(key=lambda path: path.relative_to(root).as_posix())
    return [found[place] for place in evenly_spaced(len(found), most)]


def images_root(folder: str | Path) -> Path:
    """Return the folder on disk that the images of ``list_images`` are in: of a URL, that of the copies."""
    return copy_path(str(folder)) if is_url(folder) else Path(without_file_scheme(os.fspath(folder)))


def evenly_spaced(count: int, most: int | None) -> range | list[int]:
    """Return the places of at most ``most`` of ``count`` things, evenly spaced; of all for None."""
    return range(count) if most is None or count <= most else [count * index // most for index in range(most)]


def list_urls(folder: str) -> tuple[list[str], list[str], list[int]]:
    """Return relative names, URLs and sizes (bytes, -1 if unknown) of the images below the URL of a folder.

    They are those that ``list_images`` takes of a folder on disk, in the same order. Raises InputError if there is
    none, and RemoteError.
    """
    passed_over = PassedOver()
    found = walk_urls(folder, passed_over)
    if not found:
        raise InputError(f"list_images: folder must hold at least one image, got none below {folder} {passed_over}")
    passed_over.warn(folder)
    names, urls, sizes = zip(*found, strict=True)
    return list(names), list(urls), list(sizes)


def walk_urls(folder: str, passed_over: PassedOver, *, extension: str = "") -> list[tuple[str, str, int]]:
    """Return (relative name, URL, size) of the images below a folder, or of the files of ``extension``, sorted."""
    found, folders = [], [("", folder)]
    while folders:
        place, url = folders.pop()
        try:
            entries = list_folder(url)
        except FileNotFoundError:
            if place:
                warnings.warn(f"list_images: {url} is left out: no such folder", stacklevel=3)
                continue
            raise InputError(f"list_images: folder must be the URL of a folder, got {folder}: no such file") from None
        for name, entry, size in entries:
            if name.endswith("/"):
                hidden = is_hidden(name[:-1])
                passed_over.hidden += hidden
                folders += [(place + name, entry)] * (not hidden)
            elif name.lower().endswith(extension) if extension else passed_over.takes(place + name):
                found.append((place + name, entry, size))
    return sorted(found)


def _folders_once(tops: Sequence[str]) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Yield, as ``os.walk`` of each of ``tops``, that top, a folder, and the names of the folders and files in it.

    Links to folders are followed, after everything that has a name of its own, in the order of their names, and what
    they lead to is taken once. As with ``os.walk``, the list of folders may be changed.
    """
    places = [(top, top) for top in tops]
    walked: set[tuple[int, int]] = set()
    while places:
        top, start = places.pop(0)
        for place, folders, names in os.walk(start or ".", onerror=_leave_out):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in walked:
                folders.clear()
                continue
            walked.add((status.st_dev, status.st_ino))
            yield top, place, folders, names
            links = (os.path.join(place, name) for name in folders)
            places += [(top, link) for link in links if os.path.islink(link)]


def _may_be_file(path: Path) -> bool:
    """Return whether a path is of a regular file, or of something that cannot be looked at: it is reported later."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if is_machine_fault(error):
            raise
        return True


def _leave_out(error: OSError) -> None:
    if is_machine_fault(error):
        raise error
    warnings.warn(f"list_images: {error.filename} is left out: {error.strerror}", stacklevel=4)


def find_images(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Find the image files that names stand for, each once, and the reasons why other names stand for none.

    A name is a file, taken as it is whatever its extension; a folder, of which every image below it is taken
    (``list_images``); or, if there is no such file, a pattern with ``*``, ``?``, ``[...]`` or ``**``. A URL is that of
    a folder if its last name has no extension, and in a pattern of URLs ``?`` has no meaning.
    Returns paths or URLs as text in the order of names (sorted within a folder or pattern), and name -> reason.
    """
    found: list[str] = []
    faults: dict[str, str] = {}
    for name in map(without_file_scheme, names):
        if is_url(name):
            matches, fault = _find_urls(name)
            found += matches
            if fault:
                faults[name] = fault
            continue
        matches = [name]
        if not os.path.lexists(name) and glob.has_magic(name):
            matches = match_files(name)
            if not matches:
                faults[name] = "no file matches this pattern"
        for match in matches:
            if not os.path.isdir(match):
                found.append(match)
                continue
            try:
                found += [str(path) for path in list_images(match)]
            except InputError:
                faults[match] = "no image in this folder"
    return list(dict.fromkeys(found)), faults


def _find_urls(name: str) -> tuple[list[str], str]:
    """Return the URLs of images that a URL stands for, or why there are none."""
    if "*" in name or "[" in name:
        found = [url for url in match_urls(name) if not url.endswith("/")]
        return found, "" if found else "no file matches this pattern"
    if "." in last_name(name) or "?" in name:
        return [name], ""
    try:
        return list_urls(name)[1], ""
    except InputError:
        return [], "no image in this folder"


def match_files(pattern: str) -> list[str]:
    """Return the sorted paths that match a pattern, without those that only lead through hidden names."""
    asked = set(Path(pattern).parts)
    hidden = PassedOver()
    found = []
    for match in sorted(_recursive_matches(pattern) if "**" in asked else glob.glob(pattern)):
        if any(is_hidden(part) and part not in asked for part in Path(match).parts):
            hidden.hidden += 1
        else:
            found.append(match)
    hidden.warn(pattern)
    return found


def _recursive_matches(pattern: str) -> list[str]:
    """Return what matches a pattern with ``**``, links to folders followed, but what is in a folder once.

    ``glob`` follows loops of links: of two of them in a tree it finds no end.
    """
    parts = pattern.split("/")
    place = parts.index("**")
    base, wanted = "/".join(parts[:place]), parts[place:]
    tops = sorted(glob.glob(base)) if base else ["/" if place else ""]
    found: list[str] = []
    for top, folder, folders, files in _folders_once(tops):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder, top or ".")
        here = [] if inside == "." else inside.split("/")
        names = files if wanted[-1] == "**" else [*files, *folders]
        found += [os.path.join(top, *here, name) for name in names if _fits([*here, name], wanted)]
    return found


def _fits(names: list[str], parts: list[str]) -> bool:
    """Return whether the names of a path fit the parts of a pattern, by the rules of ``glob``."""
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _fits(names, parts[1:]) or (not names[0].startswith(".") and _fits(names[1:], parts))
    plain = not names[0].startswith(".") or parts[0].startswith(".")
    return plain and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def name_line(name: str, size: int) -> bytes:
    """Return the line of one file, its name and its size in bytes, in the text over which a list of files is hashed."""
    # A line break in a name becomes a NUL, which no name has, so that two lists never give one text.
    return f"{name} {size}".replace("\n", "\0").encode(errors="surrogateescape")


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
