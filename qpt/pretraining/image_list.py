"""``RUN/images.txt.gz``: the names and sizes of the images that a run was started on, to say later how others differ.

Written and read by ``qpt.pretraining.engine``. That they are the same images is decided by the fingerprint in the
checkpoint, never by this file, which older runs lack.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from qpt.data.sources import Source
from qpt.io import shown, write_whole

IMAGE_LIST = "images.txt.gz"


def save_image_list(run: Path, source: Source) -> None:
    """Write a line, its name and its size in bytes, for each image in the order of ``source``."""

    def write(unfinished: Path) -> None:
        # A name and a time in the header would make two runs on the same images differ.
        with (
            unfinished.open("wb") as file,
            gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0) as stream,
        ):
            stream.writelines(line + b"\n" for line in source.lines())

    write_whole(run / IMAGE_LIST, write)


def image_list_difference(run: Path, source: Source) -> str:
    """Return how the images of ``source`` differ from those that the run was started on: the numbers of both and the
    first image that is new, missing or of another size; empty if the run has no list."""
    try:
        before = gzip.decompress((run / IMAGE_LIST).read_bytes()).split(b"\n")[:-1]
    except (OSError, EOFError, zlib.error):  # none, or one that is damaged: it is there for this sentence alone
        return ""
    now = list(source.lines())
    place = next((place for place, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        place = min(len(before), len(now))
    old, new = (_name_and_size(lines[place]) if place < len(lines) else ("", "") for lines in (before, now))
    if old[0] == new[0]:
        first = f"{new[0]} has {new[1]} bytes in place of {old[1]}"
    elif new[0] and new[0] not in {_name_and_size(line)[0] for line in before}:
        first = f"{new[0]} is new"
    elif old[0] and old[0] not in {_name_and_size(line)[0] for line in now}:
        first = f"{old[0]} is missing"
    else:
        first = f"{new[0] or old[0]} has another place"
    return f"{len(before)} images then, {len(now)} now; the first difference: {first}"


def _name_and_size(line: bytes) -> tuple[str, str]:
    name, _, size = line.decode(errors="surrogateescape").rpartition(" ")
    return shown(name), size
