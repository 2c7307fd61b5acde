"""``qpt probe``: measure how well an encoder tells degradations apart. The work is in ``qpt.evaluate.probe``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qpt.commands.options import add_table_arguments, read_table_arguments

if TYPE_CHECKING:
    from rich.table import Table

HELP = "measure, without any score, how well an encoder sees degradations of held-out photographs"
EXAMPLE = (
    "  qpt probe runs/first held-out-photos\n"
    "  qpt probe runs/first held-out-photos --photograph-count 60 --json\n"
    "  qpt probe runs/first held-out-photos --clean clean-photos --csv photos/scores.csv"
)


def add_arguments(parser: Any) -> None:
    parser.add_argument("run", type=str, metavar="RUN", help="run, checkpoint or name of an encoder")
    parser.add_argument("data", type=str, metavar="DATA", help="folder of photographs the run was not trained on")
    parser.renamed = {"photographs": "photograph_count", "size": "crop_px"}
    parser.add_argument("--photograph-count", type=int, default=30, help="most photographs used, evenly spaced")
    parser.add_argument("--crops", type=int, default=2, help="crops of each photograph")
    parser.add_argument(
        "--crop-px", type=int, default=192, help="side of a crop in pixels; smaller photographs are left out"
    )
    parser.add_argument("--space", type=str, default="qpt", help="degradation space: a preset or a YAML file")
    parser.add_argument("--seed", type=int, default=0, help="seed of crops, degradations and the untrained encoder")
    parser.add_argument(
        "--clean",
        type=str,
        default=None,
        metavar="FOLDER",
        help="clean photographs, at least 10: also measure the distance of other photographs' features to theirs, and "
        "with --csv or --dataset how well it agrees with scores",
    )
    parser.add_argument(
        "--clean-shrinkage",
        type=float,
        default=1.0,
        metavar="S",
        help="0 to 1: how far the correlations of the clean photographs' features are taken towards none",
    )
    add_table_arguments(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from qpt.evaluate.probe import probe_run
    from qpt.io import to_json

    settings = {
        name: getattr(args, name)
        for name in ("photograph_count", "crops", "crop_px", "space", "seed", "clean", "clean_shrinkage")
    }
    scores = read_table_arguments(args) if args.csv is not None or args.dataset is not None else None
    result = probe_run(args.run, args.data, **settings, scores=scores)
    if args.json:
        print(to_json(result))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=110)  # piped output has no width of its own
    console.print(_render(result))
    counts = result["photographs"]
    console.print(
        f"probes fitted on {counts['fit']} photographs, measured on {counts['measure']} others; chance is "
        f"{result['chance']:.1%} for the op and 0 for a correlation; distance: Euclidean, from the pristine crop, "
        "between standardised statistics of the stages",
        highlight=False,
    )
    if "clean_distance" in result:
        console.print(_clean_lines(result["clean_distance"]), highlight=False, markup=False)
    for name, reason in result["left_out"].items():
        console.print(f"left out: {name}: {reason}", highlight=False, markup=False)
    if result["trained_on_this_folder"]:
        console.print("warning: the run was trained on these photographs; a fair figure needs others", style="yellow")
    return 0


def _clean_lines(measured: Mapping[str, Any]) -> str:
    """Return what is said about the distance to clean photographs."""
    trained, untrained = measured["trained"], measured["untrained"]
    lines = [f"distance to the {trained['clean_images']} clean photographs of {measured['clean']}:"]
    if measured["scores"] is None:
        of = f"median of {trained['images']} photographs"
        lines.append(f"  {of}: trained {trained['median']:.1f}, untrained {untrained['median']:.1f}")
    else:
        of = f"SRCC of its negative with the scores of {trained['images']} photographs of {measured['scores']}"
        lines.append(f"  {of}: trained {trained['srcc']:.3f}, untrained {untrained['srcc']:.3f}")
    if measured["trained_on_clean"]:
        lines.append("  the run was trained on the clean photographs")
    return "\n".join(lines)


def _render(result: Mapping[str, Any]) -> Table:
    """Lay the result out for a terminal: means over ops first, then every op; both encoders side by side."""
    from rich import box
    from rich.table import Table

    trained, untrained = result["trained"], result["untrained"]
    title = f"{result['run']} on {result['held_out_images']} degraded images of {result['data']}"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for measure in ("SRCC of predicted level", "SRCC of distance to pristine"):
        for encoder in ("trained", "untrained"):
            table.add_column(f"{measure}\n{encoder}", justify="right")
    kinds = ("level_srcc", "distance_srcc")
    table.add_row("mean over ops", *(f"{e[k]:.3f}" for k in kinds for e in (trained, untrained)), end_section=True)
    for op in trained["level_srcc_per_op"]:
        table.add_row(op, *(f"{e[f'{k}_per_op'][op]:.3f}" for k in kinds for e in (trained, untrained)))
    table.caption = f"op accuracy: trained {trained['op_accuracy']:.1%}, untrained {untrained['op_accuracy']:.1%}"
    return table
