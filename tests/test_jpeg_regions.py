"""A region of a JPEG, decoded alone: the pixels of the whole image, and no region of a file that is cut short."""

import os
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qpt.data import jpeg_regions
from qpt.data.faults import UnreadableError
from qpt.data.images import DecodedImage, load_rgb, open_image
from tests.test_jpeg import CLEAN, jpeg, picture
from tests.test_odd_images import encoded
from tests.test_regions import dataset

pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec, of the extra test")


def window(content: bytes, top: int, left: int, height: int, width: int) -> np.ndarray:
    with open_image(BytesIO(content)) as opened:
        return DecodedImage(opened).window(top, left, height, width)


@pytest.fixture
def decoded_alone(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return, for each region asked for, whether it was decoded alone."""
    plain, found = jpeg_regions.decode_region, []

    def note(*arguments: object) -> np.ndarray | None:
        pixels = plain(*arguments)  # type: ignore[arg-type]
        found.append(pixels is not None)
        return pixels

    monkeypatch.setattr(jpeg_regions, "decode_region", note)
    return found


@pytest.mark.parametrize("name", [name for name in CLEAN if "x" not in name or name == "640x427"])
def test_pixels_are_those_of_the_whole_image(name: str, decoded_alone: list[bool]) -> None:
    content = CLEAN[name]()
    whole = load_rgb(BytesIO(content))
    draw = random.Random(0)
    for _ in range(20):
        height, width = (draw.randint(1, max(1, side // 2)) for side in whole.shape[:2])
        top, left = draw.randint(0, whole.shape[0] - height), draw.randint(0, whole.shape[1] - width)
        expected = whole[top : top + height, left : left + width]
        np.testing.assert_array_equal(window(content, top, left, height, width), expected)
    assert any(decoded_alone) or name in ("of a phone, two pictures", "bytes behind the end")


@given(st.integers(0, 2), st.booleans(), st.integers(0, 180), st.integers(0, 230), st.integers(1, 90))
def test_any_place_and_sampling(kind: int, progressive: bool, top: int, left: int, side: int) -> None:
    content = jpeg(240, 190, subsampling=kind, progressive=progressive)
    height, width = min(side, 190 - top), min(side, 240 - left)
    whole = load_rgb(BytesIO(content))[top : top + height, left : left + width]
    np.testing.assert_array_equal(window(content, top, left, height, width), whole)


def test_more_than_half_an_image_is_decoded_whole(decoded_alone: list[bool]) -> None:
    window(jpeg(), 0, 0, 60, 80)
    assert decoded_alone == [False]


def test_one_window_after_another_and_then_all() -> None:
    content = jpeg(300, 200)
    whole = load_rgb(BytesIO(content))
    with open_image(BytesIO(content)) as opened:
        decoded = DecodedImage(opened)
        np.testing.assert_array_equal(decoded.window(5, 7, 30, 40), whole[5:35, 7:47])
        np.testing.assert_array_equal(decoded.window(90, 7, 30, 40), whole[90:120, 7:47])
        np.testing.assert_array_equal(decoded.rgb(), whole)
        np.testing.assert_array_equal(decoded.window(5, 7, 30, 40), whole[5:35, 7:47])


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_left_out_wherever_the_region_is(share: float) -> None:
    content = jpeg(300, 200)
    with pytest.raises(UnreadableError):
        window(content[: int(share * len(content))], 0, 0, 20, 20)


def test_what_is_no_colour_jpeg_is_decoded_as_before(decoded_alone: list[bool]) -> None:
    for content in (encoded(picture().convert("L"), "JPEG"), encoded(picture().convert("CMYK"), "JPEG"),
                    encoded(picture(), "PNG")):  # fmt: skip
        np.testing.assert_array_equal(window(content, 3, 4, 9, 8), load_rgb(BytesIO(content))[3:12, 4:12])
    assert not decoded_alone


def test_a_child_process_decodes_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    content = jpeg(300, 200)
    expected = window(content, 5, 7, 30, 40)
    child = os.fork()
    if child == 0:
        os._exit(int(not np.array_equal(window(content, 5, 7, 30, 40), expected)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    broken = bytearray(content)
    broken[len(content) // 2 : len(content) // 2 + 30] = bytes(30)
    window(bytes(broken), 150, 7, 30, 40)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [True, False], ids=["with room", "without"])
def test_a_data_set_gives_the_same_regions_with_it_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    Image.fromarray(np.asarray(picture(400, 300))).save(tmp_path / "a.jpg")

    def regions() -> list[np.ndarray]:
        data = dataset([tmp_path / "a.jpg"], cache_mib=int(kept))
        return [data[(epoch, 0)].pixels for epoch in range(4)]  # type: ignore[union-attr]

    found = regions()
    absent: Callable[[], bool] = lambda: False  # noqa: E731
    monkeypatch.setattr(jpeg_regions, "available", absent)
    for with_it, without in zip(found, regions(), strict=True):
        np.testing.assert_array_equal(with_it, without)
