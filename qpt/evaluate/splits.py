"""Published splits for a table: ARNIQA's ``.npy`` files, pyiqa's ``.pkl`` files, and CSVs with split columns.

Called by the commands that take ``--splits``; it reads these files and executes nothing in them. Row numbers count the
rows of the table, which are those of the official score file, or those of a list of images beside the file; a CSV is
matched by image name.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from qpt.data.arrays import read_npy
from qpt.data.tabular import read_csv, read_records
from qpt.errors import InputError, describe
from qpt.evaluate.table import (
    IMAGE_COLUMNS,
    PART_NAMES,
    PARTS,
    SPLIT_COLUMN,
    Index,
    ScoreTable,
    Split,
    check_splits,
    split_of_indices,
    split_of_parts,
)

_PICKLE_BYTES = 256 << 20
_LIST_COLUMN = "dis_img_path"


def import_splits(table: ScoreTable, path: str | Path) -> ScoreTable:
    """Return the table with the splits of a file in place of its own.

    path: a folder with ARNIQA's train.npy, val.npy and test.npy, or one of the three; their numbers count the lines of
    a list with the column dis_img_path in that folder or the one above (ARNIQA's CSIQ.txt and LIVE.txt), where there is
    one; a .pkl as pyiqa writes them, {1: {"train": rows, "val": rows, "test": rows}, ...}; or a .csv with an image
    column and split columns (pyiqa's meta files). Where a split has no test part, its val part is used as test, as
    pyiqa does. Raises InputError for any other file, or a split that does not fit the table or leaks a reference.
    """
    source = Path(path)
    note = source.name
    if source.is_dir() or source.suffix.lower() == ".npy":
        folder = source if source.is_dir() else source.parent
        listing = _find_listing(folder)
        splits = _read_npy(folder, None if listing is None else _listed_rows(listing, table))
        note += "" if listing is None else f", which number the lines of {listing.name}"
    elif not source.is_file():
        raise InputError(f"splits: file must exist, got {source}")
    elif source.suffix.lower() in (".pkl", ".pickle"):
        splits = _read_pickle(source)
    elif source.suffix.lower() == ".csv":
        splits = _read_csv(source, table)
    else:
        raise InputError(f"splits: file must be .npy (or their folder), .pkl or .csv, got {source}")
    try:
        check_splits(splits, table.images, table.groups)
    except InputError as error:
        raise InputError(f"splits: {source}: {str(error).removeprefix('table: ')}") from None
    return replace(table, splits=splits, notes=(*table.notes, f"splits: {len(splits)} from {note}"))


def _read_npy(folder: Path, order: Index | None) -> tuple[Split, ...]:
    """Read an array of (splits, rows) integers for each part, short rows filled with -1; (rows,) is one split.

    order: the table's row of each number, where numbers do not count the table's rows.
    """
    parts: dict[str, list[Index]] = {}
    for part in PARTS:
        file = folder / f"{part}.npy"
        if not file.is_file():
            if part == "val":
                continue
            raise InputError(f"splits: folder must hold train.npy and test.npy, got no {file.name} in {folder}")
        try:
            array = read_npy(file)
        except (OSError, ValueError) as error:
            raise InputError(f"splits: {file} must be an .npy array of integers, got {error}") from None
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
            raise InputError(f"splits: {file} must be (splits, rows) integers, got {describe(array)}")
        parts[part] = [_rows_of(row[row != -1].astype(np.int64), order, file) for row in np.atleast_2d(array)]
    counts = {part: len(rows) for part, rows in parts.items()}
    if len(set(counts.values())) != 1 or not counts["train"]:
        raise InputError(f"splits: {folder}: parts must have as many splits as each other, got {counts}")
    empty = [np.empty(0, np.int64)] * counts["train"]
    rows = zip(parts["train"], parts.get("val", empty), parts["test"], strict=True)
    return tuple(split_of_indices(f"split {i}", of_split) for i, of_split in enumerate(rows, start=1))


def _find_listing(folder: Path) -> Path | None:
    """Find the list of images that row numbers in this folder count: a .txt in or above it with its header."""
    files = sorted([*folder.glob("*.txt"), *folder.resolve().parent.glob("*.txt")])
    for file in filter(Path.is_file, files):
        with file.open("rb") as opened:
            if opened.readline(200).lower().startswith(_LIST_COLUMN.encode()):
                return file
    return None


def _listed_rows(file: Path, table: ScoreTable) -> Index:
    """Return the table's row of each line of a list of images."""
    rows = _rows_by_name(table)
    images = [fields[_LIST_COLUMN] for _, fields in read_records(file, (_LIST_COLUMN,))]
    unknown = [image for image in images if _row_of(rows, image) is None]
    if unknown:
        raise InputError(
            f"splits: {file} must list images of the table {table.name}, "
            f"got {len(unknown)} others (first: {unknown[0]})"
        )
    return np.array([_row_of(rows, image) for image in images], np.int64)


def _rows_of(numbers: Index, order: Index | None, file: Path) -> Index:
    if order is None or not len(numbers):
        return numbers
    if numbers.min() < 0 or numbers.max() >= len(order):
        raise InputError(
            f"splits: {file} must number the {len(order)} lines of the list beside it from 0, "
            f"got {numbers.min()} to {numbers.max()}"
        )
    return order[numbers]


class _PlainData(pickle.Unpickler):
    """An unpickler of dicts, lists, tuples, text and numbers; anything that needs a look-up by name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_pickle(file: Path) -> tuple[Split, ...]:
    if file.stat().st_size > _PICKLE_BYTES:
        raise InputError(f"splits: {file} must be at most {_PICKLE_BYTES >> 20} MiB")
    try:
        with file.open("rb") as opened:
            data = _PlainData(opened).load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise InputError(f"splits: {file} must be a pickle of plain dicts, lists and integers, got {error}") from None
    expected = "{1: {'train': rows, 'val': rows, 'test': rows}, ...}"
    if not isinstance(data, dict) or not data:
        raise InputError(f"splits: {file} must hold {expected}, got {type(data).__name__}")
    if set(data) <= set(PARTS):
        data = {1: data}
    splits = []
    for key, split in data.items():
        if not isinstance(split, Mapping) or not split or not set(split) <= set(PARTS):
            raise InputError(f"splits: {file} must hold {expected}, got {split!r:.60} for {key!r}")
        rows = []
        for part in PARTS:
            given = split.get(part, [])
            if not isinstance(given, (list, tuple)) or any(type(row) is not int for row in given):
                raise InputError(f"splits: {file}: {part} of {key!r} must be a list of integers, got {given!r:.60}")
            rows.append(np.array(given, np.int64))
        splits.append(split_of_indices(f"split {key}", rows))
    return tuple(splits)


def _read_csv(file: Path, table: ScoreTable) -> tuple[Split, ...]:
    """Read split columns, matched to the table by image name, or by its last part where that is unique."""
    header, lines = read_csv(file, (IMAGE_COLUMNS,))
    image_at = next(header.index(column) for column in IMAGE_COLUMNS if column in header)
    columns = [column for column in header if SPLIT_COLUMN.fullmatch(column)]
    if not columns:
        raise InputError(f"splits: {file} must have a column named split or ending in split or split01, got none")
    rows = _rows_by_name(table)
    parts: dict[str, list[int | None]] = {column: [None] * len(table) for column in columns}
    unknown, problems = [], []
    for number, line in lines:
        fields = dict(zip(header, line, strict=False))
        image = fields.get(header[image_at], "")
        row = _row_of(rows, image)
        if row is None:
            unknown.append(image)
            continue
        for column in columns:
            written = fields.get(column, "")
            if written and written.lower() not in PART_NAMES:
                problems.append(f"line {number}: {column} must be train, val or test, got {written!r}")
            parts[column][row] = PART_NAMES.get(written.lower())
    if unknown:
        problems.append(f"{len(unknown)} image(s) are not in the table {table.name} (first: {unknown[0]})")
    if problems:
        raise InputError(f"splits: {file} has {len(problems)} problem(s): " + "; ".join(problems[:5]))
    return tuple(split_of_parts(column, parts[column]) for column in columns)


def _rows_by_name(table: ScoreTable) -> dict[str, int]:
    """Return rows by whole name and by last part, both in lower case; a last part that two images share is left out."""
    images = [image.lower().replace("\\", "/") for image in table.images]
    last = [PurePosixPath(image).name for image in images]
    count = Counter(last)
    rows = {name: row for row, name in enumerate(last) if count[name] == 1}
    rows.update((image, row) for row, image in enumerate(images))
    return rows


def _row_of(rows: Mapping[str, int], image: str) -> int | None:
    """Find an image by its whole name, by it without the first folder (of the set), or by its last part."""
    path = PurePosixPath(image.lower().replace("\\", "/"))
    names = (str(path), "/".join(path.parts[1:]), path.name)
    return next((rows[name] for name in names if name in rows), None)
