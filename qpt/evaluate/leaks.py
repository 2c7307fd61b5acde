"""Near-duplicates across groups: images that are copies of each other although splits treat them as unrelated.

Called by the commands that read a table and by ``qpt datasets check``; it reads image files. Equal files are found
while a table is read (``ScoreTable.repeated``); perceptual hashes find the resized, recompressed or retouched ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(perceptual_hash, table.paths))
    rows = np.array([row for row, value in enumerate(found) if value is not None], np.int64)
    hashes = np.array([value for value in found if value is not None], np.uint64)
    part = {split.name: _parts(split, len(table)) for split in table.splits or ()}
    pairs = []
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None] ^ hashes[None, start:]
        distances = np.bitwise_count(block)
        one, other = np.nonzero(distances <= max_distance)
        for i, j, distance in zip(one, other, distances[one, other], strict=True):
            a, b = rows[start + i], rows[start + j]
            if a < b and table.groups[a] != table.groups[b]:
                crosses = tuple(name for name, parts in part.items() if -1 != parts[a] != parts[b] != -1)
                pairs.append(NearDuplicate(table.images[a], table.images[b], int(distance), crosses))
        if len(pairs) >= _MAX_PAIRS:
            break
    return tuple(sorted(pairs[:_MAX_PAIRS], key=lambda pair: (pair.distance, pair.first, pair.second)))


def leak_warnings(table: ScoreTable, pairs: Iterable[NearDuplicate] = (), *, shown: int = 10) -> list[str]:
    """Return warnings of a table's repeated images and near-duplicates: a line for each kind, examples below it."""
    # Warnings, not errors: a hash of 64 bits can be wrong, and only a person can tell.
    lines = []
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
