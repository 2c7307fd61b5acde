"""``qpt compare``: test whether one method is better than another. The work is in ``qpt.evaluate.compare``."""

from __future__ import annotations

import argparse

from qpt.commands.options import refuse_overwriting

HELP = "compare two methods on shared test sets: paired bootstrap and corrected resampled t-test"
EXAMPLE = (
    '  qpt compare a.json b.json\n  qpt compare result.json --method-a first --method-b "untrained 0" --metric plcc_raw'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", nargs="+", type=str, metavar="RESULT", help="one or two JSON files written by `qpt evaluate --out`"
    )
    parser.add_argument("--method-a", type=str, default=None, help="method of the first file (default: its first)")
    parser.add_argument(
        "--method-b", type=str, default=None, help="method of the last file (default: its first; of one file: required)"
    )
    parser.add_argument("--metric", type=str, default="srcc", help="srcc, plcc_raw, plcc_logistic, ... (default srcc)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples (default 0)")
    parser.add_argument("--out", type=str, metavar="FILE", default=None, help="write the comparison as JSON")
    parser.add_argument("--json", action="store_true", help="print that JSON instead of the lines")


def run(args: argparse.Namespace) -> int:
    from qpt.errors import InputError, check_int
    from qpt.evaluate.compare import compare, comparison_lines, read_result
    from qpt.io import check_writable, to_json, write_json

    if len(args.results) > 2:
        raise InputError(f"compare: results must be one or two files, got {len(args.results)}")
    check_int("compare", "seed", args.seed, 0)
    if len(args.results) == 1 and args.method_b is None:
        raise InputError("compare: method_b must be given to compare two methods of one file")
    if args.out is not None:
        refuse_overwriting(args, "compare", [check_writable(args.out, "compare")])
    read = [read_result(path) for path in args.results]
    result = compare(
        read[0], read[-1], method_a=args.method_a, method_b=args.method_b, metric=args.metric, seed=args.seed
    )
    if args.out is not None:
        write_json(result, args.out)
    print(to_json(result) if args.json else "\n".join(comparison_lines(result)))
    return 0
