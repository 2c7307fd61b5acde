"""Score tables: reading them, and one error for each bad table that lists all its problems."""

import numpy as np
import pytest
from PIL import Image

from qpt.errors import InputError
from qpt.evaluate.table import read_table
from tests.labelled import write_set


@pytest.fixture
def csv(tmp_path):
    return write_set(tmp_path / "tiny")


def replace(csv, old, new, count=1):
    text = csv.read_text(encoding="utf-8")
    assert old in text
    csv.write_text(text.replace(old, new, count), encoding="utf-8")
    return csv


def refusal(csv, **options):
    with pytest.raises(InputError) as caught:
        read_table(csv, **options)
    return str(caught.value)


def test_reads_a_table(csv):
    table = read_table(csv)
    assert (table.name, len(table), table.grouped, table.repeated) == ("tiny", 24, True, ())
    assert table.images[1] == "images/cat1.png" and table.mos[1] == 73.0
    assert len(np.unique(table.groups)) == 6
    assert len(np.unique(table.groups[:4])) == 1
    assert table.paths[0] == csv.parent / "images/cat0.png"


def test_columns_in_any_order_a_byte_order_mark_and_quotes(csv):
    lines = [line.split(",") for line in csv.read_text(encoding="utf-8").splitlines()]
    text = "".join(f'{mos},x,"{ref}",{image}\r\n' for image, mos, ref in lines[1:])
    other = csv.with_name("other.csv")
    other.write_text("\ufeffmos, extra ,ref,image\r\n" + text, encoding="utf-8")
    first, second = read_table(csv), read_table(other)
    assert first.images == second.images and first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.mos, second.mos)


def test_without_ref_every_image_is_a_group(csv):
    other = csv.with_name("other.csv")
    lines = csv.read_text(encoding="utf-8").splitlines()
    other.write_text("".join(line.rsplit(",", 1)[0] + "\n" for line in lines), encoding="utf-8")
    table = read_table(other)
    assert not table.grouped and len(np.unique(table.groups)) == 24


def test_root_and_name(csv, tmp_path):
    replace(csv, "images/", "", -1)
    assert "no such file" in refusal(csv)
    table = read_table(csv, root=csv.parent / "images", name="mine")
    assert table.name == "mine" and len(table) == 24
    assert "root must be a folder" in refusal(csv, root=tmp_path / "nowhere")


def test_fingerprint_follows_names_and_contents(csv):
    before = read_table(csv).fingerprint
    replace(csv, ",73,", ",74,")
    assert read_table(csv).fingerprint == before  # of the images, not of their scores
    Image.new("RGB", (64, 64)).save(csv.parent / "images/cat1.png")
    assert read_table(csv).fingerprint != before


def test_same_content_in_two_groups_is_reported(csv):
    (csv.parent / "images/cup0.png").write_bytes((csv.parent / "images/cat0.png").read_bytes())
    assert read_table(csv).repeated == (("images/cat0.png", "images/cup0.png"),)


def test_everything_wrong_is_listed_at_once(csv):
    (csv.parent / "images/face1.png").write_text("no picture")
    replace(csv, "images/cat0.png,93,cat", "images/missing.png,nan,cat")
    replace(csv, "images/cat1.png,73,cat", "images/cat2.png,good,")
    replace(csv, "images/cat3.png,33,cat", "images/cat3.png,33")
    replace(csv, "images/face0.png", "")
    message = refusal(csv)
    for words in (
        "has 8 problem(s)",
        "line 2: mos must be a finite number, got 'nan'",
        "line 2: images/missing.png: no such file",
        "line 3: mos must be a finite number, got 'good'",
        "line 3: ref is empty",
        "line 4: images/cat2.png is already on line 3",
        "line 5: 2 fields where the header has 3",
        "line 6: image is empty",
        "line 7: images/face1.png: not an image",
    ):
        assert words in message, message


def test_long_lists_are_cut(csv):
    replace(csv, "images/", "elsewhere/", -1)
    message = refusal(csv)
    assert "24 problem(s)" in message and "... and 4 more" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "header line"),
        ("\n\n", "header line"),
        ("image;mos;ref\na.png;1;x\n", "delimiter must be a comma, got ';'"),
        ("image\tmos\na.png\t1\n", "delimiter must be a comma, got '\\t'"),
        ("file,mos\na.png,1\n", "lacks column(s) image; it has file, mos"),
        ("image,score\na.png,1\n", "lacks column(s) mos"),
        ("image,mos,mos\na.png,1,2\n", "mos more than once"),
        ("image,mos\n", "0 usable row(s); at least 10 images"),
        ("image,mos\n\0,1\n", "NUL"),
    ],
)
def test_files_that_are_no_table(tmp_path, text, words):
    csv = tmp_path / "scores.csv"
    csv.write_text(text, encoding="utf-8")
    assert words in refusal(csv)


