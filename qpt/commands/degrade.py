"""The command ``qpt degrade``: draw what the degradations do to one photograph; list the ops and the named spaces.

Run by ``qpt.cli``; ``qpt.report.degradation_grid.draw_degradations`` draws.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from qpt.commands.options import refuse_overwriting

if TYPE_CHECKING:
    from qpt.degradations.space import DegradationSpace

HELP = "draw every op at every level, and random compositions, of one photograph; list ops and spaces"
EXAMPLE = """\
  qpt degrade photo.jpg --out grid.png
  qpt degrade photo.jpg --out grid.png --space mine.yaml --compositions 24 --seed 7 --json
  qpt degrade --list
  qpt degrade --presets"""


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "image", nargs="?", type=str, metavar="IMAGE", help="photograph to degrade; its central square is used"
    )
    parser.add_argument("--out", type=str, metavar="FILE", help="picture to write; the format follows its name")
    parser.add_argument("--seed", type=int, default=0, help="seed of angles, signs, noise and chains (default: 0)")
    parser.add_argument(
        "--space", type=str, default="qpt", help="degradation space: a preset or a YAML file (default: qpt)"
    )
    parser.add_argument("--compositions", type=int, default=12, metavar="N", help="random chains (default: 12)")
    parser.add_argument("--cell-px", type=int, default=160, help="side of a cell in pixels (default: 160)")
    parser.renamed = {"size": "cell_px"}
    parser.add_argument("--list", action="store_true", help="print the ops: parameters, levels, source")
    parser.add_argument("--presets", action="store_true", help="print the named spaces: sizes, source, what differs")
    parser.add_argument("--json", action="store_true", help="print what was drawn or listed as JSON")


def run(args: argparse.Namespace) -> int:
    if args.list or args.presets:
        ops = _ops() if args.list else None
        presets = _presets() if args.presets else None
        if args.json:
            print(json.dumps({name: rows for name, rows in (("ops", ops), ("presets", presets)) if rows}, indent=2))
        else:
            _print_ops(ops or [])
            _print_presets(presets or [])
        return 0
    return _draw(args)


def _draw(args: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    from PIL import Image

    from qpt.data.faults import UnreadableError
    from qpt.data.images import load_rgb
    from qpt.degradations.space import DegradationSpace
    from qpt.errors import InputError
    from qpt.io import shown, write_whole
    from qpt.report.degradation_grid import draw_degradations

    for name, value in (("IMAGE", args.image), ("--out", args.out)):
        if not value:
            raise InputError(f"degrade: {name} must be given, unless --list or --presets is")
    space = DegradationSpace.named(args.space)
    out = Path(args.out)
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise InputError(f"degrade: --out must end in an image extension such as .png, got {args.out}")
    if not out.parent.is_dir():
        raise InputError(f"degrade: --out must be in a folder that exists, got {args.out}")
    refuse_overwriting(args, "degrade", [out])
    try:
        image = load_rgb(args.image)
    except UnreadableError as error:
        raise InputError(f"degrade: IMAGE must be a whole, readable image file, got {args.image}: {error}") from error
    grid = draw_degradations(image, space, cell_px=args.cell_px, compositions=args.compositions, seed=args.seed)
    kind = Image.registered_extensions()[out.suffix.lower()]
    try:
        write_whole(out, lambda unfinished: grid.image.save(unfinished, kind))
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        width, height = grid.image.size
        raise InputError(
            f"degrade: --out must be of a format that holds {width}x{height} px of colour, got {out}: {error}; "
            ".png does"
        ) from None

    if args.json:
        facts = {
            "out": str(out),
            "width": grid.image.width,
            "height": grid.image.height,
            "space": args.space,
            "seed": args.seed,
            "table": grid.levels.table,
            **_sizes(space),
            "levels": [[asdict(step) for step in chain.steps] for chain in grid.levels],
            "compositions": [[asdict(step) for step in chain.steps] for chain in grid.compositions],
        }
        print(json.dumps(facts, indent=2))
    else:
        print(f"{shown(out)}: {len(grid.levels)} single ops and {len(grid.compositions)} compositions of {args.space}")
        for chain in grid.compositions:
            print(f"  {chain}")
    return 0


def _sizes(space: DegradationSpace) -> dict[str, Any]:
    return {"size": space.size(), "size_with_levels": space.size(levels=True), "fingerprint": space.fingerprint()}


def _ops() -> list[dict[str, Any]]:
    from qpt.degradations.op_table import DEGRADATIONS, describe_levels

    return [
        {
            "name": row.name,
            "family": row.family,
            "doc": row.doc,
            "parameters": [
                {"name": p.name, "unit": p.unit, "low": p.low, "high": p.high, "levels": describe_levels(p)}
                for p in row.parameters
            ],
            "source": row.source,
        }
        for row in DEGRADATIONS
    ]


def _presets() -> list[dict[str, Any]]:
    from qpt.degradations import presets
    from qpt.degradations.space import DegradationSpace

    spaces = {name: DegradationSpace.preset(name) for name in presets.NAMES}
    return [
        {
            "name": name,
            "revision": space.revision,
            "rule": space.describe(),
            "types": len(space.types),
            **_sizes(space),
            "source": space.source,
            "differs": list(space.differs),
            "file": str(presets.path(name)),
        }
        for name, space in spaces.items()
    ]


def _print_ops(ops: list[dict[str, Any]]) -> None:
    for op in ops:
        print(f"{op['name']} ({op['family']}): {op['doc']}")
        for p in op["parameters"]:
            print(f"    {p['name']}, {p['unit']}, {p['low']:g} to {p['high']:g}: {p['levels']}")
        print(f"    source: {op['source']}")


def _print_presets(presets: list[dict[str, Any]]) -> None:
    for preset in presets:
        print(f"{preset['name']}: {preset['rule']}; {preset['types']} types at 5 levels")
        print(f"    {preset['size']:,} compositions by type, {preset['size_with_levels']:,} by type and level")
        print(f"    revision {preset['revision']}; source: {preset['source']}")
        for difference in preset["differs"]:
            print(f"    differs: {difference}")
        print(f"    file: {preset['file']}")
