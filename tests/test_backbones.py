"""Encoders of other packages: their stages, their weights, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qpt import InputError, PretrainConfig, load_encoder
from qpt.errors import BackendError
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table
from qpt.models import build_encoder
from qpt.models.encoder import load_weights
from tests.foreign import NETWORKS, stand_in, timm  # noqa: F401
from tests.labelled import write_set

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def sizes(arch: str, height: int, width: int) -> list[tuple[int, ...]]:
    encoder = build_encoder(arch).eval()
    with torch.no_grad():
        maps = encoder.stages(torch.randn(2, 3, height, width))
    assert [each.shape[1] for each in maps] == list(encoder.stage_dims)
    assert encoder.feature_dim == encoder.stage_dims[-1] and encoder.arch == arch and encoder.width == 64
    return [tuple(each.shape[2:]) for each in maps]


def package_stages(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs of EfficientNet-Lite0's blocks 2, 4, 10 and 15, by the package's own modules."""
    x, found = network._swish(network._bn0(network._conv_stem(x))), []
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in (2, 4, 10, 15):
            found.append(x)
    return found


@pytest.mark.parametrize("size", [(224, 224), (97, 130), (33, 64), (5, 1)])
def test_lite0_pads_as_the_package_does_for_any_size(size: tuple[int, int]) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = package.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    encoder = load_encoder("efficientnet_lite0-imagenet")
    assert encoder.stage_dims == (24, 40, 112, 320)
    own = {name.removeprefix("network."): value for name, value in encoder.state_dict().items()}
    assert not reference.load_state_dict(own, strict=False).unexpected_keys
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for mine, theirs in zip(encoder.stages(x), package_stages(reference, x), strict=True):
            assert torch.equal(mine, theirs)


def test_lite0_recomputes_activations_to_the_same_gradient() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    found = []
    for recompute in (False, True):
        encoder = load_encoder("efficientnet_lite0-imagenet").train()
        encoder.activation_checkpointing = recompute
        encoder(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
        found.append([p.grad for p in encoder.parameters()] + list(encoder.buffers()))
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "swin_s3_tiny_224", "test_efficientnet"])
def test_timm_stages_halve_from_a_quarter(timm, name: str) -> None:  # noqa: F811
    coarse = sizes(f"timm:{name}", 64, 96)
    assert coarse == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_tokens_of_timm_are_maps_of_any_size(timm) -> None:  # noqa: F811
    assert set(sizes("timm:test_vit", 50, 70)) == {(4, 5)}


def test_timm_weights_load_under_their_own_names(timm, tmp_path: Path) -> None:  # noqa: F811
    from safetensors.torch import save_file

    for name in ("test_resnet", "test_convnext", "test_vit"):
        whole = timm.create_model(name)  # with its classifier
        save_file(whole.state_dict(), str(tmp_path / "w.safetensors"))
        encoder = build_encoder(f"timm:{name}").eval()
        load_weights(encoder, tmp_path / "w.safetensors")
        x = torch.randn(1, 3, 160, 160)
        with torch.no_grad():
            last = whole.eval().forward_intermediates(x, norm=False, intermediates_only=True)[-1]
            torch.testing.assert_close(encoder.stages(x)[-1], last)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet", [(16, 24), (8, 12), (4, 6), (2, 3)]),
        ("convnext", [(16, 24), (8, 12), (4, 6), (2, 3)]),
        ("swin", [(16, 24), (8, 12), (4, 6)]),
        ("vit", [(8, 12)] * 4),
    ],
)
def test_torchvision_stages(stand_in, name: str, expected: list[tuple[int, int]]) -> None:  # noqa: F811
    assert sizes(f"torchvision:{name}", 64, 96) == expected


@pytest.mark.parametrize("name", ["resnet", "convnext", "swin", "vit"])
def test_torchvision_weights_load_under_their_own_names(stand_in, tmp_path: Path, name: str) -> None:  # noqa: F811
    whole = NETWORKS[name]()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    encoder = build_encoder(f"torchvision:{name}")
    load_weights(encoder, tmp_path / "w.pth")
    own = encoder.state_dict()
    assert all(
        torch.equal(own[f"network.{key}"], value)
        for key, value in whole.state_dict().items()
        if f"network.{key}" in own
    )
    load_weights(encoder, f"torchvision:{name}")
    again = load_encoder(f"torchvision:{name}").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in encoder.state_dict().items())


