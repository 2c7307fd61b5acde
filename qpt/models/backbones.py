"""Encoders made of networks of other packages."""

from __future__ import annotations

from qpt.errors import InputError
from qpt.models.base import Encoder


def build_backbone(arch: str) -> Encoder:
    raise InputError(f"build_encoder: arch must be a known network, got {arch!r}")
