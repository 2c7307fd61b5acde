"""Encoders by name, and from checkpoints or files of weights. Called by pre-training, evaluation and users."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpt.errors import BackendError, InputError, as_integer, check_int
from qpt.models.base import Encoder
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT, load_plain, read_checkpoint, settings_in
from qpt.models.names import NAMED, SHIPPED, check_arch, is_named
from qpt.models.resnet import ARCHITECTURES, ResNet
from qpt.models.two_trunks import TwoTrunks


@torch.inference_mode(False)  # else weights made in inference mode could not be trained outside it
def build_encoder(arch: str = "resnet18", width: int = 64, *, two_trunks: bool = False) -> Encoder:
    """Return a freshly initialised encoder; its weights are drawn from torch's global generator.

    arch: resnet18, resnet34, resnet50, efficientnet_lite0, ``timm:NAME`` or ``torchvision:NAME``.  width: channels of
    the first stage of a resnet, >= 1 (64 is the standard network); 64 for any other.  two_trunks: two of them side by
    side, as a run with ``two_trunks`` saves.
    Raises InputError for a name that is unknown or whose stages cannot be found, BackendError for a missing package.
    """
    if two_trunks:
        return TwoTrunks(build_encoder(arch, width), build_encoder(arch, width))
    width = check_int("build_encoder", "width", width, 1)
    if check_arch("build_encoder", arch, width) in ARCHITECTURES:
        return ResNet(arch, width)
    # Its packages are extras, and importing them takes seconds.
    from qpt.models.backbones import build_backbone

    return build_backbone(arch)


def untrained_encoder(arch: str, width: int, seed: int) -> Encoder:
    """Return an encoder with the initial weights of this seed, in eval mode; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(arch, width).eval()


@torch.inference_mode(False)
def load_encoder(path: str | Path) -> Encoder:
    """Return a pre-trained encoder, in eval mode on the CPU.

    path: ``checkpoint.pt`` of a run or its directory; or the name of an encoder: ``efficientnet_lite0-qpt``, which
    comes with this package, or with the weights of its own ``efficientnet_lite0-imagenet``, ``timm:NAME`` or
    ``torchvision:NAME``. Features: ``encoder(x)`` -> (N,
    feature_dim), or ``encoder.stages(x)``, for x (N, 3, H, W) float normalised with ImageNet mean and standard
    deviation. Raises InputError for another file or name, BackendError for a package that is missing.
    """
    if str(path) == SHIPPED:
        from qpt.models.shipped import read_shipped

        tensors, plain = read_shipped()
        with torch.random.fork_rng(devices=[]):
            encoder = build_encoder(plain["arch"], plain["width"], two_trunks=plain.get("two_trunks", False))
        own = encoder.state_dict()
        encoder.load_state_dict({name: value for name, value in tensors.items() if name in own})
        return encoder.eval()
    if is_named(path):
        from qpt.models.backbones import build_backbone  # its packages are extras

        with torch.random.fork_rng(devices=[]):
            return build_backbone(str(path).removesuffix("-imagenet"), pretrained=True).eval()
    state = read_checkpoint(path)
    try:
        return stored_encoder(settings_in(state), state["encoder"])
    except (KeyError, ValueError) as error:
        raise InputError(f"checkpoint: {path} is damaged ({type(error).__name__}: {error})") from None


def stored_encoder(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Encoder:
    """Return the encoder of a file, in eval mode. settings: with arch, width and perhaps two_trunks.

    Raises KeyError or ValueError where settings and weights do not make an encoder.
    """
    arch, width = settings["arch"], settings["width"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("its encoder must be tensors by name")
    # Before a network is built that would not fit into memory: one tensor has the width of the first stage.
    sides = [side for value in weights.values() for side in value.shape]
    if not isinstance(arch, str) or (as_integer(width) or 0) > max(sides, default=0):
        raise ValueError(f"its encoder cannot be {arch!r:.80} of width {width!r:.80}")
    encoder = build_encoder(arch, width, two_trunks=bool(settings.get("two_trunks", False)))
    try:
        encoder.load_state_dict(dict(weights))
    except (RuntimeError, AttributeError) as error:  # names or shapes of another network
        raise ValueError(" ".join(str(error).split())[:300]) from None
    return encoder.eval()


def load_weights(encoder: Encoder, source: str | Path) -> None:
    """Copy pre-trained weights into an encoder of the same architecture.

    source: as for ``load_encoder``, or a file of a state dict (``torch.save``, or safetensors by its ending) with the
    names of QPT, torchvision, timm or efficientnet-lite-pytorch; entries of the classifier are left out. Of an encoder
    of two trunks a single one takes the tuned trunk. Raises
    InputError if names or shapes are of another architecture.
    """
    if is_named(source) or Path(source).is_dir():
        found: Any = load_encoder(source).state_dict()
    else:
        found = _read_state_dict(Path(source))
    own = encoder.state_dict()
    if not isinstance(encoder, TwoTrunks) and {name.partition(".")[0] for name in found} == {"frozen", "tuned"}:
        # Pre-training goes on with the trunk that was pre-trained.
        found = {name.removeprefix("tuned."): value for name, value in found.items() if name.startswith("tuned.")}
    matched = {name: (encoder.own_name(name, own), value) for name, value in found.items()}
    weights = {name: value for name, value in matched.values() if name in own}
    unexpected = [name for name, (mine, _) in matched.items() if mine not in own and not encoder.is_classifier(name)]
    # Files written before torch 0.4.1 have no counts of batches.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    shapes = [name for name, value in weights.items() if value.shape != own[name].shape]
    reasons = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(reasons.values()):
        listed = "; ".join(
            f"{reason}: {', '.join(map(str, names[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for reason, names in reasons.items()
            if names
        )
        raise InputError(
            f"init: weights must be those of {encoder.arch}, width {encoder.width}, got weights of another "
            f"architecture from {source} ({listed}); arch (--arch) must be theirs"
        )
    encoder.load_state_dict(weights, strict=False)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the encoder of a checkpoint, or a file of a state dict, plain or below ``state_dict`` or ``model``."""
    if not path.is_file():
        raise InputError(
            "init: weights must be a run directory, a checkpoint, a state dict (.pt, .pth, .safetensors) or one of "
            f"{', '.join(NAMED)}, timm:NAME, torchvision:NAME, got {path}"
        )
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise BackendError(f"init: {path} needs the package safetensors; pip install 'qpt[export]'") from error
        try:
            return load_file(str(path))
        except Exception as error:  # safetensors has an exception of its own
            raise InputError(f"init: {path} must be a safetensors file, got: {error}") from error
    state = load_plain("init", path)
    if isinstance(state, dict) and state.get("format") == CHECKPOINT_FORMAT:
        state = state.get("encoder")
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items())
    if not state or not tensors:
        raise InputError(f"init: {path} must hold a state dict (names to tensors), got another file")
    return {name.removeprefix("module."): value for name, value in state.items()}
