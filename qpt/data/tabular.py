"""Readers of the files that hold scores: CSV, plain text, Excel sheets and MATLAB files.

Called by ``qpt.evaluate.table`` and by the readers of official data sets in ``qpt.evaluate.datasets``. A file that is
wrong as a whole is one InputError that names the file, what it must be and what was found; faults of single rows are
left to the caller. Relies on openpyxl and SciPy, imported when such a file is read.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpt.errors import InputError

_HEADER_ROWS = 20  # the header of a sheet is looked for among its first rows; CSIQ's is the fourth


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises InputError for a missing file or other bytes."""
    if not path.is_file():
        raise InputError(f"table: csv must be a file, got {path}")
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"table: {path} must be UTF-8, got UTF-16; save it as 'CSV UTF-8'")
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


def read_csv(path: Path, columns: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Read the header and the other lines, split at commas and stripped; an empty line is an empty list.

    columns: each inner sequence holds alternative names of a column, of which the header must have at least one, and
    none twice. Raises InputError otherwise.
    """
    try:
        lines = [[field.strip() for field in line] for line in csv.reader(io.StringIO(read_text(path), newline=""))]
    except csv.Error as error:
        raise InputError(f"table: {path} is not a CSV: {error}") from None
    wanted = ",".join(names[0] for names in columns)
    if not lines or not lines[0]:
        raise InputError(f"table: {path} must start with a header line ({wanted}), got an empty line or file")
    header = lines[0]
    missing = [names[0] for names in columns if not set(names) & set(header)]
    if missing:
        other = next((d for d in (";", "\t", "|") if len(header) == 1 and d in header[0]), None)
        hint = f"; the delimiter must be a comma, got {other!r}" if other else ""
        raise InputError(f"table: {path} lacks column(s) {', '.join(missing)}; it has {', '.join(header)}{hint}")
    refuse_repeated(path, header, {name for names in columns for name in names})
    return header, lines[1:]


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
        (number, {column: line[at] if at < len(line) else "" for column, at in where.items()})
        for number, line in enumerate(lines, start=2)
        if any(line)
    ]


def read_sheet(path: Path, columns: Sequence[str], sheet: str | None = None) -> list[tuple[int, dict[str, str]]]:
    """Read (row number, fields by column) of an Excel sheet, from the row below its header to its last row.

    The header is the first row that holds all of ``columns``, in any order and any letter case. A whole number is
    written without a point, however Excel stored it: 1600.0 is "1600". sheet: its name, by default the first one.
    """
    from openpyxl import load_workbook

    try:
        with contextlib.closing(load_workbook(path, read_only=True, data_only=True)) as book:
            if sheet is not None and sheet not in book.sheetnames:
                raise InputError(f"table: {path} lacks the sheet {sheet!r}; it has {', '.join(book.sheetnames)}")
            chosen = book[sheet] if sheet is not None else book.worksheets[0]
            chosen.reset_dimensions()  # read-only mode believes the extent that the file states, which may be wrong
            rows = [[_cell(value) for value in row] for row in chosen.iter_rows(values_only=True)]
    except InputError:
        raise
    except Exception as error:  # of zipfile, of the XML parser or of openpyxl itself
        raise InputError(f"table: {path} must be an Excel workbook (.xlsx), got {_reason(error)}") from None
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
        found = loadmat(path, variable_names=list(names))
    except Exception as error:  # SciPy's readers let any error of parsing through
        raise InputError(f"table: {path} must be a MATLAB file (version 7 or older), got {_reason(error)}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"table: {path} lacks the variable(s) {', '.join(missing)}")
    return [_flat(found[name]) for name in names]


def number(text: str) -> float:
    """Return the number that a field holds, nan if it holds none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    flat = array.reshape(-1)
    if array.dtype != object:
        return flat
    return np.array([str(np.asarray(cell).reshape(-1)[0]) if np.size(cell) else "" for cell in flat], dtype=str)


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__} ({str(error).splitlines()[0] if str(error) else 'no reason given'})"
