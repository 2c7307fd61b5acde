"""benchmarks/preset_fidelity.py, its committed record, and the page that docs/degradations_fidelity.py writes of it."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import harness, preset_fidelity
from qpt.degradations.op_table import LEVELS
from qpt.degradations.space import DegradationSpace

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROWS = json.loads((harness.RESULTS / "preset_fidelity.json").read_text(encoding="utf-8"))["predictions"]
FIGURES = json.loads(preset_fidelity.FIGURES.read_text(encoding="utf-8"))


def page_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("degradations_fidelity", DOCS / "degradations_fidelity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_record_is_of_the_presets_as_they_are():
    assert list(dict.fromkeys(row["preset"] for row in ROWS)) == list(FIGURES["presets"])
    for name, preset in FIGURES["presets"].items():
        space, rows = DegradationSpace.preset(name), [row for row in ROWS if row["preset"] == name]
        assert {row["revision"] for row in rows} == {space.revision}
        assert [row["op"] for row in rows] == [kind.op for kind in space.types]
        assert [(row["source_name"], row["official_db"]) for row in rows] == [
            (row["source_name"], row["psnr_db"]) for row in preset["rows"]
        ]


def test_every_figure_is_within_half_a_decibel_or_chance():
    for row in ROWS:
        for apart, spread in zip(row["difference_db"], row["spread_db"], strict=True):
            assert apart is None or abs(apart) <= max(0.5, 2.5 * spread), row


def test_the_page_is_of_the_record():
    written = (DOCS / "degradations-fidelity.md").read_text(encoding="utf-8")
    assert written == page_writer().render(), "run `python docs/degradations_fidelity.py`"


def test_psnr_is_that_of_its_definition():
    clean = np.full((2, 4, 5, 3), 100, np.uint8)
    degraded = np.stack([clean[0], clean[0] + np.uint8(10)])
    assert preset_fidelity.psnr(degraded, clean) == pytest.approx([99, 10 * np.log10(255**2 / 100)])


def test_crops_are_the_middle_of_the_resized_image(tmp_path):
    path = tmp_path / "ramp.png"
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))).save(path)
    cropped = preset_fidelity.crop(path, 50, 40)
    assert cropped.shape == (40, 40, 3)
    assert abs(int(cropped[20, 20, 0]) - 100) <= 1


def test_the_command_measures_a_folder(tmp_path, monkeypatch, capsys):
    """On a preset of two types; one draws random numbers, the other does not and is run twice only."""
    rows = [("noise", [28.0] * LEVELS), ("jpeg", [None] * LEVELS)]
    preset = {"source": "s", "shorter_side": 40, "centre_crop": 32}
    preset["rows"] = [{"source_name": name, "psnr_db": psnr} for name, psnr in rows]
    figures = {"what": "what", "images": ["a.png"], "presets": {"p": preset}}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    noise = np.random.default_rng(0).integers(60, 190, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    space = DegradationSpace(["gaussian_noise", "jpeg"])
    monkeypatch.setattr(preset_fidelity, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setattr(DegradationSpace, "preset", staticmethod(lambda name: space))
    out = tmp_path / "record.json"
    assert command.main(["preset_fidelity", "--photographs", str(tmp_path), "--draws", "4", "--out", str(out)]) == 0
    noise_row, jpeg_row = json.loads(out.read_text(encoding="utf-8"))["predictions"]
    assert noise_row["spread_db"][0] > 0 and jpeg_row["spread_db"] == [0] * LEVELS
    assert noise_row["difference_db"][4] == pytest.approx(noise_row["ours_db"][4] - 28, abs=0.02)
    assert jpeg_row["difference_db"] == [None] * LEVELS
    capsys.readouterr()
    assert command.main(["preset_fidelity", "--photographs", str(tmp_path / "no"), "--quick"]) == 2
    assert "photographs must be a folder with a.png" in capsys.readouterr().err
    assert command.main(["preset_fidelity", "--quick"]) == 2


def test_words_name_what_is_apart():
    row = {"preset": "p", "source_name": "s", "difference_db": [0.4, None, -0.61], "spread_db": [0.0, 0.0, 0.3]}
    assert page_writer().beyond([row]) == ["`p`'s s at level 3: -0.61 dB, ± 0.30"]
