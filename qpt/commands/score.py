"""``qpt score``: the quality of images as numbers and as heat maps.

The work is in ``qpt.evaluate.scorer`` and ``qpt.evaluate.quality_map``. Results go to standard output, progress and
errors of single files to standard error; the exit status is 1 if any image could not be scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from qpt.commands.options import add_table_arguments, read_table_arguments, refuse_overwriting

if TYPE_CHECKING:
    from io import BytesIO
    from pathlib import Path
    from threading import Lock

    from qpt.evaluate.scorer import Scorer

HELP = "score photographs: one number each, higher is better"
EXAMPLE = (
    "  qpt score holiday.jpg\n"
    "  qpt score holiday.jpg --scorer scorer.pt\n"
    "  qpt score photos 'more/**/*.png' --scorer scorer.pt --format csv > scores.csv\n"
    "  find . -name '*.jpg' | qpt score - --scorer scorer.pt --heatmap maps\n"
    "  qpt score a.jpg b.jpg --run runs/first --csv photos/scores.csv --json\n"
    "  qpt score restored --reference originals --scorer scorer.pt"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        type=str,
        metavar="PATH",
        help="photographs of any size, folders (everything below them), patterns, URLs of these, or - for a list on "
        "standard input",
    )
    parser.add_argument(
        "--shard",
        type=str,
        default=None,
        metavar="I/N",
        help="score the I-th of N equal parts of the list of photographs alone, I from 0 to N - 1",
    )
    parser.add_argument("--from-file", type=str, default=None, metavar="FILE", help="a text file with one PATH a line")
    parser.add_argument(
        "--scorer",
        type=str,
        metavar="FILE",
        default=None,
        help="a file made by `qpt fit` (default: the scorer that comes with qpt, which was learnt without opinions)",
    )
    parser.add_argument("--run", type=str, default=None, help="instead of --scorer, with --csv: fit one for this call")
    parser.add_argument(
        "--reference",
        type=str,
        default=None,
        metavar="REF",
        help="print the distance to this photograph in place of a score: to one file, to that of the same name in a "
        "folder, or to that in the column ref_image of a CSV; --scorer or --run alone choose the encoder",
    )
    add_table_arguments(parser, required=False)
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print the scores (default table)"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--heatmap", type=str, default=None, metavar="FOLDER", help="also write a map of local quality")
    parser.add_argument(
        "--tile-px", type=int, default=None, help="side of the map's tiles (default: longer side / 8, at least 128)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what the encoder runs in (default float32; the others need a CPU or GPU made for them to be faster)",
    )
    parser.add_argument(
        "--max-pixels", type=int, default=200_000_000, help="refuse larger photographs (default 200 million pixels)"
    )


@dataclass(frozen=True)
class _Scored:
    image: str
    score: float | None = None
    heatmap: str | None = None
    fault: str | None = None
    note: str | None = None  # why a score means little


def run(args: argparse.Namespace) -> int:
    import sys

    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from qpt.commands.score_reference import measure
    from qpt.data.listing import find_images
    from qpt.errors import InputError
    from qpt.evaluate.metrics import is_constant
    from qpt.evaluate.quality_map import is_quality_map
    from qpt.io import shown

    if args.json and args.format == "csv":
        raise InputError("score: --format must not be csv with --json")
    if args.tile_px is not None and args.heatmap is None:
        raise InputError("score: --tile-px needs --heatmap, the folder of the maps")
    style = "json" if args.json else args.format
    names = _names(args)
    found, faults = find_images(names)
    found, faults = _shard(args, found, faults)
    maps_found = {image for image in found if is_quality_map(image)}
    images = [image for image in found if image not in maps_found]
    faults |= {image: "a heat map of qpt, no photograph" for image in names if image in maps_found}
    if left_out := len(maps_found - faults.keys()):
        print(f"qpt score: {left_out} heat map(s) of qpt are left out", file=sys.stderr)
    # A bar and rows that appear one by one would overwrite each other on one terminal.
    quiet = not sys.stderr.isatty() or (style == "csv" and sys.stdout.isatty())
    scores: list[float] = []
    if args.reference is not None:
        failed = measure(args, style, images, faults, quiet)
    else:
        scorer = _scorer(args)
        maps = _map_files(args, images) if args.heatmap is not None else {}
        errors = Console(stderr=True)
        results = track(
            _results(images, scorer, maps, args.tile_px),
            description="scoring",
            total=len(images),
            console=errors,
            disable=quiet,
        )
        scored = _print(style, scorer, results, [_Scored(name, fault=fault) for name, fault in faults.items()])
        failed = {result.image: result.fault for result in scored if result.fault is not None}
        scores = [result.score for result in scored if result.score is not None]
    if failed:
        print(f"qpt score: {len(failed)} photograph(s) cannot be used:", file=sys.stderr)
        for name, fault in failed.items():
            print(f"  {shown(name)}: {fault}", file=sys.stderr)
    if len(scores) > 1 and is_constant(np.array(scores)):
        print(f"qpt score: all {len(scores)} scores are equal: they order nothing", file=sys.stderr)
    return 1 if failed else 0


def _shard(args: argparse.Namespace, found: list[str], faults: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the part of the images that --shard asks for; names that stand for no image are of the last part."""
    import re

    from qpt.errors import InputError

    if args.shard is None:
        return found, faults
    given = re.fullmatch(r"(\d{1,9})/(\d{1,9})", args.shard)
    index, count = (int(given[1]), int(given[2])) if given else (0, 0)
    if not index < count:
        raise InputError(f"score: --shard must be I/N with I from 0 to N - 1, such as 0/8, got {args.shard!r}")
    part = found[len(found) * index // count : len(found) * (index + 1) // count]
    return part, faults if index == count - 1 else {}


def _names(args: argparse.Namespace) -> list[str]:
    """Return the named files, folders and patterns, those in lists included."""
    import os
    import sys
    from pathlib import Path

    from qpt.errors import InputError

    names: list[str] = []
    for name in args.images:
        names += _lines(sys.stdin.buffer.read()) if name == "-" else [name]
    if args.from_file is not None:
        if not Path(args.from_file).is_file():
            raise InputError(f"score: --from-file must be a text file of paths, got {os.fspath(args.from_file)}")
        names += _lines(Path(args.from_file).read_bytes())
    if not names:
        raise InputError("score: PATH must name at least one photograph, folder, pattern or list, got none")
    return names


def _lines(content: bytes) -> list[str]:
    """Return the names in a list: one a line, or each ended by NUL (``find -print0``)."""
    import os
    import re
    from pathlib import Path

    from qpt.data.tabular import foreign_kind, named_file
    from qpt.errors import InputError

    if content[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        content = content.decode("utf-32", errors="replace").encode()
    elif content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # what PowerShell's `>` writes
        content = content.decode("utf-16", errors="replace").encode()
    elif re.search(rb"[\0-\x08\x0e-\x1f\xfe\xff]", content[:32]) and (found := foreign_kind(content)):
        raise InputError(f"score: PATH must be in a list of names, got {found[0]}; {found[1]}")
    elif content.count(b"\0") * 3 >= len(content) > 0:  # names that are each ended by NUL have more letters than that
        raise InputError("score: PATH must be in a list of names, got UTF-16 text without a byte order mark")
    parts = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    names = [os.fsdecode(part) for part in parts if part.strip()]
    return [str(named_file(Path(), name)) if "\\" in name else name for name in names]


def _scorer(args: argparse.Namespace) -> Scorer:
    from qpt.errors import InputError, check_int
    from qpt.evaluate.features import feature_cache
    from qpt.evaluate.scorer import Scorer
    from qpt.models import load_encoder

    check_int("score", "--max-pixels", args.max_pixels, 1)
    if args.tile_px is not None:
        check_int("score", "--tile-px", args.tile_px, 32)
    labelled = args.csv is not None or args.dataset is not None
    if args.run is None and not labelled:
        return Scorer.load(args.scorer, dtype=args.dtype, max_pixels=args.max_pixels)
    if args.scorer is None and args.run is not None and labelled:
        scorer = Scorer.fit(load_encoder(args.run), read_table_arguments(args), cache=feature_cache(args.run))
        scorer.max_pixels = args.max_pixels
        return scorer if args.dtype == "float32" else scorer.in_dtype(args.dtype)
    raise InputError(
        "score: give --scorer FILE, or both --run RUN and --csv scores.csv (or --dataset NAME), or none of them for "
        "the scorer that comes with qpt; an encoder alone has no scale. "
        "Make a scorer once with `qpt fit RUN --csv scores.csv --out scorer.pt`, or without scores with "
        "`qpt fit RUN --unlabelled photos --out scorer.pt`"
    )


def _map_files(args: argparse.Namespace, images: list[str]) -> dict[str, Path]:
    """Return the file of each image's map, NAME.png, with a number where names repeat; make the folder.

    Raises InputError if a map would be written over anything but an earlier map.
    """
    from pathlib import Path

    from qpt.errors import InputError
    from qpt.evaluate.quality_map import is_quality_map
    from qpt.io import check_writable, shown

    folder = Path(args.heatmap)
    files: dict[str, Path] = {}
    taken: set[Path] = set()
    for image in images:
        stem, number = Path(image).stem, 1
        while (target := folder / f"{stem}{'' if number == 1 else f'-{number}'}.png") in taken:
            number += 1
        files[image] = target
        taken.add(target)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"score: --heatmap must be a folder, got the file {shown(folder)}")
    check_writable(folder / ".map", "score")
    refuse_overwriting(args, "score", files.values(), images=images, argument="--heatmap")
    other = next((file for file in files.values() if file.exists() and not is_quality_map(file)), None)
    if other is not None:
        raise InputError(
            f"score: --heatmap must be a folder in which no other picture is replaced, got {shown(args.heatmap)} "
            f"with {shown(other.name)}, which is no heat map of qpt"
        )
    return files


def _results(images: list[str], scorer: Scorer, maps: dict[str, Path], tile_px: int | None) -> Iterator[_Scored]:
    """Yield the result of each image in order, several images at a time."""
    from threading import Lock

    from qpt.compat import fonts_closed
    from qpt.data.remote import read_ahead
    from qpt.evaluate.features import image_threads
    from qpt.evaluate.image_crops import map_in_threads

    drawing = Lock()  # matplotlib is not made for threads

    def score(item: tuple[str, str | BytesIO | FileNotFoundError]) -> _Scored:
        return _score(*item, scorer, maps.get(item[0]), tile_px, drawing)

    with fonts_closed(), image_threads(len(images)) as (workers, start):
        yield from map_in_threads(score, read_ahead(images), workers=workers, start=start)


def _score(
    image: str,
    file: str | BytesIO | FileNotFoundError,
    scorer: Scorer,
    map_file: Path | None,
    tile_px: int | None,
    drawing: Lock,
) -> _Scored:
    from pathlib import Path

    from qpt.errors import InputError
    from qpt.evaluate.image_crops import load_image
    from qpt.evaluate.quality_map import draw_quality_map, quality_map
    from qpt.io import shown

    try:
        if isinstance(file, FileNotFoundError):
            raise InputError("no such file")
        pixels = load_image(file, max_pixels=scorer.max_pixels)
        score = scorer(pixels)
    except InputError as error:
        return _Scored(image, fault=str(error).removeprefix(f"photograph: {file}: "))
    notes = ["extrapolated"] if scorer.extrapolates(score) else []
    if (pixels == pixels[0, 0]).all():
        notes.append("one colour")
    note = ", ".join(notes) or None
    if map_file is not None:
        found = quality_map(scorer, pixels, tile_px=tile_px)
        title = f"{shown(Path(image).name)}: {score:.{_decimals(scorer)}f}" + f" ({note})" * bool(note)
        with drawing:
            draw_quality_map(found, pixels, scorer, map_file, title=title)
    return _Scored(image, score, None if map_file is None else str(map_file), note=note)


def _decimals(scorer: Scorer) -> int:
    from qpt.evaluate.metrics import decimals

    return decimals(scorer.mos_min, scorer.mos_max)


def _print(style: str, scorer: Scorer, results: Iterable[_Scored], unusable: list[_Scored]) -> list[_Scored]:
    """Print scores as CSV (rows as they come), JSON or a table; return all results, those without a score last."""
    import csv
    import sys

    from qpt.io import shown

    if style == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "score", "heatmap", "error", "note"])
        scored = []
        for result in chain(results, unusable):
            scored.append(result)
            heatmap = None if result.heatmap is None else shown(result.heatmap)
            writer.writerow([shown(result.image), result.score, heatmap, result.fault, result.note])
            sys.stdout.flush()
        return scored
    scored = [*results, *unusable]
    good = [result for result in scored if result.score is not None]
    if style == "json":
        print(_json(scorer, scored))
    elif good:
        _print_table(good, scorer)
    return scored


