"""Decode a region of a JPEG alone, with nvImageCodec (the extra "regions"; on the CPU, no GPU is needed).

Called by ``qpt.data.images``. Its decoder is libjpeg-turbo like Pillow's, and the pixels are the same: rows above the
region are only entropy-decoded, those below it not at all. On a 12-megapixel file that takes a third of the time.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXTENSIONS = "NVIMGCODEC_EXTENSIONS_PATH"  # the folder whose decoders nvImageCodec loads
_VERBOSITY = "PYNVIMGCODEC_VERBOSITY"
_CPU_ONLY = -99999  # NVIMGCODEC_DEVICE_CPU_ONLY, which its Python module does not name
_LARGEST_SHARE = 0.5  # of an image's pixels: for more than that, decoding all is as fast
_own = threading.local()


@functools.cache  # asked for every image; the search goes through all folders of modules
def available() -> bool:
    """Return True if nvImageCodec is installed."""
    try:
        return find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:  # no package nvidia at all
        return False


def is_whole(data: bytes) -> bool:
    """Return True if a JPEG file has its end, so that a region of it is not read from a file that is cut short."""
    return data.rstrip(b"\0")[-2:] == b"\xff\xd9"


def decode_region(data: bytes, size: tuple[int, int], box: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
    """Return the (left, top, right, bottom) box of a JPEG as (h, w, 3) uint8 RGB; None where all must be decoded.

    size: (width, height) of the image as Pillow read them. Damage outside of the box is not noticed.
    """
    left, top, right, bottom = box
    width, height = size
    if (right - left) * (bottom - top) > _LARGEST_SHARE * width * height:
        return None
    codec, decoder = _decoder()
    stream = codec.CodeStream(data)
    if (stream.width, stream.height) != size:
        return None
    region = stream.get_sub_code_stream(region=codec.Region(top, left, bottom, right))
    found = decoder.decode(region, params=codec.DecodeParams(apply_exif_orientation=False))
    if found is None:
        return None
    pixels = np.asarray(found.cpu())
    return pixels if pixels.shape == (bottom - top, right - left, 3) else None


def _decoder() -> tuple[Any, Any]:
    """Return the module and this thread's decoder, made anew in a process that was forked."""
    if getattr(_own, "process", None) != os.getpid():
        codec = _load()
        backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
        _own.decoder = codec, codec.Decoder(device_id=_CPU_ONLY, max_num_cpu_threads=1, backends=backends)
        _own.process = os.getpid()
    own: tuple[Any, Any] = _own.decoder
    return own


def _load() -> Any:
    """Import nvImageCodec with its JPEG decoder for the CPU alone; the others print that they want CUDA libraries."""
    spec = find_spec("nvidia.nvimgcodec")
    assert spec is not None and spec.origin is not None
    with tempfile.TemporaryDirectory() as folder:
        for library in (Path(spec.origin).parent / "extensions").glob("libjpeg_turbo_ext*"):
            (Path(folder) / library.name).symlink_to(library)
        before = {name: os.environ.get(name) for name in (_EXTENSIONS, _VERBOSITY)}
        os.environ.update({_EXTENSIONS: folder, _VERBOSITY: "0"})
        try:
            from nvidia import nvimgcodec

            nvimgcodec.Decoder(device_id=_CPU_ONLY)  # the first one loads the folder
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
    return nvimgcodec
