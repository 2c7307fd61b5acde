"""Torch's defaults belong to the caller: under any of them the library gives the same bytes, on the same device."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import qpt
from qpt.evaluate.finetune import FineTuning, fine_tune
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table
from qpt.models import build_encoder
from qpt.models.encoder import untrained_encoder
from qpt.models.heads import projection_head
from qpt.ops.contrastive.api import contrastive_loss_with_stats
from tests.labelled import image_regions, write_set

PACKAGE = Path(qpt.__file__).parent
FACTORIES = {
    *("arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand"),
    *("randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
}
LAYERS = {
    name for name in dir(nn) if name.startswith(("Conv", "BatchNorm", "Linear", "Embedding", "LayerNorm", "GroupNorm"))
}


def test_every_call_that_makes_a_tensor_names_its_dtype_and_its_device() -> None:
    missing = []
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, named = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
            makes = called.removeprefix("torch.") in FACTORIES and called.startswith("torch.")
            makes |= called.removeprefix("nn.") in LAYERS and called.startswith("nn.")
            if makes and not (named >= {"dtype", "device"} or None in named):  # None: **keywords
                missing.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {called}")
    assert not missing


@pytest.fixture(params=["float64", "float16", "bfloat16", "meta"])
def default(request):
    """One default of torch, as long as a test runs; networks and reference values are made before it is set."""

    def set_default():
        if request.param == "meta":  # stands for "cuda": nothing that is made there has values
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield set_default
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def _rows(seed: int, n: int = 70, dim: int = 48) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32, device="cpu")
    return F.normalize(rows, dim=1)


def _losses() -> dict[str, torch.Tensor]:
    found = {}
    ids = torch.arange(70, dtype=torch.int64, device="cpu") // 2
    pool = qpt.NegativePool(2048, 48)
    for step in range(8):
        pool.push(_rows(100 + step), pool.new_groups(70))
    cases = {
        "nt_xent": lambda q, k: qpt.nt_xent(q, k),
        "sharp": lambda q, k: qpt.nt_xent(q, k, temperature=0.01),
        "supcon": lambda q, k: qpt.supcon(q, ids) + k.sum() * 0,
        "moco": lambda q, k: qpt.info_nce(q, k, pool),
        "pool": lambda q, k: qpt.contrastive_loss(q, k, query_groups=ids, key_groups=ids, pool=pool),
        "torch": lambda q, k: qpt.nt_xent(q, k, backend="torch"),
        "weights": lambda q, k: (
            contrastive_loss_with_stats(
                q,
                k,
                query_groups=ids,
                key_groups=ids,
                query_images=ids // 3,
                key_images=ids // 3,
                same_image_weight=0.3,
            ).loss
        ),
    }
    for name, loss in cases.items():
        q, k = _rows(1).requires_grad_(), _rows(2).requires_grad_()
        value = loss(q, k)
        value.backward()
        found |= {name: value.detach(), f"{name}, queries": q.grad, f"{name}, keys": k.grad}
    module = qpt.QualityContrastiveLoss(learn_temperature=True)
    module(_rows(1), _rows(2), query_groups=ids, key_groups=ids).backward()
    return {**found, "temperature": module.log_temperature.grad}


def _degraded() -> dict[str, torch.Tensor]:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 64, 72, 3), np.uint8))
    torch.manual_seed(3)
    space = qpt.DegradationSpace.preset("qpt")
    program = qpt.Program.concat([space.sample(4, views=2), space.every_level(1, seed=1)[:6]])
    boxes = torch.tensor([[[3, 4], [20, 9]]] * 14, dtype=torch.int32, device="cpu")
    found = {"images": qpt.degrade(images, program, threads=2), "params": program.select(range(3)).params}
    for dtype in (torch.float32, torch.float16, torch.uint8):
        found[str(dtype)] = qpt.degrade_patches(images, program, boxes, 32, dtype=dtype)
    return found


def _networks() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    networks = {
        "resnet18": build_encoder("resnet18", 8),
        "resnet50": build_encoder("resnet50", 4),
        "head": projection_head(8, 4),
    }
    return {
        f"{kind} {name}": value for kind, network in networks.items() for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("results", [_losses, _degraded, _networks])
def test_results_are_the_same_under_every_default(results, default) -> None:
    before = results()
    default()
    after = results()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].device.type == "cpu" and after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("default", ["float64", "meta"], indirect=True)
def test_scorers_and_fine_tuning_are_the_same_under_every_default(default, tmp_path) -> None:
    table = read_table(write_set(tmp_path / "set", levels=2))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8)
    rows = [np.arange(0, 8), np.arange(8, 10), np.arange(10, 12)]

    def results() -> list[object]:
        encoder = untrained_encoder("resnet18", 8, 0)
        scorer = Scorer.fit(encoder, table, quiet=True)
        scorer.save(tmp_path / "scorer.pt")
        loaded = Scorer.load(tmp_path / "scorer.pt")
        metric = loaded.as_metric()(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(torch.float32) / 255)
        config = FineTuning(epochs=2, batch=4, crop_px=32)
        parts = dict(zip(("train", "val", "test"), rows, strict=True))
        predicted, _ = fine_tune(encoder, lambda row: pixels, table.mos, **parts, config=config, seed=(0,))
        return [scorer(pixels), loaded(pixels), metric.item(), predicted.tolist()]

    before = results()
    default()
    assert results() == before


@pytest.mark.parametrize("default", ["float64", "meta"], indirect=True)
def test_pre_training_is_the_same_under_every_default(default, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    for name, pixels in image_regions().items():
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")

    def run(name: str) -> dict[str, torch.Tensor]:
        config = qpt.PretrainConfig(
            data=str(tmp_path / "photos"), out=str(tmp_path / name), arch="resnet18", width=4, mode="moco",
            pool_size=64, patch_size=32, batch_images=4, steps=2, optimizer="adamw",
            tensorboard=False, page=False, threads=1,
        )  # fmt: skip
        qpt.pretrain(config)
        return qpt.load_encoder(tmp_path / name).state_dict()

    before = run("before")
    default()
    after = run("after")
    assert all(torch.equal(after[name], value) for name, value in before.items())
