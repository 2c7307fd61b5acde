"""Score tables: images with their mean opinion scores (MOS), groups and splits.

``read_table`` reads a CSV; the readers of official data sets in ``qpt.evaluate.datasets`` pass their rows to
``assemble``, which checks and builds every table. Called by every command that takes scores; it reads score files, the
headers of images and, for hashes, their bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpt.data.listing import EXTENSIONS
from qpt.data.tabular import (
    image_places,
    local_table,
    near_name,
    number,
    number_remedy,
    read_csv,
    refuse_repeated,
    table_root,
)
from qpt.errors import InputError
from qpt.evaluate.image_crops import check_header
from qpt.io import shown

MIN_IMAGES = 10  # two test images in an 80/20 split by image
MIN_GROUPS = 3  # two to train on with few labels, one to test on
PARTS = ("train", "val", "test")
_SHOWN = 20

# QPT's own names come first, then pyiqa's: NR "name", FR "dist_name" with "ref_name".
IMAGE_COLUMNS = ("image", "name", "img_name", "dist_name")
MOS_COLUMNS = ("mos",)
REF_COLUMNS = ("ref", "ref_name", "hq_name")
#: "split", and pyiqa's "official_split", "ratio802_seed123_split01", "ILGnet_split".
SPLIT_COLUMN = re.compile(r"(.+_)?split(\d+)?", re.IGNORECASE)
PART_NAMES = {"train": 0, "training": 0, "val": 1, "validation": 1, "test": 2}

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One split of a table.

    train, test, val: (n,) int64 row numbers, ascending, disjoint.  name: of an official or imported split.  seed: the
    entropy of ``numpy.random.default_rng`` that a random split was drawn with, or the start of the seeds of what is
    drawn on the split; empty as long as it is not used in an evaluation.
    """

    train: Index
    test: Index
    val: Index = field(default_factory=lambda: np.empty(0, np.int64))
    name: str = ""
    seed: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Labelled images, in the order of the score file.

    name: of the set in results; never a path.  images: names as written in the file.  paths: the files.
    mos: (n,) float64, higher is better.  groups: (n,) int64, equal for images with the same ref; each image its own
    group where there is no ref.  grouped: whether there is a ref.  fingerprint: sha256 over names and file contents.
    contents: sha256 of each file, in the order of images; empty where not known.
    repeated: pairs of names with the same content but different groups (a leak between splits).  alike_refs: sets of
    refs that differ only in their spelling, which are different groups nevertheless.
    kinds, levels: distortion type and level (n,) int64 of each image, where the set has them.  splits: the official or
    imported ones, references disjoint.  lower_better: whether the file's own scores are.  raw_scores: (n,) float64, the
    file's own.  notes: choices made in reading, in words: the score file, the rows left out.
    """

    name: str
    images: tuple[str, ...]
    paths: tuple[Path, ...]
    mos: NDArray[np.float64]
    groups: Index
    grouped: bool
    fingerprint: str
    repeated: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...] | None = None
    levels: Index | None = None
    splits: tuple[Split, ...] | None = None
    lower_better: bool = False
    raw_scores: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    alike_refs: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.images)


class TableError(InputError):
    """Raised for a table that cannot be used.

    problems: all of them, one line each.  missing: names of images without a file.
    """

    def __init__(self, source: str | Path, problems: Sequence[str], missing: Sequence[str] = ()) -> None:
        rest = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        listed = "\n  ".join([*problems[:_SHOWN], *rest])
        super().__init__(f"table: {source} has {len(problems)} problem(s):\n  {listed}")
        self.problems = tuple(problems)
        self.missing = tuple(missing)


@dataclass(frozen=True)
class Row:
    """One image before it is checked.

    where: its line in the score file, for messages.  score: as written.  ref: None where the set has none.  parts: for
    each split of the table, 0, 1, 2 (train, val, test) or None.
    """

    where: str
    image: str
    path: Path
    score: str
    ref: str | None = None
    kind: str | None = None
    level: int | None = None
    parts: tuple[int | None, ...] = ()


def assemble(
    source: str | Path,
    rows: Iterable[Row | str],
    *,
    name: str,
    split_names: Sequence[str] = (),
    lower_better: bool = False,
    mirror: float = 0.0,
    notes: Sequence[str] = (),
) -> ScoreTable:
    """Check rows and make the table of them.

    source: name of the table in messages.  rows: in the order of the score file; a string is a problem the reader found
    there.  split_names: of the entries of ``Row.parts``.  lower_better: whether the scores as written are; then mos =
    mirror - score.  Raises TableError listing scores that are not finite, empty refs, images listed twice, missing or
    damaged files, too few images or groups, constant scores; InputError for a split that leaks.
    """
    # Everything is checked before any image is decoded, and one error lists all that is wrong.
    problems: list[str] = []
    missing: list[str] = []
    kept: list[Row] = []
    first_place: dict[Path, str] = {}
    folders: dict[Path, Path] = {}  # resolved once each: a set has thousands of images in a few folders
    for row in rows:
        if isinstance(row, str):
            problems.append(row)
            continue
        folder = row.path.parent
        if folder not in folders:
            folders[folder] = folder.resolve()
        resolved = folders[folder] / row.path.name
        if resolved in first_place:
            problems.append(f"{row.where}: {row.image} is already on {first_place[resolved]}")
        first_place.setdefault(resolved, row.where)
        if not np.isfinite(number(row.score)):
            problems.append(f"{row.where}: mos must be a finite number, got {row.score!r}{number_remedy(row.score)}")
        if row.ref == "":
            problems.append(f"{row.where}: ref is empty; fill it everywhere or drop the column")
        fault = check_header(row.path)
        if fault:
            problems.append(f"{row.where}: {row.image}: {fault}{near_name(row.path)}")
            if not os.path.isfile(row.path):
                missing.append(row.image)
        kept.append(row)

    grouped = any(row.ref is not None for row in kept)
    refs = [row.where if row.ref is None else row.ref for row in kept]
    scores = np.array([number(row.score) for row in kept], np.float64)
    if len(kept) < MIN_IMAGES:
        problems.append(f"{len(kept)} usable row(s); at least {MIN_IMAGES} images are needed")
    elif len(set(refs)) < MIN_GROUPS:
        problems.append(f"{len(set(refs))} different ref; at least {MIN_GROUPS} are needed to split by ref")
    if len(scores) > 1 and len(set(scores)) == 1:
        problems.append(f"mos is {scores[0]:g} everywhere; there is no quality to learn")
    if problems:
        raise TableError(source, problems, missing)

    groups = np.unique(np.array(refs, dtype=str), return_inverse=True)[1].astype(np.int64)
    images = tuple(row.image for row in kept)
    splits = tuple(split_of_parts(name, [row.parts[i] for row in kept]) for i, name in enumerate(split_names))
    check_splits(splits, images, groups)
    contents = [_sha256(row.path) for row in kept]
    listing = "".join(f"{image}\0{content}\n" for image, content in sorted(zip(images, contents, strict=True)))
    return ScoreTable(
        name=name,
        images=images,
        paths=tuple(row.path for row in kept),
        mos=mirror - scores if lower_better else scores,
        groups=groups,
        grouped=grouped,
        fingerprint=hashlib.sha256(listing.encode()).hexdigest(),
        repeated=_repeated(images, contents, groups),
        kinds=tuple(str(row.kind) for row in kept) if all(row.kind is not None for row in kept) else None,
        levels=(
            np.array([row.level for row in kept], np.int64) if all(row.level is not None for row in kept) else None
        ),
        splits=splits or None,
        lower_better=lower_better,
        raw_scores=scores,
        notes=tuple(notes),
        contents=tuple(contents),
        alike_refs=_alike(row.ref for row in kept if row.ref is not None),
    )


def read_table(
    csv_path: str | Path, *, root: str | Path | None = None, name: str | None = None, lower_better: bool = False
) -> ScoreTable:
    """Read and check a CSV with the columns image and mos and, optionally, ref and split; others are ignored.

    csv_path: UTF-8, comma separated, with a header line; pyiqa's column names (IMAGE_COLUMNS, REF_COLUMNS,
    SPLIT_COLUMN) are understood too, the first that is there counts; letter case does not matter, and a backslash in an
    image's name is taken for a slash where there is no such file.  root: the folder that image names are relative to,
    by default the CSV's own; it, the CSV and image names may be URLs, of which copies are kept
    (``qpt.data.remote_copies``).  name: of the set, by default the name of the CSV's folder.  lower_better: the scores
    are DMOS; the table's mos is then their negative. Images that share ref (distorted versions of one original, near
    duplicates) always stay on one side of a split; split is train, val, test, or empty for a row in no part. Raises
    InputError listing everything wrong, as ``assemble`` does, and for encoding, delimiter, columns.
    """
    path = local_table(csv_path)
    header, lines = read_csv(path, (IMAGE_COLUMNS, MOS_COLUMNS), optional=REF_COLUMNS)
    image_at, mos_at, ref_at = (
        next((header.index(column) for column in columns if column in header), None)
        for columns in (IMAGE_COLUMNS, MOS_COLUMNS, REF_COLUMNS)
    )
    assert image_at is not None and mos_at is not None  # read_csv refuses a header without them
    split_names = [column for column in header if SPLIT_COLUMN.fullmatch(column)]
    refuse_repeated(path, header, {*REF_COLUMNS, *split_names})
    # A line cut short must not pass: only columns of splits, empty in a row of no part, may be missing at its end.
    least = 1 + max(header.index(name) for name in header if name not in split_names)
    rows: list[Row | str] = []
    places = image_places(
        table_root(csv_path, root), [fields[image_at] for _, fields in lines if len(fields) > image_at]
    )
    for line_number, fields in lines:
        where = f"line {line_number}"
        if not least <= len(fields) <= len(header):
            rows.append(f"{where}: {len(fields)} fields where the header has {len(header)}")
            continue
        line = fields + [""] * (len(header) - len(fields))
        image = line[image_at]
        if not image:
            rows.append(f"{where}: image is empty")
            continue
        parts: list[int | None] = []
        for column in split_names:
            written = line[header.index(column)]
            if written and written.lower() not in PART_NAMES:
                rows.append(f"{where}: {column} must be train, val or test, got {written!r}")
            parts.append(PART_NAMES.get(written.lower()))
        ref = line[ref_at] if ref_at is not None else None
        rows.append(Row(where, image, places[image], line[mos_at], ref, parts=tuple(parts)))
    return assemble(
        path,
        rows,
        name=name or shown(path.resolve().parent.name),
        split_names=split_names,
        lower_better=lower_better,
    )


def split_of_parts(name: str, parts: Sequence[int | None]) -> Split:
    """Return the split in which row i is in part ``parts[i]``: 0, 1, 2 for train, val, test, None for no part."""
    return split_of_indices(name, [[row for row, part in enumerate(parts) if part == p] for p in range(3)])


def split_of_indices(name: str, rows: Sequence[Sequence[int] | Index]) -> Split:
    """Return the split with these row numbers as train, val and test.

    Without a test part, the val part is the test part, as in pyiqa's files.
    """
    train, val, test = (np.sort(np.asarray(part, np.int64)) for part in rows)
    if not len(test):
        val, test = test, val
    return Split(train, test, val, name)


def check_splits(splits: Sequence[Split], images: Sequence[str], groups: Index) -> None:
    """Check splits of a table with these images and groups.

    Raises InputError for an empty train or test part, a row outside the table, a row twice, or images of one reference
    (one group) in two parts.
    """
    for split in splits:
        parts = {part: getattr(split, part) for part in PARTS}
        for part in ("train", "test"):
            if not len(parts[part]):
                raise InputError(f"table: split {split.name!r} must have a {part} part, got none")
        everything = np.concatenate(list(parts.values()))
        if everything.min() < 0 or everything.max() >= len(images):
            raise InputError(
                f"table: split {split.name!r} must number rows from 0 to {len(images) - 1}, "
                f"got {everything.min()} to {everything.max()}; it was made for another table"
            )
        twice = np.flatnonzero(np.bincount(everything) > 1)
        if len(twice):
            raise InputError(
                f"table: split {split.name!r} must hold a row once, got {len(twice)} more than once "
                f"(first: {images[twice[0]]})"
            )
        for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
            shared = np.intersect1d(groups[parts[one]], groups[parts[other]])
            if len(shared):
                a = next(i for i in parts[one] if groups[i] == shared[0])
                b = next(i for i in parts[other] if groups[i] == shared[0])
                raise InputError(
                    f"table: split {split.name!r} must keep references apart, got {len(shared)} in both {one} and "
                    f"{other} (first: {images[a]} and {images[b]} come from one reference)"
                )


def _alike(refs: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the sets of different refs that a person would read as one.

    Letter case, kinds of space, dash and slash, the form of accented letters, an image's extension and leading or
    trailing zeros of a number do not count.
    """
    spellings: dict[str, list[str]] = {}
    for ref in dict.fromkeys(refs):
        key = unicodedata.normalize("NFKC", ref).casefold().replace("\\", "/").removeprefix("./").strip()
        stem, dot, extension = key.rpartition(".")
        key = stem if dot + extension in EXTENSIONS else key
        key = re.sub(r"\A0+(?=\d+\Z)|(?<=\d)\.0+\Z", "", re.sub(r"[\s_\-\u2010-\u2015]+", " ", key))
        spellings.setdefault(key, []).append(ref)
    return tuple(tuple(found) for found in spellings.values() if len(found) > 1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _repeated(images: Sequence[str], contents: Sequence[str], groups: Index) -> tuple[tuple[str, str], ...]:
    first: dict[str, int] = {}
    pairs = []
    for index, content in enumerate(contents):
        other = first.setdefault(content, index)
        if groups[other] != groups[index]:
            pairs.append((images[other], images[index]))
    return tuple(pairs)
