"""Readers of the files that hold scores: CSV, plain text, Excel sheets and MATLAB files.

Called by ``qpt.evaluate.table`` and by the readers of official data sets in ``qpt.evaluate.datasets``. A file that is
wrong as a whole is one InputError that names the file, what it must be and what was found; faults of single rows are
left to the caller. Relies on openpyxl and SciPy, imported when such a file is read.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpt.data.listing import is_image_name
from qpt.data.matlab import is_version_5, read_variables
from qpt.data.remote_copies import copy_files
from qpt.data.urls import is_url, join, parent, without_file_scheme
from qpt.errors import InputError
from qpt.io import shown

_MOST_UNPACKED_BYTES = 128 << 20  # of a workbook; the largest one of a data set has a tenth
_MOST_CELLS = 10_000_000
_HEADER_ROWS = 20  # the header of a sheet is looked for among its first rows; CSIQ's is the fourth


#: First bytes of files that are given in place of a table -> what to call them, and what to do.
_KINDS = (
    (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"BZh", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"PK\x03\x04", "an Excel workbook or another zip file", "save its sheet as 'CSV UTF-8', or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "save its sheet as 'CSV UTF-8', or as .xlsx"),
    (b"PAR1", "a Parquet file", "write it as CSV"),
    (b"\x89HDF", "an HDF5 file, perhaps of MATLAB 7.3", "write it as CSV, or save it with -v7"),
    (b"MATLAB", "a MATLAB file", "write it as CSV"),
    (b"SQLite format 3", "an SQLite database", "write the table as CSV"),
    (b"\x93NUMPY", "a NumPy array", "write it as CSV"),
    (b"\x80\x02", "a pickle", "write it as CSV"),
    (b"\x80\x03", "a pickle", "write it as CSV"),
    (b"\x80\x04", "a pickle", "write it as CSV"),
    (b"\x80\x05", "a pickle", "write it as CSV"),
    (b"%PDF", "a PDF", "write the table as CSV"),
    (b"{\\rtf", "a rich-text document", "save it as plain text"),
    (b"\x89PNG", "a PNG picture", "give the table of scores"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the table of scores"),
    (b"\xff\xfe\0\0", "UTF-32 text", "save it as 'CSV UTF-8'"),
    (b"\0\0\xfe\xff", "UTF-32 text", "save it as 'CSV UTF-8'"),
    (b"\xff\xfe", "UTF-16 text", "save it as 'CSV UTF-8'"),
    (b"\xfe\xff", "UTF-16 text", "save it as 'CSV UTF-8'"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
    (b"<", "HTML or XML", "download the file itself, not a page about it"),
    (b"{", "JSON", "write it as CSV"),
    (b"[", "JSON", "write it as CSV"),
)


def foreign_kind(data: bytes) -> tuple[str, str] | None:
    """Return what a file is, by its first bytes, and what to do with it, if it is known to be no table of text."""
    start = data[:512]
    for magic, kind, remedy in _KINDS:
        if start.startswith(magic) or (
            magic.isascii() and start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(magic)
        ):
            return kind, remedy
    if start[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    if b"\0" in start and start.replace(b"\0", b"").isascii() and start.count(b"\0") >= len(start) // 3:
        return "UTF-16 text without a byte order mark", "save it as 'CSV UTF-8'"
    return None


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises InputError for a missing file or other bytes."""
    if not path.is_file():
        raise InputError(f"table: csv must be a file, got {path}")
    data = path.read_bytes()
    if found := foreign_kind(data):
        raise InputError(f"table: {path} must be UTF-8, got {found[0]}; {found[1]}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"table: {path} must be UTF-8, got byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save it as 'CSV UTF-8'"
        ) from None
    if "\0" in text:
        raise InputError(f"table: {path} must be text, got NUL bytes")
    return text


