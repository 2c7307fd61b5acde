"""What a row of the op table is: ``Degradation`` and its ``Parameter``s, and what rows of several families share.

Used by the families' files beside this one; everyone else imports these names from ``qpt.degradations.op_table``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

LEVELS = 5  # every op has levels 1..5, mildest first
SLOTS = 4  # float32 parameters a kernel receives per op; unused ones are 0

Family = Literal["texture", "geometry", "colour"]
Values = Sequence[float]
Halo = Callable[[Values], int] | Literal["whole"]


@dataclass(frozen=True)
class Parameter:
    """One number an op reads: ``low <= value <= high``, in ``unit``.

    levels: the value at levels 1..5; a tuple of values means one of them is drawn when a program is sampled (a sign,
    say). No levels: drawn uniformly from [low, high) whatever the level.
    """

    name: str
    unit: str
    low: float
    high: float
    levels: tuple[float | tuple[float, ...], ...] = ()
    integer: bool = False

    def alternatives(self, level: int) -> tuple[float, ...]:
        """The values that may be drawn at ``level`` (1..5); empty for a parameter drawn uniformly."""
        if not self.levels:
            return ()
        value = self.levels[level - 1]
        return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class Degradation:
    """One row of the op table.

    source: where the definition comes from.  oracle: the library call it must agree with, flags included.
    halo: pixels around an output pixel that it can depend on, from the op's parameters; ``"whole"`` when it needs
    whole-image statistics or a grid tied to the image's size.
    grid_px: set if the op can be given a window of the image (``csrc/ops/op.h``) instead of all of it: the window's
    edges then lie at multiples of grid_px or at the image's border. None: the op always gets the whole image.
    cost: nanoseconds per pixel on one CPU core, about, at every level or at levels 1 to 5. Costly rows are started
    first; nothing else depends on it.
    revision: raised when the op's bytes change on purpose.
    """

    name: str
    family: Family
    parameters: tuple[Parameter, ...]
    source: str
    oracle: str
    halo: Halo
    doc: str
    grid_px: int | None = None
    cost: float | Values = 10.0
    revision: int = 1

    def __post_init__(self) -> None:
        if self.halo == "whole" and self.grid_px is not None:
            raise ValueError(f"{self.name}: grid_px must be None for an op that needs the whole image")

    def halo_px(self, params: Values) -> int | None:
        """Halo in pixels for these parameters, or None for the whole image."""
        return None if self.halo == "whole" else self.halo(params)


def no_halo(params: Values) -> int:
    """Halo of an op whose pixels do not look at each other."""
    return 0


KADID = "KADID-10k (Lin, Hosu and Saupe, QoMEX 2019)"
REALESRGAN = "Real-ESRGAN (Wang et al., ICCV Workshops 2021)"
IMAGENET_C = "ImageNet-C (Hendrycks and Dietterich, ICLR 2019)"
ARNIQA = "ARNIQA (Agnolucci et al., WACV 2024)"
BSRGAN = "BSRGAN (Zhang et al., ICCV 2021)"
