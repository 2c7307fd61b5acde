"""``qpt fit``: make a scorer file of an encoder and a score table. The work is in ``qpt.evaluate.scorer``."""

from __future__ import annotations

import argparse

from qpt.commands.options import (
    add_feature_arguments,
    add_table_arguments,
    read_table_arguments,
    refuse_overwriting,
)

HELP = "fit a scorer: an encoder, the read-out chosen for it, and a ridge on photographs with mean opinion scores"
EXAMPLE = "  qpt fit runs/first --csv photos/scores.csv --out scorer.pt\n  qpt score holiday.jpg --scorer scorer.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=str, metavar="RUN", help="run, checkpoint or name of an encoder")
    add_table_arguments(parser, required=True)
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

    from qpt.evaluate.features import FeatureProtocol, feature_cache
    from qpt.evaluate.scorer import Scorer
    from qpt.io import check_writable, to_json
    from qpt.models import load_encoder
    from qpt.models.checkpoint_file import run_record

    out = check_writable(args.out, "fit")
    table = read_table_arguments(args)
    refuse_overwriting(args, "fit", [out], tables=[table])
    scorer = Scorer.fit(
        load_encoder(args.run),
        table,
        protocol=FeatureProtocol(crop_px=args.crop_px, crops=args.crops),
        calibration=args.calibrate,
        pretraining=run_record(args.run),
        cache=Path(args.cache) if args.cache is not None else feature_cache(args.run),
    )
    scorer.save(out)
    if not scorer.weights.any():
        print(
            "warning: the encoder sees no difference between the photographs, so every score will be the same",
            file=sys.stderr,
        )
    fitted = scorer.fitted_on
    if args.json:
        print(to_json({"scorer": str(out), "mos_min": scorer.mos_min, "mos_max": scorer.mos_max, **fitted}))
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
