"""Readers of score files: numbers and text as shown in a sheet, wrong extents, and one clear error for damage."""

import contextlib
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook
from scipy.io import savemat

from qpt.data.tabular import read_matlab, read_records, read_sheet
from qpt.errors import InputError


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    path = tmp_path_factory.mktemp("tabular") / "scores.xlsx"
    book = Workbook()
    for row in (["a title"], [], ["Score", "note", " Image Name "], [0.5, None, 1600], [2.0, "x", 1600.0], [],
                [None, "only a note", None], ["n/a", None, "007"]):  # fmt: skip
        book.active.append(row)
    book.save(path)
    return path


def test_a_sheet_from_its_header_on(sheet):
    assert read_sheet(sheet, ("image name", "score")) == [
        (4, {"image name": "1600", "score": "0.5"}),
        (5, {"image name": "1600", "score": "2"}),
        (8, {"image name": "007", "score": "n/a"}),
    ]


def test_a_sheet_that_states_a_wrong_extent_is_read_whole(sheet, tmp_path):
    path = tmp_path / "wrong.xlsx"
    with zipfile.ZipFile(sheet) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("sheet1.xml"):
                assert b'<dimension ref="A1:C8"' in content
                content = content.replace(b'<dimension ref="A1:C8"', b'<dimension ref="A1"')
            new.writestr(name, content)
    assert read_sheet(path, ("image name", "score")) == read_sheet(sheet, ("image name", "score"))


def test_matlab_cells_become_text_and_numbers_stay(tmp_path):
    names = np.empty((3, 1), object)
    names[:, 0] = ["a.bmp", "b.bmp", np.array([], "U1")]
    savemat(tmp_path / "m.mat", {"names": names, "scores": np.arange(3.0)[None]})
    found, scores = read_matlab(tmp_path / "m.mat", "names", "scores")
    assert list(found) == ["a.bmp", "b.bmp", ""] and list(scores) == [0.0, 1.0, 2.0]
    with pytest.raises(InputError, match=r"lacks the variable\(s\) other"):
        read_matlab(tmp_path / "m.mat", "names", "other")


def test_records_are_by_column_and_short_lines_have_empty_fields(tmp_path):
    (tmp_path / "r.csv").write_text("x, b ,a\n1,2,3\n\n4\n")
    assert read_records(tmp_path / "r.csv", ("a", "b")) == [(2, {"a": "3", "b": "2"}), (4, {"a": "", "b": ""})]


@given(st.data())
def test_damaged_sheets_and_mats_are_read_or_refused_but_never_break(sheet, data):
    mat = sheet.with_name("whole.mat")
    savemat(mat, {"orgs": np.zeros((1, 40)), "dmos": np.arange(40.0)})
    whole = data.draw(st.sampled_from([sheet, mat]))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = whole.with_name(f"damaged{whole.suffix}")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InputError):
        if whole is sheet:
            read_sheet(damaged, ("image name", "score"))
        else:
            read_matlab(damaged, "dmos", "orgs")


def test_other_kinds_of_file_are_named(tmp_path):
    path = tmp_path / "scores"
    for content, kind in ((b"\x1f\x8b\x08", "a gzip file"), (b"\xd0\xcf\x11\xe0", "old Excel"), (b"", "an empty file")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"must be an Excel workbook .*got .*{kind}"):
            read_sheet(path, ("a",))
    path.write_bytes(b"\x89HDF\r\n")
    with pytest.raises(InputError, match=r"must be a MATLAB file .*HDF5 file, perhaps of MATLAB 7\.3"):
        read_matlab(path, "a")
