"""Reading and writing files: whole or not at all, strict JSON, and whether a place can be written to.

Used by every module that writes a file. Nothing here depends on what a file means.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from qpt.errors import InputError

#: Control characters, line separators, and the surrogates that stand for bytes that are no UTF-8.
_NOT_SHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")


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
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the renames and links within a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