def test_positions_of_a_vit_are_those_of_the_package_at_its_own_size(stand_in) -> None:  # noqa: F811
    encoder = load_encoder("torchvision:vit")
    network, x = encoder.network, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = network.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([network.class_token.expand(2, -1, -1), tokens], 1) + network.encoder.pos_embedding
        expected = network.encoder.layers(tokens)[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4)
        torch.testing.assert_close(encoder.stages(x)[-1], expected)


def test_a_state_dict_of_a_classifier_starts_a_resnet(tmp_path: Path) -> None:
    source = build_encoder("resnet18", 8)
    state = {f"module.{name}": value for name, value in source.state_dict().items() if "num_batches" not in name}
    torch.save({"state_dict": state | {"module.fc.weight": torch.zeros(3, 64)}}, tmp_path / "w.pt")
    encoder = build_encoder("resnet18", 8)
    load_weights(encoder, tmp_path / "w.pt")
    assert torch.equal(encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


@pytest.mark.parametrize(("arch", "width"), [("resnet34", 8), ("resnet18", 4), ("resnet50", 8)])
def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path: Path, arch: str, width: int) -> None:
    torch.save(build_encoder(arch, width).state_dict(), tmp_path / "w.pt")
    encoder = build_encoder("resnet18", 8)
    before = encoder.conv1.weight.clone()
    with pytest.raises(InputError, match=r"weights of another architecture from .*w\.pt .*(layer|conv1)") as caught:
        load_weights(encoder, tmp_path / "w.pt")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert torch.equal(encoder.conv1.weight, before)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    encoder = build_encoder("resnet18", 4)
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    for name, match in (("list.pt", "state dict"), ("w.safetensors", "safetensors"), ("gone.pt", "timm:NAME")):
        with pytest.raises(InputError, match=match):
            load_weights(encoder, tmp_path / name)


@pytest.mark.parametrize(
    ("arch", "match"),
    [
        ("torchvision:nothing", "name a network of torchvision"),
        ("torchvision:one", "two stages"),
        ("torchvision:unknown", "stages can be found"),
    ],
)
def test_networks_that_are_refused(stand_in, arch: str, match: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=match):
        build_encoder(arch)


def test_timm_networks_that_are_refused(timm) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"name a network of timm .*got timm:nothing"):
        build_encoder("timm:nothing")
    with pytest.raises(InputError, match="size that timm:mixer_s32_224 takes, got 64 x 64"):
        build_encoder("timm:mixer_s32_224").stages(torch.zeros(1, 3, 64, 64))


def test_images_smaller_than_the_stride(stand_in) -> None:  # noqa: F811
    with pytest.raises(InputError, match="sides of 32 px or more for torchvision:convnext, got 31 x 64"):
        build_encoder("torchvision:convnext")(torch.zeros(1, 3, 31, 64))


def test_activation_checkpointing_of_unknown_blocks(stand_in) -> None:  # noqa: F811
    with pytest.raises(InputError, match="activation_checkpointing must be false"):
        build_encoder("torchvision:convnext").activation_checkpointing = True


@pytest.mark.parametrize(
    ("arch", "module", "command"),
    [
        ("efficientnet_lite0", "efficientnet_lite_pytorch", r"qpt\[imagenet\]"),
        ("timm:resnet18", "timm", r"qpt\[timm\]"),
        ("torchvision:resnet18", "torchvision", "pip install torchvision"),
    ],
)
def test_a_missing_package_names_the_command(monkeypatch, arch: str, module: str, command: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=command):
        build_encoder(arch)


@pytest.mark.parametrize("arch", ["vgg16", "timm:", "timm:a/b", "torchvision", "resnet18:x"])
def test_names_of_no_form(arch: str) -> None:
    with pytest.raises(InputError, match="arch must be one of resnet18"):
        PretrainConfig("photos", "out", arch=arch)


def test_width_is_a_setting_of_resnets_alone() -> None:
    with pytest.raises(InputError, match="width must be 64 for timm:resnet18"):
        PretrainConfig("photos", "out", arch="timm:resnet18", width=32)
    assert PretrainConfig("photos", "out", arch="timm:resnet18").width == 64


def test_a_scorer_of_a_foreign_encoder_loads_by_name(stand_in, tmp_path: Path) -> None:  # noqa: F811
    table = read_table(write_set(tmp_path, levels=2))
    scorer = Scorer.fit(load_encoder("torchvision:convnext"), table, quiet=True)
    scorer.save(tmp_path / "scorer.pt")
    again, pixels = Scorer.load(tmp_path / "scorer.pt"), np.zeros((128, 140, 3), np.uint8)
    assert again.encoder.arch == "torchvision:convnext" and again(pixels) == scorer(pixels)
