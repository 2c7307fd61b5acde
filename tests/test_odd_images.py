"""Broken and unusual image files in one run: it finishes, and names each broken one with the reason."""

import json
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpt import pretrain
from qpt.data.faults import UnreadableError
from qpt.data.images import load_rgb
from tests.test_pretrain import tiny

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).resize((80, 64), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PICTURE, kind, exif=exif)


def animated(kind: str) -> bytes:
    return encoded(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(90), PICTURE.rotate(180)], duration=50)


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file of any stated size, whatever its data holds."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def damaged(content: bytes, place: int, junk: bytes) -> bytes:
    return content[:place] + junk + content[place + len(junk) :]


def deep_grey() -> Image.Image:
    return Image.fromarray((np.linspace(0, 65535, 64 * 80).reshape(64, 80)).astype(np.uint16))


def palette_with_transparency() -> bytes:
    return encoded(PICTURE.convert("P"), "PNG", transparency=0)


#: Unusual, but readable: name -> content.
ODD: dict[str, Callable[[], bytes]] = {
    "cmyk.jpg": lambda: encoded(PICTURE.convert("CMYK"), "JPEG"),
    "grey.jpg": lambda: encoded(PICTURE.convert("L"), "JPEG"),
    "progressive.jpg": lambda: encoded(PICTURE, "JPEG", progressive=True),
    "turned.jpg": lambda: turned(6, "JPEG"),
    "turned.png": lambda: turned(8, "PNG"),
    "turned.tif": lambda: turned(5, "TIFF"),
    "orientation out of range.jpg": lambda: turned(99, "JPEG"),
    "png named.JPEG": lambda: encoded(PICTURE, "PNG"),
    "jpeg named.png": lambda: encoded(PICTURE, "JPEG"),
    "UPPER.JPG": lambda: encoded(PICTURE, "JPEG"),
    "grey 16 bit.png": lambda: encoded(deep_grey(), "PNG"),
    "grey 16 bit.tif": lambda: encoded(deep_grey(), "TIFF"),
    "colour 16 bit.png": lambda: png(
        80, 64, zlib.compress(b"".join(b"\0" + RNG.bytes(80 * 6) for _ in range(64))), depth=16
    ),
    "one bit.png": lambda: encoded(PICTURE.convert("1"), "PNG"),
    "grey alpha.png": lambda: encoded(PICTURE.convert("LA"), "PNG"),
    "alpha.png": lambda: encoded(PICTURE.convert("RGBA"), "PNG"),
    "palette.png": palette_with_transparency,
    "alpha.webp": lambda: encoded(PICTURE.convert("RGBA"), "WEBP"),
    "animated.gif": lambda: animated("GIF"),
    "animated.png": lambda: animated("PNG"),
    "animated.webp": lambda: animated("WEBP"),
    "pages.tif": lambda: animated("TIFF"),
    "float.tif": lambda: encoded(Image.fromarray(np.linspace(0, 255, 5120).reshape(64, 80).astype(np.float32)), "TIFF"),
    "lzw.tif": lambda: encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "cmyk.tif": lambda: encoded(PICTURE.convert("CMYK"), "TIFF"),
    "lab.tif": lambda: encoded(Image.merge("LAB", PICTURE.split()), "TIFF"),
    "windows.bmp": lambda: encoded(PICTURE, "BMP"),
    "plain.ppm": lambda: encoded(PICTURE, "PPM"),
    "one pixel.png": lambda: encoded(PICTURE.resize((1, 1)), "PNG"),
    "one row.png": lambda: encoded(PICTURE.resize((300, 1)), "PNG"),
    "one column.jpg": lambda: encoded(PICTURE.resize((1, 300)), "JPEG"),
    "strip.png": lambda: encoded(PICTURE.resize((20_000, 2)), "PNG"),
    "trailing bytes.jpg": lambda: encoded(PICTURE, "JPEG") + b"appended" * 100,
    "Grüße \U0001f4f7 .png": lambda: encoded(PICTURE, "PNG"),
}

