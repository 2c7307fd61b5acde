"""``qpt report``: write one HTML page about one or several runs. The work is in ``qpt.report.build``."""

from __future__ import annotations

import argparse

from qpt.commands.options import (
    add_feature_arguments,
    add_table_arguments,
    read_table_arguments,
    refuse_overwriting,
)

HELP = "write one self-contained HTML page about runs: predictions, severity curves, maps, training"
EXAMPLE = (
    "  qpt report runs/first --csv photos/scores.csv --out first.html\n"
    "  qpt report runs/first --scorer scorer.pt --photographs held-out-photos --out first.html\n"
    "  qpt report runs/first runs/second --csv photos/scores.csv --evaluation result.json --out both.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="runs, checkpoints or names of encoders")
    add_table_arguments(parser, required=False)
    add_feature_arguments(parser)
    parser.add_argument(
        "--scorer", type=str, metavar="FILE", default=None, help="a scorer made from the run, for severity curves"
    )
    parser.add_argument(
        "--evaluation", type=str, metavar="FILE", default=None, help="a result written by `qpt evaluate --out`"
    )
    parser.add_argument(
        "--photographs",
        type=str,
        metavar="FOLDER",
        default=None,
        help="folder of photographs to degrade (default: best of the table)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of folds, crops and maps")
    parser.add_argument("--out", type=str, metavar="FILE", required=True, help="the HTML file to write")


def run(args: argparse.Namespace) -> int:
    import sys

    from qpt.data.listing import list_images
    from qpt.data.urls import is_url
    from qpt.evaluate.features import FeatureProtocol
    from qpt.io import check_writable, shown
    from qpt.report.build import write_report

    out = check_writable(args.out, "report")
    table = read_table_arguments(args) if args.csv is not None or args.dataset is not None else None
    on_disk = args.photographs is not None and not is_url(args.photographs)
    images = list_images(args.photographs) if on_disk and out.exists() else ()
    refuse_overwriting(args, "report", [out], tables=[] if table is None else [table], images=images)
    faults = write_report(
        args.runs,
        out,
        table=table,
        scorer=args.scorer,
        evaluation=args.evaluation,
        photographs=args.photographs,
        protocol=FeatureProtocol(crop_px=args.crop_px, crops=args.crops),
        cache=args.cache,
        seed=args.seed,
    )
    for fault in faults:
        print(f"qpt report: {fault}", file=sys.stderr)
    print(f"{shown(out)}: {out.stat().st_size / 1e6:.1f} MB, self-contained")
    return 0
