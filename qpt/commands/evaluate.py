"""``qpt evaluate``: predict mean opinion scores from an encoder's features. The work is in ``qpt.evaluate.run``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qpt.commands.options import (
    add_feature_arguments,
    add_table_arguments,
    read_table_arguments,
    refuse_overwriting,
)

if TYPE_CHECKING:  # `qpt --help` imports neither NumPy nor Pillow
    from qpt.evaluate.regimes import EvaluationConfig
    from qpt.evaluate.table import ScoreTable

HELP = "measure an encoder on photographs with mean opinion scores, beside untrained and classical features"
EXAMPLE = (
    "  qpt evaluate runs/first --csv photos/scores.csv\n"
    "  qpt evaluate runs/seed0 runs/seed1 runs/seed2 --csv scores.csv --root images --untrained 3 --out result.json\n"
    "  qpt evaluate runs/first --dataset koniq10k --root data/koniq10k --protocol official\n"
    "  qpt evaluate runs/first --csv a/scores.csv --protocol cross --test-csv b/scores.csv"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="runs, checkpoints or names of encoders")
    add_table_arguments(parser, required=True)
    parser.add_argument(
        "--untrained", type=int, default=1, metavar="N", help="number of untrained encoders (default 1)"
    )
    parser.add_argument(
        "--no-supervised",
        dest="supervised",
        action="store_false",
        help="leave out the ImageNet-supervised encoder, which is measured where its extra is installed",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    add_protocol_arguments(parser)
    add_feature_arguments(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="arithmetic of frozen encoders; bfloat16 is faster on a CPU that multiplies in it (default float32)",
    )
    parser.add_argument(
        "--out", type=str, metavar="FILE", default=None, help="write the whole result, every split included, as JSON"
    )
    parser.add_argument("--json", action="store_true", help="print that JSON instead of the table")


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of splits, labels, regressor and fine-tuning; ``docs/evaluation.md`` defines them."""
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
    parser.add_argument("--test-csv", nargs="+", type=str, default=[], metavar="FILE", help="tables of other data sets")
    parser.add_argument(
        "--test-root",
        nargs="+",
        type=str,
        default=[],
        metavar="FOLDER",
        help="the root of each --test-csv (default: its)",
    )
    parser.add_argument(
        "--test-dataset", nargs="+", type=str, default=[], metavar="NAME=FOLDER", help="official data sets, likewise"
    )
    parser.add_argument(
        "--label-shares",
        nargs="*",
        type=float,
        default=None,
        metavar="SHARE",
        help="train on shares of the training labels too, such as 0.01 0.05 0.1; none: all labels only",
    )
    parser.add_argument(
        "--read-outs",
        nargs="+",
        type=str,
        default=None,
        metavar="NAME",
        help='the read-outs to choose from, such as "all, mean+std" (default: all of them)',
    )
    parser.add_argument(
        "--regressor",
        choices=("ridge", "svr", "best"),
        default="ridge",
        help="on frozen features; best: the one that inner cross-validation prefers, 3 to 12 times as slow as ridge",
    )
    parser.add_argument("--fine-tune", action="store_true", help="also fine-tune each encoder end to end on each split")
    parser.add_argument("--fine-tune-epochs", type=int, default=30, metavar="N", help="at most (default 30)")
    parser.add_argument("--fine-tune-batch", type=int, default=16, metavar="N", help="images per step (default 16)")
    parser.add_argument("--fine-tune-crop-px", type=int, default=224, metavar="N", help="side of crops (default 224)")
    parser.add_argument("--fine-tune-lr", type=float, default=1e-4, help="of the encoder; head: x 10 (default 1e-4)")
    parser.add_argument("--fine-tune-loss", choices=("huber", "plcc"), default="huber", help="(default huber)")


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console

    from qpt.evaluate.features import FeatureProtocol
    from qpt.evaluate.leaks import between_tables
    from qpt.evaluate.result import render_result
    from qpt.evaluate.run import evaluate
    from qpt.io import check_writable, to_json, write_json

    out = None if args.out is None else check_writable(args.out, "evaluate")
    config = _config(args)
    tables = [read_table_arguments(args, leaks=True), *_other_tables(args)]
    if out is not None:
        refuse_overwriting(args, "evaluate", [out], tables=tables)
    for line in between_tables(tables, trained_on_first=args.protocol == "cross"):
        print(f"warning: {line}", file=sys.stderr)
    result = evaluate(
        args.runs,
        tables[0],
        others=tables[1:],
        config=config,
        untrained=args.untrained,
        supervised=args.supervised,
        seed=args.seed,
        protocol=FeatureProtocol(crop_px=args.crop_px, crops=args.crops),
        dtype=args.dtype,
        cache=args.cache,
    )
    if out is not None:
        write_json(result, out)
    if args.json:
        print(to_json(result))
    else:
        console = Console()
        # Piped output has no width of its own; the table needs about 110 columns.
        (console if console.is_terminal else Console(width=110)).print(render_result(result))
    return 0


def _config(args: argparse.Namespace) -> EvaluationConfig:
    from qpt.evaluate.features import READ_OUTS
    from qpt.evaluate.finetune import FineTuning
    from qpt.evaluate.regimes import EvaluationConfig

    tuning = FineTuning(
        epochs=args.fine_tune_epochs,
        batch=args.fine_tune_batch,
        crop_px=args.fine_tune_crop_px,
        lr=args.fine_tune_lr,
        loss=args.fine_tune_loss,
    )
    return EvaluationConfig(
        protocol=args.protocol,
        splits=args.split_count,
        label_shares=None if args.label_shares is None else tuple(args.label_shares),
        regressor=args.regressor,
        read_outs=tuple(args.read_outs or map(str, READ_OUTS)),
        fine_tuning=tuning if args.fine_tune else None,
    )


def _other_tables(args: argparse.Namespace) -> list[ScoreTable]:
    """Read the tables of --test-csv, then those of --test-dataset."""
    from qpt.errors import InputError
    from qpt.evaluate.datasets import load_dataset
    from qpt.evaluate.table import read_table

    roots = args.test_root or [None] * len(args.test_csv)
    if len(roots) != len(args.test_csv):
        raise InputError(f"evaluate: test_root must name one folder for each test_csv, got {len(roots)}")
    tables = [read_table(csv, root=root) for csv, root in zip(args.test_csv, roots, strict=True)]
    for given in args.test_dataset:
        name, equals, root = given.partition("=")
        if not equals:
            raise InputError(f"evaluate: test_dataset must be NAME=FOLDER, got {given!r}")
        tables.append(load_dataset(name, root))
    return tables
