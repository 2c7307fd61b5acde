"""``qpt score``: the quality of images as numbers and as heat maps.

The work is in ``qpt.evaluate.scorer`` and ``qpt.evaluate.quality_map``. Results go to standard output, progress and
errors of single files to standard error; the exit status is 1 if any image could not be scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from qpt.commands.options import add_table_arguments, read_table_arguments

if TYPE_CHECKING:
    from pathlib import Path

    from qpt.evaluate.scorer import Scorer

HELP = "score photographs: one number each, higher is better"
EXAMPLE = (
    "  qpt score holiday.jpg --scorer scorer.pt\n"
    "  qpt score photos 'more/**/*.png' --scorer scorer.pt --format csv > scores.csv\n"
    "  find . -name '*.jpg' | qpt score - --scorer scorer.pt --heatmap maps\n"
    "  qpt score a.jpg b.jpg --run runs/first --csv photos/scores.csv --json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        type=str,
        metavar="PATH",
        help="photographs of any size, folders (everything below them), patterns, or - for a list on standard input",
    )
    parser.add_argument("--from-file", type=str, default=None, metavar="LIST", help="a text file with one PATH a line")
    parser.add_argument("--scorer", type=str, default=None, help="a file made by `qpt fit`")
    parser.add_argument("--run", type=str, default=None, help="instead of --scorer, with --csv: fit one for this call")
    add_table_arguments(parser, required=False)
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print the scores (default table)"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--heatmap", type=str, default=None, metavar="DIR", help="also write a map of local quality")
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


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import track

    from qpt.data.listing import find_images

    style = "json" if args.json else args.format
    images, faults = find_images(_names(args))
    scorer = _scorer(args)
    maps = _map_files(args.heatmap, images) if args.heatmap is not None else {}
    # A bar and rows that appear one by one would overwrite each other on one terminal.
    quiet = not sys.stderr.isatty() or (style == "csv" and sys.stdout.isatty())
    errors = Console(stderr=True)
    results = (
        _score(image, scorer, maps.get(image), args.tile_px)
        for image in track(images, description="scoring", console=errors, disable=quiet)
    )
    scored = _print(style, scorer, results, [_Scored(name, fault=fault) for name, fault in faults.items()])
    failed = [result for result in scored if result.fault is not None]
    if failed:
        print(f"qpt score: {len(failed)} photograph(s) cannot be used:", file=sys.stderr)
        for result in failed:
            print(f"  {_shown(result.image)}: {result.fault}", file=sys.stderr)
    return 1 if failed else 0


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

    parts = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def _scorer(args: argparse.Namespace) -> Scorer:
    from qpt.errors import InputError, check_int
    from qpt.evaluate.features import feature_cache
    from qpt.evaluate.scorer import Scorer
    from qpt.models import load_encoder

    check_int("score", "--max-pixels", args.max_pixels, 1)
    if args.tile_px is not None:
        check_int("score", "--tile-px", args.tile_px, 32)
    labelled = args.csv is not None or args.dataset is not None
    if args.scorer is not None and args.run is None and not labelled:
        return Scorer.load(args.scorer, dtype=args.dtype, max_pixels=args.max_pixels)
    if args.scorer is None and args.run is not None and labelled:
        scorer = Scorer.fit(load_encoder(args.run), read_table_arguments(args), cache=feature_cache(args.run))
        scorer.max_pixels = args.max_pixels
        return scorer if args.dtype == "float32" else scorer.in_dtype(args.dtype)
    raise InputError(
        "score: give either --scorer FILE or both --run RUN and --csv scores.csv (or --dataset NAME); "
        "an encoder alone has no scale. "
        "Make a scorer once with `qpt fit RUN --csv scores.csv --out scorer.pt`"
    )


def _map_files(folder: str, images: Iterable[str]) -> dict[str, Path]:
    """Return the file of each image's map, NAME.png, with a number where names repeat; make the folder."""
    from pathlib import Path

    from qpt.io import check_writable

    files: dict[str, Path] = {}
    for image in images:
        stem, number = Path(image).stem, 1
        while (target := Path(folder) / f"{stem}{'' if number == 1 else f'-{number}'}.png") in files.values():
            number += 1
        files[image] = target
    check_writable(Path(folder) / ".map", "score")
    return files


def _score(image: str, scorer: Scorer, map_file: Path | None, tile_px: int | None) -> _Scored:
    from pathlib import Path

    from qpt.errors import InputError
    from qpt.evaluate.image_crops import load_image
    from qpt.evaluate.quality_map import draw_quality_map, quality_map

    try:
        pixels = load_image(image, max_pixels=scorer.max_pixels)
        score = scorer(pixels)
    except InputError as error:
        return _Scored(image, fault=str(error).removeprefix(f"photograph: {image}: "))
    if map_file is not None:
        found = quality_map(scorer, pixels, tile_px=tile_px)
        draw_quality_map(found, pixels, scorer, map_file, title=f"{Path(image).name}: {score:.3f}")
    return _Scored(image, score, None if map_file is None else str(map_file))


def _print(style: str, scorer: Scorer, results: Iterable[_Scored], unusable: list[_Scored]) -> list[_Scored]:
    """Print scores as CSV (rows as they come), JSON or a table; return all results, those without a score last."""
    import csv
    import sys

    if style == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "score", "heatmap", "error"])
        scored = []
        for result in chain(results, unusable):
            scored.append(result)
            writer.writerow([_shown(result.image), result.score, result.heatmap, result.fault])
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
        "labels": scorer.fitted_on["name"],
    }
    found = [
        {"image": result.image, "score": result.score, **({"heatmap": result.heatmap} if result.heatmap else {})}
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

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("score", justify="right")
    table.add_column("photograph", overflow="fold")
    for result in good:
        table.add_row(f"{result.score:.3f}", Text(_shown(result.image)))
    # Piped output has no width of its own; a name is never broken there.
    console = Console()
    longest = max(len(result.image) for result in good)
    (console if console.is_terminal else Console(width=longest + 40)).print(table)
    low, high, name = scorer.mos_min, scorer.mos_max, scorer.fitted_on["name"]
    print(f"scale: labels of {name} go from {low:g} (worst) to {high:g} (best); higher is better")


def _shown(name: str) -> str:
    """Return a file's name as text that can be printed, also where it is not UTF-8."""
    import os

    return os.fsencode(name).decode("utf-8", errors="replace")
