"""Near-duplicates across groups: images that are copies of each other although splits treat them as unrelated.

Called by the commands that read a table and by ``qpt datasets check``; it reads image files. Equal files are found
while a table is read (``ScoreTable.repeated``); perceptual hashes find the resized, recompressed or retouched ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qpt.data.faults import UnreadableError
from qpt.data.images import DecodedImage, open_image
from qpt.evaluate.image_crops import MAX_PIXELS
from qpt.evaluate.table import ScoreTable, Split

MAX_DISTANCE = 4  # of 64 bits: what resizing, JPEG and small retouches change
_DECODED_PX = 256  # JPEG files are decoded at the smallest scale that is still at least this large
_BLOCK = 128  # hashes compared with all others at once
_MAX_PAIRS = 10_000  # a set with more has no use for the rest of the list


@dataclass(frozen=True)
class NearDuplicate:
    """Two images of different groups with similar hashes.

    distance: bits in which the hashes differ, 0 to MAX_DISTANCE.  crosses: names of the splits that have the images in
    different parts.
    """

    first: str
    second: str
    distance: int
    crosses: tuple[str, ...]


def perceptual_hash(path: Path) -> int | None:
    """Return the 64-bit DCT hash of an upright image file (Zauner 2010, as ImageHash computes it).

    None where the image has no detail to hash, as a plain colour, or cannot be decoded.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return _perceptual_hash(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 17)  # a table is looked through by itself and beside others
def _perceptual_hash(path: Path, modified_ns: int, size: int) -> int | None:
    from imagehash import phash

    try:
        with open_image(path, max_pixels=MAX_PIXELS) as image:
            image.draft("L", (_DECODED_PX, _DECODED_PX))
            grey = Image.fromarray(DecodedImage(image).rgb()).convert("L")
    except UnreadableError:
        return None
    if np.ptp(np.asarray(grey.resize((32, 32)))) < 4:  # levels: signs of such coefficients are rounding errors
        return None
    return int.from_bytes(np.packbits(phash(grey).hash).tobytes(), "big")


def near_duplicates(table: ScoreTable, *, max_distance: int = MAX_DISTANCE) -> tuple[NearDuplicate, ...]:
    """Return pairs of images of different groups whose perceptual hashes differ in at most ``max_distance`` bits.

    The nearest come first. Every image is decoded once, at reduced scale where the format allows it; the search stops
    after 10,000 pairs.
    """
    part = {split.name: _parts(split, len(table)) for split in table.splits or ()}
    pairs = []
    for a, b, distance in _alike_pairs(table.paths, table.groups, max_distance):
        crosses = tuple(name for name, parts in part.items() if -1 != parts[a] != parts[b] != -1)
        pairs.append(NearDuplicate(table.images[a], table.images[b], distance, crosses))
    return tuple(sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second)))


def _alike_pairs(paths: Sequence[Path], owners: NDArray[np.int64], max_distance: int) -> list[tuple[int, int, int]]:
    """Return (row, later row, distance) of images of different owners whose hashes are close, at most _MAX_PAIRS."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(perceptual_hash, paths))
    rows = np.array([row for row, value in enumerate(found) if value is not None], np.int64)
    hashes = np.array([value for value in found if value is not None], np.uint64)
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None] ^ hashes[None, start:]
        distances = np.bitwise_count(block)
        one, other = np.nonzero(distances <= max_distance)
        for i, j, distance in zip(one, other, distances[one, other], strict=True):
            a, b = rows[start + i], rows[start + j]
            if a < b and owners[a] != owners[b]:
                pairs.append((int(a), int(b), int(distance)))
        if len(pairs) >= _MAX_PAIRS:
            break
    return pairs[:_MAX_PAIRS]


def equal_files(trained: ScoreTable, tested: ScoreTable) -> list[tuple[str, str]]:
    """Return (image of the first table, image of the second) for each image of the second that is the same file."""
    first = dict(zip(reversed(trained.contents), reversed(trained.images), strict=False))
    pairs = zip(tested.contents, tested.images, strict=False)
    return [(first[content], image) for content, image in pairs if content in first]


def between_tables(tables: Sequence[ScoreTable], *, trained_on_first: bool, shown: int = 10) -> list[str]:
    """Return warnings of images that two tables share: equal files first, then near-duplicates, examples below.

    trained_on_first: only the first table is trained on, so that only pairs with it count.
    """
    lines = []
    for one, first in enumerate(tables):
        for second in tables[one + 1 :] if one == 0 or not trained_on_first else ():
            both = f"in {first.name} too: scores on them are no test"
            equal = equal_files(first, second)
            if equal:
                lines.append(f"{len(equal)} of {len(second)} photograph(s) of {second.name} are, byte for byte, {both}")
                lines += [f"  {a} = {b}" for a, b in equal[:shown]]
            owners = np.repeat(np.arange(2), [len(first), len(second)])
            names, same = [*first.images, *second.images], {b for _, b in equal}
            alike = sorted(_alike_pairs([*first.paths, *second.paths], owners, MAX_DISTANCE), key=lambda pair: pair[2])
            near = {b: (names[a], distance) for a, b, distance in reversed(alike) if names[b] not in same}
            if near:
                lines.append(f"{len(near)} of {len(second)} photograph(s) of {second.name} are, nearly, {both}")
                examples = list(near.items())[:shown]
                lines += [f"  {a} ~ {names[b]} ({distance} of 64 bits differ)" for b, (a, distance) in examples]
    return lines


def leak_warnings(table: ScoreTable, pairs: Iterable[NearDuplicate] = (), *, shown: int = 10) -> list[str]:
    """Return warnings of a table's repeated images and near-duplicates: a line for each kind, examples below it."""
    # Warnings, not errors: a hash of 64 bits can be wrong, and only a person can tell.
    lines = []
    if table.alike_refs:
        lines.append(
            f"{len(table.alike_refs)} ref(s) in several spellings, which are different groups: splits may leak; "
            "write each in one way"
        )
        lines += ["  " + " = ".join(map(repr, spellings)) for spellings in table.alike_refs[:shown]]
    if table.repeated:
        lines.append(f"{len(table.repeated)} pair(s) of equal files in different groups: splits may leak")
        lines += [f"  {first} = {second}" for first, second in table.repeated[:shown]]
    equal = set(table.repeated)
    near = [pair for pair in pairs if (pair.first, pair.second) not in equal]
    if near:
        lines.append(f"{len(near)} pair(s) of near-duplicates in different groups: splits may leak")
        for pair in near[:shown]:
            across = f"; on two sides of {', '.join(pair.crosses)}" if pair.crosses else ""
            lines.append(f"  {pair.first} ~ {pair.second} ({pair.distance} of 64 bits differ{across})")
    return lines


def _parts(split: Split, rows: int) -> NDArray[np.int64]:
    """Return the number of the part that each row is in, (rows,); -1 for none."""
    numbers = np.full(rows, -1, np.int64)
    for number, members in enumerate((split.train, split.val, split.test)):
        numbers[members] = number
    return numbers
