"""``qpt demo``: the main job in a few minutes on a laptop. The work is in ``demo_run.py``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = (
    "score the images of two wheels, pre-train a small encoder on them, compare it with an untrained one, write a page"
)
EXAMPLE = """\
  qpt demo --out runs/demo
  qpt demo --out runs/demo --data photos"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=str, metavar="FOLDER", default="runs/demo", help="folder to (re)create (default runs/demo)"
    )
    parser.add_argument(
        "--data", type=str, metavar="FOLDER", default=None, help="folder of images (default: those in two wheels)"
    )


def run(args: argparse.Namespace) -> int:
    """Return 0 if the trained encoder is better than the untrained one on both probes, else 1."""
    from rich.console import Console

    from qpt.commands.demo_run import run_demo

    if run_demo(Path(args.out), None if args.data is None else Path(args.data), Console()):
        return 0
    print("demo: the trained encoder is not better than the untrained one on both probes", file=sys.stderr)
    return 1
