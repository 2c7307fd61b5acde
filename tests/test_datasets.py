"""Ten official layouts: rows, scores, references and traps on miniature copies; checks, registry and command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.datasets import DATASETS, check_dataset, load_dataset, markdown
from qpt.evaluate.splits import import_splits
from qpt.evaluate.table import TableError
from tests import layouts


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    return layouts.live(tmp_path_factory.mktemp("live") / "root").root


def row(table, image):
    return table.images.index(image)


def test_live_keeps_779_of_982_and_says_which_scores(live):
    table = load_dataset("live", live)
    assert len(table) == 779 and table.name == "live" and len(np.unique(table.groups)) == 29
    assert table.grouped and table.lower_better and table.levels is None
    assert any("dmos_realigned.mat" in note for note in table.notes)
    assert any("203 pristine" in note for note in table.notes)
    assert "jp2k/img1.bmp" not in table.images and "jp2k/img2.bmp" in table.images
    # Entry 227 (from 0) is the first JPEG, entry 228 the second; 228 = 4 x 57 is pristine.
    assert "jpeg/img2.bmp" not in table.images
    i = row(table, "jpeg/img1.bmp")
    assert table.raw_scores[i] == pytest.approx(22.75) and table.mos[i] == pytest.approx(100 - 22.75)
    assert table.kinds[i] == "jpeg" and table.kinds[-1] == "fastfading" and table.images[-1] == "fastfading/img174.bmp"
    assert table.groups[row(table, "jp2k/img2.bmp")] == table.groups[row(table, "jp2k/img31.bmp")]


def test_live_with_the_original_scores(live):
    table = load_dataset("live:original", live)
    assert table.name == "live:original" and any("dmos in dmos.mat" in note for note in table.notes)
    assert table.raw_scores[row(table, "jpeg/img1.bmp")] == pytest.approx(22.7)


def test_live_of_another_release_is_refused(tmp_path):
    made = layouts.Root(tmp_path / "live")
    made.matlab("dmos_realigned.mat", dmos_new=np.ones((1, 779)), orgs=np.zeros((1, 779)))
    made.matlab("refnames_all.mat", refnames_all=layouts.cells(["a"] * 779)[None])
    with pytest.raises(InputError, match=r"must hold 982 values.*got 779"):
        load_dataset("live", made.root)


def test_csiq_header_in_row_four_the_image_1600_and_awgn(tmp_path):
    table = load_dataset("csiq", layouts.csiq(tmp_path / "csiq").root)
    assert len(table) == 3 * 6 * 3 and len(np.unique(table.groups)) == 3
    assert table.images[0] == "dst_imgs/awgn/1600.AWGN.1.png" and table.kinds[0] == "noise"
    assert table.raw_scores[0] == pytest.approx(0.04) and table.mos[0] == pytest.approx(0.96) and table.lower_better
    i = row(table, "dst_imgs/jpeg2000/boston.jpeg2000.3.png")
    assert (table.kinds[i], table.levels[i]) == ("jpeg 2000", 3)
    assert "54 rows where 866 are published" in table.notes[-1]


@pytest.fixture(scope="module")
def tid2013(tmp_path_factory):
    return load_dataset("tid2013", layouts.tid2013(tmp_path_factory.mktemp("tid2013") / "root").root)


@pytest.fixture(scope="module")
def kadid10k(tmp_path_factory):
    return load_dataset("kadid10k", layouts.kadid10k(tmp_path_factory.mktemp("kadid10k") / "root").root)


def test_row_numbers_that_count_a_list_beside_them(tmp_path):
    """ARNIQA's CSIQ.txt lists by distortion, then image; the sheet by image, then distortion."""
    root = layouts.csiq(tmp_path / "csiq").root
    table = load_dataset("csiq", root)
    by_type = sorted(range(len(table)), key=lambda row: (table.kinds[row], row))
    lines = [f"CSIQ/{table.images[row].replace('awgn', 'AWGN')},x,y,0\n" for row in by_type]
    (root / "CSIQ.txt").write_text("dis_img_path,dis_type,ref_img_path,score\n" + "".join(lines))
    (root / "splits").mkdir()
    test = [n for n, row in enumerate(by_type) if "boston" in table.images[row]]
    np.save(root / "splits/test.npy", [[*test, -1]])
    np.save(root / "splits/train.npy", [sorted(set(range(54)) - set(test))])
    read = import_splits(table, root / "splits")
    assert read.notes[-1] == "splits: 1 from splits, which number the lines of CSIQ.txt"
    (split,) = read.splits
    assert all("boston" in table.images[row] for row in split.test) and (len(split.train), len(split.test)) == (36, 18)
    np.save(root / "splits/test.npy", [[54]])
    with pytest.raises(InputError, match=r"must number the 54 lines of the list beside it from 0, got 54 to 54"):
        import_splits(table, root / "splits")
    (root / "CSIQ.txt").rename(root / "splits/other.txt")
    with (root / "splits/other.txt").open("a") as file:
        file.write("LIVE/jp2k/img2.bmp,x,y,0\n")
    with pytest.raises(InputError, match=r"got 1 others \(first: LIVE/jp2k/img2.bmp\)"):
        import_splits(table, root / "splits")


