"""The arithmetic of the loss's torch operations: TF32 and bfloat16 products that an encoder may use do not reach it."""

import threading

import pytest
import torch

from qpt import compat
from qpt.ops.contrastive import backend_torch, loss
from qpt.ops.contrastive.api import contrastive_loss
from qpt.ops.contrastive.arithmetic import float32_products

SETTINGS = {
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "matmul precision high": lambda: torch.set_float32_matmul_precision("high"),
    "matmul precision medium": lambda: torch.set_float32_matmul_precision("medium"),
    "CUDA's own": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "the CPU's own": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "all backends": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


if not compat._matrix_products():  # before torch 2.9
    SETTINGS = {name: setting for name, setting in SETTINGS.items() if name.startswith(("allow", "matmul"))}
FLOAT32 = ["ieee", "ieee"] if compat._matrix_products() else ["highest"]
state = compat.matrix_precisions


@pytest.fixture(autouse=True)
def _restored():
    yield
    for settings in (torch.backends, *compat._matrix_products()) if compat._matrix_products() else ():
        settings.fp32_precision = "none"
    if not compat._matrix_products():
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("setting", SETTINGS)
def test_products_are_float32_and_the_setting_comes_back(setting):
    SETTINGS[setting]()
    before = state()
    assert before != FLOAT32
    with float32_products():
        assert state() == FLOAT32
        with float32_products():
            assert state() == FLOAT32
        assert state() == FLOAT32
    assert state() == before


def test_the_setting_comes_back_after_an_error_and_with_threads_that_overlap():
    torch.set_float32_matmul_precision("high")
    before = state()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with float32_products():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)

    def interrupted() -> None:
        with float32_products():
            thread.start()
            inside.wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert state() == FLOAT32, "the other thread is still inside"
    leave.set()
    thread.join()
    assert state() == before
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("same_rows", [False, True])
@pytest.mark.parametrize("setting", [name for name in ("allow_tf32", "CUDA's own") if name in SETTINGS])
def test_every_product_of_the_loss_is_float32(setting, same_rows, monkeypatch):
    SETTINGS[setting]()
    seen = []

    def watched(name, plain):
        def call(*given, **options):
            seen.append((name, tuple(state())))
            return plain(*given, **options)

        return call

    monkeypatch.setattr(loss, "row_products", watched("row_products", loss.row_products))
    for name in ("lse_forward", "key_gradient", "add_graded"):
        plain = getattr(backend_torch.TorchBackend, name)
        monkeypatch.setattr(backend_torch.TorchBackend, name, watched(name, plain))
    queries, keys = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
    ids, severities = torch.arange(6) // 2, torch.rand(6, 2)
    keys = queries if same_rows else keys
    contrastive_loss(
        queries, keys, query_groups=ids, key_groups=ids, query_severities=severities, key_severities=severities,
        severity_width=0.3, temperature=torch.tensor(0.2, requires_grad=True), backend="torch", exclude_self=same_rows,
    ).backward()  # fmt: skip
    assert {name for name, _ in seen} == {"row_products", "lse_forward", "key_gradient", "add_graded"}
    assert {found for _, found in seen} == {tuple(FLOAT32)}
