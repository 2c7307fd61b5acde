"""Split columns and imported splits: ARNIQA's arrays, pyiqa's pickles and meta files, and refusals."""

import contextlib
import os
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpt.errors import InputError
from qpt.evaluate.splits import import_splits
from qpt.evaluate.table import PARTS, read_table
from tests.labelled import write_set


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """Write 24 images, rows 4i to 4i + 3 from one reference. Tests write other CSVs beside it."""
    return write_set(tmp_path_factory.mktemp("splits") / "set")


@pytest.fixture(scope="module")
def table(csv):
    return read_table(csv)


def parts(split):
    return [list(part) for part in (split.train, split.val, split.test)]


TRAIN, VAL, TEST = list(range(12)), list(range(12, 16)), list(range(16, 24))


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def part_of(row):
    return "train" if row in TRAIN else "val" if row in VAL else "test"


def test_arniqa_arrays_padded_with_minus_one(table, tmp_path):
    np.save(tmp_path / "train.npy", [[3, 2, 1, 0, -1, -1], [4, 5, 6, 7, 8, 9]])
    np.save(tmp_path / "val.npy", [[8, -1], [-1, -1]])
    np.save(tmp_path / "test.npy", [[12, 13, -1], [16, 17, 18]])
    for path in (tmp_path, tmp_path / "train.npy", str(tmp_path / "test.npy")):
        first, second = import_splits(table, path).splits
        assert parts(first) == [[0, 1, 2, 3], [8], [12, 13]] and first.train.dtype == np.int64
        assert parts(second) == [[4, 5, 6, 7, 8, 9], [], [16, 17, 18]]
        assert (first.name, second.name) == ("split 1", "split 2")


def test_one_dimension_is_one_split_and_val_may_be_missing(table, tmp_path):
    np.save(tmp_path / "train.npy", TRAIN)
    np.save(tmp_path / "test.npy", [*TEST, -1])
    (split,) = import_splits(table, tmp_path).splits
    assert parts(split) == [TRAIN, [], TEST]


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0.5, 1.5], [8], "integers"),
        ([[[0]]], [8], "integers"),
        ([[0], [1]], [[8]], "as many splits as each other"),
        ([0, 1], [24], "must number rows from 0 to 23, got 0 to 24; it was made for another table"),
        ([0, -2], [8], "must number rows"),
        ([0, 1, 1], [8], r"must hold a row once, got 1 more than once \(first: images/cat1.png\)"),
        ([0, 1], [1, 8], "must hold a row once"),
        ([0, 1], [2, 8], "must keep references apart, got 1 in both train and test"),
        ([-1, -1], [8], "must have a train part"),
        ([0, 1], [-1], "must have a test part"),
        (np.array([{}], object), [8], "must be an .npy array of integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(table, tmp_path, train, test, words):
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "test.npy", test)
    with pytest.raises(InputError, match=words):
        import_splits(table, tmp_path)


def test_leaked_reference_names_the_images(table, tmp_path):
    np.save(tmp_path / "train.npy", [0, 4])
    np.save(tmp_path / "val.npy", [8])
    np.save(tmp_path / "test.npy", [5, 9, 12])
    with pytest.raises(InputError, match=r"first: images/face0.png and images/face1.png come from one reference"):
        import_splits(table, tmp_path)


def test_pyiqa_pickle(table, tmp_path):
    file = tmp_path / "splits.pkl"
    file.write_bytes(pickle.dumps({i: {"train": TRAIN, "val": VAL, "test": TEST} for i in range(1, 11)}))
    read = import_splits(table, file)
    assert len(read.splits) == 10 and parts(read.splits[9]) == [TRAIN, VAL, TEST]
    assert read.splits[9].name == "split 10" and read.notes[-1] == "splits: 10 from splits.pkl"
    assert table.splits is None and read.fingerprint == table.fingerprint


def test_pyiqa_pickle_whose_val_part_is_the_test_part(table, tmp_path):
    file = tmp_path / "splits.pkl"
    for split in ({"train": TRAIN, "val": TEST}, {"train": TRAIN, "val": TEST, "test": []}):
        file.write_bytes(pickle.dumps({1: split}))
        assert parts(import_splits(table, file).splits[0]) == [TRAIN, [], TEST]


class Call:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({1: {"train": Call(), "test": []}}), "it asks for posix.mkdir"),
        (pickle.dumps({1: {"train": np.arange(3), "test": np.arange(3)}}), "it asks for numpy"),
        (pickle.dumps({1: {"train": TRAIN, "test": ["a"]}}), "test of 1 must be a list of integers"),
        (pickle.dumps({1: {"train": TRAIN, "test": [True]}}), "test of 1 must be a list of integers"),
        (pickle.dumps({1: {"fit": TRAIN}}), "must hold {1:"),
        (pickle.dumps({1: TRAIN}), "must hold {1:"),
        (pickle.dumps([1, 2]), "must hold {1:.*got list"),
        (pickle.dumps({}), "must hold {1:"),
        (b"no pickle", "must be a pickle of plain"),
        (b"", "must be a pickle of plain"),
    ],
)
def test_pickles_that_are_no_splits_or_carry_code_are_refused(table, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "splits.pkl").write_bytes(content)
    with pytest.raises(InputError, match=words):
        import_splits(table, tmp_path / "splits.pkl")
    assert not (tmp_path / "executed").exists()


