"""GPUs by name and their memory, for ``qpt plan``. The figures and their sources are in ``gpus.yaml``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from qpt.errors import InputError, hint
from qpt.io import read_yaml

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Gpu:
    """name: as in ``gpus.yaml``, or "24 GiB".  memory_bytes: as the driver reports it.  multiprocessors: as many blocks
    of the degradation kernel run at a time, each with its scratch."""

    name: str
    memory_bytes: int
    multiprocessors: int
    source: str


@functools.cache
def known_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of ``gpus.yaml``, smallest memory first."""
    rows = read_yaml(Path(__file__).parent / "gpus.yaml")
    gpus = (Gpu(row["name"], row["memory_mib"] * MIB, row["multiprocessors"], row["source"]) for row in rows)
    return tuple(sorted(gpus, key=lambda gpu: gpu.memory_bytes))


def find_gpu(text: str) -> Gpu:
    """Find a GPU by its name, in any letter case, or make one of a number of GiB, with as many multiprocessors as the
    largest known one. Raises InputError, which lists the names."""
    for gpu in known_gpus():
        if gpu.name.lower() == text.lower():
            return gpu
    names = [gpu.name for gpu in known_gpus()]
    try:
        gib = float(text)
    except ValueError:
        near = hint(text.upper(), names, most=3)
        more = "" if near.startswith("known") else f" Known: {', '.join(names)}."
        raise InputError(f"plan: GPU must be a known name or a number of GiB, got {text!r}; {near}.{more}") from None
    if not 0 < gib < 2**20:
        raise InputError(f"plan: GPU must be a known name or a positive number of GiB, got {text!r}")
    most = max(gpu.multiprocessors for gpu in known_gpus())
    return Gpu(f"{gib:g} GiB", int(gib * GIB), most, "given")