def test_wrong_encodings(csv):
    text = csv.read_text(encoding="utf-8")
    csv.write_bytes(text.encode("utf-16"))
    assert "must be UTF-8, got UTF-16" in refusal(csv)
    csv.write_bytes(text.replace("cat", "cät").encode("latin-1"))
    assert "must be UTF-8, got byte 0xe4" in refusal(csv)


def test_one_row(csv):
    csv.write_text("".join(csv.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    assert "1 usable row(s); at least 10 images are needed" in refusal(csv)


def test_constant_scores_and_too_few_groups(csv):
    lines = csv.read_text(encoding="utf-8").splitlines()[1:]
    csv.write_text("image,mos,ref\n" + "".join(f"{line.split(',')[0]},5,same\n" for line in lines), encoding="utf-8")
    message = refusal(csv)
    assert "mos is 5 everywhere" in message
    assert "1 different ref; at least 3 are needed" in message


def test_missing_file_and_folder(tmp_path):
    assert "csv must be a file" in refusal(tmp_path / "none.csv")
    assert "csv must be a file" in refusal(tmp_path)


def test_commas_that_spreadsheets_leave(csv):
    expected = read_table(csv)
    lines = csv.read_text(encoding="utf-8").splitlines()
    csv.write_text("\r\n".join([",,,", "", *(f"{line},, ," for line in lines), ",,", " , ", ""]), encoding="utf-8")
    table = read_table(csv)
    assert (
        table.images == expected.images
        and table.fingerprint == expected.fingerprint
        and (table.mos == expected.mos).all()
    )
    replace(csv, "images/cat1.png", "images/none.png")
    assert "line 5: images/none.png: no such file" in refusal(csv)  # lines that are left out still count


def test_fields_of_splits_may_be_missing_at_the_end(csv):
    lines = csv.read_text(encoding="utf-8").splitlines()
    groups = {"cat": ",train", "face": ",val", "cup": ",test"}
    lines = [f"{lines[0]},split", *(line + groups.get(line.rsplit(",", 1)[1], "") for line in lines[1:])]
    csv.write_text("\n".join(lines), encoding="utf-8")
    (split,) = read_table(csv).splits
    assert [len(part) for part in (split.train, split.val, split.test)] == [4, 4, 4]


@pytest.mark.parametrize("header", ["Image,MOS,Ref", "DIST_NAME,Mos,Ref_Name", "img_name,mos,REF"])
def test_letter_case_of_columns_does_not_matter(csv, header):
    expected = read_table(csv)
    replace(csv, "image,mos,ref", header)
    table = read_table(csv)
    assert table.images == expected.images and (table.groups == expected.groups).all() and table.grouped


def test_a_column_of_the_very_name_comes_before_one_in_another_case(csv):
    lines = csv.read_text(encoding="utf-8").splitlines()
    csv.write_text("\n".join([f"{lines[0]},MOS", *(f"{line},x" for line in lines[1:])]), encoding="utf-8")
    assert len(read_table(csv)) == 24
    replace(csv, "image,mos,ref,MOS", "image,Mos,ref,MOS")
    assert "mos more than once" in refusal(csv)
    replace(csv, "image,Mos", "file,mos")
    assert "image may be called name, img_name, dist_name" in refusal(csv)


def test_paths_written_on_windows(csv):
    expected = read_table(csv)
    replace(csv, "images/", "images\\", -1)
    table = read_table(csv)
    assert table.paths == expected.paths and table.images[0].startswith("images\\")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('"93,5"', "write a decimal point: 93.5"),
        ("93 %", "write it plainly: 93"),
        ("−93", "write it plainly: -93"),
        ("9_3", "write it plainly: 93"),
        ('"1,093.5"', "write it plainly: 1093.5"),
        ("", "it is empty"),
    ],
)
def test_numbers_that_are_none_say_what_to_write(csv, written, words):
    replace(csv, "images/cat0.png,93,", f"images/cat0.png,{written},")
    message = refusal(csv)
    assert "mos must be a finite number" in message and words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\0", "got a gzip file; unpack it"),
        (b"PK\x03\x04\x14", "got an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "got an old Excel workbook"),
        (b"\n<!DOCTYPE html>", "got HTML"),
        (b'{"image": 1}', "got JSON"),
        (b"\x80\x04\x95", "got a pickle"),
        (b"PAR1\x15", "got a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x89PNG\r\n", "got a PNG picture"),
        ("image,mos".encode("utf-16-le"), "got UTF-16 text without a byte order mark"),
        ("image,mos".encode("utf-32"), "got UTF-32"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, content, words):
    (tmp_path / "scores.csv").write_bytes(content)
    assert words in refusal(tmp_path / "scores.csv")