def test_tid2013_in_mixed_case_is_complete(tid2013):
    table = tid2013
    assert len(table) == 3000 and len(np.unique(table.groups)) == 25 and not table.lower_better
    assert not any("published" in note for note in table.notes)
    assert table.images[0] == "distorted_images/I01_01_1.bmp" and table.images[120] == "distorted_images/i02_01_1.bmp"
    assert table.paths[120].name == "I02_01_1.bmp"  # as on disk
    assert table.kinds[7 * 5] == "Gaussian blur" and list(table.levels[:6]) == [1, 2, 3, 4, 5, 1]
    assert table.mos[-1] == pytest.approx(2999 * 0.003)
    np.testing.assert_array_equal(table.groups, np.repeat(np.arange(25), 120))


def test_kadid10k_is_higher_better_in_spite_of_its_name(kadid10k):
    table = kadid10k
    assert len(table) == 10125 and len(np.unique(table.groups)) == 81
    assert not table.lower_better and np.all(np.diff(table.mos) >= 0)
    np.testing.assert_array_equal(table.mos, table.raw_scores)
    assert table.kinds[9 * 5] == "JPEG" and table.levels.max() == 5
    assert not any(image.endswith("I01.png") for image in table.images)  # originals carry no score


@pytest.mark.parametrize(
    ("name", "references", "rows"),
    [("tid2013", (18, 2, 5), (2160, 240, 600)), ("kadid10k", (57, 8, 16), (7125, 1000, 2000))],
)
def test_published_splits_by_reference_have_their_row_counts(name, references, rows, tmp_path, request):
    """ARNIQA's files hold ten rows of numbers that count the official score file, for these numbers of references."""
    table = request.getfixturevalue(name)
    per_reference = len(table) // sum(references)
    generator = np.random.default_rng(0)
    orders = [generator.permutation(sum(references)) for _ in range(10)]
    start = 0
    for part, count in zip(("train", "val", "test"), references, strict=True):
        chosen = [order[start : start + count] for order in orders]
        numbers = [(refs[:, None] * per_reference + np.arange(per_reference)).reshape(-1) for refs in chosen]
        padded = [np.append(row, [-1] * 7) for row in numbers]
        np.save(tmp_path / f"{part}.npy", padded)
        start += count
    splits = import_splits(table, tmp_path / "train.npy").splits
    assert len(splits) == 10 and {tuple(map(len, (s.train, s.val, s.test))) for s in splits} == {rows}
    for split, order in zip(splits, orders, strict=True):
        assert set(table.groups[split.test]) == set(order[-references[2] :])
        assert len(np.unique(np.concatenate([split.train, split.val, split.test]))) == len(table)


def test_clive_leaves_the_seven_training_images_out(tmp_path):
    table = load_dataset("clive", layouts.clive(tmp_path / "clive").root)
    assert len(table) == 1162 and not table.grouped and len(np.unique(table.groups)) == 1162
    assert table.images[0] == "Images/1.JPG" and table.raw_scores[0] == pytest.approx(7 / 12)
    assert table.kinds is None and table.levels is None and table.splits is None


def test_koniq10k_and_its_official_split(tmp_path):
    table = load_dataset("koniq10k", layouts.koniq10k(tmp_path / "koniq").root)
    assert len(table) == 10073 and table.name == "koniq10k" and not table.grouped
    (split,) = table.splits
    assert split.name == "official"
    assert [len(part) for part in (split.train, split.val, split.test)] == [7058, 1000, 2015]
    np.testing.assert_array_equal(split.test, np.arange(8058, 10073))  # matched by name, not by line


