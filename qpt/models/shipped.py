"""The file of the encoder and the scorer that come with the package. Called by ``load_encoder`` and ``Scorer.load``.

``python -m experiments model`` writes it. It is a safetensors file of the encoder's state dict and the scorer's
weights; plain data (the recipe, the data, how it was measured) is in its header. Beside it lies its sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qpt.errors import InputError
from qpt.io import write_whole
from qpt.models.names import SHIPPED

FILE = Path(__file__).parent / "shipped" / f"{SHIPPED}.safetensors"
_RECORD = "qpt"  # the key of the plain data in the header
_SCALE = ".scale"  # of a tensor of 8 bits
#: A convolution of 1 x 1 with so many weights is kept in 8 bits: those are nine tenths of the encoder.
_LARGE = 4096


def read_shipped(path: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the encoder's state dict with ``scorer.weights`` beside it, in float32 or better, and the plain data.

    path: None for the file that comes with the package. Raises InputError if the file is missing, cut short or altered.
    """
    remedy = "install qpt again" if path is None else "write it again with `python -m experiments model`"
    path = FILE if path is None else path
    try:
        content, expected = path.read_bytes(), path.with_suffix(".sha256").read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError) as error:
        raise InputError(f"shipped: {path} must be a scorer, with its .sha256, got {error}; {remedy}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(f"shipped: {path} must have sha256 {expected}, got {found} of {len(content)} bytes; {remedy}")
    return unpack(content)


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file's bytes, in float32 or better, and its plain data."""
    try:
        length = int.from_bytes(content[:8], "little")
        plain = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_RECORD])
        packed = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"shipped: the file must be safetensors with the data of a scorer, got {error}") from error
    tensors = {}
    for name, value in packed.items():
        if name.endswith(_SCALE):
            continue
        if value.dtype == torch.int8:
            tensors[name] = value.float() * packed[name + _SCALE][:, None, None, None]
        else:
            tensors[name] = value.float() if value.is_floating_point() and value.dtype != torch.float64 else value
    return tensors, plain


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict as it is read back from a file: with the weights that large convolutions keep in 8 bits."""
    return unpack(_bytes(state, {}))[0]


def write_shipped(path: Path, state: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write the file and beside it its sha256.

    state: the encoder's, and ``scorer.weights``.  plain: of ``Scorer.plain_state``.
    """
    content = _bytes(state, plain)
    write_whole(path, lambda unfinished: unfinished.write_bytes(content))
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    write_whole(path.with_suffix(".sha256"), lambda unfinished: unfinished.write_text(line, encoding="utf-8"))


def _bytes(state: Mapping[str, Tensor], plain: Mapping[str, Any]) -> bytes:
    packed: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if value.ndim == 4 and value.shape[2:] == (1, 1) and value.numel() >= _LARGE:
            # Symmetric, one scale for each output channel: the largest weight becomes 127.
            scale = value.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
            packed[name + _SCALE] = scale
            packed[name] = (value / scale[:, None, None, None]).round().to(torch.int8)
        elif value.ndim == 4:
            packed[name] = value.half()
        else:  # batch norm's numbers span too many powers of ten for 16 bits
            packed[name] = value
    return save(packed, metadata={_RECORD: json.dumps(plain)})
