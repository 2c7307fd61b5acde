"""simplejpeg instead of Pillow: the same pixels, and the same error for a damaged file."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qpt.data import images
from qpt.data.faults import UnreadableError
from qpt.data.images import load_rgb
from qpt.data.sample_images import sample_images
from tests.test_odd_images import BROKEN, ODD, encoded, turned


def jpeg(width: int = 83, height: int = 61, **options: Any) -> bytes:
    return encoded(picture(width, height), "JPEG", **options)


def picture(width: int = 83, height: int = 61) -> Image.Image:
    """Smooth, with noise on it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8))


#: What is decoded without Pillow: name -> content.
CLEAN: dict[str, Callable[[], bytes]] = {
    **{f"subsampling {kind}": lambda kind=kind: jpeg(subsampling=kind) for kind in (0, 1, 2)},
    **{f"quality {quality}": lambda quality=quality: jpeg(quality=quality) for quality in (1, 50, 100)},
    **{f"orientation {turn}": lambda turn=turn: turned(turn, "JPEG") for turn in range(1, 9)},
    **{f"{w}x{h}": lambda w=w, h=h: jpeg(w, h) for w, h in ((1, 1), (1, 300), (17, 2), (640, 427))},
    "progressive": lambda: jpeg(progressive=True, quality=20),
    "restart markers": lambda: jpeg(restart_marker_blocks=3),
    "RGB as it is": lambda: jpeg(keep_rgb=True),
    "of a phone, two pictures": lambda: encoded(picture(), "MPO", save_all=True, append_images=[picture(40, 30)]),
    "bytes behind the end": lambda: jpeg() + b"appended" * 100,
    "a comment": lambda: jpeg(comment=b"x" * 60_000),
}


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """Return the arrays that simplejpeg decoded."""
    plain, found = images.DecodedImage._decode_jpeg, []

    def note(self: images.DecodedImage, opened: Image.Image) -> Image.Image:
        opened = plain(self, opened)
        if self._stored is not None:
            found.append(self._stored)
        return opened

    monkeypatch.setattr(images.DecodedImage, "_decode_jpeg", note)
    return found


def by_pillow(content: bytes) -> NDArray[np.uint8]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "simplejpeg", None)
        return load_rgb(BytesIO(content))


def outcome(decode: Callable[[bytes], NDArray[np.uint8]], content: bytes) -> tuple[object, ...]:
    try:
        pixels = decode(content)
    except UnreadableError as error:
        return type(error), str(error).split("<_io")[0]  # without the stream's address
    return pixels.shape, pixels.tobytes()


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_jpeg_has_the_pixels_that_pillow_gives(name: str, handed_over: list[NDArray[np.uint8]]) -> None:
    content = CLEAN[name]()
    found = load_rgb(BytesIO(content))
    assert len(handed_over) == 1 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, by_pillow(content))


def test_photographs_have_the_pixels_that_pillow_gives(handed_over: list[NDArray[np.uint8]]) -> None:
    for path in sample_images():
        np.testing.assert_array_equal(load_rgb(path), by_pillow(path.read_bytes()))
    assert handed_over


@pytest.mark.parametrize("name", [*ODD, *BROKEN])
def test_odd_and_broken_files_end_as_they_do_with_pillow(name: str) -> None:
    content = ODD[name]() if name in ODD else BROKEN[name][0]()
    assert outcome(lambda content: load_rgb(BytesIO(content)), content) == outcome(by_pillow, content)


def test_grey_cmyk_and_reduced_jpegs_are_left_to_pillow(handed_over: list[NDArray[np.uint8]]) -> None:
    for mode in ("L", "CMYK"):
        load_rgb(BytesIO(encoded(picture().convert(mode), "JPEG")))
    load_rgb(BytesIO(jpeg(400, 400)), shorter_side=50)
    assert not handed_over


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_ends_as_it_does_with_pillow(
    progressive: bool, long: bool, handed_over: list[NDArray[np.uint8]]
) -> None:
    """Bytes that change anywhere: what the strict decoder takes it decodes as Pillow does, all else Pillow decides."""
    content = jpeg(progressive=progressive, restart_marker_blocks=4)
    rng = np.random.default_rng(2)
    rounds = 5000 if long else 300
    for _ in range(rounds):
        broken = bytearray(content)
        for place in rng.integers(0, len(broken) if rng.integers(0, 2) else 700, rng.integers(1, 4)):
            broken[place] = rng.integers(0, 256)
        if rng.integers(0, 4) == 0:
            del broken[rng.integers(0, len(broken)) :]
        assert outcome(lambda content: load_rgb(BytesIO(content)), bytes(broken)) == outcome(by_pillow, bytes(broken))
    assert 0 < len(handed_over) < rounds
