"""One self-contained HTML page for a run: its pictures inlined, its figures in tables, no network.

Called by ``qpt.demo``; a page is a title, a lead sentence and sections of text, pictures and tables.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Section:
    """A heading with any of: a paragraph, a table (header, rows), PNG files with captions, a block of plain text."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    png: Sequence[tuple[Path, str]] = ()
    code: str = ""
    pictures: list[tuple[str, str]] = field(init=False, default_factory=list)


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to ``path``, every picture inside it."""
    for section in sections:
        section.pictures = [
            (base64.b64encode(picture.read_bytes()).decode(), caption) for picture, caption in section.png
        ]
    pages = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
    template = pages.get_template("page.html")
    path.write_text(template.render(title=title, lead=lead, sections=sections), encoding="utf-8")


def read_log(run: Path) -> dict[str, list[float]]:
    """The columns of a run's ``log.csv``."""
    with open(run / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def draw_curve(run: Path, target: Path) -> None:
    """Draw loss and similarities over steps from ``log.csv`` into a PNG."""
    from matplotlib.figure import Figure

    log = read_log(run)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log["step"], log["loss"], color="#0b62a4", linewidth=1.4)
    left.set(xlabel="step", ylabel="contrastive loss")
    right.plot(log["step"], log["positive_similarity"], color="#1a7f37", label="positives (same composition)")
    right.plot(log["step"], log["same_image_similarity"], color="#bc4c00", label="same photograph, other composition")
    right.plot(log["step"], log["negative_similarity"], color="#57606a", label="all negatives")
    right.set(xlabel="step", ylabel="mean cosine similarity")
    right.legend(frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.62))  # where no curve runs
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110)
