"""Variables of MATLAB files of versions 5 to 7: arrays of numbers and of text, and cells of these.

Called by ``qpt.data.tabular``, which says what is wrong with a file. On damaged files SciPy's reader ends the process
with a segmentation fault, so only version 4, which it reads in Python, is left to it. The format is MathWorks'
"MAT-File Format", chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes that a file may unpack to; the largest one of a data set has a tenth.
MOST_UNPACKED_BYTES = 128 << 20
_MOST_NESTED = 8  # cells within cells

# Numbers of the types of stored data, and of the classes of arrays.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_ENCODINGS = {16: "utf-8", 17: "utf-16", 18: "utf-32", 2: "latin-1", 1: "latin-1", 4: "utf-16", 3: "utf-16"}
_MATRIX, _COMPRESSED, _CELL, _CHAR, _COMPLEX = 14, 15, 1, 4, 0x0800


def is_version_5(content: bytes) -> bool:
    """Return whether the bytes begin as a MATLAB file of version 5 to 7."""
    return len(content) >= 128 and content[126:128] in (b"IM", b"MI") and 0 not in content[:4]


def read_variables(content: bytes, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the named variables that the bytes of a file of version 5 to 7 hold, of the shapes that SciPy gives them.

    A char array is an array of strings, without its last axis; a cell is an array of arrays, dtype object. Raises
    ValueError or struct.error for damage, and for a named variable of another kind.
    """
    order, found, unpacked = "<" if content[126:128] == b"IM" else ">", {}, 0
    place = 128
    while place + 8 <= len(content):
        kind, data, place = _element(content, place, order)
        if kind == _COMPRESSED:
            packed, unpacker = data, zlib.decompressobj()
            data = unpacker.decompress(packed, MOST_UNPACKED_BYTES + 1 - unpacked)
            unpacked += len(data)
            if unpacked > MOST_UNPACKED_BYTES:
                raise ValueError(f"it must unpack to at most {MOST_UNPACKED_BYTES:,} bytes")
            kind, data, _ = _element(data, 0, order)
        if kind == _MATRIX:
            name, array = _array(data, order, set(names), 0)
            if array is not None:
                found[name] = array
    return found


def _element(content: bytes, place: int, order: str) -> tuple[int, bytes, int]:
    """Return the type and the data of the element at a place, and the place of the next."""
    word, length = struct.unpack_from(order + "II", content, place)
    if word >> 16:  # up to four bytes, stored in the tag itself
        kind, length, start, following = word & 0xFFFF, word >> 16, place + 4, place + 8
        if length > 4:
            raise ValueError(f"an element of {length} bytes must not be a small one")
    else:
        kind, start = word, place + 8
        following = start + length + (0 if kind == _COMPRESSED else -length % 8)
    if start + length > len(content):
        raise ValueError(f"it ends {start + length - len(content):,} bytes too early")
    return kind, content[start : start + length], following


def _array(content: bytes, order: str, wanted: set[str] | None, depth: int) -> tuple[str, NDArray[Any] | None]:
    """Return the name and the values of an array; None for one that is not wanted. wanted: None for all."""
    _, flags, place = _element(content, 0, order)
    _, sizes, place = _element(content, place, order)
    _, name_bytes, place = _element(content, place, order)
    name = name_bytes.decode("latin-1")
    if wanted is not None and name not in wanted:
        return name, None
    (flag,) = struct.unpack_from(order + "I", flags)
    shape = np.frombuffer(sizes, np.dtype(order + "i4")).tolist()
    count, kind = math.prod(shape), flag & 0xFF
    if len(shape) < 2 or min(shape) < 0 or count > len(content):  # a value takes a byte, a cell more
        raise ValueError(f"an array of shape {tuple(shape)} does not fit into {len(content):,} bytes")
    if kind == _CELL and depth < _MOST_NESTED:
        cells = np.empty(count, object)
        for index in range(count):
            _, data, place = _element(content, place, order)
            cells[index] = _array(data, order, None, depth + 1)[1] if data else np.empty((0, 0))
        return name, cells.reshape(shape, order="F")
    if kind == _CHAR:
        stored, data, _ = _element(content, place, order) if count else (16, b"", 0)
        encoding = _ENCODINGS[stored]
        if encoding in ("utf-16", "utf-32"):  # without a mark
            encoding += "-le" if order == "<" else "-be"
        letters = list(data.decode(encoding))
        if len(letters) != count:
            raise ValueError(f"a text of {count} letters must not have {len(letters)}")
        rows = np.array(letters, dtype="U1").reshape(shape, order="F").reshape(math.prod(shape[:-1]), shape[-1])
        return name, np.array(["".join(row) for row in rows], dtype=str).reshape(shape[:-1])
    if kind not in _CLASSES or flag & _COMPLEX:
        raise ValueError(f"the variable {name!r:.80} must be of real numbers, text or cells of these")
    stored, data, _ = _element(content, place, order)
    values = np.frombuffer(data, np.dtype(order + _STORED[stored]))
    if len(values) != count:
        raise ValueError(f"an array of shape {tuple(shape)} must not have {len(values)} values")
    return name, values.astype(_CLASSES[kind]).reshape(shape, order="F")
