"""Opening photographs: what counts as one, what is done to odd ones, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from qpt import InputError
from qpt.data import images
from qpt.data.images import UNREADABLE, find_images, list_images, load_rgb


def test_folder_is_walked_sorted_and_filtered(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/y.jpeg", "notes.txt", "c.tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        *("a/y.jpeg", "a/z.jpg", "b.PNG", "c.tif")
    ]


def test_no_folder_and_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder must hold at least one image"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="folder must be an existing folder"):
        list_images(tmp_path / "absent")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("band", [1, 1 << 20])
def test_orientation_is_honoured(tmp_path: Path, orientation: int, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_BAND_PIXELS", band)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        np.testing.assert_array_equal(load_rgb(tmp_path / "turned.png"), np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    Image.new("RGB", (5, 3), (200, 200, 200)).convert(mode).save(tmp_path / f"x.{suffix}")
    image = load_rgb(tmp_path / f"x.{suffix}")
    assert image.shape == (3, 5, 3) and image.dtype == np.uint8
    assert image.min() >= (0 if mode == "1" else 190)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert load_rgb(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert load_rgb(tmp_path / "clear.png").min() == 255


def test_broken_files_raise_what_callers_catch(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    broken = {
        "empty.png": b"",
        "text.jpg": b"this is not an image",
        "truncated.jpg": whole.read_bytes()[:900],
        "header.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UNREADABLE):
            load_rgb(tmp_path / name)


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (400, 400)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(UNREADABLE):
        load_rgb(tmp_path / "large.png")


def test_a_limit_of_pixels_for_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of Pillow's, which is the same afterwards, whatever happens."""
    Image.new("L", (400, 400)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_rgb(tmp_path / "large.png", max_pixels=160_000).shape == (400, 400, 3)
    with pytest.raises(UNREADABLE, match="400x400 px is more than the limit of 159,999"):
        load_rgb(tmp_path / "large.png", max_pixels=159_999)
    with pytest.raises(UNREADABLE):
        load_rgb(tmp_path / "text.png", max_pixels=10)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_names_are_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.JPG", "a/note.txt", "c/3.png", "odd[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    at = {name: str(tmp_path / name) for name in ("a", "a/note.txt", "odd[1].png", "empty", "*.gif", "**/*.png", "no")}
    found, faults = find_images(at.values())
    names = ["a/1.png", "a/b/2.JPG", "a/note.txt", "odd[1].png", "c/3.png", "no"]  # the pattern adds only c/3.png
    assert found == [str(tmp_path / name) for name in names]
    assert faults == {at["empty"]: "no image in this folder", at["*.gif"]: "no file matches this pattern"}
