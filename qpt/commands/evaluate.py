"""``qpt evaluate``: how well an encoder's features predict mean opinion scores. The work is in ``qpt.evaluate.run``."""

from __future__ import annotations

import argparse

HELP = "measure an encoder on photographs with mean opinion scores, beside untrained and classical features"
EXAMPLE = (
    "  qpt evaluate runs/first --csv photos/scores.csv\n"
    "  qpt evaluate runs/seed0 runs/seed1 runs/seed2 --csv scores.csv --root images --untrained 3 --out result.json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The table's arguments are shared with ``fit`` and ``score``: see ``add_table_arguments``."""
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="run directories or checkpoint files")
    add_table_arguments(parser, required=True)
    parser.add_argument(
        "--untrained", type=int, default=1, metavar="N", help="number of untrained encoders (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    add_feature_arguments(parser)
    parser.add_argument("--out", type=str, default=None, help="write the whole result, every split included, as JSON")
    parser.add_argument("--json", action="store_true", help="print that JSON instead of the table")


def add_table_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """--csv, --root and --name of a table of scores."""
    parser.add_argument(
        "--csv",
        type=str,
        required=required,
        default=None,
        help="UTF-8 CSV with columns image, mos and, optionally, ref",
    )
    parser.add_argument("--root", type=str, default=None, help="folder the image names start from (default: the CSV's)")
    parser.add_argument("--name", type=str, default=None, help="what results call the set (default: its folder's name)")


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
    from qpt.evaluate.table import read_table

    if args.out is not None:
        check_writable(args.out, "evaluate")
    result = evaluate(
        args.runs,
        read_table(args.csv, root=args.root, name=args.name),
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
