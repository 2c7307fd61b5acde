"""Put the measured figures into README.md, docs/results.md and docs/model-card.md: ``python docs/results.py``.

A block between the markers ``<!-- begin measured: NAME -->`` and ``<!-- end measured: NAME -->`` is replaced by the
table of that name, made from the records in benchmarks/results and experiments/results; a test compares the committed
pages with it. The plot docs/images/contrastive.png is drawn too.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks and experiments are folders of the checkout

from benchmarks import speed_table, tables
from experiments import model_tables, study_tables

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "model-card.md")
BACKBONE = json.loads((ROOT / "experiments" / "results" / "backbone.json").read_text(encoding="utf-8"))
MODEL = json.loads((ROOT / "experiments" / "results" / "model.json").read_text(encoding="utf-8"))
PLOT = ROOT / "docs" / "images" / "contrastive.png"
# Without the arms that differ from another one in a single part of the recipe.
WHOLE = {**BACKBONE, "rows": [row for row in BACKBONE["rows"] if BACKBONE["arms"][row["arm"]]["group"] != "parts"]}
BLOCKS: dict[str, Callable[[], str]] = {
    "floors": lambda: study_tables.means(WHOLE),
    "evaluation": lambda: study_tables.means(BACKBONE),
    "coefficients": lambda: study_tables.means(BACKBONE, "plcc_logistic"),
    "study": lambda: study_tables.findings(BACKBONE),
    "distance": lambda: study_tables.distances(BACKBONE),
    "unlabelled": lambda: model_tables.without_labels(MODEL),
    "labelled": lambda: model_tables.with_labels(MODEL),
    "severity": lambda: model_tables.severity(MODEL),
    "speed": lambda: speed_table.markdown(tables.load),
    "score": partial(tables.rates, "score"),
    "step": tables.step,
    "loader": partial(tables.rates, "loader"),
    "degrade": tables.degrade,
    "loss": tables.loss,
    "loss-predicted": tables.loss_predicted,
    "resources": tables.resources,
}
BLOCK = re.compile(r"<!-- begin measured: (\S+) -->\n.*?<!-- end measured: \1 -->", re.DOTALL)


def render(page: Path) -> str:
    """Return the text of a page with its measured blocks as the records have them.

    Raises ValueError for a block that has no table, or a marker that has no counterpart.
    """
    text = page.read_text(encoding="utf-8")
    names = BLOCK.findall(text)
    unknown = [name for name in names if name not in BLOCKS]
    if unknown or text.count("end measured: ") + text.count("begin measured: ") != 2 * len(names):
        raise ValueError(f"{page.name}: measured blocks must be pairs of markers of {', '.join(BLOCKS)}, got {names}")
    return BLOCK.sub(
        lambda found: f"<!-- begin measured: {found[1]} -->\n{BLOCKS[found[1]]()}\n<!-- end measured: {found[1]} -->",
        text,
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page), encoding="utf-8")
        print(f"written: {page.relative_to(ROOT)}")
    tables.plot_sweep(tables.load("contrastive"), PLOT)
    print(f"written: {PLOT.relative_to(ROOT)}")