def test_meta_file_matched_by_name_in_any_order(table, tmp_path):
    names = [image.split("/")[1] for image in table.images]  # pyiqa's are relative to another folder
    rows = [(name, 50, 1, part_of(row), "train" if row < 20 else "test") for row, name in enumerate(names)]
    header = "name,mos,std,official_split,ratio802_seed123_split01"
    read = import_splits(table, write_csv(tmp_path / "meta.csv", header, reversed(rows)))
    assert [split.name for split in read.splits] == ["official_split", "ratio802_seed123_split01"]
    assert parts(read.splits[0]) == [TRAIN, VAL, TEST]
    assert parts(read.splits[1]) == [list(range(20)), [], [20, 21, 22, 23]]


def test_meta_file_refusals(table, tmp_path):
    file = tmp_path / "meta.csv"
    with pytest.raises(InputError, match="must have a column named split"):
        import_splits(table, write_csv(file, "name,mos", [("a.png", 1)]))
    with pytest.raises(InputError, match=r"2 image\(s\) are not in the table set \(first: other.png\)"):
        import_splits(table, write_csv(file, "name,split", [("other.png", "train"), ("b.png", "test")]))
    with pytest.raises(InputError, match="split must be train, val or test, got 'fit'"):
        import_splits(table, write_csv(file, "name,split", [("cat0.png", "fit")]))
    with pytest.raises(InputError, match="must exist"):
        import_splits(table, tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"must be .npy \(or their folder\), .pkl or .csv"):
        import_splits(table, table.paths[0])
    with pytest.raises(InputError, match=r"got no train.npy"):
        import_splits(table, table.paths[0].parent)


def test_csv_with_a_split_column(csv):
    lines = csv.read_text(encoding="utf-8").splitlines()
    rows = [(line, part_of(row) if row != 3 else "") for row, line in enumerate(lines[1:])]
    table = read_table(write_csv(csv.with_name("with.csv"), lines[0] + ",split", rows))
    (split,) = table.splits
    assert split.name == "split" and parts(split) == [[0, 1, 2, *range(4, 12)], VAL, TEST]


def test_csv_whose_split_leaks_a_reference_or_is_no_part(csv):
    lines = csv.read_text(encoding="utf-8").splitlines()
    rows = [(line, "train" if row % 2 else "test") for row, line in enumerate(lines[1:])]
    with pytest.raises(InputError, match=r"'split' must keep references apart, got 6 in both train and test"):
        read_table(write_csv(csv.with_name("with.csv"), lines[0] + ",split", rows))
    rows = [(line, row) for row, line in enumerate(lines[1:])]
    with pytest.raises(InputError, match=r"line 2: split must be train, val or test, got '0'"):
        read_table(write_csv(csv.with_name("with.csv"), lines[0] + ",split", rows))


def test_pyiqa_meta_files_are_tables(csv):
    rows = [line.split(",") for line in csv.read_text(encoding="utf-8").splitlines()[1:]]
    plain = read_table(csv)
    full = write_csv(
        csv.with_name("fr.csv"),
        "ref_name,dist_name,mos,std,ratio802_seed123_split01,ratio802_seed123_split02",
        [(f"refs/{r}.png", i, m, 1, part_of(n), part_of((n + 4) % 24)) for n, (i, m, r) in enumerate(rows)],
    )
    table = read_table(full)
    assert table.images == plain.images and table.grouped
    np.testing.assert_array_equal(table.groups, plain.groups)
    assert [split.name for split in table.splits] == ["ratio802_seed123_split01", "ratio802_seed123_split02"]
    blind = write_csv(csv.with_name("nr.csv"), "name,mos,std", [(i, m, 1) for i, m, _ in rows])
    table = read_table(blind)
    assert table.images == plain.images and not table.grouped and table.splits is None


def test_lower_better_scores_are_turned_and_kept(csv):
    table = read_table(csv, lower_better=True)
    np.testing.assert_array_equal(table.mos, -table.raw_scores)
    assert table.lower_better and table.raw_scores[1] == 73.0
    plain = read_table(csv)
    assert not plain.lower_better and plain.kinds is None and plain.levels is None
    np.testing.assert_array_equal(plain.mos, plain.raw_scores)


@given(st.lists(st.sampled_from(["train", "val", "test", ""]), min_size=6, max_size=6))
def test_the_three_formats_say_the_same(table, of_groups):
    """The parts of the six references are written as arrays, a pickle and a CSV."""
    by_row = [of_groups[row // 4] for row in range(24)]
    rows = {part: [row for row in range(24) if by_row[row] == part] for part in PARTS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            np.save(folder / f"{part}.npy", np.array([[*rows[part], -1]]))
        (folder / "s.pkl").write_bytes(pickle.dumps({1: rows}))
        write_csv(folder / "s.csv", "image,split", zip(table.images, by_row, strict=True))
        files = (folder, folder / "s.pkl", folder / "s.csv")
        if not rows["train"] or not (rows["test"] or rows["val"]):
            for file in files:
                with pytest.raises(InputError, match="must have a"):
                    import_splits(table, file)
            return
        wanted = [rows["train"], rows["val"], rows["test"]] if rows["test"] else [rows["train"], [], rows["val"]]
        for file in files:
            assert parts(import_splits(table, file).splits[0]) == wanted


@given(st.sampled_from(["s.pkl", "s.csv", "train.npy"]), st.data())
def test_damaged_files_are_read_or_refused_but_never_break(table, name, data):
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        np.save(Path(folder) / "test.npy", TEST)
        np.save(Path(folder) / "train.npy", TRAIN)
        (Path(folder) / "s.pkl").write_bytes(pickle.dumps({1: {"train": TRAIN, "test": TEST}}))
        write_csv(Path(folder) / "s.csv", "image,split", [(i, part_of(n)) for n, i in enumerate(table.images)])
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(InputError):
            import_splits(table, file)
