"""``qpt degrade``: the picture that it writes, its printed output, and its errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from qpt import cli
from qpt.commands import degrade as command
from qpt.degradations import presets
from qpt.degradations.op_table import DEGRADATIONS, LEVELS
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.ops.degrade.api import degrade
from qpt.report import degradation_grid
from qpt.report.degradation_grid import draw_degradations

SPACE = DegradationSpace.preset("qpt")


def gradients(height: int = 90, width: int = 120) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([2 * x % 256, 255 - 2 * y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(gradients()).save(path)
    return path


def test_writes_a_picture_and_prints_the_chains(image_path, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert cli.main(["degrade", str(image_path), "--out", str(out), "--cell-px", "128", "--compositions", "3"]) == 0
    with Image.open(out) as picture:
        assert picture.mode == "RGB"
        assert picture.height > len(SPACE.ops) * 128
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{out}: {len(SPACE.ops) * LEVELS} single ops and 3 compositions")
    program = SPACE.sample_seeded(torch.tensor([0]), views=3)
    assert [line.strip() for line in printed[1:]] == [str(chain) for chain in program]


def test_json_says_what_was_drawn(image_path, tmp_path, capsys):
    out = tmp_path / "grid.png"
    arguments = [
        "degrade",
        str(image_path),
        "--out",
        str(out),
        "--cell-px",
        "128",
        "--compositions",
        "2",
        "--seed",
        "5",
    ]
    assert cli.main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with Image.open(out) as picture:
        assert (facts["width"], facts["height"]) == picture.size
    assert [[(s["name"], s["level"]) for s in chain] for chain in facts["levels"]] == [
        [(name, level)] for name in SPACE.ops for level in range(1, LEVELS + 1)
    ]
    assert len(facts["compositions"]) == 2
    assert facts["size_with_levels"] == SPACE.size(levels=True)
    assert facts["seed"] == 5


def test_a_space_of_a_file_is_drawn(image_path, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("ops: [{op: jpeg, levels: {quality: [90, 70, 50, 30, 10]}}]\nmin_ops: 1\nmax_ops: 1\n")
    arguments = [
        "degrade",
        str(image_path),
        "--out",
        str(tmp_path / "grid.png"),
        "--cell-px",
        "128",
        "--compositions",
        "5",
    ]
    assert cli.main([*arguments, "--space", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["size_with_levels"] == 5
    assert [chain[0]["params"]["quality"] for chain in facts["levels"]] == [90, 70, 50, 30, 10]
    assert sorted(chain[0]["params"]["quality"] for chain in facts["compositions"]) == [10, 30, 50, 70, 90]


def test_list_names_every_op_with_its_levels_and_source(capsys):
    assert cli.main(["degrade", "--list"]) == 0
    printed = capsys.readouterr().out
    for row in DEGRADATIONS:
        assert f"\n{row.name} ({row.family})" in f"\n{printed}"
        assert f"source: {row.source}" in printed
    assert "quality, libjpeg quality, 1 to 100: 75 · 45 · 28 · 16 · 8" in printed
    assert "angle_deg, degree, 0 to 180: 0 to 180, whatever the level" in printed
    assert cli.main(["degrade", "--list", "--json"]) == 0
    assert [op["name"] for op in json.loads(capsys.readouterr().out)["ops"]] == [row.name for row in DEGRADATIONS]


def test_presets_are_printed_with_sizes_source_and_differences(capsys):
    assert cli.main(["degrade", "--presets"]) == 0
    printed = capsys.readouterr().out
    assert "qpt: 0 to 5 of 29 ops, in any order, with repetition; 29 types at 5 levels" in printed
    assert "21,243,690 compositions by type, " in printed
    assert cli.main(["degrade", "--presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["presets"]
    assert [preset["name"] for preset in listed] == list(presets.NAMES)
    for preset in listed:
        assert preset["source"] and preset["differs"]
        assert preset["size_with_levels"] == DegradationSpace.preset(preset["name"]).size(levels=True)


def test_same_seed_same_picture(image_path, tmp_path):
    pixels = []
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        out = tmp_path / name
        arguments = ["--out", str(out), "--cell-px", "128", "--compositions", "6", "--seed", seed]
        assert cli.main(["degrade", str(image_path), *arguments]) == 0
        pixels.append(out.read_bytes())
    assert pixels[0] == pixels[1]
    assert pixels[0] != pixels[2]


def test_cells_hold_the_degraded_pixels():
    """Every row of the two programs is found in the picture, pixel for pixel, in reading order."""
    grid = draw_degradations(gradients(128, 128), SPACE, cell_px=128, compositions=7, seed=3)
    sheet = np.array(grid.image)
    images = torch.from_numpy(gradients(128, 128))[None]
    step = 128 + degradation_grid._GAP
    lefts = [degradation_grid._MARGIN + column * step for column in range(LEVELS + 1)]
    for program, columns in ((grid.levels, lefts[1:]), (grid.compositions, lefts)):
        rows = degrade(images, program).numpy()
        lowest = 0
        for index, expected in enumerate(rows):
            left = columns[index % len(columns)]
            strip = sheet[lowest:, left : left + 128]
            starts = np.flatnonzero((strip == expected[0]).all(axis=(1, 2)))
            tops = [lowest + s for s in starts if np.array_equal(strip[s : s + 128], expected)]
            assert tops, f"{program[index]} is not in the picture"
            if index % len(columns) == len(columns) - 1:
                lowest = tops[0] + 128


def test_a_row_of_levels_keeps_its_sign_and_angle():
    levels = draw_degradations(gradients(), SPACE, cell_px=128, compositions=0).levels
    params = levels.params[:, 0].reshape(len(SPACE.ops), LEVELS, 4)
    assert (params[SPACE.ops.index("hue"), :, 0].sign().unique().numel(), len(levels)) == (1, len(SPACE.ops) * LEVELS)
    assert params[SPACE.ops.index("motion_blur"), :, 1].unique().numel() == 1
    assert ((params[SPACE.ops.index("brightness"), :, 0] > 1).unique().numel()) == 1


def test_other_spaces_and_tiny_images_are_drawn():
    space = DegradationSpace(ops=("jpeg", "gaussian_blur_aniso"), max_ops=2, repeat=False, shuffle=False)
    grid = draw_degradations(np.full((1, 2, 3), 90, np.uint8), space, cell_px=150, compositions=20)
    assert len(grid.levels) == 2 * LEVELS
    assert len(set(grid.compositions.compositions())) == 20


def test_every_family_of_the_table_has_a_colour():
    assert {row.family for row in DEGRADATIONS} <= set(degradation_grid._FAMILY_COLOURS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": gradients().astype(float)},
            r"image must be \(H, W, 3\) uint8, got \(90, 120, 3\) float64 ndarray",
        ),
        ({"image": gradients()[..., 0]}, r"got \(90, 120\) uint8"),
        ({"image": gradients()[:0]}, "image must be"),
        ({"image": None}, "got NoneType"),
        ({"cell_px": 8}, r"cell_px must be an integer in 128\.\.1024, got 8"),
        ({"compositions": -1}, "compositions must be an integer in"),
        ({"seed": -1}, "seed must be an integer in"),
    ],
)
def test_drawing_refuses(changes, message):
    arguments = {"image": gradients(), "space": SPACE} | changes
    with pytest.raises(InputError, match=message):
        draw_degradations(**arguments)


def refused(capsys, *arguments: str) -> str:
    """Run the command line, require status 2 and nothing on standard output; the one line of its error."""
    assert cli.main(["degrade", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("qpt degrade: error: ")
    return lines[0]


def test_bad_input_is_one_line_and_writes_nothing(image_path, tmp_path, capsys):
    out = str(tmp_path / "grid.png")
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.png"
    text.write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    assert str(text) in refused(capsys, str(text), "--out", out)
    assert str(cut) in refused(capsys, str(cut), "--out", out)
    assert "missing.png" in refused(capsys, str(tmp_path / "missing.png"), "--out", out)
    assert "space must be one of qpt" in refused(capsys, str(image_path), "--out", out, "--space", "none")
    assert "IMAGE must be given" in refused(capsys, "--out", out)
    assert "--out must be given" in refused(capsys, str(image_path))
    assert "cell_px must be an integer in 128..1024" in refused(capsys, str(image_path), "--out", out, "--cell-px", "1")
    assert "--out must end in an image extension" in refused(capsys, str(image_path), "--out", str(tmp_path / "grid.x"))
    assert "nowhere" in refused(capsys, str(image_path), "--out", str(tmp_path / "nowhere" / "grid.png"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.png", "notes.txt", "photo.png"]


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["degrade", "--help"])
    assert stopped.value.code == 0
    assert command.EXAMPLE.splitlines()[0].strip() in capsys.readouterr().out
