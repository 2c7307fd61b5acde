"""Agreement metrics against their definitions, written out here without SciPy's coefficients."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpt.errors import InputError
from qpt.evaluate.logistic import logistic
from qpt.evaluate.metrics import METRICS, measure

COEFFICIENTS = ("srcc", "plcc_raw", "plcc_logistic", "krcc")


def pearson(x, y):
    x, y = np.asarray(x, float) - np.mean(x), np.asarray(y, float) - np.mean(y)
    return (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())


def average_ranks(x):
    """Return rank 1 + number of smaller values, plus half the number of other equal values."""
    x = np.asarray(x)
    return np.array([1 + (x < v).sum() + ((x == v).sum() - 1) / 2 for v in x])


def tau_b(x, y):
    """Return (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)."""
    i, j = np.triu_indices(len(x), 1)
    a, b = np.sign(np.subtract(np.take(x, i), np.take(x, j))), np.sign(np.subtract(np.take(y, i), np.take(y, j)))
    return (a * b).sum() / np.sqrt((a != 0).sum() * (b != 0).sum())


def plcc_logistic(x, y):
    return measure(x, y)["plcc_logistic"]


@st.composite
def pairs(draw):
    """Draw two lists of small integers, so that ties are frequent; neither constant."""
    size = draw(st.integers(5, 30))
    values = st.lists(st.integers(-6, 6), min_size=size, max_size=size).filter(lambda v: len(set(v)) > 1)
    return draw(values), draw(values)


@given(pairs())
def test_coefficients_equal_their_definitions_with_ties(pair):
    x, y = pair
    found = measure(x, y)
    assert tuple(found) == METRICS
    assert found["srcc"] == pytest.approx(pearson(average_ranks(x), average_ranks(y)), abs=1e-12)
    assert found["plcc_raw"] == pytest.approx(pearson(x, y), abs=1e-12)
    assert found["krcc"] == pytest.approx(tau_b(x, y), abs=1e-12)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(np.subtract(x, y) ** 2)))


def test_hand_computed_case():
    """Predictions 1 2 3 4, MOS 1 3 2 4: one of six pairs is discordant; sum of squared rank differences is 2."""
    found = measure([1, 2, 3, 4], [1, 3, 2, 4])
    assert found["srcc"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["krcc"] == pytest.approx((5 - 1) / 6)
    assert found["rmse"] == pytest.approx(np.sqrt(0.5))


@given(pairs(), st.floats(0.1, 50), st.floats(-100, 100))
def test_scale_of_predictions_does_not_matter(pair, factor, shift):
    x, y = np.array(pair[0], float), np.array(pair[1], float)
    before, after = measure(x, y), measure(x * factor + shift, y)
    for name in ("srcc", "krcc", "plcc_raw"):
        assert after[name] == pytest.approx(before[name], abs=1e-6), name


def test_logistic_straightens_a_saturating_scale():
    x = np.linspace(-3, 3, 60)
    y = logistic(x, 80.0, 20.0, 0.4, 0.5)
    found = measure(x, y)
    assert found["plcc_raw"] < 0.97
    assert found["plcc_logistic"] == pytest.approx(1.0, abs=1e-6)


def test_logistic_is_at_least_as_good_as_a_line_and_follows_its_sign():
    generator = np.random.default_rng(3)
    for noise in (0.1, 1.0, 3.0):
        x = generator.normal(size=80)
        y = 50 + 10 * x + 10 * noise * generator.normal(size=80)
        raw = measure(x, y)["plcc_raw"]
        assert plcc_logistic(x, y) >= raw - 1e-3
        # Turning the predictions round must not be rewarded: the curve may fall, the figure then is negative.
        assert plcc_logistic(-x, y) == pytest.approx(-plcc_logistic(x, y), abs=1e-3)


def test_logistic_fit_is_least_squares():
    """No other curve on a grid of centres and widths (ends solved exactly) has a higher correlation."""
    generator = np.random.default_rng(8)
    x = generator.normal(size=60)
    y = logistic(x, 5, 1, 0.3, 0.6) + 0.3 * generator.normal(size=60)
    curves = [logistic(x, 1, 0, b3, b4) for b3 in np.linspace(-2, 2, 41) for b4 in np.geomspace(0.05, 5, 40)]
    best = max(pearson(curve, y) for curve in curves)
    assert best - 1e-6 <= plcc_logistic(x, y) <= best + 0.01


@pytest.mark.parametrize("constant", ["predictions", "mos", "rounding"])
def test_constant_values_give_nan_and_no_warning(constant):
    x, y = np.arange(8.0), np.arange(8.0) ** 2
    if constant == "predictions":
        x = np.full(8, 3.3)
    elif constant == "mos":
        y = np.full(8, 3.3)
    else:
        x = 7.0 + 1e-14 * np.arange(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(x, y)
    assert all(np.isnan(found[name]) for name in COEFFICIENTS)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))


def test_two_images_and_four_images_are_too_few_for_the_logistic_only():
    found = measure([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 5.0, 9.0])
    assert np.isnan(found["plcc_logistic"])
    assert found["srcc"] == pytest.approx(1.0) and found["krcc"] == pytest.approx(1.0)
    assert measure([1.0, 2.0], [5.0, 3.0])["srcc"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("predictions", "mos", "words"),
    [
        ([1.0], [1.0], "n >= 2"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "shapes"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "shapes"),
        ([1.0, np.nan], [1.0, 2.0], "predictions must be finite"),
        ([1.0, 2.0], [1.0, np.inf], "mos must be finite"),
    ],
)
def test_bad_input(predictions, mos, words):
    with pytest.raises(InputError, match=words):
        measure(predictions, mos)
