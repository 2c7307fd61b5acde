"""docs/scaling.md is what docs/scaling.py writes, and the model does what its words say."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.harness import RESULTS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("scaling_page", DOCS / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads((RESULTS / "scaling.json").read_text())
    assert (DOCS / "scaling.md").read_text() == module.render(result), "run `python docs/scaling.py`"


def test_stages_grow_as_the_model_says():
    one, eight, many = (scaling.step_ms(gpus, caching=False) for gpus in scaling.GPUS)
    assert one["communicate"] == 0 < eight["communicate"] < many["communicate"]
    assert one["encode"] == eight["encode"] == pytest.approx(scaling.step_ms(1, caching=True)["encode"] * 4 / 5)
    rows = scaling.PHOTOGRAPHS * scaling.COMPOSITIONS
    assert many["loss"] / one["loss"] == pytest.approx((64 * rows + scaling.POOL) / (rows + scaling.POOL))


def test_resnet50_has_its_published_size():
    facts = scaling.counted()
    assert facts["norms"] == 53
    head = 2048 * 2048 + 2048 + 2048 * scaling.DIM + scaling.DIM
    assert facts["parameters"] == 25_557_032 - (2048 * 1000 + 1000) + head  # torchvision's, without its classifier
    assert facts["patch_share"] == pytest.approx((160 / 224) ** 2, rel=0.01)
