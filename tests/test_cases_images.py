"""Kinds of image files and of faults that once ended a command, cost sound images, or gave wrong pixels in silence."""

import ast
import errno
import io
import os
import re
import resource
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

import qpt
from qpt.data import faults
from qpt.data.faults import ReadError, UnreadableError
from qpt.data.images import load_rgb
from qpt.data.listing import find_images, list_images
from qpt.data.sources import FolderSource, open_source
from qpt.errors import StalledError
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.image_crops import load_image
from qpt.export.formats import crop_inputs
from tests.test_odd_images import PICTURE, encoded, png, turned
from tests.test_pretrain import tiny

PIXELS = np.asarray(PICTURE)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_WAITS_S", (0, 0, 0))


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for index in range(count):
        PICTURE.rotate(index).save(path / f"{index}.png")
    return path


# Formats


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n", "EPS"),
        (b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 10) + bytes(30), "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1" + bytes(40), "PSD"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
    ],
)
def test_no_program_is_started_and_other_formats_are_named(
    content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: started.append(args))
    with pytest.raises(UnreadableError, match=f"not a photograph: {kind}$"):
        load_rgb(io.BytesIO(content))
    assert not started


def test_the_package_opens_images_in_one_place_alone() -> None:
    root = Path(qpt.__file__).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Image":
                assert node.attr != "open", f"{file}:{node.lineno}: use qpt.data.images"


def test_pillows_limit_on_pixels_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "x.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    thread = threading.Thread(target=lambda: [load_rgb(tmp_path / "x.jpg") for _ in range(200)])
    thread.start()
    seen = set()
    while thread.is_alive():
        seen.add(Image.MAX_IMAGE_PIXELS)
    assert seen == {12345}


def test_the_limit_on_pixels_holds_for_the_resized_image(tmp_path: Path) -> None:
    for size in ((20_000, 2), (2, 20_000)):
        Image.new("RGB", size).save(tmp_path / "strip.png")
        with pytest.raises(UnreadableError, match=r"too large \(.* px is more than the limit of"):
            load_rgb(tmp_path / "strip.png", shorter_side=256)


# Side data


def with_exif_damaged(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x10F] = "a maker of cameras"
    content, head = encoded(PICTURE, kind, exif=exif.tobytes(), **_LOSSLESS[kind]), exif.tobytes()[6:10]
    place = content.rindex(head)
    return content[:place] + b"ZZZZ" + content[place + 4 :]


def tiff_with_an_endless_text() -> bytes:
    content = bytearray(encoded(PICTURE, "TIFF", description="x" * 400, compression="tiff_lzw"))
    order = "<" if content.startswith(b"II") else ">"
    place = content.index(struct.pack(order + "HH", 270, 2))
    content[place + 4 : place + 8] = struct.pack(order + "I", 10**9)
    return bytes(content)


def png_with(chunk: bytes, body: bytes, checksum: bytes | None = None, *, last: bool = False) -> bytes:
    content = encoded(PICTURE, "PNG")
    place = content.rindex(b"IEND") - 4 if last else 33
    end = struct.pack(">I", zlib.crc32(chunk + body)) if checksum is None else checksum
    return content[:place] + struct.pack(">I", len(body)) + chunk + body + end + content[place:]


def long_text() -> bytes:
    info = PngInfo()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    return encoded(PICTURE, "PNG", pnginfo=info)


