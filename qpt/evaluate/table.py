"""Reading a table of scores: a CSV of photographs with their mean opinion scores (MOS).

Called by ``qpt evaluate``, ``qpt fit`` and ``qpt score``. A table is read whole and checked whole before any photograph
is decoded: one InputError lists everything that is wrong with it. Relies on the csv module and on Pillow for headers.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpt.errors import InputError
from qpt.evaluate.photograph import check_header

MIN_IMAGES = 10  # two test images in an 80/20 split by image
MIN_GROUPS = 3  # two to train on with few labels, one to test on
_SHOWN = 20


@dataclass(frozen=True)
class ScoreTable:
    """Labelled photographs, in the order of the CSV.

    name: what results call the set; never a path.  images: names as written in the CSV.  paths: the files.
    mos: (n,) float64, higher is better.  groups: (n,) int64, equal for images with the same ref; each image its own
    group where the CSV has no ref.  grouped: whether it has.  fingerprint: sha256 over names and file contents.
    repeated: pairs of names with the same content but different groups (a leak between splits).
    """

    name: str
    images: tuple[str, ...]
    paths: tuple[Path, ...]
    mos: NDArray[np.float64]
    groups: NDArray[np.int64]
    grouped: bool
    fingerprint: str
    repeated: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.images)


def read_table(csv_path: str | Path, *, root: str | Path | None = None, name: str | None = None) -> ScoreTable:
    """Read and check a CSV with the columns image, mos and, optionally, ref; other columns are ignored.

    csv_path: UTF-8, comma separated, with a header line.  root: the folder that image names are relative to, by
    default the CSV's own.  name: of the set, by default the name of the CSV's folder.  ref: photographs that share it
    (distorted versions of one original, near duplicates) always stay on one side of a split. Raises InputError
    listing everything wrong: encoding, delimiter, columns, MOS that is not a finite number, empty fields, duplicates,
    files that are missing or are no images, too few images or groups, constant MOS.
    """
    path = Path(csv_path)
    lines = _read_lines(path)
    folder = Path(root) if root is not None else path.parent
    if not folder.is_dir():
        raise InputError(f"table: root must be a folder, got {folder}")
    header, rows = lines[0], lines[1:]
    grouped = "ref" in header
    where = {column: header.index(column) for column in ("image", "mos", "ref") if column in header}

    problems: list[str] = []
    images: list[str] = []
    paths: list[Path] = []
    scores: list[float] = []
    refs: list[str] = []
    first_line: dict[Path, int] = {}
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            problems.append(f"line {number}: {len(row)} fields where the header has {len(header)}")
            continue
        image, mos = row[where["image"]].strip(), row[where["mos"]].strip()
        ref = row[where["ref"]].strip() if grouped else str(number)
        if not image:
            problems.append(f"line {number}: image is empty")
            continue
        file = folder / image
        resolved = file.resolve()
        if resolved in first_line:
            problems.append(f"line {number}: {image} is already on line {first_line[resolved]}")
        first_line.setdefault(resolved, number)
        score = _number(mos)
        if not np.isfinite(score):
            problems.append(f"line {number}: mos must be a finite number, got {mos!r}")
        if not ref:
            problems.append(f"line {number}: ref is empty; fill it everywhere or drop the column")
        fault = check_header(file)
        if fault:
            problems.append(f"line {number}: {image}: {fault}")
        images.append(image)
        paths.append(file)
        scores.append(score)
        refs.append(ref)

    groups = np.unique(np.array(refs, dtype=str), return_inverse=True)[1].astype(np.int64)
    if len(images) < MIN_IMAGES:
        problems.append(f"{len(images)} usable row(s); at least {MIN_IMAGES} images are needed")
    elif len(set(refs)) < MIN_GROUPS:
        problems.append(f"{len(set(refs))} different ref; at least {MIN_GROUPS} are needed to split by ref")
    if len(scores) > 1 and len(set(scores)) == 1:
        problems.append(f"mos is {scores[0]:g} everywhere; there is no quality to learn")
    if problems:
        raise InputError(_listed(path, problems))

    contents = [_sha256(file) for file in paths]
    listing = "".join(f"{image}\0{content}\n" for image, content in sorted(zip(images, contents, strict=True)))
    return ScoreTable(
        name=name or path.resolve().parent.name,
        images=tuple(images),
        paths=tuple(paths),
        mos=np.array(scores, np.float64),
        groups=groups,
        grouped=grouped,
        fingerprint=hashlib.sha256(listing.encode()).hexdigest(),
        repeated=_repeated(images, contents, groups),
    )


def _read_lines(path: Path) -> list[list[str]]:
    """The fields of every line, after the checks that concern the file as a whole."""
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
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"table: {path} is not a CSV: {error}") from None
    if not lines or not lines[0]:
        raise InputError(f"table: {path} must start with a header line (image,mos[,ref]), got an empty line or file")
    lines[0] = [column.strip() for column in lines[0]]
    missing = [column for column in ("image", "mos") if column not in lines[0]]
    if missing:
        other = next((d for d in (";", "\t", "|") if len(lines[0]) == 1 and d in lines[0][0]), None)
        hint = f"; the delimiter must be a comma, got {other!r}" if other else ""
        raise InputError(f"table: {path} lacks column(s) {', '.join(missing)}; it has {', '.join(lines[0])}{hint}")
    twice = sorted({column for column in ("image", "mos", "ref") if lines[0].count(column) > 1})
    if twice:
        raise InputError(f"table: {path} has column(s) {', '.join(twice)} more than once")
    return lines


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _repeated(images: list[str], contents: list[str], groups: NDArray[np.int64]) -> tuple[tuple[str, str], ...]:
    first: dict[str, int] = {}
    pairs = []
    for index, content in enumerate(contents):
        other = first.setdefault(content, index)
        if groups[other] != groups[index]:
            pairs.append((images[other], images[index]))
    return tuple(pairs)


def _listed(path: Path, problems: list[str]) -> str:
    shown = problems[:_SHOWN]
    rest = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return f"table: {path} has {len(problems)} problem(s):\n  " + "\n  ".join(shown + rest)
