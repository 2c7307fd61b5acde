"""Encoders and scorers as state dict, safetensors and ONNX.

Called by ``qpt export``; it writes the files. Packages of ``pip install 'qpt[export]'`` are imported when first used.
``docs/export.md`` documents the ONNX graph and its inputs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpt import compat
from qpt.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from qpt.errors import BackendError, InputError
from qpt.evaluate.features import DEFINITION, SCALES, FeatureProtocol
from qpt.evaluate.image_crops import check_pixels, crop_grid, scaled_images
from qpt.evaluate.scorer import Scorer
from qpt.models import Encoder

if TYPE_CHECKING:
    from qpt.evaluate.calibration import LogisticCalibration

#: Largest difference between ONNX and PyTorch scores that is still exported, as a share of the range of the labels.
ONNX_TOLERANCE = 1e-4


def export_state_dict(encoder: Encoder, path: Path) -> None:
    """Write the encoder's weights as ``torch.save`` of a plain state dict, float32, torchvision's names.

    A network of another package has its names, after ``network.``. A resnet of width 64 loads unchanged into
    torchvision's and timm's ResNet of the same name without its classifier:
    ``model.fc = torch.nn.Identity()``, or ``timm.create_model("resnet50", num_classes=0)``; then ``strict=True`` holds.
    """
    torch.save(_weights(encoder), path)


def export_safetensors(encoder: Encoder, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the same tensors as one safetensors file with arch and width in its metadata."""
    save_file = _need("safetensors.torch").save_file
    about = {"format": "pt", "arch": encoder.arch, "width": str(encoder.width), **(metadata or {})}
    save_file(_weights(encoder), str(path), metadata=about)


def export_head(scorer: Scorer, path: Path) -> None:
    """Write a scorer's head as safetensors: weight (d,) and bias (1,), float64; read-out and scale are metadata."""
    save_file = _need("safetensors.torch").save_file
    about = {
        "read_out": asdict(scorer.read_out),
        "protocol": asdict(scorer.protocol),
        "calibration": None if scorer.calibration is None else asdict(scorer.calibration),
        "mos_min": scorer.mos_min,
        "mos_max": scorer.mos_max,
        "features": DEFINITION,
    }
    tensors = {
        "weight": torch.from_numpy(scorer.weights),
        "bias": torch.tensor([scorer.intercept], dtype=torch.float64, device="cpu"),
    }
    save_file(tensors, str(path), metadata={name: json.dumps(value) for name, value in about.items()})


