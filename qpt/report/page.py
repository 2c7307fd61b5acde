"""One self-contained HTML page: pictures inlined, no script, no network.

Called by ``qpt.report.build`` and ``qpt.commands.demo_run``; it writes the file. A page is a title, a lead sentence and
sections of text, tables and pictures, laid out by ``page.html`` beside this file. Jinja2 escapes every text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader

from qpt.io import write_lines

_TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A picture. data: the bytes of a PNG or JPEG file.  caption: the text below it, and for a screen reader."""

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
    before it.  words: the table holds text, aligned left, instead of numbers.
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
    write_lines(path, [template.render(title=title, lead=lead, sections=sections)])
