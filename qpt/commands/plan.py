"""``qpt plan``: the batch, chunk and pool that fit a GPU, before a run is started. Needs no GPU."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from jsonargparse import ActionConfigFile

HELP = "Say what batch, chunk and pool of a pre-training run fit a GPU, and where the memory goes."
EXAMPLE = """\
  qpt plan RTX4090 --precision bfloat16 --batch-images 7560
  qpt plan 24 --config runs/a/config.yaml --activation-checkpointing true
  qpt plan A100-80 --arch resnet18 --patch-size 96 --mode in_batch --json"""


def add_arguments(parser: Any) -> None:
    from qpt.pretraining.config import RENAMED, PretrainConfig

    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="FILE", help="YAML file of settings; flags after it win"
    )
    parser.add_argument("gpu", type=str, metavar="GPU", help="its memory in GiB, or a name: RTX4090, A100-80, ...")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    parser.renamed = RENAMED
    parser.add_class_arguments(PretrainConfig, skip={"data", "out"})


def run(args: argparse.Namespace) -> int:
    from qpt.io import to_json
    from qpt.planning.gpus import find_gpu
    from qpt.planning.search import plan
    from qpt.planning.text import as_dict, render
    from qpt.pretraining.config import PretrainConfig

    gpu = find_gpu(args.gpu)
    names = [field.name for field in dataclasses.fields(PretrainConfig) if field.name not in ("data", "out")]
    config = PretrainConfig(data="", out="", **{name: getattr(args, name) for name in names})
    answer = plan(config, gpu)
    print(to_json(as_dict(answer)) if args.json else render(answer))
    return 0 if answer.fits else 1
