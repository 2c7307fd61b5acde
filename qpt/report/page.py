"""One self-contained HTML page: its pictures inlined, its figures in tables, no script, no network.

Called by ``qpt.report.build`` and ``qpt.commands.demo_run``; a page is a title, a lead sentence and sections of text,
tables and pictures. Relies on Jinja2, which escapes every text, and on ``page.html`` beside this file.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader

_TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """data: the bytes of a PNG or JPEG file.  caption: below it, and what a screen reader says."""

    data: bytes
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data: URI."""
        kind = "jpeg" if self.data[:2] == b"\xff\xd8" else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading with any of: a paragraph, a table (header, rows), pictures, a block of plain text, folded.

    size: of each picture: "large" takes the width of the page, "medium" half of it, "quarter" a quarter, "small" a
    sixth; on a narrow screen small ones stand in pairs and the others take all of it.  part: a part of the section
    before it.  words: the table holds text, to be read from the left, and not figures.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()
    size: Literal["large", "medium", "quarter", "small"] = "large"
    code: str = ""
    part: bool = False
    words: bool = False


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to ``path``, every picture inside it."""
    pages = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
    template = pages.get_template("page.html")
    path.write_text(template.render(title=title, lead=lead, sections=sections), encoding="utf-8")