#: Broken: name -> content and a pattern of the reason.
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "not a"),
    "empty.png": (lambda: b"", "not a"),
    "text.jpg": (lambda: b"this is not an image\n" * 50, "not a"),
    "web page.png": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "not a"),
    "zeros.jpg": (lambda: bytes(5000), "not a"),
    "magic alone.jpg": (lambda: b"\xff\xd8\xff", "."),
    "magic alone.png": (lambda: b"\x89PNG\r\n\x1a\n", "."),
    "magic alone.gif": (lambda: b"GIF89a", "."),
    "cut.jpg": (lambda: encoded(PICTURE, "JPEG")[:900], "truncated"),
    "cut.png": (lambda: encoded(PICTURE, "PNG")[:700], "truncated|broken"),
    "cut.webp": (lambda: encoded(PICTURE, "WEBP", quality=90)[:300], "."),
    "cut.gif": (lambda: encoded(PICTURE, "GIF")[:1200], "truncated"),
    "cut.bmp": (lambda: encoded(PICTURE, "BMP")[:3000], "truncated"),
    "cut.tif": (lambda: encoded(PICTURE, "TIFF", compression="tiff_lzw")[:2000], "."),
    "cut.ppm": (lambda: encoded(PICTURE, "PPM")[:3000], "truncated"),
    "damaged.png": (
        lambda: damaged(encoded(PICTURE, "PNG"), 3000, b"\0" * 50),
        "broken|unrecognized",
    ),
    "bomb.png": (lambda: png(30_000, 30_000, zlib.compress(bytes(1000))), "30000x30000 px is more"),
    "bomb.bmp": (
        lambda: damaged(encoded(PICTURE, "BMP"), 18, struct.pack("<ii", 40_000, 40_000)),
        "more than the limit",
    ),
    "no pixels.png": (lambda: png(0, 0, zlib.compress(b"")), "."),
    "no data.png": (lambda: png(80, 64, zlib.compress(b"")), "truncated|broken"),
    "vector.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not a"),
    "archive.jpg": (lambda: b"PK\x03\x04" + bytes(200), "not a"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for name, content in ODD.items():
        (folder / name).write_bytes(content())
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content())
    (folder / "gone.jpg").symlink_to(folder / "absent.jpg")
    (folder / "folder.png").mkdir()  # not a file, so not listed
    (folder / "notes.txt").write_text("not an image, and not named like one")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_finishes_and_lists_the_broken_files(
    folder: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = len(ODD) + len(BROKEN) + 1
    config = tiny(folder, tmp_path / "run", steps=2 * (files // 8), batch_images=8, workers=workers, log_every=1)
    result = pretrain(config)
    assert result.finished
    summary = json.loads((result.run / "summary.json").read_text())
    assert summary["photographs"] == files
    reasons = {each["file"]: each["reason"] for each in summary["unreadable"]}
    # An epoch leaves out its ragged end; two epochs leave out hardly anything.
    assert set(reasons) <= {*BROKEN, "gone.jpg"} and len(reasons) >= len(BROKEN)
    assert all(reason and "\n" not in reason for reason in reasons.values())
    printed = capsys.readouterr().err
    assert all(name in printed for name in reasons)


@pytest.mark.parametrize("name", ODD)
def test_unusual_files_are_read(folder: Path, name: str) -> None:
    image = load_rgb(folder / name)
    assert image.dtype == np.uint8 and image.shape[2] == 3
    if "turned" in name:
        assert image.shape[:2] == (80, 64)
    elif min(image.shape[:2]) == 64 and name not in ("colour 16 bit.png", "lab.tif"):
        reference = np.asarray(PICTURE.convert("L") if "grey" in name or "one bit" in name else PICTURE, np.float64)
        if "16" not in name and "float" not in name:
            assert np.abs(image.mean() - reference.mean()) < 12  # the picture, not black or inverted


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_a_reason(folder: Path, name: str) -> None:
    with pytest.raises(UnreadableError, match=BROKEN[name][1]):
        load_rgb(folder / name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_bits_that_flip_never_end_a_run(kind: str, long: bool) -> None:
    """Whatever Pillow raises for a damaged file is among what callers catch."""
    content = bytearray(encoded(PICTURE, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {})))
    rng = np.random.default_rng(1)
    for _ in range(2000 if long else 150):
        broken = bytearray(content)
        for place in rng.integers(0, min(len(broken), int(rng.choice([64, 400, 100_000]))), rng.integers(1, 5)):
            broken[place] = rng.integers(0, 256)
        try:
            load_rgb(BytesIO(broken[: len(broken) - rng.integers(0, 2) * rng.integers(0, len(broken))]))
        except UnreadableError:
            continue


def test_imagenet_layout(tmp_path: Path) -> None:
    """Class folders below train and val, everything named .JPEG: one PNG and some CMYK files among them."""
    for part in ("train", "val"):
        for name in ("n01440764", "n02105855"):
            (tmp_path / "imagenet" / part / name).mkdir(parents=True)
            for index in range(3):
                content = encoded(PICTURE, "JPEG") if index else encoded(PICTURE.convert("CMYK"), "JPEG")
                (tmp_path / "imagenet" / part / name / f"{name}_{index}.JPEG").write_bytes(content)
    quirk = tmp_path / "imagenet" / "train" / "n02105855" / "n02105855_2933.JPEG"
    quirk.write_bytes(encoded(PICTURE, "PNG"))
    result = pretrain(tiny(tmp_path / "imagenet" / "train", tmp_path / "run", steps=2, batch_images=7))
    summary = json.loads((result.run / "summary.json").read_text())
    assert summary["photographs"] == 7 and summary["unreadable"] == []