def test_koniq10k_says_which_scores_were_read(tmp_path):
    root = layouts.koniq10k(tmp_path / "koniq", images=40).root
    table, other = load_dataset("koniq10k", root), load_dataset("koniq10k:mos", root)
    assert "scores: MOS_zscore" in table.notes[0] and table.mos.max() == 97.5
    assert other.name == "koniq10k:MOS" and "scores: MOS in" in other.notes[0]
    assert (other.mos.min(), other.mos.max()) == (1, 4.9)


def test_koniq10k_takes_the_image_size_that_is_there(tmp_path):
    made = layouts.koniq10k(tmp_path / "small", size="512x384", images=40)
    table = load_dataset("koniq10k", made.root)
    assert table.name == "koniq10k:512x384" and table.images[0].startswith("512x384/")
    with pytest.raises(TableError) as caught:
        load_dataset("koniq10k:1024x768", made.root)
    assert len(caught.value.missing) == 40


def test_koniq10k_without_the_set_file_has_no_split(tmp_path):
    made = layouts.koniq10k(tmp_path / "root", images=40)
    (made.root / "koniq10k_distributions_sets.csv").unlink()
    table = load_dataset("koniq10k", made.root)
    assert table.splits is None and any("no official split" in note for note in table.notes)


def test_spaq(tmp_path):
    table = load_dataset("spaq", layouts.spaq(tmp_path / "spaq").root)
    assert table.images[:2] == ("TestImage/00001.jpg", "TestImage/00002.jpg")
    assert list(table.mos[:2]) == [1.0, 2.25] and not table.grouped


@pytest.mark.parametrize("stripped", [False, True])
def test_flive_official_split_with_and_without_angle_brackets(tmp_path, stripped):
    table = load_dataset("flive", layouts.flive(tmp_path / "flive", stripped).root)
    assert len(table) == 60 and table.images[2] == "database/voc_emotic_ava/picture2.jpg"
    (split,) = table.splits
    np.testing.assert_array_equal(split.train, np.arange(40))
    np.testing.assert_array_equal(split.val, np.arange(40, 52))
    np.testing.assert_array_equal(split.test, np.arange(52, 58))
    assert any("2 of 60 images are in no part" in note for note in table.notes)


def test_flive_at_its_size(tmp_path, long):
    """The parts as ARNIQA ships them: 39,807 of 39,810 images; a tenth of each in the quick form."""
    parts = [30253, 7727, 1827, 3] if long else [3025, 772, 182, 1]
    table = load_dataset("flive", layouts.flive(tmp_path / "flive", parts=tuple(parts)).root)
    (split,) = table.splits
    assert [len(part) for part in (split.train, split.val, split.test)] == parts[:3]
    assert len(table) == sum(parts)
    assert any(f"{parts[3]} of {len(table)} images are in no part" in note for note in table.notes)


def test_bid_numbers_become_names(tmp_path):
    table = load_dataset("bid", layouts.bid(tmp_path / "bid").root)
    assert table.images[0] == "DatabaseImage0001.JPG" and table.images[-1] == "DatabaseImage1000.JPG"
    assert table.paths[-1].name == "DatabaseImage1000.jpg" and table.mos[-1] == 4.0


def test_pipal_many_label_files_and_folders(tmp_path):
    table = load_dataset("pipal", layouts.pipal(tmp_path / "pipal").root)
    assert len(table) == 4 * 14 and len(np.unique(table.groups)) == 4 and not table.lower_better
    assert table.images[:2] == ("Distortion_1/A0001_00_00.bmp", "Distortion_2/A0001_00_01.bmp")
    assert table.kinds[-1] == "type 06" and table.levels is None and table.mos[0] == 1001.5


def test_missing_images_are_one_list(tmp_path):
    root = layouts.spaq(tmp_path / "spaq").root
    for i in range(3, 28):
        (root / f"TestImage/{i:05d}.jpg").unlink()
    with pytest.raises(TableError) as caught:
        load_dataset("spaq", root)
    assert caught.value.missing == tuple(f"TestImage/{i:05d}.jpg" for i in range(3, 28))
    assert "has 25 problem(s)" in str(caught.value) and "row 4: TestImage/00003.jpg: no such file" in str(caught.value)


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_lists_every_score_file_at_once(tmp_path, name):
    with pytest.raises(TableError) as caught:
        load_dataset(name, tmp_path)
    score_files = [need for need in DATASETS[name].needs if need.endswith((".mat", ".csv", ".xlsx", ".txt"))]
    assert len(caught.value.problems) == max(1, len(score_files))
    assert all(problem.endswith("no such file") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("live", "dmos_realigned.mat", "must be a MATLAB file"),
        ("csiq", "csiq.DMOS.xlsx", "must be an Excel workbook"),
        ("kadid10k", "dmos.csv", "lacks column"),
        ("tid2013", "mos_with_names.txt", "must be a score and a name"),
    ],
)
def test_damaged_score_files_are_one_clear_error(tmp_path, name, file, words):
    (tmp_path / file).write_text("this,is,no score file\n")
    if name == "live":
        layouts.savemat(tmp_path / "refnames_all.mat", {"refnames_all": layouts.cells(["a"])})
    with pytest.raises(InputError, match=words):
        load_dataset(name, tmp_path)


