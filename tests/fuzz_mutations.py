"""Damage to files that knows their structure: fields of text, chunks and headers, members of archives, nested values.

Called by ``tests/fuzz_readers.py``. Everything is drawn from the generator that is given, so a case is its seed.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

Random = random.Random
Mutation = Callable[[Random, bytes], bytes]

_NUMBERS = [0, -1, 1, 5, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64, 10**30, -(2**63)]
_FLOATS = [math.nan, math.inf, -math.inf, 1e308, 1e-320, -0.0, 0.5, 1e3]
_TEXTS = [
    "",
    " ",
    "nan",
    "None",
    "x" * 3000,
    "\0",
    "../../../etc/passwd",
    "http://127.0.0.1:9/x",
    "resnet50",
    "é\u202e",
    "\ud800",
    "1e999",
    "0x10",
    "1_0",
    "1,5",
    "٣",
    "-",
    "=1+1",
    "true",
    "timm:x",
    "a" * 300 + ".png",
    "#",
]
_BLOBS = [
    b"\0",
    b"\xff",
    b"\r",
    b"\n",
    b'"',
    b",",
    b"%PDF",
    b"PK\x03\x04",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x80\x04",
    b"\xe9",
    b"1e999",
    b"NaN",
    b"-1",
    b"[" * 3000,
    b"{" * 500,
    b"&a [*a]",
    b"!!bool x",
    b"!!timestamp x",
    b"!!float x",
    b"!!python/object/apply:os.system ['true']",
    b"!!binary x",
    b"<<: 1",
    b"9" * 5000,
    b"*x",
    b"? [1]",
]


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """Flip, cut, repeat, move and overwrite bytes, without any idea of what they mean; mostly near the beginning."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not data:
            return bytes(data)
        reach = min(len(data), rng.choice([16, 64, 512, 1 << 30]))
        at, to = sorted((rng.randrange(reach), rng.randrange(len(data) + 1)))
        way = rng.randrange(10)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at] = rng.randrange(256)
        elif way == 2:
            del data[rng.randrange(len(data)) :]
        elif way == 3:
            del data[at : at + rng.choice([1, 2, 4, 16, 300])]
        elif way == 4:
            data[to:to] = data[at : at + rng.choice([1, 4, 64, 4096])]
        elif way == 5:
            data[at:at] = rng.choice(_BLOBS)
        elif way == 6:
            form = rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
            number = rng.choice(_NUMBERS) % 256 ** struct.calcsize(form)
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif way == 7:
            length = rng.choice([1, 4, 32])
            data[at : at + length], data[to : to + length] = data[to : to + length], data[at : at + length]
        elif way == 8:
            data[at : at + rng.choice([4, 64, 1000])] = bytes(rng.choice([4, 64, 1000]))
        else:
            data += rng.choice([data[: rng.randrange(5000)], bytes(rng.randrange(2000))])
    return bytes(data)


def mutate_text(rng: Random, content: bytes) -> bytes:
    """Change lines, fields, numbers and the encoding of a text."""
    way = rng.randrange(9)
    if way < 2:
        return mutate_bytes(rng, content)
    text = content.decode("utf-8", errors="replace")
    lines = text.split("\n")
    line = rng.randrange(len(lines))
    if way == 2:  # a line
        lines[line : line + 1] = rng.choice([[], [lines[line]] * 2, [""], [lines[0]], [lines[line][::-1]]])
    elif way == 3:  # two lines
        other = rng.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    elif way == 4:  # a field
        fields = re.split(r"([,;\t: ])", lines[line])
        value = rng.choice([*_TEXTS, *map(str, _NUMBERS), *map(str, _FLOATS)])
        fields[rng.randrange(len(fields))] = value
        lines[line] = "".join(fields)
    elif way == 5:  # the delimiter
        return text.replace(
            *rng.choice([(",", ";"), (",", "\t"), (",", "|"), (".", ","), ("\n", "\r\n"), ("\n", "\r"), (",", ", ")])
        ).encode(errors="replace")
    elif way == 6:  # a number
        found = list(re.finditer(r"-?\d+(\.\d+)?", text))
        if found:
            where = rng.choice(found)
            value = str(rng.choice([*_NUMBERS, *_FLOATS, *_TEXTS]))
            return (text[: where.start()] + value + text[where.end() :]).encode(errors="surrogatepass")
    elif way == 7:  # the encoding
        encoding = rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037", "utf-7"])
        return rng.choice([text, text.replace("a", "é"), text.upper()]).encode(encoding, errors="replace")
    else:
        lines[line] = lines[line] + rng.choice([*_TEXTS, ",", ",,,,", '"', "\t", " #"])
    return "\n".join(lines).encode(errors="surrogatepass")


