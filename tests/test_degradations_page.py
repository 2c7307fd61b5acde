"""docs/degradations.md is the text that docs/degradations.py writes from the op table, and every op has a picture."""

import importlib.util
from pathlib import Path

from PIL import Image

from qpt.degradations.op_table import LEVELS, NAMES

DOCS = Path(__file__).resolve().parent.parent / "docs"


def writer():
    spec = importlib.util.spec_from_file_location("degradations_page", DOCS / "degradations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    assert (DOCS / "degradations.md").read_text(encoding="utf-8") == writer().render(), (
        "run `python docs/degradations.py`"
    )


def test_every_op_has_a_small_picture_of_its_levels():
    pictures = {path.stem: path for path in (DOCS / "images" / "degradations").iterdir()}
    assert set(pictures) == set(NAMES), "run `python docs/degradations.py`"
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width > (LEVELS + 1) * picture.height
    assert sum(path.stat().st_size for path in pictures.values()) < 4 * 2**20
