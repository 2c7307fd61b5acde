"""Draw the README's pictures and write docs/cli.md: ``python docs/front.py``, or a part: ``... strip|method|cli``.

docs/cli.md is ``render_cli()``, which tests/test_cli.py compares with the committed page; the two pictures are drawn
only by the command. Relies on the parsers of ``qpt.cli``, on ``qpt.degrade`` and on a photograph of the scikit-image
wheel ("Chelsea", Stéfan van der Walt, CC0).
"""

import argparse
import importlib.util
import io
import re
import sys
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

import qpt
from qpt import cli

DOCS = Path(__file__).parent
STRIP, METHOD, CLI = DOCS / "images" / "strip.jpg", DOCS / "images" / "method.png", DOCS / "cli.md"
SEED = 14044  # of five compositions that are short enough to label and unlike each other
CAT = (60, 20, 380, 220)  # left, top, right, bottom in the photograph: the face
GAP = 12

INK, BLUE, ORANGE = "#1c1e24", "#2f6db5", "#d9822b"
ATTRACT, REPEL, OTHERS = "#3a9d5d", "#c8473f", "#f0c4bf"


def photograph(box):
    """Return the part ``box`` (left, top, right, bottom) of the photograph."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("docs/front.py: scikit-image is not installed; `pip install -e '.[demo]'` brings it")
    return Image.open(Path(spec.origin).parent / "data" / "chelsea.png").convert("RGB").crop(box)


def degraded(image, program):
    """Return the images that the rows of ``program`` make of one image."""
    return [Image.fromarray(row) for row in qpt.degrade(torch.from_numpy(np.array(image))[None], program).numpy()]


def draw_strip():
    """Draw a photograph and five compositions of it, pixel for pixel, each above the chain as ``print`` shows it."""
    image = photograph(CAT)
    program = qpt.DegradationSpace.preset("qpt").sample_seeded(torch.tensor([SEED]), views=5)
    labels = ["original", *(str(chain).replace(" → ", "\n→ ") for chain in program)]
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 24)
    text_px = 70
    width, height = image.width + GAP, image.height + text_px
    sheet = Image.new("RGB", (3 * width - GAP, 2 * height), "white")
    pen = ImageDraw.Draw(sheet)
    for cell, (picture, label) in enumerate(zip([image, *degraded(image, program)], labels, strict=True)):
        x, y = cell % 3 * width, cell // 3 * height
        sheet.paste(picture, (x, y))
        pen.text((x, y + image.height + 4), label, INK, font)
    sheet.save(STRIP, quality=80)


def draw_method():
    """Draw the method: image, two compositions, patches, encoders, and the pairs of query and key in the loss."""
    width, height = 860, 900
    figure = Figure(figsize=(width / 100, height / 100), dpi=115)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def picture(image, x, y, side, colour=INK):
        axes.imshow(image, extent=(x, x + side, y + side, y), aspect="auto", interpolation="lanczos", zorder=2)
        box(x, y, side, side, colour)

    def box(x, y, wide, high, colour, face="none", line=2.5):
        axes.add_patch(Rectangle((x, y), wide, high, ec=colour, fc=face, lw=line, zorder=3))

    def text(x, y, words, size=18, **style):
        axes.text(x, y, words, fontsize=size, **{"ha": "center", "va": "center", "color": INK, "zorder": 4, **style})

    def arrow(start, end, colour=INK, curve=0.0, **style):
        shape = {"arrowstyle": "-|>", "mutation_scale": 18, "lw": 2.5, "color": colour, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops={**shape, "connectionstyle": f"arc3,rad={curve}", **style}, zorder=1)

    space = qpt.DegradationSpace.preset("qpt")
    image = photograph((70, 10, 290, 230))
    program = space.sample_seeded(torch.tensor([SEED]), views=5)
    views = [degraded(image, program)[row] for row in (1, 3)]
    patches = {BLUE: (25, 15, 135, 125), ORANGE: (85, 65, 195, 175)}

    picture(image, 10, 160, 190)
    text(105, 374, "image")
    for row, (view, name) in enumerate(zip(views, "AB", strict=True)):
        y = 20 + 260 * row
        arrow((206, 255), (262, y + 95), curve=0.0)
        picture(view, 270, y, 190)
        text(365, y + 212, f"composition {name}")
        scale = 190 / view.width
        for place, (colour, (left, top, right, bottom)) in enumerate(patches.items()):
            box(270 + scale * left, y + scale * top, scale * (right - left), scale * (bottom - top), colour)
            side = 90
            patch_y = y + (side + 10) * place
            picture(view.crop((left, top, right, bottom)), 520, patch_y, side, colour)
            arrow((616, patch_y + side / 2), (676, (150 if place == 0 else 330) + 14 * (2 * row - 1)), colour)
    for y, name, colour in ((150, "query\nencoder", BLUE), (330, "key\nencoder", ORANGE)):
        box(682, y - 52, 160, 104, colour, "white")
        text(762, y, name)
    arrow((762, 206), (762, 274), ls=(0, (2, 1.5)))
    text(776, 240, "EMA", 16, ha="left")
    arrow((762, 390), (762, 618))
    text(776, 506, "loss", ha="left")
    text(565, 492, "patches")

    cell, left, top = 54, 210, 630
    text(left - 48, top + cell, "queries", color=BLUE, ha="right")
    text(left + cell, top - 62, "keys", color=ORANGE)
    text(left + 5.9 * cell, top - 62, "other images: batch and pool")
    for column in range(10):
        x = left + cell * column + (14 if column > 1 else 0)
        if column < 2:
            text(x + cell / 2, top - 22, "AB"[column])
        for row in range(2):
            face = (ATTRACT if row == column else REPEL) if column < 2 else OTHERS
            box(x, top + cell * row, cell, cell, "white", face, 2)
    for row in range(2):
        text(left - 22, top + cell * (row + 0.5), "AB"[row])
    for line, (face, words) in enumerate(
        (
            (ATTRACT, "same image, same composition: attract"),
            (REPEL, "same image, other composition: repel"),
            (OTHERS, "other images: repel"),
        )
    ):
        y = 786 + 40 * line
        box(left, y - 12, 24, 24, face, face)
        text(left + 40, y, words, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor="white")
    Image.open(buffer).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(METHOD, optimize=True)


CLI_HEAD = """\
# Commands