def _json(scorer: Scorer, scored: list[_Scored]) -> str:
    from qpt.io import to_json

    scale = {
        "min": scorer.mos_min,
        "max": scorer.mos_max,
        "higher_is_better": True,
        "labels": scorer.fitted_on["name"] if scorer.opinions else None,
    }
    found = [
        {
            "image": result.image,
            "score": result.score,
            **({"heatmap": result.heatmap} if result.heatmap else {}),
            **({"note": result.note} if result.note else {}),
        }
        for result in scored
        if result.score is not None
    ]
    faults = {result.image: result.fault for result in scored if result.fault is not None}
    return to_json({"scale": scale, "dtype": scorer.dtype, "scores": found, "errors": faults})


def _print_table(good: list[_Scored], scorer: Scorer) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qpt.io import shown

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("score", justify="right")
    table.add_column("photograph", overflow="fold")
    noted = any(result.note for result in good)
    if noted:
        table.add_column("note")
    digits = _decimals(scorer)
    for result in good:
        table.add_row(f"{result.score:.{digits}f}", Text(shown(result.image)), *([result.note or ""] if noted else []))
    # Piped output has no width of its own; a name is never broken there.
    console = Console()
    longest = max(len(shown(result.image)) for result in good)
    (console if console.is_terminal else Console(width=longest + 80)).print(table)
    low, high, name = scorer.mos_min, scorer.mos_max, scorer.fitted_on["name"]
    # As many digits as tell the ends apart: {:g} has 6, too few for labels from 50.0000001 to 50.0000009.
    low_text, high_text = (f"{end:.{max(6, digits + 3)}g}" for end in (low, high))
    if scorer.opinions:
        print(f"scale: labels of {name} go from {low_text} (worst) to {high_text} (best); higher is better")
    else:
        print(
            f"scale: {low_text} (worst) to {high_text} (best); higher is better; learnt from {name}, not from opinions"
        )
    for word, why in _NOTES.items():
        if count := sum(word in (result.note or "") for result in good):
            print(f"{word}: {count} of {len(good)} score(s) {why}")


_NOTES = {
    "extrapolated": "lie outside what the scorer was fitted on, so the photograph is unlike all that it has seen",
    "one colour": "are of pictures without any detail to judge",
}
