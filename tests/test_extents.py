"""The entry points of qpt._C refuse a buffer that is shorter than what they would read or write."""

import inspect

import numpy as np
import pytest
import torch

import qpt
from qpt.ops import extension
from qpt.ops.contrastive import backend_cpp
from qpt.ops.degrade import cpu
from tests.programs import sample, smooth_images

ROWS = torch.nn.functional.normalize(torch.randn(70, 48, generator=torch.Generator().manual_seed(0)), dim=1)


def _degrade() -> None:
    qpt.degrade(smooth_images(2, 40, 44), sample(2, views=2, seed=8), threads=2)


def _patches() -> None:
    boxes = torch.zeros((4, 2, 2), dtype=torch.int32)
    qpt.degrade_patches(smooth_images(2, 40, 44), sample(2, views=2, seed=8), boxes, 32)


def _losses() -> None:
    ids = torch.arange(70) // 2
    pool = qpt.NegativePool(5000, 48)
    for step in range(60):
        pool.push(ROWS + 0.01 * step, pool.new_groups(70))
    kwargs = {"query_groups": ids, "key_groups": ids, "query_images": ids // 2, "key_images": ids // 2}
    q, k = ROWS.clone().requires_grad_(), ROWS.flip(0).requires_grad_()
    qpt.contrastive_loss(q, k, **kwargs, pool=pool, same_image_weight=0.5).backward()
    levels = torch.rand((70, 3), generator=torch.Generator().manual_seed(1))
    graded = {"query_severities": levels, "key_severities": levels.flip(0), "severity_width": 0.5}
    qpt.contrastive_loss(q, k, **kwargs, **graded, same_image_weight=0.0).backward()
    qpt.supcon(q, ids, temperature=0.5).backward()
    qpt.supcon(q, ids, temperature=0.001).backward()
    qpt.contrastive_loss(q, q, query_groups=ids, key_groups=ids, exclude_self=True, pool=pool).backward()


def _shortened(value: object, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], object]]:
    """Return every form of an argument in which one buffer, an (address, bytes) pair, is cut in half."""
    if isinstance(value, (tuple, list)):
        if len(value) == 2 and all(type(part) is int for part in value) and value[0] > 1 << 20:
            return [(path, (value[0], value[1] // 2))]
        forms = []
        for place, part in enumerate(value):
            for inner, short in _shortened(part, (*path, place)):
                forms.append((inner, type(value)([*value[:place], short, *value[place + 1 :]])))
        return forms
    return []


class _Recorder:
    """The extension, whose calls with buffers are made again with each buffer shortened in turn."""

    def __init__(self) -> None:
        self.native, self.refused = extension.load(), {}

    def __getattr__(self, name: str):
        function = getattr(self.native, name)

        def call(*arguments, **named):
            places = [*enumerate(arguments), *named.items()]
            for place, value in places:
                for path, short in _shortened(value):
                    args = [short if place == index else given for index, given in enumerate(arguments)]
                    with pytest.raises(ValueError, match=r"^qpt\._C: .* must "):
                        function(*args, **{**named, **({place: short} if place in named else {})})
                    self.refused.setdefault(name, set()).add((place, *path))
            return function(*arguments, **named)

        return call


@pytest.mark.parametrize("work", [_degrade, _patches, _losses])
def test_every_buffer_that_is_too_short_is_refused(work, monkeypatch) -> None:
    recorder = _Recorder()
    monkeypatch.setattr(extension, "load", lambda: recorder)
    work()
    refused = recorder.refused
    if work is _losses:
        assert {"contrastive_forward", "contrastive_pass", "contrastive_self", "contrastive_positives"} <= set(refused)
        assert len(refused["contrastive_pass"]) >= 9
        assert len(refused["contrastive_graded"]) == 10
    else:
        buffers = {"images", "out", "ops", "params", "seeds", "source", "order", "scratch"}
        windows = {"windows", "boxes", "lut"} if work is _patches else set()
        assert {place for place, *_ in refused["degrade"]} == buffers | windows


@pytest.mark.parametrize("bad", [2, -1])
def test_numbers_that_become_addresses_are_in_range(bad, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "costly_first", lambda *_: torch.tensor([0, 1, 2, bad * 7], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"qpt\._C: order must be in 0\.\.3"):
        _degrade()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, dtype=torch.float32, device="meta"),
        torch.zeros((4, 4), dtype=torch.float32).T[:, :2],
    ],
)
def test_a_buffer_states_its_dtype_and_device(tensor) -> None:
    with pytest.raises(TypeError, match=r"qpt\._C: a buffer must be"):
        extension.buffer(tensor, torch.float32)


def test_no_other_code_passes_addresses() -> None:
    """One function makes buffers of tensors; rows with strides are measured beside their own address."""
    for module in (cpu, backend_cpp):
        lines = inspect.getsource(module).splitlines()
        assert [line for line in lines if "data_ptr" in line and "reach" not in line] == []


def test_numpy_rows_behind_tensors_are_measured() -> None:
    rows = torch.from_numpy(np.ones((6, 8), np.float32))[:, 2:6]
    assert torch.isfinite(qpt.nt_xent(rows[:3], rows[3:]))
