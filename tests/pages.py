"""A written page, read back as a browser would."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image


class Page(HTMLParser):
    """The text and pictures of each h2 section, and every attribute that could load something from outside."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text: dict[str, str] = {"": ""}
        self.pictures: dict[str, list[Image.Image]] = {"": []}
        self.tags: set[str] = set()
        self.links: list[str] = []
        self._section, self._heading = "", False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attributes)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        self._heading = tag == "h2"
        if tag == "img":
            assert found["alt"]
            kind, _, data = (found["src"] or "").partition(";base64,")
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            assert kind == f"data:image/{(picture.format or '').lower()}"
            self.pictures[self._section].append(picture)

    def handle_data(self, data: str) -> None:
        if self._heading:
            self._section, self._heading = data, False
            self.text[data], self.pictures[data] = "", []
        self.text[self._section] += data + "\n"

    def assert_self_contained(self) -> None:
        assert all(link.startswith("data:image/") for link in self.links)
        assert not {"script", "link", "iframe", "object"} & self.tags
        for word in ("http:", "https:", "url(", "@import"):
            assert word not in self.source
