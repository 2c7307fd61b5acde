"""Write docs/degradations-fidelity.md from its record: ``python docs/degradations_fidelity.py``.

The text is ``render()``, which tests/test_preset_fidelity.py compares with the committed page. ``python -m benchmarks
preset_fidelity --photographs FOLDER`` writes the record.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks is a folder of the checkout

from benchmarks.harness import RESULTS, table
from benchmarks.preset_fidelity import FIGURES
from qpt.degradations.op_table import LEVELS

PAGE = Path(__file__).parent / "degradations-fidelity.md"
LIMIT_DB = 0.5

TEXT = """\
# How close the presets are to their sources

Mean PSNR to the clean image, in dB, over eight photographs of ImageNet classes: by the published code of a preset's
source, and by the preset. The photographs are resized (bicubic) and cropped in the middle. Of a type that draws random
numbers, the preset's figure is the mean of {draws} draws for each photograph, and the number after ± is the standard
deviation, from draw to draw, of the mean over the photographs; the source's figure is one such draw.

**{within} of {compared} figures are within {limit} dB of the source's.** Where a figure of the source is missing, its
code did not run.
{others}
The generator of `kadid` is MATLAB code, which was not run; `reiqa`, `bsrgan` and `realesrgan` were compared with their
code by reading alone. `qpt degrade --presets` says what differs from each source.

Written by `python docs/degradations_fidelity.py` from `benchmarks/results/preset_fidelity.json`, the record of `python
-m benchmarks preset_fidelity --photographs FOLDER`; the figures of the sources are those of
`benchmarks/preset_figures.json`.
"""

OTHERS = """
The others are of types that draw few random numbers for an image, and apart by chance:

{figures}
"""

SECTION = """
## {name}

Source: {source}. Shorter side {shorter_side} px, crop {centre_crop} px; revision {revision} of the preset. A cell has
the source's figure, the preset's, and the difference.

{table}
"""


def beyond(rows: list[dict[str, Any]]) -> list[str]:
    """Return the figures that differ by more than LIMIT_DB, in words."""
    return [
        f"`{row['preset']}`'s {row['source_name']} at level {level}: {apart:+.2f} dB, ± {spread:.2f}"
        for row in rows
        for level, (apart, spread) in enumerate(zip(row["difference_db"], row["spread_db"], strict=True), 1)
        if apart is not None and abs(apart) > LIMIT_DB
    ]


def render() -> str:
    """Return the page's text."""
    rows = json.loads((RESULTS / "preset_fidelity.json").read_text(encoding="utf-8"))["predictions"]
    far, every = beyond(rows), [apart for row in rows for apart in row["difference_db"] if apart is not None]
    others = OTHERS.format(figures="\n".join(f"- {figure}" for figure in far)) if far else ""
    counts = {"draws": rows[0]["draws"], "within": len(every) - len(far), "compared": len(every), "limit": LIMIT_DB}
    parts = [TEXT.format(others=others, **counts)]
    for name, preset in json.loads(FIGURES.read_text(encoding="utf-8"))["presets"].items():
        own = [row for row in rows if row["preset"] == name]
        lines = [[f"{row['source_name']}, `{row['op']}`", *_cells(row)] for row in own]
        header = ["type", *(f"level {level}" for level in range(1, LEVELS + 1))]
        about = {key: preset[key] for key in ("source", "shorter_side", "centre_crop")}
        parts.append(SECTION.format(name=name, revision=own[0]["revision"], table=table(header, lines), **about))
    return "".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    cells = []
    for official, ours, spread, apart in zip(
        row["official_db"], row["ours_db"], row["spread_db"], row["difference_db"], strict=True
    ):
        here = f"{ours:.2f}" + (f" ± {spread:.2f}" if spread >= 0.05 else "")
        cells.append(here if official is None else f"{official:.2f} · {here} · {apart:+.2f}")
    return cells


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
