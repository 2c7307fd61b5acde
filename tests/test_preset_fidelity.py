"""benchmarks/preset_fidelity.py, its committed record, and the page that it writes of it."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import preset_fidelity
from qpt.degradations.op_table import LEVELS
from qpt.degradations.space import DegradationSpace

RECORD = json.loads(preset_fidelity.RECORD.read_text())
FIGURES = json.loads(preset_fidelity.FIGURES.read_text())


def test_the_record_is_of_the_presets_as_they_are():
    assert list(RECORD["figures"]["presets"]) == list(FIGURES["presets"])
    for name, preset in FIGURES["presets"].items():
        space, about = DegradationSpace.preset(name), RECORD["figures"]["presets"][name]
        rows = [row for row in RECORD["predictions"] if row["preset"] == name]
        assert about["revision"] == space.revision
        assert [row["op"] for row in rows] == [kind.op for kind in space.types]
        assert [(row["source_name"], row["official_db"]) for row in rows] == [
            (row["source_name"], row["psnr_db"]) for row in preset["rows"]
        ]


def test_every_figure_is_within_half_a_decibel_or_a_draw_of_chance():
    for row in RECORD["predictions"]:
        for apart, spread in zip(row["difference_db"], row["spread_db"], strict=True):
            assert apart is None or abs(apart) <= max(preset_fidelity.LIMIT_DB, 2.5 * spread), row


def test_the_page_is_of_the_record():
    assert preset_fidelity.PAGE.read_text() == preset_fidelity.render(RECORD), (
        "run python -m benchmarks.preset_fidelity"
    )


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
    figures = {
        "what": "what",
        "images": ["a.png"],
        "presets": {"p": {"source": "s", "shorter_side": 40, "centre_crop": 32, "rows": []}},
    }
    rows = [("noise", [28.0] * LEVELS), ("jpeg", [None] * LEVELS)]
    figures["presets"]["p"]["rows"] = [{"source_name": name, "psnr_db": psnr} for name, psnr in rows]
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    (tmp_path / "photographs").mkdir()
    noise = np.random.default_rng(0).integers(60, 190, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photographs" / "a.png")
    space = DegradationSpace(["gaussian_noise", "jpeg"])
    monkeypatch.setattr(preset_fidelity, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setattr(DegradationSpace, "preset", staticmethod(lambda name: space))
    out, page = tmp_path / "record.json", tmp_path / "page.md"
    command = [str(tmp_path / "photographs"), "--draws", "4", "--out", str(out), "--page", str(page)]
    assert preset_fidelity.main(command) == 0
    noise_row, jpeg_row = json.loads(out.read_text())["predictions"]
    assert noise_row["spread_db"][0] > 0 and jpeg_row["spread_db"] == [0] * LEVELS
    assert jpeg_row["difference_db"] == [None] * LEVELS
    assert f"noise at level 5: {noise_row['difference_db'][4]:+.2f}" in capsys.readouterr().out
    assert "## p" in page.read_text()
    with pytest.raises(SystemExit):
        preset_fidelity.main([str(tmp_path), *command[1:]])
    assert "photographs must be a folder with a.png" in capsys.readouterr().err
