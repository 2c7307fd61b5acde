"""The noise ops' distributions: chi-square against the rounded, clipped distribution on flat grey, covariances, and the
samplers of scikit-image and SciPy. Seeds are fixed, so a p-value is a fact and not a chance.

What number each element gets is compared with the NumPy definitions in test_ops.py.
"""

import numpy as np
import pytest
import scipy.stats
import skimage.util

from qpt.degradations import DEGRADATIONS, LEVELS, NAMES
from tests.engine import run_one
from tests.reference.noise import FROM_YCBCR

SIDE = 128  # 16,384 pixels
GREYS = (12, 128, 240)


def flat(grey: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), grey, np.uint8)


def normal_levels(mean: float, std: float) -> np.ndarray:
    """Probability of each of the 256 values of rint(clip(mean + std n, 0, 255))."""
    edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
    return np.diff(scipy.stats.norm.cdf(edges, mean, std))


def poisson_levels(grey: int, peak: float) -> np.ndarray:
    """Probability of each value of rint(clip(255 k / peak, 0, 255)), k Poisson."""
    count = np.arange(int(peak + 20 * np.sqrt(peak)) + 50)
    value = np.clip(np.rint(count * 255 / peak), 0, 255).astype(int)
    return np.bincount(value, scipy.stats.poisson.pmf(count, peak * grey / 255), minlength=256)


def impulse_levels(grey: int, density: float) -> np.ndarray:
    shares = np.zeros(256)
    shares[[0, 255, grey]] = density / 2, density / 2, 1 - density
    return shares


def p_value(values: np.ndarray, shares: np.ndarray) -> float:
    """Chi-square of values in 0..255 against `shares`, rare values pooled until 8 are expected in each group."""
    expected, observed = shares * values.size, np.bincount(values.ravel(), minlength=256)
    assert observed[expected < 1e-12 * values.size].sum() == 0
    order = np.argsort(-expected, kind="stable")
    groups = np.minimum(np.arange(256), np.count_nonzero(expected >= 8) - 1)
    pooled = [np.bincount(groups, counts[order]) for counts in (observed, expected)]
    # the rare values all joined the least likely group
    pooled[1] *= pooled[0].sum() / pooled[1].sum()
    return 1.0 if len(pooled[0]) == 1 else scipy.stats.chisquare(*pooled).pvalue


EXPECTED = {
    "gaussian_noise": normal_levels,
    "gaussian_noise_grey": normal_levels,
    "speckle_noise": lambda grey, std: normal_levels(grey, grey * std),
    "impulse_noise": impulse_levels,
    "poisson_noise": poisson_levels,
}


@pytest.mark.rung("reference")
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("grey", GREYS)
@pytest.mark.parametrize("name", EXPECTED)
def test_distribution_on_flat_grey(name, grey, level):
    (value,) = DEGRADATIONS[NAMES.index(name)].parameters[0].alternatives(level)
    out = run_one(flat(grey), name, value, seed=level)
    samples = out[..., 0] if name == "gaussian_noise_grey" else out
    assert p_value(samples, EXPECTED[name](grey, value)) > 1e-3


def test_the_test_notices_another_spread():
    out = run_one(flat(128), "gaussian_noise", 14.6, seed=3)
    assert p_value(out, normal_levels(128, 14.0)) < 1e-3


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("grey", GREYS)
def test_ycbcr_noise_has_the_marginals_and_covariance_of_its_matrix(grey, level):
    (std,) = DEGRADATIONS[NAMES.index("gaussian_noise_ycbcr")].parameters[0].alternatives(level)
    out = run_one(flat(grey), "gaussian_noise_ycbcr", std, seed=level)
    covariance = std**2 * FROM_YCBCR @ FROM_YCBCR.T
    for channel in range(3):
        assert p_value(out[..., channel], normal_levels(grey, np.sqrt(covariance[channel, channel]))) > 1e-3
    if grey == 128:  # nothing clips
        measured = np.cov(out.reshape(-1, 3).T)
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs((measured - covariance) / scale).max() < 5 * np.sqrt(2) / SIDE


VALUES = [("speckle_noise", 0.141), ("impulse_noise", 0.06), ("poisson_noise", 60.0)]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_same_distribution_as_the_library_s_sampler(name, value):
    """A Kolmogorov-Smirnov test of two samples; jitter breaks the ties of whole levels."""
    grey = 100
    rng = np.random.default_rng(4)
    theirs = {
        "speckle_noise": lambda x: skimage.util.random_noise(x / 255, "speckle", rng=rng, var=value**2) * 255,
        "impulse_noise": lambda x: skimage.util.random_noise(x / 255, "s&p", rng=rng, amount=value) * 255,
        "poisson_noise": lambda x: np.clip(rng.poisson(value * x / 255) * 255 / value, 0, 255),
    }[name](flat(grey))
    ours = run_one(flat(grey), name, value, seed=9)
    smooth = [np.rint(x).ravel() + rng.uniform(-0.5, 0.5, x.size) for x in (theirs, ours)]
    assert scipy.stats.ks_2samp(*smooth).pvalue > 1e-3


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_neighbours_and_channels_are_independent(name, value):
    noise = run_one(flat(128), name, value, seed=21).astype(np.float64)
    noise = (noise - noise.mean()) / noise.std()
    for product in (noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1], noise[..., 0] * noise[..., 1]):
        assert abs(product.mean()) < 5 / np.sqrt(product.size)


def test_black_stays_black_under_signal_dependent_noise():
    for name, value in (("speckle_noise", 0.3), ("poisson_noise", 25.0)):
        assert run_one(flat(0), name, value).max() == 0
