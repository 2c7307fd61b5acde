"""``qpt export``: write an encoder or a scorer for other programs. The work is in ``qpt.export``."""

from __future__ import annotations

import argparse

from qpt.commands.options import refuse_overwriting

HELP = "write an encoder or a scorer as state dict, safetensors, ONNX and a model card"
EXAMPLE = (
    "  qpt export runs/first --out exported\n"
    "  qpt export scorer.pt --out exported --evaluation result.json --formats onnx card"
)
FORMATS = ("torch", "safetensors", "onnx", "card")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=str,
        metavar="RUN|SCORER",
        help="run, checkpoint, name of an encoder, or scorer file",
    )
    parser.add_argument("--out", type=str, required=True, metavar="FOLDER", help="the folder to write into")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=None,
        help="torch (state dict), safetensors, onnx (of a scorer), card; default all that the source has",
    )
    parser.add_argument(
        "--evaluation", type=str, metavar="FILE", default=None, help="a JSON of `qpt evaluate`, for the card"
    )


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from qpt.errors import InputError
    from qpt.evaluate.result import read_evaluation
    from qpt.evaluate.scorer import Scorer
    from qpt.export.formats import export_head, export_onnx, export_safetensors, export_state_dict
    from qpt.export.model_card import model_card
    from qpt.io import check_writable, write_lines
    from qpt.models import load_encoder
    from qpt.models.checkpoint_file import load_plain, run_record

    source, out = Path(args.source), Path(args.out)
    state = load_plain("export", source) if source.is_file() else None
    scorer = Scorer.load(source) if isinstance(state, dict) and "weights" in state else None
    formats = args.formats or [name for name in FORMATS if scorer is not None or name != "onnx"]
    if scorer is None and "onnx" in formats:
        raise InputError(f"export: onnx needs a scorer (an encoder alone has no score), got {source}; see `qpt fit`")
    encoder = scorer.encoder if scorer is not None else load_encoder(source)
    pretraining = scorer.pretraining if scorer is not None else run_record(source)
    evaluation = read_evaluation("export", "evaluation", args.evaluation) if args.evaluation is not None else None
    check_writable(out / "README.md", "export")

    # Format -> files, in the order in which they are written.
    planned = {
        "torch": [(out / "encoder.pth", "state dict, `torch.load(..., weights_only=True)`")],
        "safetensors": [(out / "encoder.safetensors", "the same tensors")],
        "onnx": [(out / "scorer.onnx", "crops at each scale in, score and features out")],
    }
    if scorer is not None:
        planned["safetensors"].append((out / "head.safetensors", "the ridge, and how to use it, as metadata"))
    files = [file for name, planned_files in planned.items() if name in formats for file in planned_files]
    card_file = out / "README.md"
    refuse_overwriting(args, "export", [*(path for path, _ in files), card_file])
    difference = None
    if "torch" in formats:
        export_state_dict(encoder, out / "encoder.pth")
    if "safetensors" in formats:
        export_safetensors(encoder, out / "encoder.safetensors")
        if scorer is not None:
            export_head(scorer, out / "head.safetensors")
    if scorer is not None and "onnx" in formats:
        difference = export_onnx(scorer, out / "scorer.onnx")
    if "card" in formats:
        card = model_card(
            encoder,
            scorer=scorer,
            pretraining=pretraining,
            evaluation=evaluation,
            files=files,
            onnx_difference=difference,
        )
        write_lines(card_file, [card])
    for file, what in files:
        print(f"{file}: {what}")
    if difference is not None:
        print(f"ONNX against PyTorch: scores differ by at most {difference:.1e} of the range of the labels")
    if "card" in formats:
        print(f"{card_file}: model card")
    return 0
