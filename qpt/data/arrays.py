"""Reading of ``.npy`` and ``.npz`` files from anywhere, within the memory that their contents take.

Called by whatever reads such a file: programs, splits, the first batch of a run, kept features. NumPy's own reader
allocates what a header asks for before it looks at the data, raises a dozen kinds of exception for a damaged file, and
unpacks as much as a zip archive promises.
"""

from __future__ import annotations

import io
import math
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qpt.data.faults import is_machine_fault

#: Bytes of unpacked arrays that are read from a file that is smaller than this itself.
MOST_UNPACKED_BYTES = 1 << 30


def read_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array of an ``.npy`` file. Raises OSError for one that cannot be opened, ValueError for any other."""
    content = Path(path).read_bytes()
    return _one_error(lambda: _parsed(content))


def read_npz(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the named arrays of an ``.npz`` file; others are not looked at.

    Raises OSError for a file that cannot be opened, and ValueError, in one line, for one that is no such archive, lacks
    an array, is damaged or holds objects of Python.
    """

    def read() -> dict[str, NDArray[Any]]:
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in names if name not in entries]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            chosen = {name: entries[name] for name in names}
            total = sum(info.file_size for info in chosen.values())
            if total > max(MOST_UNPACKED_BYTES, os.fstat(file.fileno()).st_size):
                raise ValueError(f"its arrays take {total:,} bytes")
            return {name: _parsed(archive.read(info)) for name, info in chosen.items()}

    names = list(names)
    with open(path, "rb") as file:
        return _one_error(read)


def _one_error(read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # of zipfile, zlib, struct, tokenize, ast, ...
        if isinstance(error, OSError) and is_machine_fault(error):
            raise
        text = " ".join(str(error).split())
        raise ValueError(text[:200] or type(error).__name__) from error


def _parsed(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):  # the third has names of fields that are no ASCII
        raise ValueError(f"its version must be 1 or 2, got {version[0]}")
    shape, columns_first, dtype = (
        npy.read_array_header_1_0(stream) if version[0] == 1 else npy.read_array_header_2_0(stream)
    )
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError("it holds objects of Python, which may run code" if dtype.hasobject else f"it holds {dtype}")
    start, count = stream.tell(), math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - start:
        raise ValueError(f"its header says {shape} {dtype}, but {len(content) - start:,} bytes follow")
    flat = np.frombuffer(content, dtype, count, start) if count else np.empty(0, dtype)
    if dtype.kind == "U" and count:
        letters = np.frombuffer(content, np.dtype(f"{dtype.byteorder}u4"), offset=start)
        if letters.max() > sys.maxunicode:  # Python cannot make text of it
            raise ValueError("its text has letters that do not exist")
    return flat.reshape(shape, order="F" if columns_first else "C").copy()
