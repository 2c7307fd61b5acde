"""The weather pack: definitions of ImageNet-C on cases that can be worked out, and what every op of it keeps."""

import numpy as np
import pytest
import torch

from qpt import BackendError, InputError
from qpt.degradations.weather import WEATHER, degrade_weather, plasma, streaked

NAMES = [row.name for row in WEATHER]
OPENCV = pytest.importorskip("cv2")


def images(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 20), (64, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_at_any_level(name: str, size: tuple[int, int]) -> None:
    before = images(*size)
    given = before.clone()
    for level in range(1, 6):
        found = degrade_weather(before, name, level, seed=3)
        assert found.shape == before.shape and found.dtype == torch.uint8
        assert torch.equal(found, degrade_weather(before, name, level, seed=3))
        assert torch.equal(found[:1], degrade_weather(before[:1], name, level, seed=3))  # whatever else is in the batch
    assert torch.equal(before, given)
    assert degrade_weather(before[:0], name, 1).shape == (0, *size, 3)
    swapped = before.transpose(1, 2)
    assert torch.equal(degrade_weather(swapped, name, 2), degrade_weather(swapped.contiguous(), name, 2))


@pytest.mark.parametrize("name", NAMES)
def test_levels_and_seeds_differ(name: str) -> None:
    before = images(96, 96, 1) // 2 + 32
    found = [degrade_weather(before, name, level) for level in range(1, 6)]
    errors = [float((image.double() - before.double()).square().mean()) for image in found]
    assert errors[0] > 1 and errors[-1] > errors[0]
    assert not torch.equal(found[2], degrade_weather(before, name, 3, seed=1))


def test_plasma_is_a_fractal() -> None:
    """Its range is 0 to 1, and a smaller decay leaves more of the fine steps."""
    rough = []
    for decay in (1.4, 2.0):
        field = plasma(256, 256, decay, np.random.default_rng(0))
        assert field.min() == 0 and field.max() == 1
        rough.append(float(np.abs(np.diff(field, axis=0)).mean()))
    assert rough[0] > 2 * rough[1]
    assert plasma(100, 200, 2.0, np.random.default_rng(0)).shape == (100, 200)


def test_plasma_of_four_points() -> None:
    """With the numbers that the generator gives: the middle of the square, then those of its edges."""
    rng = np.random.default_rng(5)
    noise = [100 * float(rng.uniform(-100, 100, (1, 1))[0, 0]) for _ in range(3)]
    edges = [(2 * noise[0]) / 4 + noise[1], (2 * noise[0]) / 4 + noise[2]]
    expected = np.array([[0.0, edges[0]], [edges[1], noise[0]]])
    expected = (expected - expected.min()) / (expected - expected.min()).max()
    np.testing.assert_allclose(plasma(2, 2, 2.0, np.random.default_rng(5)), expected, rtol=1e-12)


def test_streaks_go_one_way() -> None:
    """A point becomes half a Gaussian; its weights sum to 1."""
    point = np.zeros((41, 41))
    point[20, 20] = 1
    fallen = streaked(point, 5, 3.0, -90)
    weights = np.exp(-(np.arange(11) ** 2) / 18.0)
    np.testing.assert_allclose(fallen[20:31, 20], weights / weights.sum())
    assert fallen.sum() == pytest.approx(1) and np.count_nonzero(fallen) == 11


def test_fog_keeps_the_brightest_value() -> None:
    """Fog turns a flat image x into x (x + d f) / (x + d), which is x where the fractal f is 1."""
    flat = torch.full((1, 64, 64, 3), 100, dtype=torch.uint8)
    found = degrade_weather(flat, "fog", 1).double()
    assert found.max() == 100
    assert abs(float(found.min()) - 255 * (100 / 255) ** 2 / (100 / 255 + 1.5)) <= 1


def test_frost_and_snow_brighten_black_and_spatter_is_in_its_colours() -> None:
    black = torch.zeros((1, 128, 128, 3), dtype=torch.uint8)
    assert degrade_weather(black, "frost", 3).double().mean() > 10
    snow = degrade_weather(black, "snow", 1)
    assert snow.min() >= round(255 * 0.2 * 0.5) - 1  # (1 - share) of the half that is added to grey
    grey = torch.full((1, 128, 128, 3), 128, dtype=torch.uint8)
    water, mud = degrade_weather(grey, "spatter", 2), degrade_weather(grey, "spatter", 5)
    assert (water >= grey).all() and (water != grey).any()
    wet = mud[(mud != grey).any(-1)].double().mean(0)
    assert wet[0] > wet[1] > wet[2]  # brown


def test_rows_have_five_levels_each() -> None:
    for row in WEATHER:
        assert all(len(parameter.levels) == 5 for parameter in row.parameters)
        assert row.source and row.doc.endswith(".")


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    before = images(8, 8)
    with pytest.raises(InputError, match="op must be one of the pack, got 'fogg'; did you mean fog"):
        degrade_weather(before, "fogg", 1)
    with pytest.raises(InputError, match=r"level must be an integer in 1\.\.5, got 6"):
        degrade_weather(before, "fog", 6)
    with pytest.raises(InputError, match=r"images must be \(B, H, W, 3\) uint8"):
        degrade_weather(before.float(), "fog", 1)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(BackendError, match=r"pip install 'qpt\[weather\]'"):
        degrade_weather(before, "spatter", 1)
