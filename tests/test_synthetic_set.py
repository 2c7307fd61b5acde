"""The set of distorted photographs that Pillow makes: names, scores, and that each level is worse than the last."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.__main__ import main
from experiments.synthetic_set import DISTORTIONS, LEVELS
from qpt.evaluate.table import read_table


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(4):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((96, 72))
        fine = np.asarray(smooth, np.int64) + rng.integers(-25, 26, (72, 96, 1))
        Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    assert main(["synthetic", str(photos), "--out", str(out), "--most", "3"]) == 0
    return out


def test_table_is_read(made):
    table = read_table(made / "scores.csv")
    assert len(table) == 3 * (1 + LEVELS * len(DISTORTIONS))
    assert len(np.unique(table.groups)) == 3 and table.grouped
    assert sorted(set(table.mos)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_levels_are_in_order(made, kind):
    with open(made / "scores.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["ref"] == "000"]
    pixels = {(row["kind"], int(row["level"])): np.asarray(Image.open(made / row["image"]), float) for row in rows}
    clean = pixels["none", 0]
    errors = [np.mean((pixels[kind, level] - clean) ** 2) for level in range(1, LEVELS + 1)]
    assert errors == sorted(errors) and len(set(errors)) == LEVELS and errors[0] > 0


def test_same_again(photos, made, tmp_path):
    assert main(["synthetic", str(photos), "--out", str(tmp_path / "again"), "--most", "3"]) == 0
    for file in made.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "photos must be a folder of at least 3 photographs, got nowhere with 0"),
        (["{photos}", "--most", "2"], "most must be at least 3, got 2"),
        (["{photos}", "--out", "{made}"], "out must be an empty folder"),
    ],
)
def test_bad_input(photos, made, tmp_path, capsys, arguments, message):
    words = [Path(word.format(photos=photos, made=made)).as_posix() if "{" in word else word for word in arguments]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    assert main(["synthetic", *words]) == 2
    assert message in capsys.readouterr().err