def mutate_tree(rng: Random, tree: Any, extra: Sequence[Any] = ()) -> Any:
    """Replace, remove, repeat, swap, rename and nest values of nested dicts and lists; tensors change form too.

    extra: further values to put in place of others.
    """
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places: list[tuple[Any, Any]] = []  # (container, key)
        waiting = [tree]
        while waiting:
            value = waiting.pop()
            keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            places += [(value, key) for key in keys]
            waiting += [value[key] for key in keys]
        if not places:
            return odd_value(rng, extra)
        # As often near the top as anywhere.
        holder, key = rng.choice(places if rng.random() < 0.6 else places[: 1 + len(places) // 8])
        way, value = rng.randrange(8), holder[key]
        if way == 0:
            del holder[key]
        elif way == 1:
            other, place = rng.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                holder[key], other[place] = other[place], holder[key]
        elif way == 2 and isinstance(holder, dict):
            holder[rng.choice(["", "format", 7, None, "x" * 50, f"{key}_"])] = holder.pop(key)
        elif way == 3 and isinstance(holder, list):
            holder += [value] * rng.choice([1, 3, 1000])
        elif way == 4 and isinstance(value, torch.Tensor):
            holder[key] = _other_tensor(rng, value)
        elif way == 5 and isinstance(value, (int, float)):
            holder[key] = rng.choice([-value, value + 1, value * 2, float(value), str(value), value * 10**6])
        elif way == 6:
            holder[key] = rng.choice([[value], {"value": value}, [value, value], str(value)[:100]])
        else:
            holder[key] = odd_value(rng, extra)
    return tree


def odd_value(rng: Random, extra: Sequence[Any] = ()) -> Any:
    """Return a value that is seldom meant: an extreme number, a strange text, something empty or deeply nested."""
    deep: Any = 1
    for _ in range(rng.choice([3, 60, 400])):
        deep = [deep] if rng.random() < 0.5 else {"ops": deep}
    return rng.choice(
        [None, True, False, rng.choice(_NUMBERS), rng.choice(_FLOATS), rng.choice(_TEXTS), [], {}, [[]], deep, *extra]
    )


def _other_tensor(rng: Random, tensor: torch.Tensor) -> torch.Tensor:
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.double(),
        lambda: tensor.to(torch.int8),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.bool(),
        lambda: tensor.flatten()[:0],
        lambda: tensor.flatten().clone(),
        lambda: torch.full_like(tensor.double(), math.nan),
        lambda: tensor.flatten()[:1].clone().expand(1 << 40) if tensor.numel() else tensor,
        lambda: tensor[None].clone(),
        lambda: torch.cat([tensor.flatten()] * 2),
        lambda: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (3,)),
        lambda: tensor.float().to("meta"),
        lambda: tensor.mT if tensor.ndim > 1 else tensor.flip(0),
    ]
    return rng.choice(ways)()


def mutate_zip(inner: Mutation) -> Mutation:
    """Return a mutation of a zip archive: of a member by ``inner``, of the list of members, of the bytes; or a bomb."""

    def mutate(rng: Random, content: bytes) -> bytes:
        way = rng.randrange(8)
        if way == 0:
            return mutate_bytes(rng, content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        place = rng.randrange(len(members))
        name, data = members[place]
        if way == 1:
            members[place : place + 1] = rng.choice([[], [(f"{name}x", data)], [(name, members[0][1])], [(name, b"")]])
        elif way == 2:
            return bomb(name, [member for number, member in enumerate(members) if number != place])
        else:
            members[place] = (name, inner(rng, data))
        out = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if way == 3 else zipfile.ZIP_STORED
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data)
        return out.getvalue()

    return mutate


