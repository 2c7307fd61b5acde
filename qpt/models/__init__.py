"""Encoders, their checkpoints, and the projection head."""

from qpt.models.base import Encoder
from qpt.models.encoder import build_encoder, load_encoder, load_weights
from qpt.models.heads import projection_head
from qpt.models.resnet import ARCHITECTURES, ResNet

__all__ = ["ARCHITECTURES", "Encoder", "ResNet", "build_encoder", "load_encoder", "load_weights", "projection_head"]
