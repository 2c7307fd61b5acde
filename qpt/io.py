"""Reading and writing files: whole or not at all, strict JSON, YAML, and whether a place can be written to.

Used by every module that writes a file. Nothing here depends on what a file means.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from qpt.errors import InputError

#: Control characters, line separators, and the surrogates that stand for bytes that are no UTF-8.
_NOT_SHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")
#: What a file system says that does not have an operation. EBADF: that it wants a descriptor open for writing.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF}
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close files of other processes",
    errno.ENOMEM: "free memory",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give write permission"),
    errno.EROFS: "mount the file system for writing",
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "put the folder back in its place"),
    errno.EIO: "check the disk",
    **dict.fromkeys((errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN), "reconnect the file system"),
}


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Call ``write`` with the path of an unfinished file, then rename that file to ``path``: never half written.

    durable: flush the file before the rename and its folder after it, so that ``path`` survives a power cut.
    The unfinished file ends in ``.part`` and has the process number in its name, so that two processes do not write
    into one; it is removed if ``write`` raises.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(unfinished)
        if durable:
            flush_to_disk(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):  # what has failed matters more
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the renames and links within a folder, are on the disk, as far as the file
    system can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Several network, FUSE and Windows file systems cannot flush, or open, a folder; the data are there anyway.
        if error.errno not in _UNSUPPORTED and not (path.is_dir() and error.errno in (errno.EACCES, errno.EPERM)):
            raise


def remedy(error: OSError) -> str:
    """Return what helps against a failure to write, a clause of an error message."""
    return _REMEDIES.get(error.errno or 0, "see to its cause")


def shown(name: str | os.PathLike[str]) -> str:
    """Return the name of a file as text for pages, tables and terminals; different names stay different.

    Bytes that are not UTF-8 and control characters become ``\\xHH``, and so does a backslash that looks like one.
    """
    text = re.sub(r"\\(?=x[0-9a-f]{2})", r"\\x5c", os.fspath(name))
    return _NOT_SHOWN.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0])), text)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a text file in one step, so that a crash in between leaves the old one."""
    text = "".join(lines)  # a name that is no text (see ``shown``) must not cost the file
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", errors="backslashreplace"))


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without one that a crash cut short at its end; none without a file."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


#: Settings and spaces take a few kilobytes; a megabyte takes the parser ten seconds.
MOST_YAML_BYTES = 1 << 20
_MOST_VALUES = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2, in which 1e-3 is one and 1:30 and 2020-01-01 are words; a key that is
    given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for name in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if name in names and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        self._check_size(node, {})
        return self.construct_document(node)

    def _check_size(self, node: yaml.Node, counts: dict[int, int | None]) -> int:
        """Return the number of values below a node, aliases counted where they stand. Raises YAMLError for a node that
        holds itself, or too many: nine lines of aliases can stand for a billion values."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        key = id(node)
        if key in counts:
            known = counts[key]
            if known is None:
                raise yaml.YAMLError("a value holds itself")
            return known
        counts[key] = None
        parts = [part for pair in node.value for part in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
        total = counts[key] = 1 + sum(self._check_size(part, counts) for part in parts)
        if total > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES:,} values")
        return total


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: text that looks like a number of YAML 1.2 is quoted."""


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 10 if re.fullmatch(r"[-+]?\d+", text) else 0)


_FLOAT = r"[-+]?(?:\.\d[\d_]*|\d[\d_]*(?:\.[\d_]*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_NUMBERS = {  # underscores are not of YAML 1.2, but of 1.1 and of Python
    "tag:yaml.org,2002:int": r"[-+]?\d[\d_]*|0o[0-7]+|0x[\da-fA-F]+",
    "tag:yaml.org,2002:float": _FLOAT,
}
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in (*_NUMBERS, "tag:yaml.org,2002:timestamp")]
        for first, rules in _kind.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in _NUMBERS.items():
        _kind.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})$", re.ASCII), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str | bytes) -> Any:
    """Return what YAML holds: text, numbers, lists and mappings. Raises ValueError, in one line, for anything else, and
    for more than ``MOST_YAML_BYTES``."""
    if len(text) > MOST_YAML_BYTES:
        raise ValueError(f"it must have at most {MOST_YAML_BYTES:,} bytes, got {len(text):,}")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # of YAML, of an encoding, and whatever its constructors make of `!!bool maybe`
        text = " ".join(str(error).split())
        raise ValueError(text if isinstance(error, (yaml.YAMLError, ValueError)) else f"a tag with {text}") from error


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds. Raises ValueError for anything else."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return what a YAML file in UTF-8 (or UTF-16, with its mark) holds.

    Raises OSError for one that cannot be opened and ValueError, in one line, for one that is not YAML.
    """
    return parse_yaml(Path(path).read_bytes())


def to_yaml(data: Any, **style: Any) -> str:
    """Return plain data as YAML that ``parse_yaml`` reads alike. style: of ``yaml.dump``."""
    text: str = yaml.dump(data, Dumper=_Dumper, **{"sort_keys": False, "allow_unicode": True, **style})
    return text


def write_json(result: Any, path: str | Path) -> None:
    """Write ``to_json(result)`` and a newline, whole or not at all."""
    write_lines(Path(path), [to_json(result) + "\n"])


def to_json(result: Any) -> str:
    """Return strict JSON: nan becomes null, and a list of numbers or names stands on one line."""
    return _encoded(_strict(result), "\n")


def _encoded(value: Any, newline: str) -> str:
    deeper = newline + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(str(key))}: {_encoded(item, deeper)}" for key, item in value.items()]
        return "{" + deeper + f",{deeper}".join(items) + newline + "}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[" + deeper + f",{deeper}".join(_encoded(item, deeper) for item in value) + newline + "]"
    return json.dumps(value, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(path: str | Path, command: str) -> Path:
    """Make the folder of an output file and check, before the work starts, that the file can be written.

    Raises InputError, which names ``command``, if it cannot.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        probe = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{command}: out must be a writable file, got {target} ({error.strerror})") from None
    return target