def read_csv(
    path: Path, columns: Sequence[Sequence[str]], *, optional: Sequence[str] = ()
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the header, and (line number, fields) of the other lines, split at commas and stripped.

    Lines without any content are left out, and so are empty fields beyond the header; fields that a line lacks at its
    end are not added. columns: each inner sequence holds alternative names of a column, of which the header must have
    at least one, and none twice.  optional: further names that are looked for. Names in another letter case are
    returned as they are written here. Raises InputError otherwise.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    lines: list[tuple[int, list[str]]] = []
    first = 1
    try:
        for line in reader:
            fields = [field.strip() for field in line]
            while fields and not fields[-1] and (not lines or len(fields) > len(lines[0][1])):
                fields.pop()
            if any(fields):
                lines.append((first, fields))
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"table: {path} is not a CSV: {error}") from None
    wanted = ",".join(names[0] for names in columns)
    if not lines:
        raise InputError(f"table: {path} must start with a header line ({wanted}), got nothing")
    header = _known_names(lines[0][1], [*(name for names in columns for name in names), *optional])
    missing = [names[0] for names in columns if not set(names) & set(header)]
    if missing:
        other = next((d for d in (";", "\t", "|") if len(header) == 1 and d in header[0]), None)
        hint = f"; the delimiter must be a comma, got {other!r}" if other else ""
        known = "; ".join(f"{names[0]} may be called {', '.join(names[1:])}" for names in columns if names[1:])
        raise InputError(
            f"table: {path} lacks column(s) {', '.join(missing)}; it has {', '.join(header)}{hint}"
            + f"; {known}" * bool(known)
        )
    refuse_repeated(path, header, {name for names in columns for name in names})
    return header, lines[1:]