_LOSSLESS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
SIDE_DATA: dict[str, Callable[[], bytes]] = {
    **{f"EXIF of {kind}": lambda kind=kind: with_exif_damaged(kind) for kind in _LOSSLESS},
    "EXIF cut short": lambda: encoded(PICTURE, "PNG", exif=b"Exif\0\0II*\0"),
    "a long text": long_text,
    "a text behind the pixels": lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 3_000_000), last=True),
    "a text with a wrong checksum": lambda: png_with(b"tEXt", b"a\0b", b"XXXX"),
    "a profile without a method": lambda: png_with(b"iCCP", b"name\0"),
    "a profile of junk": lambda: encoded(PICTURE, "PNG", icc_profile=b"junk" * 99),
    "a profile cut short in a JPEG": lambda: re.sub(
        b"^..", b"\xff\xd8\xff\xe2\0\x0fICC_PROFILE\0\1", encoded(PICTURE, "JPEG", quality=95), flags=re.DOTALL
    ),
    "EXIF cut off at the end of a WebP": lambda: encoded(PICTURE, "WEBP", lossless=True, exif=bytes(99))[:-20],
    "a text of a TIFF beyond its end": tiff_with_an_endless_text,
}


@pytest.mark.parametrize("name", SIDE_DATA)
def test_a_fault_of_side_data_costs_no_pixels(name: str) -> None:
    assert np.abs(load_rgb(io.BytesIO(SIDE_DATA[name]())).astype(int) - PIXELS).mean() < 3


def test_a_picture_with_a_long_text_stays_upright() -> None:
    info, exif = PngInfo(), Image.Exif()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    exif[0x112] = 6
    assert load_rgb(io.BytesIO(encoded(PICTURE, "PNG", pnginfo=info, exif=exif))).shape == (80, 64, 3)


def test_whatever_a_decoder_raises_concerns_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "x.png")

    def fail(self: Image.Image) -> None:
        raise KeyError("an exception that nobody listed")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UnreadableError, match="an exception that nobody listed"):
        load_rgb(tmp_path / "x.png")


# Colour and depth


