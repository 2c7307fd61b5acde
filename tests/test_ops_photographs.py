"""Every op compared with its oracle on at least 20 photographs at all levels: within one grey level on 99.9 % of the
pixels; JPEG compared with Pillow's round trip at qualities 5 to 95.

The quick form takes small crops of the photographs in the wheels of scikit-image and scikit-learn; QPT_LONG=1 takes
larger ones, and those of the folder QPT_PHOTOGRAPHS if it is set. ``python -m tests.agreement`` prints the shares.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import features

from qpt.degradations.op_table import NAMES
from tests import test_ops
from tests.agreement import ENOUGH, OTHERWISE, Picture, agreement, crops
from tests.engine import run_one

COUNT = 20
QUALITIES = (5, 10, 20, 35, 50, 65, 80, 90, 95)


@pytest.fixture(scope="module")
def photographs(long: bool) -> list[Picture]:
    folder = os.environ.get("QPT_PHOTOGRAPHS") if long else None
    return crops(COUNT, 256 if long else 64, Path(folder) if folder else None)


def test_photographs_are_enough_and_differ(photographs: list[Picture]) -> None:
    assert len({image.tobytes() for image in photographs}) >= COUNT


@pytest.mark.rung("reference")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERWISE])
def test_agrees_on_photographs_at_every_level(name: str, photographs: list[Picture]) -> None:
    found = agreement(name, photographs)
    assert found.share >= ENOUGH, found


@pytest.mark.rung("reference")
def test_jpeg_is_pillow_s_round_trip_on_photographs(photographs: list[Picture]) -> None:
    """The same bytes with libjpeg-turbo's integer transform, which another libjpeg may do otherwise."""
    psnr, off = [], []
    for image in photographs:
        for quality in QUALITIES:
            difference = run_one(image, "jpeg", quality) - test_ops.pillow_jpeg(image, [quality])
            psnr.append(10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9)))
            off.append(np.abs(difference).mean())
    if features.check("libjpeg_turbo"):
        assert max(off) == 0
    assert np.median(psnr) >= 46 and min(psnr) >= 43 and max(off) <= 0.75
