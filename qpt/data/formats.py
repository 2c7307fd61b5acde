"""The image formats that are opened, and how a fault in side data is kept away from the pixels.

Called by ``qpt.data.images`` alone. Pillow's decoders are called one by one: ``Image.open`` would try all of its own,
some of which start other programs, and its limit on pixels is one setting for the whole process.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import IO

from PIL import Image, ImageFile

from qpt.data.faults import UnreadableError, is_machine_fault

#: Format -> first bytes as a pattern, the module and the class of Pillow's decoder. A file of several pictures (MPO, of
#: phones) begins as a JPEG and is opened as one.
FORMATS = {
    "JPEG": (rb"\xff\xd8\xff", "JpegImagePlugin", "JpegImageFile"),
    "PNG": (rb"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile"),
    "TIFF": (rb"II\*\0|MM\0\*|MM\*\0|II\0\*|MM\0\+|II\+\0", "TiffImagePlugin", "TiffImageFile"),
    "WEBP": (rb"RIFF....WEBP", "WebPImagePlugin", "WebPImageFile"),
    "GIF": (rb"GIF8[79]a", "GifImagePlugin", "GifImageFile"),
    "BMP": (rb"BM", "BmpImagePlugin", "BmpImageFile"),
    "PPM": (rb"P[1-6f][\s#]", "PpmImagePlugin", "PpmImageFile"),
    "AVIF": (rb"....ftyp(avif|avis|mif1|msf1)", "AvifImagePlugin", "AvifImageFile"),
    "JPEG 2000": (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", "Jpeg2KImagePlugin", "Jpeg2KImageFile"),
}
#: Other formats that are met under an image's name, so that an error can name them.
_FOREIGN = {
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "PSD": rb"8BPS",
    "HEIC": rb"....ftyphe",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
    "SVG": rb"\s*(<\?xml.*)?<svg",
    "a web page": rb"\s*<(!doctype html|html)",
    "ICO": rb"\0\0[\x01\x02]\0[^\0]",
    "WMF": rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF",
    "an archive": rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!",
}
_PREFIX_BYTES = 64
_READ_BYTES = 4 << 20  # given to a decoder at a time: with Pillow's own 64 KiB it stops and resumes in most files


def open_format(stream: IO[bytes], filename: str) -> ImageFile.ImageFile:
    """Read the header of an image file in one of ``FORMATS``, whatever Pillow's own limit on pixels.

    filename: of a stream that is a file on disk, else "". Raises UnreadableError for a file of no such format, and
    whatever Pillow raises for a damaged one.
    """
    stream.seek(0)
    prefix = stream.read(_PREFIX_BYTES)
    for pattern, module, name in FORMATS.values():
        if re.match(pattern, prefix, re.DOTALL):
            decoder = getattr(import_module(f"PIL.{module}"), name)
            break
    else:
        foreign = (name for name, pattern in _FOREIGN.items() if re.match(pattern, prefix, re.DOTALL | re.IGNORECASE))
        name = next(foreign, "")
        if not prefix:
            raise UnreadableError("not an image: an empty file")
        raise UnreadableError(f"not a photograph: {name}" if name else "not an image")
    stream.seek(0)
    try:
        opened = decoder(stream, filename)
    except Exception as error:
        return _without_side_data(stream, error, decoder)
    opened.decodermaxblock = _READ_BYTES
    return opened


def load_pixels(opened: Image.Image) -> Image.Image:
    """Decode the pixels; returns ``opened``, or another image of the same file where its side data are at fault."""
    stream = opened.fp if isinstance(opened, ImageFile.ImageFile) else None
    try:
        opened.load()
    except Exception as error:
        if stream is None or not isinstance(opened, ImageFile.ImageFile):
            raise
        return _without_side_data(stream, error, type(opened), opened.size)
    return opened


def _without_side_data(
    stream: IO[bytes],
    error: Exception,
    decoder: Callable[..., ImageFile.ImageFile],
    size: tuple[int, int] | None = None,
) -> ImageFile.ImageFile:
    """Open a file again, without side data, that ``decoder`` refused with ``error``; raise that if it is no help.

    size: if not None, of the picture, whose pixels are decoded too.
    """
    if is_machine_fault(error):
        raise error
    stream.seek(0)
    content = stream.read()  # of a disk that fails this raises an OSError with its errno, where libtiff gave none
    for reduced in _reduced(content):
        try:
            opened = decoder(io.BytesIO(reduced), "")
            opened.decodermaxblock = _READ_BYTES
            # Larger: a JPEG at its full size, not the draft's. Smaller: a GIF of which a comment was read as a picture.
            fits = size is None or (opened.width <= size[0] and opened.height <= size[1])
            if size is not None and fits:
                opened.load()
        except Exception as again:
            if is_machine_fault(again):
                raise
        else:
            if fits:
                return opened
    raise error


def _reduced(content: bytes) -> Iterator[bytes]:
    """Yield the file without text and the like, then without its colour profile, then without its orientation too.

    Nothing is yielded for a format without side data that Pillow reads, and for what is too damaged to be taken apart.
    """
    reduce = next((way for magic, way in _REDUCE.items() if content.startswith(magic)), None)
    if reduce is None:
        return
    for kept in ("exif", "icc"), ("exif",), ():
        try:
            reduced = reduce(content, kept)
        except (struct.error, IndexError, ValueError):  # cut short between two chunks
            return
        yield reduced


def _reduced_png(content: bytes, kept: Sequence[str]) -> bytes:
    names = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", *(_PNG_CHUNK[each] for each in kept)}
    parts, place = [content[:8]], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        if content[place + 4 : place + 8] in names:
            parts.append(content[place : place + 12 + length])
        place += 12 + length
    return b"".join(parts)


def _reduced_jpeg(content: bytes, kept: Sequence[str]) -> bytes:
    # APP0 and APP14 say how the samples are coded; every other APP segment, and comments (0xFE), are side data.
    dropped = {*range(0xE1, 0xF0), 0xFE} - {0xEE, *(_JPEG_SEGMENT[each] for each in kept)}
    parts, place = [content[:2]], 2
    while content[place + 1] != 0xDA:  # start of scan: entropy-coded data from here on
        marker, length = struct.unpack_from(">xBH", content, place)
        if marker not in dropped:
            parts.append(content[place : place + 2 + length])
        place += 2 + length
    return b"".join([*parts, content[place:]])


def _reduced_webp(content: bytes, kept: Sequence[str]) -> bytes:
    dropped = {b"XMP ", *(chunk for name, (chunk, _) in _WEBP_CHUNK.items() if name not in kept)}
    parts, place = [], 12
    while place + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        chunk = bytearray(content[place : place + 8 + length + length % 2])
        if name == b"VP8X":
            chunk[8] &= ~(0x04 | sum(flag for each, (_, flag) in _WEBP_CHUNK.items() if each not in kept))
        if name not in dropped:
            parts.append(chunk)
        place += len(chunk)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _reduced_avif(content: bytes, kept: Sequence[str]) -> bytes:
    # An item of a type that nobody knows is passed over; the bytes of the EXIF stay where they are.
    return content if kept else re.sub(rb"(infe.{8})Exif", rb"\1skip", content, flags=re.DOTALL)


def _reduced_tiff(content: bytes, kept: Sequence[str]) -> bytes:
    """Keep the tags of the first picture that say how its pixels are stored."""
    order = "<" if content.startswith(b"II") else ">"
    big = b"+" in content[2:4]
    count_form, entry_bytes = ("Q", 20) if big else ("H", 12)
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_form, content, first)
    start = first + struct.calcsize(count_form)
    tags = _TIFF_PIXEL_TAGS | {_TIFF_TAG[each] for each in kept}
    entries = [content[place : place + entry_bytes] for place in range(start, start + count * entry_bytes, entry_bytes)]
    entries = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in tags]
    table = struct.pack(order + count_form, len(entries)) + b"".join(entries) + bytes(8)  # no next picture
    return content[:first] + table + content[first + len(table) :]


def _reduced_gif(content: bytes, kept: Sequence[str]) -> bytes:
    """Keep the first picture and what says which of its colours is transparent, wherever extensions before it end."""
    palette = (3 << (content[10] & 7) + 1) if content[10] & 0x80 else 0
    width, height = struct.unpack_from("<HH", content, 6)
    place = start = 13 + palette
    while True:
        place = content.index(b",", place)
        left, top, columns, rows, flags = struct.unpack_from("<HHHHB", content, place + 1)
        inside = columns and rows and left + columns <= width and top + rows <= height
        if inside and not flags & 0x18:  # reserved bits
            break
        place += 1
    control = (
        content[place - 8 : place] if re.match(rb"!\xf9\x04.{4}\0", content[place - 8 : place], re.DOTALL) else b""
    )
    return content[:start] + (control if kept else b"") + content[place:]


def _reduced_jpeg2000(content: bytes, kept: Sequence[str]) -> bytes:
    """Keep the codestream without its comments, and the boxes that say what its components are."""
    if content.startswith(b"\xff\x4f"):
        return _reduced_codestream(content)
    boxes, place = [], content.index(b"ihdr", content.index(b"jp2h")) - 4
    while re.match(rb"ihdr|bpcc|colr|pclr|cmap|cdef|res ", content[place + 4 : place + 8]):
        (length,) = struct.unpack_from(">I", content, place)
        box, name = content[place : place + length], content[place + 4 : place + 8]
        profile = name == b"colr" and (len(box) < 15 or box[8] != 1)  # and not the number of a colour space
        if name != b"res " and not (profile and "icc" not in kept):
            boxes.append(box)
        place += max(8, length)
    start = content.index(b"jp2c\xff\x4f\xff\x51") + 4
    header = struct.pack(">I4s", 8 + sum(map(len, boxes)), b"jp2h") + b"".join(boxes)
    codestream = b"\0\0\0\0jp2c" + _reduced_codestream(content[start:])  # length 0: up to the end of the file
    return content[:12] + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + header + codestream


def _reduced_codestream(content: bytes) -> bytes:
    parts, place = [content[:2]], 2
    while content[place + 1] != 0x90:  # start of a tile
        marker, length = struct.unpack_from(">xBH", content, place)
        end = place + 2 + length
        if marker != 0x64:
            parts.append(content[place:end])
        elif length < 2 or content[end : end + 1] != b"\xff":  # a comment that does not end where it says
            end = content.index(b"\xff\x90\0\x0a", place)
        place = end
    return b"".join([*parts, content[place:]])


_PNG_CHUNK = {"exif": b"eXIf", "icc": b"iCCP"}
_JPEG_SEGMENT = {"exif": 0xE1, "icc": 0xE2}
_WEBP_CHUNK = {"exif": (b"EXIF", 0x08), "icc": (b"ICCP", 0x20)}  # and its flag in the header
_TIFF_TAG = {"exif": 274, "icc": 34675}  # of EXIF only the orientation
_TIFF_PIXEL_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326), *range(338, 342)}
    | {330, 332, 347, *range(512, 522), *range(529, 533)}
)
_REDUCE: dict[bytes, Callable[[bytes, Sequence[str]], bytes]] = {
    b"\x89PNG": _reduced_png,
    b"\xff\xd8": _reduced_jpeg,
    b"RIFF": _reduced_webp,
    b"GIF": _reduced_gif,
    b"\xff\x4f": _reduced_jpeg2000,
    b"\0\0\0\x0cjP": _reduced_jpeg2000,
    b"\0\0\0": _reduced_avif,
    b"II": _reduced_tiff,
    b"MM": _reduced_tiff,
}
