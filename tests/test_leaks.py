"""Near-duplicates across groups: resized, recompressed and turned copies, and the splits that they cross."""

import numpy as np
import pytest
from imagehash import phash
from PIL import Image, ImageOps

from qpt.evaluate.leaks import leak_warnings, near_duplicates, perceptual_hash
from qpt.evaluate.splits import import_splits
from qpt.evaluate.table import read_table
from tests.labelled import write_set


@pytest.fixture
def csv(tmp_path):
    return write_set(tmp_path / "set")


def add(csv, name, image, ref):
    image.save(csv.parent / "images" / name, quality=60)
    with csv.open("a", encoding="utf-8") as file:
        file.write(f"images/{name},50,{ref}\n")


def test_different_images_and_versions_of_one_are_no_leak(csv):
    assert near_duplicates(read_table(csv)) == ()


def test_a_smaller_recompressed_copy_in_another_group_is_found(csv):
    original = Image.open(csv.parent / "images/cup0.png")
    add(csv, "holiday.jpg", original.resize((96, 72)), "holiday")
    table = read_table(csv)
    assert table.repeated == ()
    pairs = near_duplicates(table)
    # cup1 to cup3 are blurred versions of cup0, so they are its near-duplicates too.
    assert {pair.first for pair in pairs} >= {"images/cup0.png"}
    assert {pair.second for pair in pairs} == {"images/holiday.jpg"}
    assert all(pair.first.startswith("images/cup") and pair.distance <= 4 and not pair.crosses for pair in pairs)
    assert [pair.distance for pair in pairs] == sorted(pair.distance for pair in pairs)
    warnings = leak_warnings(table, pairs)
    assert "near-duplicates in different groups" in warnings[0]
    assert any("images/cup0.png ~ images/holiday.jpg" in line for line in warnings)


def test_a_copy_that_is_turned_by_its_exif_orientation_is_found(csv):
    original = Image.open(csv.parent / "images/rocket0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned = original.transpose(Image.Transpose.ROTATE_90)
    turned.save(csv.parent / "images/turned.jpg", exif=exif, quality=90)
    with csv.open("a", encoding="utf-8") as file:
        file.write("images/turned.jpg,50,other\n")
    assert "images/turned.jpg" in {pair.second for pair in near_duplicates(read_table(csv))}


def test_the_splits_that_a_pair_crosses_are_named(csv, tmp_path):
    add(csv, "copy.jpg", Image.open(csv.parent / "images/cat0.png"), "copy")
    table = read_table(csv)
    np.save(tmp_path / "train.npy", [[*range(8), -1], [*range(8), 24]])
    np.save(tmp_path / "test.npy", [[*range(8, 25)], [*range(8, 24), -1]])
    pairs = near_duplicates(import_splits(table, tmp_path))
    assert pairs and all(pair.crosses == ("split 1",) for pair in pairs)
    assert "on two sides of split 1" in leak_warnings(table, pairs)[1]


def test_equal_files_are_listed_once(csv):
    (csv.parent / "images/cup0.png").write_bytes((csv.parent / "images/cat0.png").read_bytes())
    table = read_table(csv)
    warnings = leak_warnings(table, near_duplicates(table))
    assert warnings[:2] == [
        "1 pair(s) of equal files in different groups: splits may leak",
        "  images/cat0.png = images/cup0.png",
    ]
    assert not any("images/cat0.png ~ images/cup0.png" in line for line in warnings)


def test_plain_images_have_no_hash_and_the_rest_is_imagehash_s(tmp_path, csv):
    Image.new("RGB", (64, 64), (9, 200, 30)).save(tmp_path / "plain.png")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert perceptual_hash(tmp_path / "plain.png") is None and perceptual_hash(tmp_path / "damaged.png") is None
    file = csv.parent / "images/rocket0.png"
    assert f"{perceptual_hash(file):016x}" == str(phash(Image.open(file)))
    inverted = ImageOps.invert(Image.open(file).convert("RGB"))
    inverted.save(tmp_path / "inverted.png")
    assert bin(perceptual_hash(file) ^ perceptual_hash(tmp_path / "inverted.png")).count("1") > 32
