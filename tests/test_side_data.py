"""Damaged side data of JPEG 2000 and GIF files costs no pixels; see ``test_cases_images`` for the other formats."""

import io
import struct

import numpy as np
import pytest

from qpt.data.faults import UnreadableError
from qpt.data.images import load_rgb
from tests.test_odd_images import PICTURE, encoded


def jpeg2000(boxes: bytes = b"", *, header: bytes = b"") -> bytes:
    """A JPEG 2000 file with more boxes in front of its codestream, or at the end of its header."""
    content = bytearray(encoded(PICTURE, "JPEG2000"))
    place = content.index(b"jp2c") - 4
    content[place:place] = header + boxes
    start = content.index(b"jp2h") - 4
    content[start : start + 4] = struct.pack(">I", struct.unpack_from(">I", content, start)[0] + len(header))
    return bytes(content)


def box(name: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I4s", 8 + len(body) if length is None else length, name) + body


def codestream(comment_length: int) -> bytes:
    content = bytearray(encoded(PICTURE, "JPEG2000", no_jp2=True, comment="of a camera"))
    place = content.index(b"\xff\x64") + 2
    content[place : place + 2] = struct.pack(">H", comment_length)
    return bytes(content)


def gif(extension: bytes) -> bytes:
    content = encoded(PICTURE.quantize(64), "GIF")
    place = 13 + 3 * 64
    return content[:place] + extension + content[place:]


#: Each beside the file as it would be without the damage.
SIDE_DATA: dict[str, tuple[bytes, bytes]] = {
    **{
        f"JPEG 2000: {name}": (content, jpeg2000())
        for name, content in {
            "a box beyond the end": jpeg2000(box(b"xml ", b"<x/>", 10**9)),
            "a box of no length": jpeg2000(box(b"uuid", b"x" * 30, 3)),
            "a resolution cut short": jpeg2000(header=box(b"res ", box(b"resc", b"12"))),
            "a resolution beyond its box": jpeg2000(header=box(b"res ", b"12", 10**6)),
            "a profile cut short": jpeg2000(header=box(b"colr", b"\2\0\0")),
            "a profile of junk": jpeg2000(header=box(b"colr", b"\2\0\0" + b"junk" * 9)),
        }.items()
    },
    **{
        f"JPEG 2000: a comment of {length} bytes": (codestream(length), encoded(PICTURE, "JPEG2000", no_jp2=True))
        for length in (0, 1, 3, 9, 40, 60_000)
    },
    **{
        f"GIF: {name}": (content, gif(b""))
        for name, content in {
            "a comment longer than it is": gif(b"!\xfe\xffof a camera\0"),
            "a comment shorter than it is": gif(b"!\xfe\x04of a camera! what\0"),
            "a comment with commas, shorter than it is": gif(b"!\xfe\x01one, two, three, four, five\0"),
            "a control block cut short": gif(b"!\xf9\x01\0\0"),
            "a control block without a body": gif(b"!\xf9\x02\1\0\0"),
            "an application's block longer than it is": gif(b"!\xff\xf0NETSCAPE2.0\3\1\0\0\0"),
        }.items()
    },
}


@pytest.mark.parametrize("name", SIDE_DATA)
def test_a_fault_of_side_data_changes_no_pixel(name: str) -> None:
    damaged, whole = SIDE_DATA[name]
    np.testing.assert_array_equal(load_rgb(io.BytesIO(damaged)), load_rgb(io.BytesIO(whole)))


@pytest.mark.parametrize("kind", ["JPEG2000", "GIF"])
def test_pixels_that_are_cut_short_are_no_fault_of_side_data(kind: str) -> None:
    content = encoded(PICTURE, kind)
    for share in (0.3, 0.6):
        with pytest.raises(UnreadableError):
            load_rgb(io.BytesIO(content[: int(share * len(content))]))


def test_a_transparent_gif_stays_transparent_when_its_comment_is_dropped() -> None:
    picture = PICTURE.quantize(64)
    content = encoded(picture, "GIF", transparency=int(np.asarray(picture)[0, 0]))
    place = content.index(b"!\xf9\x04")
    damaged = content[:place] + b"!\xf9\x01\0\0" + content[place:]
    found = load_rgb(io.BytesIO(damaged))
    np.testing.assert_array_equal(found, load_rgb(io.BytesIO(content)))
    assert (found[0, 0] == 255).all()
