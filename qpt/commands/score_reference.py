"""``qpt score --reference``: how far each image is from its reference, in place of a score.

Called by ``qpt.commands.score``, which finds the images and prints the faults. The work is in
``qpt.evaluate.full_reference``; results go to standard output.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpt.evaluate.scorer import Scorer
    from qpt.models import Encoder

#: The names of the column of references in a CSV, pyiqa's own among them.
_REFERENCE_COLUMNS = ("ref_image", "ref_name", "ref_img")


def measure(
    args: argparse.Namespace, style: str, images: Sequence[str], faults: Mapping[str, str], quiet: bool
) -> dict[str, str]:
    """Print the distance of each image to its reference; return the images without one, with the reason.

    style: "table", "csv" or "json".  faults: names that stand for no image, which are reported too. Raises InputError
    for options that do not go together, or a reference that is none.
    """
    from rich.console import Console
    from rich.progress import track

    from qpt.errors import InputError
    from qpt.evaluate.full_reference import reference_distance
    from qpt.evaluate.image_crops import check_header

    model = _model(args)
    reference_of = _references(args)
    found: list[tuple[str, Path, float]] = []
    failed: dict[str, str] = {}
    for image in track(images, description="comparing", console=Console(stderr=True), disable=quiet):
        if (fault := check_header(Path(image), max_pixels=args.max_pixels)) is not None:
            failed[image] = fault
            continue
        try:
            reference = reference_of(image)
            distance = reference_distance(model, image, reference, max_pixels=args.max_pixels)
            found.append((image, reference, distance))
        except InputError as error:
            failed[image] = str(error).removeprefix(f"photograph: {image}: ").removeprefix("reference_distance: ")
    failed |= faults
    _print(style, found, failed)
    return failed


def _model(args: argparse.Namespace) -> Encoder | Scorer:
    from qpt.errors import InputError, check_int
    from qpt.evaluate.scorer import DTYPES, Scorer
    from qpt.models import load_encoder

    check_int("score", "--max-pixels", args.max_pixels, 1)
    for option, value in (("--csv", args.csv), ("--dataset", args.dataset), ("--heatmap", args.heatmap)):
        if value is not None:
            raise InputError(f"score: {option} must be left out with --reference, which fits and maps no score")
    if args.scorer is not None and args.run is not None:
        raise InputError("score: --reference takes one of --scorer FILE and --run RUN for its encoder, got both")
    if args.run is None:
        return Scorer.load(args.scorer, dtype=args.dtype, max_pixels=args.max_pixels)
    return load_encoder(args.run).to(DTYPES[args.dtype])


def _references(args: argparse.Namespace) -> Callable[[str], Path]:
    """Return the function from an image to its reference, which raises InputError where there is none."""
    from qpt.errors import InputError

    given = Path(args.reference)
    if given.is_dir():
        return _in_folder(given)
    if given.suffix.lower() == ".csv":
        return _in_table(given, None if args.root is None else Path(args.root))
    if not given.is_file():
        raise InputError(f"score: --reference must be an image, a folder of images or a CSV, got {given}")
    return lambda image: given


def _in_folder(folder: Path) -> Callable[[str], Path]:
    """Match images by the name of the file, or else by its name without the extension."""
    from qpt.data.listing import list_images
    from qpt.errors import InputError

    named: dict[str, list[Path]] = {}
    for path in list_images(folder):
        for key in {path.name, path.stem}:
            named.setdefault(key, []).append(path)

    def reference_of(image: str) -> Path:
        candidates = named.get(Path(image).name) or named.get(Path(image).stem, [])
        if len(candidates) != 1:
            got = f"{len(candidates)} of them" if candidates else "none"
            raise InputError(f"reference must be one image in {folder} of the same name, got {got}")
        return candidates[0]

    return reference_of


def _in_table(table: Path, root: Path | None) -> Callable[[str], Path]:
    """Match images by the rows of a CSV, whose names start from ``root``, by default the folder of the CSV."""
    from qpt.data.tabular import named_file, read_csv
    from qpt.errors import InputError
    from qpt.evaluate.table import IMAGE_COLUMNS

    header, lines = read_csv(table, (IMAGE_COLUMNS, _REFERENCE_COLUMNS))
    columns = [
        next(header.index(name) for name in names if name in header) for names in (IMAGE_COLUMNS, _REFERENCE_COLUMNS)
    ]
    folder = table.parent if root is None else root
    references: dict[Path, Path] = {}
    for number, fields in lines:
        names = [fields[column] if column < len(fields) else "" for column in columns]
        if not all(names):
            raise InputError(
                f"score: --reference must name an image and its reference in each row, got line {number} of {table}"
            )
        image, reference = (named_file(folder, name) for name in names)
        if references.setdefault(image.resolve(), reference) != reference:
            raise InputError(f"score: --reference must give an image one reference, got two for {names[0]} in {table}")

    def reference_of(image: str) -> Path:
        found = references.get(Path(image).resolve())
        if found is None:
            raise InputError(f"reference must be in {table}, got none for this image")
        return found

    return reference_of


def _print(style: str, found: Sequence[tuple[str, Path, float]], failed: Mapping[str, str]) -> None:
    import csv
    import sys

    from qpt.io import shown, to_json

    if style == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "distance", "reference", "error"])
        writer.writerows([shown(image), distance, shown(reference), None] for image, reference, distance in found)
        writer.writerows([shown(image), None, None, fault] for image, fault in failed.items())
    elif style == "json":
        rows = [{"image": image, "reference": str(reference), "distance": d} for image, reference, d in found]
        scale = {"min": 0, "max": 2, "higher_is_better": False}
        print(to_json({"scale": scale, "distances": rows, "errors": dict(failed)}))
    elif found:
        _print_table(found)


def _print_table(found: Sequence[tuple[str, Path, float]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qpt.io import shown

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("distance", justify="right")
    table.add_column("photograph", overflow="fold")
    table.add_column("reference", overflow="fold")
    for image, reference, distance in found:
        table.add_row(f"{distance:.4f}", Text(shown(image)), Text(shown(reference)))
    # Piped output has no width of its own; a name is never broken there.
    console = Console()
    longest = max(len(shown(image)) + len(shown(reference)) for image, reference, _ in found)
    (console if console.is_terminal else Console(width=longest + 80)).print(table)
    print("distance: 0 is the reference itself; lower is better")
