"""Write docs/degradations.md and its pictures from the op table: ``python docs/degradations.py``.

tests/test_degradations_page.py compares the text of ``render()`` with the committed page; only the command makes the
pictures. Relies on the op table, the presets, docs/degradation_peers.yaml and a photograph of the scikit-image wheel.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qpt.data.images import load_rgb
from qpt.data.sample_images import sample_images
from qpt.degradations import op_table, presets
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, Degradation, Parameter
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.io import read_yaml
from qpt.ops.degrade.api import degrade

FOLDER = Path(__file__).parent
PAGE, PICTURES, PEERS = (
    FOLDER / "degradations.md",
    FOLDER / "images" / "degradations",
    FOLDER / "degradation_peers.yaml",
)
CELL, GAP, LEFT = 160, 4, 70  # pixels: side of a cell, space between cells, left edge of the crop of the halved image
SEED = 6  # of signs, angles and noise; the same at an op's five levels, so that only the strength changes

HEAD = """\
# Degradations

Every op of the op table at its five levels: the photograph as it is, then levels 1 to 5, pixel for pixel. The five
levels have the same draw of sign, angle and noise. The photograph is NASA's portrait of Eileen Collins (public domain)
from the scikit-image wheel, at half size; the strips are stored as JPEG of quality 88.

Written by `python docs/degradations.py` from the op table (`qpt/degradations/rows/`), the presets
(`qpt/degradations/presets/`) and `docs/degradation_peers.yaml`; `qpt degrade --list` prints the same levels. A *halo*
is the number of pixels around an output pixel that an op reads. An *oracle* is the library call that tests compare the
op with.

{table}

Peers: {legend}; (in part). How close the presets `arniqa` and `imagenet-c` are to their sources, type by type and level
by level: [degradations-fidelity.md](degradations-fidelity.md).
"""

SECTION = """
### {name}

![{name}: pristine, then levels 1 to 5](images/degradations/{name}.jpg)

{doc}

| parameter | unit | range | levels 1 · 2 · 3 · 4 · 5 |
|---|---|---|---|
{parameters}

- Source: {source}.
- Oracle: `{oracle}`
- Halo: {halo}
- Presets: {presets}. Peers: {peers}.
"""


def render() -> str:
    """Return the page's text."""
    peers = read_yaml(PEERS)
    spaces = {name: set(DegradationSpace.preset(name).names) for name in presets.NAMES}
    short = peers["peers"]
    rows = [
        "| op | " + " | ".join([*spaces, *short]) + " |",
        "|---|" + "---|" * (len(spaces) + len(short)),
    ]
    sections = []
    heading = ""
    for op in DEGRADATIONS:
        have = dict.fromkeys(short, "")
        for mark in peers["ops"][op.name].split():
            have[mark.removeprefix("~")] = "(●)" if mark.startswith("~") else "●"
        used = ["●" if op.name in names else "" for names in spaces.values()]
        rows.append(f"| [{op.name}](#{op.name}) | " + " | ".join([*used, *have.values()]) + " |")
        if heading != (heading := "Variants, as one source has them" if op.variant_of else op.family.capitalize()):
            sections.append(f"\n## {heading}\n")
        sections.append(_section(op, spaces, [f"{short[k]}{' in part' * ('(' in v)}" for k, v in have.items() if v]))
    legend = ", ".join(f"{key} {name}" for key, name in short.items())
    return HEAD.format(table="\n".join(rows), legend=legend) + "".join(sections)


def _section(op: Degradation, spaces: dict[str, set[str]], peers: list[str]) -> str:
    return SECTION.format(
        name=op.name,
        doc=op.doc,
        parameters="\n".join(
            f"| {p.name} | {p.unit} | {p.low:g} to {p.high:g} | {op_table.describe_levels(p)} |" for p in op.parameters
        ),
        source=op.source.removesuffix("."),
        oracle=op.oracle,
        halo=_halo(op),
        presets=", ".join(name for name, names in spaces.items() if op.name in names) or "none",
        peers=", ".join(peers) or "none",
    )


def _halo(op: Degradation) -> str:
    if op.halo == "whole":
        return "the whole image."
    at = [op.halo_px([_widest(p, level) for p in op.parameters]) for level in range(1, LEVELS + 1)]
    return f"{at[0]} px." if len(set(at)) == 1 else " · ".join(map(str, at)) + " px at levels 1 · 2 · 3 · 4 · 5."


def _widest(p: Parameter, level: int) -> float:
    return max(p.alternatives(level), key=abs, default=p.high)


def draw() -> None:
    """Write one strip per op: the photograph, then its five levels."""
    (astronaut,) = (path for path in sample_images() if path.stem == "astronaut")
    picture = np.array(Image.fromarray(load_rgb(astronaut)).reduce(2))[:CELL, LEFT : LEFT + CELL]
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.jpg"):
        old.unlink()
    for op in DEGRADATIONS:
        chains = [[], *([(op.name, level)] for level in range(1, LEVELS + 1))]
        cells = degrade(
            torch.from_numpy(picture)[None], Program.from_chains(chains, seeds=[SEED] * len(chains))
        ).numpy()
        strip = Image.new("RGB", (len(cells) * (CELL + GAP) - GAP, CELL), "white")
        for k, cell in enumerate(cells):
            strip.paste(Image.fromarray(cell), (k * (CELL + GAP), 0))
        strip.save(PICTURES / f"{op.name}.jpg", quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    draw()
    PAGE.write_text(render(), encoding="utf-8")
