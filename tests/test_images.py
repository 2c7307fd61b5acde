"""Opening image files: which are listed, how unusual ones are converted, which are refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from qpt import InputError
from qpt.data import colour, images
from qpt.data.faults import UnreadableError
from qpt.data.images import DecodedImage, load_rgb, open_image
from qpt.data.listing import find_images, list_images


def test_folder_is_walked_sorted_and_filtered(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/y.jpeg", "notes.txt", "c.tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        *("a/y.jpeg", "a/z.jpg", "b.PNG", "c.tif")
    ]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """A folder that has a name below the root keeps it, whatever links lead there; others get the first link's."""
    data, outside = tmp_path / "data", tmp_path / "outside"
    for name in ("data/z/1.png", "data/2.png", "outside/deep/3.png", "outside/4.txt", "single.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (data / "a").symlink_to(data / "z")  # to a folder that is found anyway
    (data / "b").symlink_to(outside)
    (data / "c").symlink_to(outside)  # the same again
    (data / "z" / "up").symlink_to(data)  # loops, straight and round a corner
    (outside / "back").symlink_to(data / "z")
    (outside / "self").symlink_to(outside)
    (data / "file.png").symlink_to(tmp_path / "single.png")
    (data / "nothing.png").symlink_to(tmp_path / "absent.png")
    (data / "nowhere").symlink_to(tmp_path / "absent")
    os.mkfifo(data / "pipe.png")  # to open it would be to wait for ever
    assert [path.relative_to(data).as_posix() for path in list_images(data)] == [
        *("2.png", "b/deep/3.png", "file.png", "nothing.png", "z/1.png")
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


@pytest.mark.parametrize("packing", ["Pillow's encoder", "crop"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_window_is_cut_from_the_whole(
    tmp_path: Path, mode: str, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packing == "crop":
        monkeypatch.setattr(colour, "_ENCODER", None)
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (9, 13, 4), np.uint8), "RGBA")
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 65536, (9, 13), np.uint16))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / ("turned.jpg" if mode == "CMYK" else "turned.png")
        (picture if mode in ("I;16", "RGBA") else picture.convert(mode)).save(path, exif=exif)
        whole = load_rgb(path)
        with open_image(path) as opened:
            seen = DecodedImage(opened)
            assert whole.shape == (seen.height, seen.width, 3)
            for top, left, height, width in ((0, 0, seen.height, seen.width), (1, 3, 5, 4), (0, 2, 1, 1), (6, 5, 3, 4)):
                window = seen.window(top, left, height, width)
                np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize(("size", "expected"), [((300, 200), (50, 75)), ((80, 300), (188, 50)), ((20, 30), (75, 50))])
def test_resized_to_a_shorter_side(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int], suffix: str, orientation: int
) -> None:
    """The sizes, and the pixels of a smooth picture, are those of resizing what was decoded whole."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
    path = tmp_path / f"x.{suffix}"
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, exif=exif)
    found = load_rgb(path, shorter_side=50)
    assert found.shape[:2] == (expected if orientation == 1 else expected[::-1])
    whole = Image.fromarray(load_rgb(path)).resize(found.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(whole)).mean() < (1 if suffix == "jpg" else 1e-9)


def test_a_jpeg_keeps_twice_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (900, 700)).save(tmp_path / "x.jpg")
    decoded = []
    plain = DecodedImage.rgb
    monkeypatch.setattr(DecodedImage, "rgb", lambda self: decoded.append((self.width, self.height)) or plain(self))
    for side in (44, 43, 87, 88, 175, 176, 350, 900):
        assert min(load_rgb(tmp_path / "x.jpg", shorter_side=side).shape[:2]) == side
    assert decoded == [(225, 175), (113, 88), (225, 175), (450, 350), (450, 350), *[(900, 700)] * 3]


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
        with pytest.raises(UnreadableError):
            load_rgb(tmp_path / name)


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (400, 400)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(UnreadableError):
        load_rgb(tmp_path / "large.png")


def test_a_limit_of_pixels_for_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of Pillow's, which is the same afterwards, whatever happens."""
    Image.new("L", (400, 400)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    # Before 13 Pillow's crop refuses more than twice its limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    assert load_rgb(tmp_path / "large.png", max_pixels=160_000).shape == (400, 400, 3)
    with pytest.raises(UnreadableError, match="400x400 px is more than the limit of 159,999"):
        load_rgb(tmp_path / "large.png", max_pixels=159_999)
    with pytest.raises(UnreadableError):
        load_rgb(tmp_path / "text.png", max_pixels=10)
    assert Image.MAX_IMAGE_PIXELS == 100_000


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


def test_an_image_in_memory_has_the_pixels_of_its_file(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 4), np.uint8), "RGBA")
    picture.save(tmp_path / "x.png")
    np.testing.assert_array_equal(DecodedImage(picture).rgb(), load_rgb(tmp_path / "x.png"))