Written by `python docs/front.py cli` from the parsers; `qpt COMMAND --help` prints the same.

Names of options have dashes. Underscores are read as dashes (`--patch_size`), and a name may be cut short where it
stays unique (`--patch-s`). Keys of YAML files have underscores. `python -m qpt` is `qpt` without an installed script.

The exit status is 0 when the command did what it was asked; 1 when the answer is no (a plan does not fit, a replayed
step comes out differently, a photograph cannot be scored, the demo's encoder is no better than an untrained one) or the
run failed for a reason outside the command line (a full disk, a loader that stalls); 2 for wrong input or a missing
backend, with one line that says what to change; 130 after Ctrl-C.

`qpt --print-completion SHELL` prints the script that completes commands, options and files in `bash`, `zsh` or `fish`;
it needs the extra `completion`. Write it to `~/.local/share/bash-completion/completions/qpt`, to `_qpt` in a folder of
zsh's `fpath`, or to `~/.config/fish/completions/qpt.fish`.

| command | |
|---|---|
{commands}
"""

COMMAND = """
## qpt {name}

{description}

```sh
{example}
```

    {usage}

| argument | meaning | default |
|---|---|---|
{arguments}
"""


def render_cli():
    """Return the text of docs/cli.md."""
    parsers = {name: cli.command_parser(name) for name in cli.COMMANDS}
    rows = {name: [row(action) for action in listed(parser)] for name, parser in parsers.items()}
    settings = set(rows["pretrain"])
    page = [
        CLI_HEAD.format(
            commands="\n".join(f"| [`qpt {name}`](#qpt-{name}) | {parsers[name].description} |" for name in parsers)
        )
    ]
    for name, parser in parsers.items():
        lines = rows[name]
        others = [line for line in lines if line not in settings]
        if name != "pretrain" and len(others) < len(lines) - 20:  # a command that takes the settings of a run
            lines = [*others, "| … | and the settings of a run, as [`qpt pretrain`](#qpt-pretrain) takes them | |"]
        example = textwrap.dedent(parser.epilog.removeprefix("example:\n"))
        facts = {"description": parser.description, "example": example, "usage": parser.usage}
        page.append(COMMAND.format(name=name, arguments="\n".join(lines), **facts))
    return "".join(page)


def listed(parser):
    """Return a parser's arguments as they are typed: positional ones first."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    return sorted(shown, key=lambda action: bool(action.option_strings))


def row(action):
    """Return the line of one argument in the table of its command."""
    meaning, default = " ".join(cli.description(action).split()), ""
    if stated := re.fullmatch(r"(.*?) ?\(default:? ([^()]*)\)", meaning):
        meaning, default = stated.groups()
        if action.default not in (None, "", []):  # a value rather than words such as "its folder's name"
            default = f"`{default}`"
    cells = (f"`{cli.invocation(action)}`", meaning, default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    parts = {"strip": draw_strip, "method": draw_method, "cli": lambda: CLI.write_text(render_cli(), encoding="utf-8")}
    for part in sys.argv[1:] or parts:
        parts[part]()
