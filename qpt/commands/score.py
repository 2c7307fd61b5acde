"""``qpt score``: the quality of photographs as numbers. The work is in ``qpt.evaluate.scorer``."""

from __future__ import annotations

import argparse

from qpt.commands.evaluate import add_table_arguments, read_table_arguments

HELP = "score photographs: one number each, higher is better"
EXAMPLE = (
    "  qpt score holiday.jpg --scorer scorer.pt\n"
    "  qpt score a.jpg b.jpg --run runs/first --csv photos/scores.csv --json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=str, metavar="IMAGE", help="photographs, both sides at least 32 px")
    parser.add_argument("--scorer", type=str, default=None, help="a file made by `qpt fit`")
    parser.add_argument("--run", type=str, default=None, help="instead of --scorer, with --csv: fit one for this call")
    add_table_arguments(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from qpt.errors import InputError
    from qpt.evaluate.photograph import check_header
    from qpt.evaluate.report import to_json

    faults = {image: fault for image in args.images if (fault := check_header(Path(image))) is not None}
    if len(faults) == len(args.images):
        raise InputError(_listed(faults))
    scorer = _scorer(args)
    scores: dict[str, float] = {}
    for image in args.images:
        if image in faults or image in scores:
            continue
        try:
            scores[image] = scorer(image)
        except InputError as error:  # a good header before damaged data
            faults[image] = str(error)
            continue
        if not args.json:
            print(f"{scores[image]:9.3f}  {image}", flush=True)
    if args.json:
        scale = {
            "min": scorer.mos_min,
            "max": scorer.mos_max,
            "higher_is_better": True,
            "labels": scorer.fitted_on["name"],
        }
        found = [{"image": image, "score": score} for image, score in scores.items()]
        print(to_json({"scale": scale, "scores": found, "errors": faults}))
    elif scores:
        low, high, name = scorer.mos_min, scorer.mos_max, scorer.fitted_on["name"]
        print(f"scale: labels of {name} go from {low:g} (worst) to {high:g} (best); higher is better")
    if faults:
        raise InputError(_listed(faults))
    return 0


def _scorer(args: argparse.Namespace):  # type: ignore[no-untyped-def]  # Scorer is imported here, with torch, and not above
    from qpt.errors import InputError
    from qpt.evaluate.run import feature_cache
    from qpt.evaluate.scorer import Scorer
    from qpt.models import load_encoder

    if args.scorer is not None and args.run is None and args.csv is None and args.dataset is None:
        return Scorer.load(args.scorer)
    if args.scorer is None and args.run is not None and (args.csv is not None or args.dataset is not None):
        return Scorer.fit(load_encoder(args.run), read_table_arguments(args), cache=feature_cache(args.run))
    raise InputError(
        "score: give either --scorer FILE or both --run RUN and --csv scores.csv (or --dataset NAME); "
        "an encoder alone has no scale. "
        "Make a scorer once with `qpt fit RUN --csv scores.csv --out scorer.pt`"
    )


def _listed(faults: dict[str, str]) -> str:
    lines = [f"{image}: {fault}" for image, fault in faults.items()]
    return f"score: {len(faults)} photograph(s) cannot be used:\n  " + "\n  ".join(lines)