class ScorerGraph(nn.Module):
    """The module exported to ONNX: the crops of one image at two or three scales in, its score and features out.

    full: (n, h, w, 3) uint8 RGB, the crops at full scale.  half, quarter: likewise at these scales, with numbers of
    crops and sizes of their own; quarter is there if the read-out takes three scales. See ``crop_inputs``. Returns
    score (1,) float32 and features (scales, 2 statistics, sum(stage_dims)) float32.
    The head is float64 up to the last step, as in ``Scorer``.
    """

    weights: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.encoder = scorer.encoder
        self.intercept = scorer.intercept
        self.calibration: LogisticCalibration | None = scorer.calibration
        coefficients = scorer.read_out.coefficients(scorer.weights, self.encoder.stage_dims)
        self.register_buffer("weights", torch.from_numpy(coefficients))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device="cpu").view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD, dtype=torch.float32, device="cpu").view(1, 3, 1, 1))

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scales = (full, half) if quarter is None else (full, half, quarter)
        features = torch.stack([self._moments(crops) for crops in scales])
        score = (features.double() * self.weights).sum().reshape(1) + self.intercept
        if self.calibration is not None:
            low, high, centre, width = (float(value) for value in asdict(self.calibration).values())
            score = low + (high - low) * torch.sigmoid((score - centre) / width)
        return score.float(), features

    def _moments(self, crops: Tensor) -> Tensor:
        """Return mean and standard deviation over the positions of all crops: (2, sum(stage_dims)) float32."""
        x = (crops.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std
        means, deviations = [], []
        for stage in self.encoder.stages(x):
            positions = stage.transpose(0, 1).flatten(1)
            mean = positions.mean(1)
            means.append(mean)
            deviations.append((positions - mean[:, None]).square().mean(1).sqrt())
        return torch.stack([torch.cat(means), torch.cat(deviations)])


def crop_inputs(
    pixels: NDArray[np.uint8], protocol: FeatureProtocol, scales: int = 2, min_side: int = 1
) -> dict[str, NDArray[np.uint8]]:
    """Return the inputs ``full``, ``half`` and, of 3 scales, ``quarter`` of the ONNX graph for an (H, W, 3) image.

    min_side: smallest side that the scorer's encoder takes, px (``Encoder.min_side``).
    """
    images = zip(SCALES, scaled_images(check_pixels(pixels), scales, min_side), strict=False)
    return {name: crop_grid(scaled, side=protocol.crop_px, count=protocol.crops) for name, scaled in images}


def export_onnx(scorer: Scorer, path: Path) -> float:
    """Write the scorer as ONNX (opset 18, every extent of the inputs dynamic) and compare it with PyTorch.

    Returns the largest difference of scores over synthetic images of several sizes, as a share of the range of the
    labels. Raises InputError if it is above ``ONNX_TOLERANCE`` by more than the rounding of the score to float32
    (the file is removed), BackendError if a package is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _need(name)
    graph = ScorerGraph(scorer).eval()
    example = {
        name: torch.randint(0, 256, shape, dtype=torch.uint8, device="cpu")
        for name, shape in list(_EXAMPLE.items())[: scorer.read_out.scales]
    }
    smallest = max(16, scorer.encoder.min_side)
    dynamic = {
        name: {0: (f"{name}_crops", 1), 1: (f"{name}_height", smallest), 2: (f"{name}_width", smallest)}
        for name in example
    }
    compat.write_onnx(graph, example, path, outputs=["score", "features"], dynamic=dynamic)
    images = _synthetic_images()
    difference = compare_onnx(scorer, path, images)
    # The graph's score is float32: labels of 50.0001 to 50.0009 are only some hundred of its steps apart.
    largest = max(abs(scorer.mos_min), abs(scorer.mos_max), *(abs(scorer(pixels)) for pixels in images))
    allowed = ONNX_TOLERANCE + float(np.spacing(np.float32(largest))) / (scorer.mos_max - scorer.mos_min)
    if not difference <= allowed:
        path.unlink()
        raise InputError(
            f"export: ONNX scores must agree with PyTorch's to {allowed:.3g} of the range of the labels, "
            f"got {difference:.3g}"
        )
    return difference


_EXAMPLE = {"full": (2, 96, 128, 3), "half": (3, 64, 80, 3), "quarter": (4, 48, 112, 3)}


def compare_onnx(scorer: Scorer, path: Path, images: Sequence[NDArray[np.uint8]]) -> float:
    """Return the largest |ONNX - PyTorch| score over images, as a share of the range of the labels."""
    session = _need("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for pixels in images:
        inputs = crop_inputs(pixels, scorer.protocol, scorer.read_out.scales, scorer.encoder.min_side)
        differences.append(abs(float(session.run(["score"], inputs)[0][0]) - scorer(pixels)))
    return max(differences) / (scorer.mos_max - scorer.mos_min)


def _synthetic_images() -> list[NDArray[np.uint8]]:
    """Return smooth colours under noise of several strengths, some seen whole and one through crops."""
    rng = np.random.default_rng(0)
    images = []
    for height, width, noise in ((64, 96, 0.0), (33, 40, 20.0), (200, 160, 5.0), (400, 4000, 30.0)):
        y, x = np.mgrid[:height, :width]
        smooth = np.stack([127 + 100 * np.sin(y / 17 + c) * np.cos(x / (11 + 9 * c)) for c in range(3)], axis=2)
        noisy = smooth + rng.normal(0, noise, smooth.shape)
        images.append(np.rint(np.clip(noisy, 0, 255)).astype(np.uint8))
    return images


def _weights(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().clone() for name, value in encoder.state_dict().items()}


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise BackendError(
            f"export: this format needs the package {package}, which cannot be imported ({error}); "
            "pip install 'qpt[export]'"
        ) from error
