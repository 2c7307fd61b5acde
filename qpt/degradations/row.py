"""``Degradation``, a row of the op table, its ``Parameter``s, and what rows of several families share.

Used by the families' files in ``rows/``; every other module imports these names from ``qpt.degradations.op_table``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

LEVELS = 5  # every op has levels 1..5, mildest first
MAX_PARAMS = 4  # float32 parameters that a kernel receives per op; an op with fewer gets zeros after its own

Family = Literal["texture", "geometry", "colour"]
Params = Sequence[float]
Halo = Callable[[Params], int] | Literal["whole"]


@dataclass(frozen=True)
class UniformRange:
    """A value drawn uniformly from [low, high), or from low..high, both included, for an integer parameter."""

    low: float
    high: float


#: The value of a parameter at one level: a number, alternatives of which one is drawn, or a range to draw from.
LevelValue = float | tuple[float, ...] | UniformRange


@dataclass(frozen=True)
class Parameter:
    """One number that an op reads: ``low <= value <= high``, in ``unit``.

    levels: the value at levels 1..5; a tuple holds alternatives, of which one is drawn when a program is sampled (a
    sign, say). A parameter without levels is drawn uniformly from [low, high) at every level.
    """

    name: str
    unit: str
    low: float
    high: float
    levels: tuple[float | tuple[float, ...], ...] = ()
    integer: bool = False

    def alternatives(self, level: int) -> tuple[float, ...]:
        """Return the values that may be drawn at ``level`` (1..5); none for a parameter drawn uniformly."""
        if not self.levels:
            return ()
        value = self.levels[level - 1]
        return value if isinstance(value, tuple) else (value,)

    def level_values(self) -> tuple[LevelValue, ...]:
        """Return the value at each of the five levels."""
        return self.levels or (UniformRange(self.low, self.high),) * LEVELS


@dataclass(frozen=True)
class Degradation:
    """One row of the op table.

    source: where the definition comes from.  oracle: the library call that the op must agree with, flags included.
    halo: how many pixels away an output pixel can depend on the input, from the op's parameters; ``"whole"`` for an op
    that needs statistics of the whole image or a grid tied to the image's size.
    grid_px: 1 or more for an op that may be given a window of the image (``csrc/ops/op.h``) instead of all of it; the
    window's edges then lie at multiples of grid_px or at the image's border. None for an op that always gets the whole
    image.
    cost: estimated nanoseconds per pixel on one CPU core, one number or one for each level. Rows of high cost are
    started first; nothing else depends on it.
    revision: increased when the op's bytes are changed on purpose.
    variant_of: the op that this one does in the way of one source; the two are one kind of degradation.
    """

    name: str
    family: Family
    parameters: tuple[Parameter, ...]
    source: str
    oracle: str
    halo: Halo
    doc: str
    grid_px: int | None = None
    cost: float | Sequence[float] = 10.0
    revision: int = 1
    variant_of: str = ""

    def __post_init__(self) -> None:
        if self.halo == "whole" and self.grid_px is not None:
            raise ValueError(f"{self.name}: grid_px must be None for an op that needs the whole image")

    def halo_px(self, params: Params) -> int | None:
        """Return the halo in pixels for these parameters; None means the whole image."""
        return None if self.halo == "whole" else self.halo(params)


def no_halo(params: Params) -> int:
    """Return 0, the halo of an op whose output pixels depend on their own input pixel alone."""
    return 0


KADID = "KADID-10k (Lin, Hosu and Saupe, QoMEX 2019)"
REALESRGAN = "Real-ESRGAN (Wang et al., ICCV Workshops 2021)"
IMAGENET_C = "ImageNet-C (Hendrycks and Dietterich, ICLR 2019)"
ARNIQA = "ARNIQA (Agnolucci et al., WACV 2024)"
BSRGAN = "BSRGAN (Zhang et al., ICCV 2021)"
