"""Sound files for the fuzzing of readers, and the ways to damage them, by format. Called by ``tests/fuzz_readers.py``
and ``tests/fuzz_tables.py``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from tests import fuzz_mutations as damage


@dataclass
class Reader:
    """files: sound ones, by name.  mutate: damages one of them.  read: raises InputError, or returns.  others: files
    that lie beside it, untouched."""

    files: dict[str, bytes]
    mutate: damage.Mutation
    read: Callable[[Path], object]
    others: dict[str, bytes] = dataclasses.field(default_factory=dict)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(side: int = 24, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side - 4), Image.Resampling.BICUBIC)


def torch_mutation(change: Callable[[random.Random, Any], Any]) -> damage.Mutation:
    """Return a mutation of what torch.save wrote: of the values, or of the archive."""
    archive = damage.mutate_zip(damage.mutate_bytes)

    def mutate(rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.4:
            return archive(rng, content)
        out = io.BytesIO()
        torch.save(change(rng, torch.load(io.BytesIO(content), weights_only=True)), out)
        return out.getvalue()

    return mutate


def saved(state: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def text_or_tree(load: Callable[[bytes], Any], dump: Callable[[Any], str]) -> damage.Mutation:
    def mutate(rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.4:
            return damage.mutate_text(rng, content)
        return dump(damage.mutate_tree(rng, load(content))).encode(errors="surrogatepass")

    return mutate


def _yaml(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree)
    except RecursionError:
        return "a: " + "[" * 900 + "]" * 900
    except yaml.YAMLError:
        return "{}"


YAML = text_or_tree(yaml.safe_load, _yaml)


JSON = text_or_tree(json.loads, json.dumps)


def by_suffix(ways: dict[str, damage.Mutation]) -> damage.Mutation:
    """Return a mutation that a file's beginning chooses, for a reader of several formats."""
    magic = {b"\x93NUM": ".npy", b"\x80": ".pkl", b"PK": ".pth", b"\x89PNG": ".png"}

    def mutate(rng: random.Random, content: bytes) -> bytes:
        found = next((suffix for start, suffix in magic.items() if content.startswith(start) and suffix in ways), None)
        return ways[found or list(ways)[-1]](rng, content)

    return mutate