def _known_names(header: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the header with names that differ from a known one in letter case alone written as it."""
    as_known = {name.casefold(): name for name in reversed(known) if name not in header}
    return [name if name in known else as_known.get(name.casefold(), name) for name in header]


def refuse_repeated(path: Path, header: Sequence[str], names: set[str]) -> None:
    """Raise InputError if the header has any of ``names`` more than once."""
    twice = sorted(name for name in names if header.count(name) > 1)
    if twice:
        raise InputError(f"table: {path} has column(s) {', '.join(twice)} more than once")


def read_records(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read (line number, fields by column) of every line that is not empty; missing fields of a line are empty."""
    header, lines = read_csv(path, [(column,) for column in columns])
    where = {column: header.index(column) for column in columns}
    return [
        (number, {column: line[at] if at < len(line) else "" for column, at in where.items()}) for number, line in lines
    ]


def named_file(folder: Path, name: str) -> Path:
    """Return the file of a name in a list; one with backslashes, as Windows writes it, is looked for with slashes."""
    path = folder / name
    if "\\" in name and not os.path.exists(path) and os.path.exists(other := folder / name.replace("\\", "/")):
        return other
    return path


def local_table(csv: str | os.PathLike[str]) -> Path:
    """Return the path of a table; one behind a URL is copied anew into the cache folder. Raises InputError for none."""
    if not is_url(csv):
        return Path(without_file_scheme(os.fspath(csv)))
    (copy,) = copy_files([str(csv)], anew=True)
    if not copy.is_file():
        raise InputError(f"table: csv must be a file, got {csv}: no such file")
    return copy


def table_root(csv: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> Path | str:
    """Return the folder that a table's image names are relative to, its own by default: a path or a URL.

    Raises InputError for a path that is no folder.
    """
    if root is None:
        root = parent(str(csv)) if is_url(csv) else Path(without_file_scheme(os.fspath(csv))).parent
    if is_url(root):
        return str(root)
    folder = Path(without_file_scheme(os.fspath(root)))
    if not folder.is_dir():
        raise InputError(f"table: root must be a folder, got {folder}")
    return folder


def image_places(root: Path | str, names: Iterable[str]) -> dict[str, Path]:
    """Return the file of each name in a table; those behind URLs are copied into the cache folder."""
    named = list(dict.fromkeys(filter(None, names)))
    urls = {name: join(str(root), name.replace("\\", "/")) for name in named if is_url(root) or is_url(name)}
    copies = dict(zip(urls, copy_files(list(urls.values())), strict=True))
    return {name: copies[name] if name in copies else named_file(Path(root), name) for name in named}


def near_name(path: Path) -> str:
    """Return the end of a message on a file that does not exist: the one in its folder that may be meant, one of the
    same name but for letter case, the form of accents or the extension. Empty for a file that exists, and for several.
    """
    try:
        names = _names_in(path.parent, path.parent.stat().st_mtime_ns) if not os.path.lexists(path) else {}
    except OSError:
        return ""
    for key in (_plain(path.name), _plain(path.name) + ".", _plain(path.stem) + "."):
        if len(found := names.get(key, [])) == 1:
            return f"; there is {shown(found[0])}"
    return ""


@functools.lru_cache(maxsize=4)
def _names_in(folder: Path, changed_ns: int) -> dict[str, list[str]]:
    """Return the names of files by their plain form, and by that without the extension, with a dot. changed_ns: when
    the folder was, for the cache."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        found.setdefault(_plain(name), []).append(name)
        if is_image_name(name):
            found.setdefault(_plain(os.path.splitext(name)[0]) + ".", []).append(name)
    return found


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def read_sheet(path: Path, columns: Sequence[str], sheet: str | None = None) -> list[tuple[int, dict[str, str]]]:
    """Read (row number, fields by column) of an Excel sheet, from the row below its header to its last row.

    The header is the first row that holds all of ``columns``, in any order and any letter case. A whole number is
    written without a point, however Excel stored it: 1600.0 is "1600". sheet: its name, by default the first one.
    """
    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > _MOST_UNPACKED_BYTES:
            raise InputError(f"table: {path} must unpack to at most {_MOST_UNPACKED_BYTES:,} bytes, got {unpacked:,}")
        with contextlib.closing(load_workbook(path, read_only=True, data_only=True)) as book:
            if sheet is not None and sheet not in book.sheetnames:
                raise InputError(f"table: {path} lacks the sheet {sheet!r}; it has {', '.join(book.sheetnames)}")
            chosen = book[sheet] if sheet is not None else book.worksheets[0]
            chosen.reset_dimensions()  # read-only mode believes the extent that the file states, which may be wrong
            rows, cells = [], 0
            for row in chosen.iter_rows(values_only=True):
                cells += 1 + len(row)  # rows and columns that a file leaves out are made up by openpyxl
                if cells > _MOST_CELLS:
                    raise InputError(f"table: {path} must have at most {_MOST_CELLS:,} cells, got more")
                rows.append([_cell(value) for value in row])
    except InputError:
        raise
    except Exception as error:  # of zipfile, of the XML parser or of openpyxl itself
        raise InputError(f"table: {path} must be an Excel workbook (.xlsx), got {_found(path, b'PK', error)}") from None
    titled = ((top, [title.lower() for title in row]) for top, row in enumerate(rows[:_HEADER_ROWS]))
    top, titles = next((found for found in titled if {column.lower() for column in columns} <= set(found[1])), (0, []))
    if not titles:
        raise InputError(f"table: {path} lacks a row with the columns {', '.join(columns)} among its first rows")
    where = {column: titles.index(column.lower()) for column in columns}
    return [
        (number, {column: row[at] if at < len(row) else "" for column, at in where.items()})
        for number, row in enumerate(rows[top + 1 :], start=top + 2)
        if any(row[at] for at in where.values() if at < len(row))
    ]


def read_matlab(path: Path, *names: str) -> list[NDArray[Any]]:
    """Read the named variables of a MATLAB file (up to version 7), each flat; cells of text become strings."""
    from scipy.io import loadmat

    try:
        content = path.read_bytes()
        version_5 = is_version_5(content)
        found = read_variables(content, names) if version_5 else loadmat(path, variable_names=list(names))
    except Exception as error:  # SciPy's readers let any error of parsing through
        found = _found(path, b"MATLAB", error)
        raise InputError(f"table: {path} must be a MATLAB file (version 7 or older), got {found}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"table: {path} lacks the variable(s) {', '.join(missing)}")
    return [_flat(found[name]) for name in names]


def number(text: str) -> float:
    """Return the number that a field holds, nan if it holds none."""
    try:
        return float(text) if "_" not in text else float("nan")  # 1_0 is 10 in Python and a slip in a table
    except ValueError:
        return float("nan")


def number_remedy(text: str) -> str:
    """Return what to write in place of a field that ``number`` does not take, as the end of a message."""
    if not text:
        return "; it is empty"
    if re.fullmatch(r"[+-]?\d+,\d+", text):
        return f"; write a decimal point: {text.replace(',', '.')}"
    plain = re.sub(r"[\s'’_%]|(?<=\d),(?=\d{3})", "", text).replace("−", "-")
    return f"; write it plainly: {plain}" if plain != text and np.isfinite(number(plain)) else ""


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    flat = array.reshape(-1)
    if array.dtype != object:
        return flat
    return np.array([str(np.asarray(cell).reshape(-1)[0]) if np.size(cell) else "" for cell in flat], dtype=str)


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _found(path: Path, own: bytes, error: BaseException) -> str:
    """Return what a file is that should begin with ``own``: another kind that is known, else the error's reason."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(512)
        if not start:
            return "an empty file"
        if not start.startswith(own) and (kind := foreign_kind(start)):
            return f"{kind[0]}; {kind[1]}"
    return _reason(error)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__} ({str(error).splitlines()[0] if str(error) else 'no reason given'})"
