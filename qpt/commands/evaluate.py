"""``qpt evaluate``: how well an encoder's features predict mean opinion scores. The work is in ``qpt.evaluate.run``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `qpt --help` imports neither NumPy nor Pillow
    from qpt.evaluate.plan import Plan
    from qpt.evaluate.table import ScoreTable

HELP = "measure an encoder on photographs with mean opinion scores, beside untrained and classical features"
EXAMPLE = (
    "  qpt evaluate runs/first --csv photos/scores.csv\n"
    "  qpt evaluate runs/seed0 runs/seed1 runs/seed2 --csv scores.csv --root images --untrained 3 --out result.json\n"
    "  qpt evaluate runs/first --dataset koniq10k --root data/koniq10k --protocol official\n"
    "  qpt evaluate runs/first --csv a/scores.csv --protocol cross --test-csv b/scores.csv"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The table's arguments are shared with ``fit`` and ``score``: see ``add_table_arguments``."""
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="run directories or checkpoint files")
    add_table_arguments(parser, required=True)
    parser.add_argument(
        "--untrained", type=int, default=1, metavar="N", help="number of untrained encoders (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    add_plan_arguments(parser)
    add_feature_arguments(parser)
    parser.add_argument("--out", type=str, default=None, help="write the whole result, every split included, as JSON")
    parser.add_argument("--json", action="store_true", help="print that JSON instead of the table")


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Splits, labels, regressor and fine-tuning; ``docs/evaluation.md`` defines them."""
    parser.add_argument(
        "--protocol",
        choices=("random", "official", "cross", "leave-one-out"),
        default="random",
        help="random 80/20 splits by ref; official: the table's own; cross: train on it, test on each other table; "
        "leave-one-out: each of all tables is tested by training on the others (default random)",
    )
    parser.add_argument(
        "--split-count", type=int, default=10, metavar="N", help="number of random 80/20 splits (default 10)"
    )
    parser.add_argument("--test-csv", nargs="+", type=str, default=[], metavar="CSV", help="tables of other data sets")
    parser.add_argument(
        "--test-root", nargs="+", type=str, default=[], metavar="DIR", help="the root of each --test-csv (default: its)"
    )
    parser.add_argument(
        "--test-dataset", nargs="+", type=str, default=[], metavar="NAME=DIR", help="official data sets, likewise"
    )
    parser.add_argument(
        "--label-shares",
        nargs="*",
        type=float,
        default=None,
        metavar="SHARE",
        help="train on shares of the training labels too, such as 0.01 0.05 0.1; none: all labels only",
    )
    parser.add_argument("--regressor", choices=("ridge", "svr"), default="ridge", help="on frozen features")
    parser.add_argument("--fine-tune", action="store_true", help="also fine-tune each encoder end to end on each split")
    parser.add_argument("--fine-tune-epochs", type=int, default=30, metavar="N", help="at most (default 30)")
    parser.add_argument("--fine-tune-batch", type=int, default=16, metavar="N", help="images per step (default 16)")
    parser.add_argument("--fine-tune-crop-px", type=int, default=224, metavar="PX", help="side of crops (default 224)")
    parser.add_argument("--fine-tune-lr", type=float, default=1e-4, help="of the encoder; head: x 10 (default 1e-4)")
    parser.add_argument("--fine-tune-loss", choices=("huber", "plcc"), default="huber", help="(default huber)")


def add_table_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """What names a table of scores: --csv or --dataset, and how to read it. ``read_table_arguments`` reads it.

    required: only for the help; that one of the two is given is checked when the table is read.
    """
    one_of = "one of --csv and --dataset is required" if required else "or --dataset"
    parser.add_argument(
        "--csv",
        type=str,
        default=None,
        help=f"UTF-8 CSV with columns image, mos and, optionally, ref and split; pyiqa's meta files too ({one_of})",
    )
    parser.add_argument(
        "--dataset",
        type=str,
        default=None,
        metavar="NAME",
        help="an official data set below --root, such as koniq10k or koniq10k:512x384 (list: qpt datasets)",
    )
    parser.add_argument(
        "--root", type=str, default=None, help="folder the image names start from (default: the CSV's), or the data set"
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
    """The table that the arguments of ``add_table_arguments`` name; notes and leak warnings go to standard error.

    leaks: also look for near-duplicates, which decodes every photograph. Raises InputError for what they name, or for
    neither or both of --csv and --dataset.
    """
    import sys
    from dataclasses import replace

    from qpt.data.iqa import load_dataset
    from qpt.errors import InputError
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
    """--crops, --crop-px and --cache: what of a photograph is looked at, and where features are kept."""
    parser.add_argument("--crops", type=int, default=9, help="most crops seen of a large photograph (default 9)")
    parser.add_argument("--crop-px", type=int, default=384, help="side of a crop in pixels (default 384)")
    parser.add_argument("--cache", type=str, default=None, help="folder for computed features (default: RUN/features)")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from qpt.evaluate.features import FeatureProtocol
    from qpt.evaluate.report import check_writable, result_table, to_json, write_json
    from qpt.evaluate.run import evaluate

    if args.out is not None:
        check_writable(args.out, "evaluate")
    plan = _plan(args)
    result = evaluate(
        args.runs,
        read_table_arguments(args, leaks=True),
        others=_other_tables(args),
        plan=plan,
        untrained=args.untrained,
        seed=args.seed,
        protocol=FeatureProtocol(crop_px=args.crop_px, crops=args.crops),
        cache=args.cache,
    )
    if args.out is not None:
        write_json(result, args.out)
    if args.json:
        print(to_json(result))
    else:
        console = Console()
        # Piped output has no width of its own; the table needs about 110 columns.
        (console if console.is_terminal else Console(width=110)).print(result_table(result))
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    from qpt.evaluate.finetune import FineTuning
    from qpt.evaluate.plan import Plan

    tuning = FineTuning(
        epochs=args.fine_tune_epochs,
        batch=args.fine_tune_batch,
        crop_px=args.fine_tune_crop_px,
        lr=args.fine_tune_lr,
        loss=args.fine_tune_loss,
    )
    return Plan(
        protocol=args.protocol,
        splits=args.split_count,
        label_shares=None if args.label_shares is None else tuple(args.label_shares),
        regressor=args.regressor,
        fine_tuning=tuning if args.fine_tune else None,
    )


def _other_tables(args: argparse.Namespace) -> list[ScoreTable]:
    """The tables of --test-csv, then those of --test-dataset."""
    from qpt.data.iqa import load_dataset
    from qpt.errors import InputError
    from qpt.evaluate.table import read_table

    roots = args.test_root or [None] * len(args.test_csv)
    if len(roots) != len(args.test_csv):
        raise InputError(f"evaluate: test_root must name one folder for each test_csv, got {len(roots)}")
    tables = [read_table(csv, root=root) for csv, root in zip(args.test_csv, roots, strict=True)]
    for given in args.test_dataset:
        name, equals, root = given.partition("=")
        if not equals:
            raise InputError(f"evaluate: test_dataset must be NAME=DIR, got {given!r}")
        tables.append(load_dataset(name, root))
    return tables