def bomb(name: str, others: Sequence[tuple[str, bytes]], size: int = 3 << 30) -> bytes:
    """Return a zip archive in which a member of a few megabytes unpacks to ``size`` zeros."""
    packed = _zeros() * (size >> 24) + b"\x03\0"  # an empty last block
    parts, directory, offset = [], [], 0
    for title, data, crc, whole, method in [
        (name.encode(), packed, 0, size, 8),
        *[(title.encode(), data, zlib.crc32(data), len(data), 0) for title, data in others],
    ]:
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(data), whole, len(title), 0)
        parts.append(b"PK\x03\x04" + fields + title + data)
        directory.append(
            b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, offset) + title
        )
        offset += len(parts[-1])
    listing = b"".join(directory)
    end = struct.pack("<HHHHIIH", 0, 0, len(directory), len(directory), len(listing), offset, 0)
    return b"".join(parts) + listing + b"PK\x05\x06" + end


@functools.cache
def _zeros() -> bytes:
    """Return 16 MiB of zeros, deflated to blocks that refer to nothing before them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)


def mutate_npy(rng: Random, content: bytes) -> bytes:
    """Change the header of an ``.npy`` file, which is text, keeping its length; or its bytes."""
    if rng.random() < 0.4 or content[:6] != b"\x93NUMPY":
        return mutate_bytes(rng, content)
    length = struct.unpack_from("<H", content, 8)[0]
    header, data = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    for old, new in rng.sample(
        [
            ("<i4", "<i8"),
            ("<f4", "|O"),
            ("<i8", "<U9"),
            ("|i1", "<M8[s]"),
            ("False", "True"),
            ("False", "open"),
            ("(", "(99999999999, "),
            ("(", "(-1, "),
            ("(", "(0, 4611686018427387904, "),
            ("'descr'", "'x'"),
            (")", ""),
            ("<", ">"),
            ("(", "(((((((("),
            ("<i4", "<i4,<i4"),
            ("|i1", "|V0"),
            ("<f4", "<c8"),
            ("False", "9" * 5000),
        ],
        2,
    ):
        header = header.replace(old, new, 1)
    packed = header.encode("latin-1")
    return content[:8] + struct.pack("<H", len(packed)) + packed + data


def mutate_png(rng: Random, content: bytes) -> bytes:
    """Change chunks of a PNG, with right checksums; or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    chunks, place = [], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    at = rng.randrange(len(chunks))
    name, data = chunks[at]
    way = rng.randrange(5)
    if way == 0:
        chunks[at : at + 1] = rng.choice([[], [chunks[at]] * 2, [(b"IDAT", data)], [(b"IEND", b"")]])
    elif way == 1:
        chunks.insert(
            at,
            (
                rng.choice([b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"acTL", b"gAMA", b"cHRM"]),
                rng.choice([b"", b"x\0\0" + zlib.compress(bytes(1 << 20)), bytes(800), b"II*\0" + bytes(20), data]),
            ),
        )
    elif way == 2:
        other = rng.randrange(len(chunks))
        chunks[at], chunks[other] = chunks[other], chunks[at]
    else:
        chunks[at] = (name, mutate_bytes(rng, data))
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def mutate_tar(rng: Random, content: bytes) -> bytes:
    """Change fields of a header of a tar, with a right checksum; or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    data = bytearray(content)
    headers = [place for place in range(0, len(data) - 512, 512) if data[place + 257 : place + 262] == b"ustar"]
    place = rng.choice(headers)
    fields = {
        "name": (0, 100),
        "mode": (100, 8),
        "size": (124, 12),
        "type": (156, 1),
        "magic": (257, 8),
        "prefix": (345, 155),
    }
    start, length = fields[rng.choice(list(fields))]
    value = rng.choice(
        [
            b"7" * length,
            b"\xff" * length,
            b"\x80" + b"\xff" * (length - 1),
            bytes(length),
            b"-1",
            b"00000000010\0",
            b"x",
            b"L",
            b"g",
            b"S",
            b"5",
            b"1",
            b"../" * 40,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\0",
            b"\xe9.jpg",
            b" " * length,
        ]
    )[:length]
    data[place + start : place + start + len(value)] = value
    if rng.random() < 0.9:
        total = sum(data[place : place + 148]) + 8 * 32 + sum(data[place + 156 : place + 512])
        data[place + 148 : place + 156] = b"%06o\0 " % total
    return bytes(data)


def mutate_safetensors(rng: Random, content: bytes) -> bytes:
    """Change values of a safetensors header; or its bytes."""
    import json

    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(mutate_tree(rng, json.loads(content[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