def swapped_profile() -> bytes:
    """A colour space whose red is sRGB's blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    i, j = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[i : i + 4], profile[j : j + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_colour_profiles_are_applied(kind: str) -> None:
    swapped = Image.fromarray(PIXELS[..., ::-1])
    content = encoded(swapped, kind, icc_profile=swapped_profile(), **_LOSSLESS.get(kind, {}))
    difference = np.abs(load_rgb(io.BytesIO(content)).astype(int) - PIXELS)
    assert difference.mean() < 3 and (kind not in ("PNG", "TIFF", "WEBP") or difference.max() == 0)


def test_colour_profiles_and_transparency() -> None:
    swapped = Image.fromarray(PIXELS[..., ::-1]).convert("RGBA")
    swapped.putalpha(128)
    found = load_rgb(io.BytesIO(encoded(swapped, "PNG", icc_profile=swapped_profile())))
    plain = PICTURE.convert("RGBA")
    plain.putalpha(128)
    np.testing.assert_array_equal(found, load_rgb(io.BytesIO(encoded(plain, "PNG"))))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_the_profile_of_srgb_changes_nothing(mode: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = encoded(PICTURE.convert(mode), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(
        load_rgb(io.BytesIO(with_profile)), load_rgb(io.BytesIO(encoded(PICTURE.convert(mode), "PNG")))
    )


def tiff(samples: NDArray[np.generic], **tags: object) -> bytes:
    return encoded(Image.fromarray(samples), "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


RAMP = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
DEEP: dict[str, tuple[Callable[[], bytes], tuple[int, int] | None]] = {
    "float to 1": (lambda: tiff(RAMP), (0, 255)),
    "float to 255": (lambda: tiff(255 * RAMP), (0, 255)),
    "float to 65535": (lambda: tiff(65535 * RAMP), (0, 255)),
    "float to 2": (lambda: tiff(2 * RAMP), None),
    "float to 2, stated": (lambda: tiff(2 * RAMP, t340=0.0, t341=2.0), (0, 255)),
    "float below 0": (lambda: tiff(RAMP - 0.5), None),
    "not a number": (lambda: tiff(RAMP * np.nan), None),
    "12 of 16 bits": (lambda: tiff((4095 * RAMP).astype(np.uint16)), None),
    "12 of 16 bits, stated": (lambda: tiff((4095 * RAMP).astype(np.uint16), t281=4095), (0, 255)),
    "16 bits": (lambda: tiff((65535 * RAMP).astype(np.uint16)), (0, 255)),
    "signed": (lambda: tiff((65535 * RAMP).astype(np.int32)), None),
    "black": (lambda: tiff(0 * RAMP), (0, 0)),
    "white is zero": (lambda: tiff(RAMP / 2, t262=0), (127, 255)),
    "portable float map": (lambda: b"Pf\n64 64\n-1.0\n" + RAMP.tobytes(), (0, 255)),
    "portable grey map": (lambda: b"P5\n64 64\n1023\n" + (1023 * RAMP).astype(">u2").tobytes(), (0, 255)),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_samples_are_scaled_by_their_range_or_refused(name: str) -> None:
    content, expected = DEEP[name]
    if expected is None:
        with pytest.raises(UnreadableError, match="of a range that the file does not state"):
            load_rgb(io.BytesIO(content()))
    else:
        pixels = load_rgb(io.BytesIO(content()))
        assert (pixels.min(), pixels.max()) == expected


def test_deep_colour_is_scaled() -> None:
    row = b"\0" + np.repeat(np.linspace(0, 65535, 80).astype(">u2"), 3).tobytes()
    pixels = load_rgb(io.BytesIO(png(80, 64, zlib.compress(row * 64), depth=16)))
    assert (pixels.min(), pixels.max()) == (0, 255)


#: Files for which the lines of docs/export.md make other pixels: the page lists them, and the lines refuse them.
LISTED: dict[str, Callable[[], bytes]] = {
    "transparency": lambda: encoded(PICTURE.convert("RGBA"), "PNG"),
    "a transparent colour": lambda: encoded(PICTURE.convert("P"), "PNG", transparency=0),
    "more than 8 bits": lambda: tiff((65535 * RAMP).astype(np.uint16)),
    "a colour profile": lambda: encoded(PICTURE, "PNG", icc_profile=swapped_profile()),
    "under 32 px": lambda: encoded(PICTURE.resize((80, 20)), "PNG"),
    "larger than nine crops": lambda: encoded(PICTURE.resize((1400, 1000)), "PNG"),
}
READ: dict[str, Callable[[], bytes]] = {
    **{mode: lambda mode=mode: encoded(PICTURE.convert(mode), "PNG") for mode in ("RGB", "L", "P", "1")},
    "JPEG": lambda: encoded(PICTURE, "JPEG"),
    "CMYK": lambda: encoded(PICTURE.convert("CMYK"), "JPEG"),
    "turned": lambda: turned(6, "JPEG"),
}


@pytest.mark.parametrize("name", [*READ, *LISTED])
def test_the_lines_of_the_page_on_exports_make_the_same_inputs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(photograph = .*?)score = ", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(READ[name]() if name in READ else LISTED[name]())
    scope: dict[str, Any] = {"Image": Image, "ImageOps": ImageOps, "np": np}
    if name in LISTED:
        with pytest.raises(AssertionError, match="read it with QPT"):
            exec(block, scope)
        return
    exec(block, scope)
    expected = crop_inputs(load_image("photo.jpg"), FeatureProtocol())
    assert all(np.array_equal(scope["inputs"][key], expected[key]) for key in expected)


# Faults of the machine


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("soon")
def test_a_passing_fault_is_tried_again_and_a_lasting_one_ends_the_run(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real = folder_of(tmp_path / "data", 9), FolderSource.open
    calls: Iterator[int] = iter(range(10**9))

    def flaky(self: FolderSource, index: int) -> Path:
        if next(calls) % 3 == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, index)

    def broken(self: FolderSource, index: int) -> Path:
        if index == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, index)

    monkeypatch.setattr(FolderSource, "open", flaky)
    result = qpt.pretrain(tiny(data, tmp_path / "flaky", workers=workers))
    assert result.finished and '"unreadable": []' in (result.run / "summary.json").read_text()
    monkeypatch.setattr(FolderSource, "open", broken)
    words = r"^pretrain: 3\.png could not be read in 4 attempts: Input/output error .*; step \d is saved, continue"
    with pytest.raises(StalledError, match=words):
        qpt.pretrain(tiny(data, tmp_path / "broken", workers=workers))
    assert (tmp_path / "broken" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "x"), "Too many open files .*ulimit -n"),
        (OSError(errno.ESTALE, "x"), "could not be read in 4 attempts: Stale file handle"),
        (MemoryError(), "Cannot allocate memory"),
    ],
)
@pytest.mark.usefixtures("soon")
def test_the_errno_decides(tmp_path: Path, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "x.png")

    def fail(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(ReadError, match=words):
        load_rgb(tmp_path / "x.png")


def test_missing_and_forbidden_files_are_faults_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, words in (("absent.png", "no such file"), ("loop.png", "symbolic links"), (".", "Is a directory")):
        with pytest.raises(UnreadableError, match=words):
            load_rgb(tmp_path / name)


@pytest.mark.usefixtures("soon")
def test_a_lack_of_descriptors_is_no_fault_of_the_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "x.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ReadError, match="ulimit -n"):
            load_rgb(tmp_path / "x.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Lists of files


def test_a_pattern_takes_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``**`` follows links to folders, and loops of them, of which two would keep glob busy for ever."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("a/x.jpg", "a/b/x.jpg", "a/b/.x.jpg", "a/b/c/x.png", "elsewhere/y.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "circle").symlink_to("..")
    (tmp_path / "a" / "0").symlink_to("b")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    expected = {
        "a/**/*.jpg": ["a/b/x.jpg", "a/link/y.jpg", "a/x.jpg"],
        "a/**/b/*.jpg": ["a/b/x.jpg"],
        "a/**/c/**/*.png": ["a/b/c/x.png"],
        "**/x.*": ["a/b/c/x.png", "a/b/x.jpg", "a/x.jpg"],
        "a/**/c": ["a/b/c/x.png"],
        "?/**": ["a/b/c/x.png", "a/b/x.jpg", "a/link/y.jpg", "a/x.jpg"],
    }
    monkeypatch.chdir(tmp_path)
    for pattern, names in expected.items():
        assert find_images([pattern]) == (names, {}), pattern
        assert find_images([f"{tmp_path}/{pattern}"]) == ([f"{tmp_path}/{name}" for name in names], {}), pattern


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    """By extension, and hidden files and folders of systems; in folders, patterns and shards."""
    taken = ["a.jpg", "b.jfif", "c.AVIF", "d/e.jp2", "d/f.pgm"]
    others = ["g.heic", "h.HEIC", "i.txt", "j"]
    hidden = ["._a.jpg", ".trash/k.jpg", "__MACOSX/l.jpg", "d/@eaDir/m.jpg"]
    for name in [*taken, *others, *hidden]:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    words = r"passed over: 2 \.heic, 1 \.txt, 1 without extension, 4 hidden or of the system$"
    with pytest.warns(UserWarning, match=words):
        assert [path.relative_to(tmp_path / "data").as_posix() for path in list_images(tmp_path / "data")] == taken
    with pytest.warns(UserWarning, match="2 hidden or of the system"):
        assert len(find_images([f"{tmp_path}/data/**/*.jpg"])[0]) == 1
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in [*taken, *others, *hidden]:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.warns(UserWarning, match=words):
        assert len(open_source(str(tmp_path / "x.tar"))) == len(taken)
    os.mkfifo(tmp_path / "data" / "pipe.jpg")
    with pytest.warns(UserWarning, match="1 pipes and devices"):
        assert len(list_images(tmp_path / "data")) == len(taken)
    hidden_root = tmp_path / ".cache" / "data"
    hidden_root.mkdir(parents=True)
    (hidden_root / "a.jpg").touch()
    assert len(list_images(hidden_root)) == 1  # a folder is taken as it is named
