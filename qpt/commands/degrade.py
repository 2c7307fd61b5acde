"""``qpt degrade``: draw what the degradations do to one photograph.

Run by ``qpt.cli``; the drawing is ``qpt.pictures.draw_degradations``.
"""

from __future__ import annotations

import argparse
import json

HELP = "draw every op at every level, and random compositions, of one photograph"
EXAMPLE = (
    "  qpt degrade photo.jpg --out grid.png\n  qpt degrade photo.jpg --out grid.png --compositions 24 --seed 7 --json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="photograph to degrade; its central square is used")
    parser.add_argument("--out", required=True, metavar="FILE", help="picture to write; the format follows its name")
    parser.add_argument("--seed", type=int, default=0, help="seed of angles, signs, noise and chains (default: 0)")
    parser.add_argument("--preset", default="qpt", help="name of the degradation space (default: qpt)")
    parser.add_argument("--compositions", type=int, default=12, metavar="N", help="random chains (default: 12)")
    parser.add_argument("--size", type=int, default=160, metavar="PX", help="side of a cell in pixels (default: 160)")
    parser.add_argument("--json", action="store_true", help="print what was drawn as JSON")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    from PIL import Image

    from qpt.data.images import UNREADABLE, load_rgb
    from qpt.errors import InputError
    from qpt.pictures import draw_degradations
    from qpt.space import DegradationSpace

    space = DegradationSpace.preset(args.preset)
    out = Path(args.out)
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise InputError(f"degrade: --out must end in an image extension such as .png, got {args.out}")
    try:
        photograph = load_rgb(args.image)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename:  # a missing or forbidden file is named by its own error
            raise
        raise InputError(f"degrade: IMAGE must be a whole, readable image file, got {args.image}: {error}") from error
    picture = draw_degradations(photograph, space, size=args.size, compositions=args.compositions, seed=args.seed)
    picture.image.save(out)

    if args.json:
        facts = {
            "out": str(out),
            "width": picture.image.width,
            "height": picture.image.height,
            "preset": args.preset,
            "seed": args.seed,
            "table": picture.levels.table,
            "size": space.size(),
            "size_with_levels": space.size(levels=True),
            "levels": [[asdict(step) for step in chain.steps] for chain in picture.levels],
            "compositions": [[asdict(step) for step in chain.steps] for chain in picture.compositions],
        }
        print(json.dumps(facts, indent=2))
    else:
        print(f"{out}: {len(picture.levels)} single ops and {len(picture.compositions)} compositions of {args.preset}")
        for chain in picture.compositions:
            print(f"  {chain}")
    return 0
