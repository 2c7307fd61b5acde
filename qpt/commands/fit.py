"""``qpt fit``: make a scorer file of an encoder and a score table, or of clean images without any opinion.

The work is in ``qpt.evaluate.scorer``.
"""

from __future__ import annotations

import argparse

from qpt.commands.options import (
    add_feature_arguments,
    add_table_arguments,
    read_table_arguments,
    refuse_overwriting,
)

HELP = "fit a scorer: an encoder, the read-out chosen for it, and a ridge on photographs with mean opinion scores"
EXAMPLE = (
    "  qpt fit efficientnet_lite0-qpt --csv photos/scores.csv --out scorer.pt\n"
    "  qpt score holiday.jpg --scorer scorer.pt\n"
    "  qpt fit runs/first --unlabelled photos --out unaware.pt"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=str, metavar="RUN", help="run, checkpoint or name of an encoder")
    add_table_arguments(parser, required=True)
    parser.add_argument(
        "--unlabelled",
        type=str,
        default=None,
        metavar="FOLDER",
        help="in place of a table: learn a score of 0 to 100 without opinions, from these clean photographs",
    )
    parser.add_argument(
        "--photograph-count",
        type=int,
        default=500,
        metavar="N",
        help="with --unlabelled: use at most N photographs of the folder (default 500)",
    )
    add_feature_arguments(parser)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="also fit a monotone logistic from raw scores to the labels, on out-of-fold predictions",
    )
    parser.add_argument("--out", type=str, metavar="FILE", required=True, help="the scorer file to write")
    parser.add_argument("--json", action="store_true", help="print what was chosen as JSON")


def run(args: argparse.Namespace) -> int:
    import sys
    from pathlib import Path
    from typing import Any

    from qpt.errors import InputError
    from qpt.evaluate.features import FeatureProtocol, feature_cache
    from qpt.evaluate.scorer import Scorer
    from qpt.io import check_writable, to_json
    from qpt.models import load_encoder
    from qpt.models.checkpoint_file import run_record

    out = check_writable(args.out, "fit")
    given: dict[str, Any] = {
        "encoder": load_encoder(args.run),
        "protocol": FeatureProtocol(crop_px=args.crop_px, crops=args.crops),
        "pretraining": run_record(args.run),
        "cache": Path(args.cache) if args.cache is not None else feature_cache(args.run),
    }
    if args.unlabelled is not None:
        for option, value in (("--csv", args.csv), ("--dataset", args.dataset), ("--calibrate", args.calibrate)):
            if value:
                raise InputError(f"fit: {option} must be left out with --unlabelled, which takes no opinions")
        scorer = Scorer.fit_unlabelled(folder=args.unlabelled, images=args.photograph_count, **given)
    else:
        table = read_table_arguments(args)
        refuse_overwriting(args, "fit", [out], tables=[table])
        scorer = Scorer.fit(table=table, calibration=args.calibrate, **given)
    scorer.save(out)
    if not scorer.weights.any():
        print(
            "warning: the encoder sees no difference between the photographs, so every score will be the same",
            file=sys.stderr,
        )
    fitted = scorer.fitted_on
    if scorer.weights.any() and fitted["srcc"] <= 0:
        print(
            "warning: these scores do not order photographs held out: the labels are too few, or wrong", file=sys.stderr
        )
    if args.json:
        print(to_json({"scorer": str(out), "mos_min": scorer.mos_min, "mos_max": scorer.mos_max, **fitted}))
    elif not scorer.opinions:
        left_out = f" ({fitted['unreadable']} more cannot be decoded)" if fitted["unreadable"] else ""
        print(
            f"{out}: learnt without opinions from {fitted['images']} photographs{left_out} and "
            f"{fitted['examples']} degraded regions of them\n"
            f"SRCC {fitted['srcc']:.3f} with the damage to photographs held out (no opinion of people)"
        )
    else:
        print(
            f"{out}: read-out {fitted['read_out']}, penalty {fitted['penalty']:g} per feature, fitted on "
            f"{fitted['images']} images of {fitted['name']}\nSRCC {fitted['srcc']:.3f} over held-out photographs "
            f"({fitted['folds']}; the choice was made on them: for a fair figure use `qpt evaluate`)"
        )
        if scorer.calibration is not None:
            errors = fitted["calibration"]
            print(
                f"calibration: RMSE over held-out photographs {errors['rmse_raw']:.3g} without it, "
                f"{errors['rmse_calibrated']:.3g} with it; order unchanged"
            )
    return 0
