"""Options that several commands share: the score table, and the crops and cache of features."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `qpt --help` imports neither NumPy nor Pillow
    from pathlib import Path

    from qpt.evaluate.table import ScoreTable


def add_table_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options of a score table, --csv or --dataset and their like; ``read_table_arguments`` reads it.

    required: only for the help; the reader checks that one of the two is given.
    """
    one_of = "one of --csv and --dataset is required" if required else "or --dataset"
    parser.add_argument(
        "--csv",
        type=str,
        metavar="FILE",
        default=None,
        help=f"UTF-8 CSV, or its URL, with columns image, mos and, optionally, ref and split; pyiqa's meta files too "
        f"({one_of})",
    )
    parser.add_argument(
        "--dataset",
        type=str,
        default=None,
        metavar="NAME",
        help="an official data set below --root, such as koniq10k or koniq10k:512x384 (list: qpt datasets)",
    )
    parser.add_argument(
        "--root",
        type=str,
        metavar="FOLDER",
        default=None,
        help="folder the image names start from (default: the CSV's), or the data set",
    )
    parser.add_argument(
        "--splits",
        type=str,
        default=None,
        metavar="FILE",
        help="published splits: ARNIQA's folder of .npy, pyiqa's .pkl, or a CSV with split columns",
    )
    parser.add_argument("--lower-better", action="store_true", help="the scores of the CSV are DMOS: lower is better")
    parser.add_argument("--name", type=str, default=None, help="what results call the set (default: its folder's name)")


def read_table_arguments(args: argparse.Namespace, *, leaks: bool = False) -> ScoreTable:
    """Read the table of the options of ``add_table_arguments``; notes and leak warnings go to standard error.

    leaks: also look for near-duplicates, which decodes every image. Raises InputError for a bad table or splits, or for
    neither or both of --csv and --dataset.
    """
    import sys
    from dataclasses import replace

    from qpt.errors import InputError
    from qpt.evaluate.datasets import load_dataset
    from qpt.evaluate.leaks import leak_warnings, near_duplicates
    from qpt.evaluate.splits import import_splits
    from qpt.evaluate.table import read_table

    if (args.csv is None) == (args.dataset is None):
        got = "neither" if args.csv is None else "both"
        raise InputError(f"table: give either --csv FILE or --dataset NAME with --root FOLDER, got {got}")
    if args.csv is not None:
        table = read_table(args.csv, root=args.root, name=args.name, lower_better=args.lower_better)
    else:
        if args.root is None or args.lower_better:
            raise InputError(
                "table: --dataset needs --root, the folder with its files, and knows the direction of its scores"
            )
        table = load_dataset(args.dataset, args.root)
        if args.name is not None:
            table = replace(table, name=args.name)
    if args.splits is not None:
        table = import_splits(table, args.splits)
    warnings = leak_warnings(table, near_duplicates(table) if leaks else ())
    for line in (*table.notes, *(f"warning: {line}" for line in warnings)):
        print(line, file=sys.stderr)
    return table


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --crops, --crop-px and --cache: the crops of a large image, and the folder of features."""
    parser.add_argument("--crops", type=int, default=9, help="most crops seen of a large photograph (default 9)")
    parser.add_argument("--crop-px", type=int, default=384, help="side of a crop in pixels (default 384)")
    parser.add_argument(
        "--cache",
        type=str,
        metavar="FOLDER",
        default=None,
        help="folder for computed features (default: RUN/features, or ~/.cache/qpt/features for a named encoder)",
    )


#: Arguments of commands that name files which are read, or folders of which ``_RECORDS`` are.
_READ = ("run", "runs", "source", "scorer", "csv", "splits", "test_csv", "evaluation", "results", "image", "space")
_RECORDS = ("checkpoint.pt", "config.yaml", "space.yaml", "log.csv", "observations.jsonl", "history.jsonl", "seen.npz",
            "summary.json", "train.npy", "val.npy", "test.npy")  # fmt: skip


def refuse_overwriting(
    args: argparse.Namespace,
    command: str,
    outputs: Iterable[Path],
    *,
    tables: Iterable[ScoreTable] = (),
    images: Iterable[str | Path] = (),
    argument: str = "out",
) -> None:
    """Raise InputError if a command would write over a file that it reads, by whatever name or link.

    outputs: the files it will write.  tables, images: whose images it reads, besides the files that ``args`` name.
    argument: that names the outputs.
    """
    import os
    from itertools import chain
    from pathlib import Path

    from qpt.errors import InputError
    from qpt.io import shown

    there = {}
    for output in outputs:
        if output.exists():
            status = output.stat()
            there[status.st_dev, status.st_ino] = output
    if not there:
        return
    given = (vars(args).get(name) for name in _READ)
    named = [Path(path) for value in given if value for path in ([value] if isinstance(value, str) else value)]
    records = (path / record for path in named for record in _RECORDS)
    for path in chain(named, records, images, *(table.paths for table in tables)):
        try:
            status = os.stat(path)
        except OSError:
            continue
        same = there.get((status.st_dev, status.st_ino))
        if same is not None:
            raise InputError(
                f"{command}: {argument} must not write over a file that is read ({shown(path)}), got {shown(same)}; "
                "choose another place"
            )