def test_a_sheet_without_its_columns_and_a_mat_without_its_variable(tmp_path):
    made = layouts.Root(tmp_path / "root")
    made.sheets("DatabaseGrades.xlsx", Plan1=[["Image Number", "Grade"], [1, 2]])
    with pytest.raises(InputError, match="Average Subjective Grade"):
        load_dataset("bid", made.root)
    made.sheets("csiq.DMOS.xlsx", other=[["image"]])
    with pytest.raises(InputError, match=r"lacks the sheet 'all_by_image'; it has other"):
        load_dataset("csiq", made.root)
    made.matlab("AllImages_release.mat", wrong=1)
    made.matlab("AllMOS_release.mat", AllMOS_release=1)
    with pytest.raises(InputError, match="lacks the variable"):
        load_dataset("clive", made.root)


def test_scores_that_are_no_numbers_are_listed(tmp_path):
    made = layouts.spaq(tmp_path / "spaq")
    rows = [["Image name", "MOS"], *([f"{i:05d}.jpg", i if i != 7 else "n/a"] for i in range(1, 31))]
    made.sheets("Annotations/MOS and Image attribute scores.xlsx", Sheet1=rows)
    with pytest.raises(TableError, match="row 8: mos must be a finite number, got 'n/a'"):
        load_dataset("spaq", made.root)


@pytest.mark.parametrize(
    ("name", "words"),
    [("imagenet", "must be one of live, csiq"), ("live:best", "realigned, original, got 'best'"),
     ("koniq10k:MOS:MOS_zscore", "one of a kind"), ("bid:x", "none, got 'x'")],
)  # fmt: skip
def test_unknown_names_and_choices(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        load_dataset(name, tmp_path)


def test_check_reports_counts_and_what_is_missing(live, tmp_path):
    report = check_dataset("live", live)
    assert report["complete"] and (report["images"], report["references"]) == (779, 29)
    report = check_dataset("koniq10k", layouts.koniq10k(tmp_path / "koniq", images=40).root)
    assert not report["complete"] and (report["images"], report["expected"]) == (40, 10073)
    assert report["splits"] == {"official": [28, 4, 8]}
    bid = layouts.bid(tmp_path / "bid").root
    (bid / "DatabaseImage0003.JPG").unlink()
    report = check_dataset("bid", bid)
    assert not report["complete"] and report["missing"] == ["DatabaseImage0003.JPG"]


def test_the_command_lists_and_checks(tmp_path, capsys):
    assert cli.main(["datasets"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: {entry.title}" in text for name, entry in DATASETS.items())
    assert cli.main(["datasets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == list(DATASETS)
    root = layouts.tid2013(tmp_path / "tid").root
    assert cli.main(["datasets", "check", "tid2013", "--root", str(root)]) == 0
    assert "3000 of 3000 images" in capsys.readouterr().out
    shutil.rmtree(root / "distorted_images")
    assert cli.main(["datasets", "check", "tid2013", "--root", str(root)]) == 1
    text = capsys.readouterr().out
    assert "3000 missing file(s)" in text and "... and 2980 more" in text
    assert cli.main(["datasets", "check", "tid2013", "--root", str(root), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["missing"]) == 3000


@pytest.mark.parametrize(
    "words", [["check"], ["check", "live"], ["list", "live"], ["check", "nothing", "--root", "."],
              ["check", "live", "--root", "nowhere"]],
)  # fmt: skip
def test_the_command_refuses_in_one_line(words, capsys):
    assert cli.main(["datasets", *words]) == 2
    assert capsys.readouterr().err.startswith("qpt datasets: error: ")


def test_the_documentation_shows_the_registry():
    page = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert markdown() in page
