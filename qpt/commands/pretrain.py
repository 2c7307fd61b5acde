"""``qpt pretrain``: pre-train an encoder on a folder of photographs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from qpt.errors import InputError
from qpt.pretraining import recipes

HELP = "Pre-train an encoder on a folder of photographs, without labels."
EXAMPLE = """\
  qpt pretrain photos --out runs/a --arch resnet18 --patch-size 96 --batch-images 64 --steps 2000
  qpt pretrain photos --out runs/l --recipe laptop --steps 2000
  qpt pretrain photos --out runs/b --config runs/a/config.yaml --seed 1
  qpt pretrain 'shards/train-{000000..000099}.tar' --out runs/c --workers 8
  qpt pretrain photos --out runs/a --resume
  qpt pretrain --replay runs/a/failed_step_1207"""


class _ListRecipes(argparse.Action):
    """Prints one line per recipe and exits."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        for name in recipes.NAMES:
            print(f"{name:24}{recipes.summary(name)}")
        parser.exit()


def add_arguments(parser: Any) -> None:
    from qpt.pretraining.config import RENAMED, PretrainConfig

    parser.add_argument(
        "--recipe", type=str, choices=recipes.NAMES, metavar="NAME", help="start from a named recipe; flags win over it"
    )
    parser.add_argument("--recipes", action=_ListRecipes, nargs=0, help="list the recipes and exit")
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="FILE", help="YAML file of settings; flags after it win"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    parser.add_argument("--replay", type=str, metavar="FILE", help="run a step that failed again (failed_step_N)")
    parser.add_argument(
        "data",
        type=str,
        nargs="?",
        help="folder of photographs or shards, a pattern of shards, or a URL of these; may be left out with --resume",
    )
    parser.add_argument("--out", type=str, metavar="FOLDER", help="run directory to create")
    parser.renamed = RENAMED
    parser.implied = _implied
    parser.add_class_arguments(PretrainConfig, skip={"data", "out"})


def _implied(given: Any) -> list[str]:
    """Return the arguments that stand for those given, and before them, so that these win: a run's, a recipe's."""
    if given.get("replay"):
        # The step has its settings with it; only where it runs may change.
        others = [name for name, value in vars(given).items() if name not in ("replay", "device") and value is not None]
        others = ["config"] if "config" in others else others  # whose settings are among those given
        if others:
            named = ", ".join(name if name == "data" else f"--{name.replace('_', '-')}" for name in others)
            raise InputError(
                f"pretrain: --replay must be given alone or with --device (the step has its settings), got {named} too"
            )
    arguments: list[str] = []
    if given.get("resume") and given.get("out"):
        from qpt.pretraining.run_folder import resuming_arguments

        arguments += resuming_arguments(Path(given.out), given.get("data"))
    if given.get("recipe"):
        arguments += ["--config", str(recipes.path(given.recipe))]
    return arguments


def run(args: argparse.Namespace) -> int:
    from qpt.pretraining.config import PretrainConfig
    from qpt.pretraining.engine import pretrain
    from qpt.pretraining.replay import replay

    if args.replay:
        result = replay(args.replay, args.device)
        print(result)
        return 0 if result.reproduced else 1
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise InputError(f"{name} must be given")
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(PretrainConfig)}
    return 0 if pretrain(PretrainConfig(**fields), resume=args.resume).finished else 130
