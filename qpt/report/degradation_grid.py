"""The degradation grid: one picture of an image under every op at every level, then under random compositions.

Called by ``qpt degrade`` and by the demo. The pixels come from ``qpt.degrade``; Pillow draws, with the DejaVu fonts of
matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.degradations.program import Chain, Program, Step
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError, check_int, describe
from qpt.ops.degrade.api import degrade

_INK, _FAINT, _PAPER = (28, 30, 36), (112, 116, 126), (252, 252, 251)
_FAMILY_COLOURS = {"texture": (58, 98, 168), "geometry": (196, 118, 28), "colour": (46, 132, 92)}
_GAP, _MARGIN = 10, 24
_COLUMNS = LEVELS + 1  # a label column, then the levels; compositions use all of them


@dataclass(frozen=True)
class DegradationGrid:
    """The picture and the programs of its cells.

    levels: one row per op and level, in drawing order.  compositions: the rows drawn below them.
    """

    image: Image.Image
    levels: Program
    compositions: Program


def draw_degradations(
    image: NDArray[np.uint8], space: DegradationSpace, *, cell_px: int = 160, compositions: int = 12, seed: int = 0
) -> DegradationGrid:
    """Draw every op of ``space`` at each level, and ``compositions`` random chains, all different.

    image: (H, W, 3) uint8 RGB; its central square is resized to ``cell_px`` pixels first, so that every cell shows its
    degradation pixel for pixel.  cell_px: 128..1024.  compositions: 0..1000.  seed: 0..2^63 - 1, of angles, signs,
    noise and chains.  Raises InputError that names the wrong argument.
    """
    good = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if not good or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"draw_degradations: image must be (H, W, 3) uint8, got {describe(image)}")
    size = check_int("draw_degradations", "cell_px", cell_px, 128, 1024)
    compositions = check_int("draw_degradations", "compositions", compositions, 0, 1000)
    seed = check_int("draw_degradations", "seed", seed, 0, 2**63 - 1)
    square = ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS)
    images = torch.from_numpy(np.array(square))[None]

    # One seed per op, so that its row shows one sign and one angle at growing strength.
    levels = space.single_ops([(seed + i // LEVELS) % 2**63 for i in range(len(space.types) * LEVELS)])
    drawn = (
        space.sample_seeded(torch.tensor([seed], dtype=torch.int64, device="cpu"), views=compositions)
        if compositions
        else levels[:0]
    )
    cells = [Image.fromarray(row) for row in degrade(images, Program.concat([levels, drawn])).numpy()]
    page = _Page(square, space, size)
    page.levels(cells[: len(levels)], levels)
    if compositions:
        page.compositions(cells[len(levels) :], drawn)
    return DegradationGrid(page.finish(), levels, drawn)


class _Page:
    """A page of _COLUMNS cells across that is filled from the top and grows; ``y`` is the top of the next item."""

    def __init__(self, square: Image.Image, space: DegradationSpace, size: int) -> None:
        self.size, self.step = size, size + _GAP
        small = max(9, round(size * 0.066))
        fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
        self.small = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), small)
        self.bold = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), round(small * 1.1))
        self.title = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), round(small * 1.9))
        self.line = round(small * 1.4)
        self.width = 2 * _MARGIN + _COLUMNS * self.step - _GAP
        self.sheet = Image.new("RGB", (self.width, 4 * self.step), _PAPER)
        self.pen = ImageDraw.Draw(self.sheet)
        self.y = _MARGIN
        self._header(square, space)

    def _make_room(self, height: int) -> None:
        if self.y + height > self.sheet.height:
            taller = Image.new("RGB", (self.width, 2 * (self.y + height)), _PAPER)
            taller.paste(self.sheet, (0, 0))
            self.sheet, self.pen = taller, ImageDraw.Draw(taller)

    def _left(self, column: int) -> int:
        return _MARGIN + column * self.step

    def _header(self, square: Image.Image, space: DegradationSpace) -> None:
        self._make_room(self.step)
        self.sheet.paste(square, (_MARGIN, self.y))
        x = self._left(1) + _GAP
        self.pen.text((x, self.y), "Degradations", _INK, self.title)
        words = f"{len(space.names)} ops at {LEVELS} levels; a composition is {space.describe()}."
        lines = (
            *self._wrap(words.split(), self.width - x - _MARGIN),
            f"{space.size():,} compositions by type, {space.size(levels=True):,} by type and level.",
            f"Left: the photograph, {self.size} x {self.size} pixels, as every cell below received it.",
        )
        self._lines(x, self.y + round(2.4 * self.line), list(lines))
        y = self.y + self.size - self.line
        for family, colour in _FAMILY_COLOURS.items():
            side = self.line // 2
            self.pen.rectangle((x, y + side // 2, x + side, y + side // 2 + side), colour)
            self.pen.text((x + 2 * side, y), family, _INK, self.small)
            x += 5 * side + round(self.pen.textlength(family, self.small))
        self.y += self.step + _GAP

    def _section(self, heading: str) -> None:
        self._make_room(3 * self.line)
        self.pen.line((_MARGIN, self.y, self.width - _MARGIN, self.y), (214, 215, 219))
        self.pen.text((_MARGIN, self.y + self.line // 2), heading, _INK, self.bold)
        self.y += 2 * self.line + _GAP // 2

    def levels(self, cells: list[Image.Image], program: Program) -> None:
        """Draw a row per op: its name and description, then its five levels with their parameters."""
        self._section("Each op alone, from level 1 to level 5")
        indent = round(0.85 * self.line)
        for first in range(0, len(cells), LEVELS):
            steps = [program[first + i].steps[0] for i in range(LEVELS)]
            entry = DEGRADATIONS[op_table.op_id(steps[0].name)]
            captions = [self._wrap(_parameters(step), self.size - indent) for step in steps]
            height = self.size + self.line * max(map(len, captions)) + _GAP
            self._make_room(height)
            x = _MARGIN + 12
            self.pen.rectangle((_MARGIN, self.y, _MARGIN + 3, self.y + self.size - 1), _FAMILY_COLOURS[entry.family])
            self.pen.text((x, self.y), entry.name, _INK, self.bold)
            description = self._wrap(entry.doc.split(), self.size - 12)
            self._lines(x, self.y + round(1.3 * self.line), description[: self.size // self.line - 1])
            for i, (step, caption) in enumerate(zip(steps, captions, strict=True)):
                left = self._left(i + 1)
                self.sheet.paste(cells[first + i], (left, self.y))
                self.pen.text((left, self.y + self.size + 2), str(step.level), _INK, self.bold)
                self._lines(left + indent, self.y + self.size + 2, caption)
            self.y += height

    def compositions(self, cells: list[Image.Image], program: Program) -> None:
        """Draw cells across the whole width, each with its chain below."""
        self._section("Random compositions, first step first")
        for first in range(0, len(cells), _COLUMNS):
            chains = [program[i] for i in range(first, min(first + _COLUMNS, len(cells)))]
            captions = [self._wrap(_printed(chain), self.size) for chain in chains]
            height = self.size + self.line * max(map(len, captions)) + _GAP
            self._make_room(height)
            for i, caption in enumerate(captions):
                self.sheet.paste(cells[first + i], (self._left(i), self.y))
                self._lines(self._left(i), self.y + self.size + 2, caption)
            self.y += height

    def _lines(self, x: int, y: int, lines: list[str]) -> None:
        for i, line in enumerate(lines):
            self.pen.text((x, y + i * self.line), line, _FAINT, self.small)

    def _wrap(self, parts: list[str], width: int) -> list[str]:
        """Join parts with spaces into lines of at most ``width`` pixels, broken between parts only."""
        lines: list[str] = []
        for part in parts:
            if lines and self.pen.textlength(f"{lines[-1]} {part}", self.small) <= width:
                lines[-1] += f" {part}"
            else:
                lines.append(part)
        return lines

    def finish(self) -> Image.Image:
        """Return the picture, cut below its last item."""
        return self.sheet.crop((0, 0, self.width, self.y + _MARGIN - _GAP))


def _parameters(step: Step) -> list[str]:
    """Return the words of a cell's caption: ``sigma_x 0.8 px,`` and so on."""
    shown = []
    for p in DEGRADATIONS[op_table.op_id(step.name)].parameters:
        name, _, suffix = p.name.rpartition("_")
        unit = {"px": " px", "deg": "°"}.get(suffix, "")
        shown.append(f"{name if unit else p.name} {step.params[p.name]:.3g}{unit}")
    return [f"{text}," for text in shown[:-1]] + shown[-1:]


def _printed(chain: Chain) -> list[str]:
    """Split the printed form of a chain after each arrow, where a line may be broken."""
    parts = str(chain).split(" → ")
    return [f"{part} →" for part in parts[:-1]] + [parts[-1]]
