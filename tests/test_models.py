"""Encoders: torchvision's names and sizes, feature shapes, and checkpoints that are refused."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from qpt import InputError, load_encoder
from qpt.models import build_encoder, projection_head
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT

# Parameters of torchvision's models without `fc` (its published totals less 512·1000+1000 or 2048·1000+1000).
PARAMETERS = {"resnet18": 11_689_512 - 513_000, "resnet34": 21_797_672 - 513_000, "resnet50": 25_557_032 - 2_049_000}


def torchvision_names(depths: tuple[int, ...], convolutions: int) -> set[str]:
    """Return state-dict keys as torchvision builds them, written from its documentation's model listing."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight"} | {f"bn1.{each}" for each in norm}
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            base = f"layer{stage}.{block}"
            for index in range(1, convolutions + 1):
                names |= {f"{base}.conv{index}.weight"} | {f"{base}.bn{index}.{each}" for each in norm}
            if block == 0 and (stage > 1 or convolutions == 3):
                names |= {f"{base}.downsample.0.weight"} | {f"{base}.downsample.1.{each}" for each in norm}
    return names


@pytest.mark.parametrize(
    ("arch", "depths", "convolutions", "dims"),
    [
        ("resnet18", (2, 2, 2, 2), 2, (64, 128, 256, 512)),
        ("resnet34", (3, 4, 6, 3), 2, (64, 128, 256, 512)),
        ("resnet50", (3, 4, 6, 3), 3, (256, 512, 1024, 2048)),
    ],
)
def test_names_sizes_and_shapes(arch: str, depths: tuple[int, ...], convolutions: int, dims: tuple[int, ...]) -> None:
    encoder = build_encoder(arch).eval()
    assert set(encoder.state_dict()) == torchvision_names(depths, convolutions)
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[arch]
    assert encoder.stage_dims == dims and encoder.feature_dim == dims[-1]
    with torch.no_grad():
        maps = encoder.stages(torch.zeros(1, 3, 65, 33))
        assert [tuple(each.shape) for each in maps] == [
            (1, dim, -(-65 // (4 << i)), -(-33 // (4 << i))) for i, dim in enumerate(dims)
        ]
        torch.testing.assert_close(encoder(torch.zeros(1, 3, 65, 33)), maps[-1].mean((2, 3)))
    assert encoder.layer2[0].conv2.stride == ((2, 2) if convolutions == 3 else (1, 1))


def test_one_pixel_is_an_image() -> None:
    encoder = build_encoder("resnet18", width=4).eval()
    assert encoder(torch.zeros(2, 3, 1, 1)).shape == (2, 32)


def test_width_scales_every_stage() -> None:
    assert build_encoder("resnet50", width=8).stage_dims == (32, 64, 128, 256)


def test_projection_head() -> None:
    assert projection_head(32, 16)(torch.zeros(5, 32)).shape == (5, 16)


@pytest.mark.parametrize(("arch", "width", "named"), [("vgg", 64, "arch"), ("resnet18", 0, "width")])
def test_bad_arguments(arch: str, width: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        build_encoder(arch, width)


def checkpoint(path: Path) -> nn.Module:
    encoder = build_encoder("resnet18", width=4)
    config = {"arch": "resnet18", "width": 4}
    torch.save({"format": CHECKPOINT_FORMAT, "config": config, "encoder": encoder.state_dict()}, path)
    return encoder


def test_load_encoder(tmp_path: Path) -> None:
    saved = checkpoint(tmp_path / "checkpoint.pt")
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        loaded = load_encoder(path)
        assert not loaded.training
        for name, value in saved.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_checkpoints_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole.pt"
    checkpoint(whole)
    (tmp_path / "truncated.pt").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"encoder": {}}, tmp_path / "other.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"format": CHECKPOINT_FORMAT, "encoder": Exploit()}))
    torch.save({"format": CHECKPOINT_FORMAT, "encoder": Exploit()}, tmp_path / "code_zip.pt")
    capsys.readouterr()
    for name in ("truncated", "text", "empty", "other", "code", "code_zip", "absent"):
        with pytest.raises(InputError, match="checkpoint"):
            load_encoder(tmp_path / f"{name}.pt")
    assert "code ran" not in capsys.readouterr().out
