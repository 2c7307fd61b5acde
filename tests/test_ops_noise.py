"""The noise ops' distributions: chi-square tests against the rounded, clipped distribution on flat grey, covariances,
and comparisons with the samplers of scikit-image and SciPy. Seeds are fixed, so p-values do not change between runs.

test_ops.py compares the number that each element gets with the NumPy definitions.
"""

import numpy as np
import pytest
import scipy.stats
import skimage.color
import skimage.util

from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from tests.engine import run_one
from tests.reference.degradations import REFERENCE
from tests.reference.noise import FROM_YCBCR, random_mixing

SIDE = 128  # 16,384 pixels
GREYS = (12, 128, 240)


def flat(grey: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), grey, np.uint8)


def normal_levels(mean: float, std: float) -> np.ndarray:
    """Return the probability of each of the 256 values of rint(clip(mean + std n, 0, 255))."""
    edges = np.concatenate([[-np.inf], np.arange(255) + 0.5, [np.inf]])
    return np.diff(scipy.stats.norm.cdf(edges, mean, std))


def poisson_levels(grey: int, peak: float) -> np.ndarray:
    """Return the probability of each value of rint(clip(255 k / peak, 0, 255)), k Poisson."""
    count = np.arange(int(peak + 20 * np.sqrt(peak)) + 50)
    value = np.clip(np.rint(count * 255 / peak), 0, 255).astype(int)
    return np.bincount(value, scipy.stats.poisson.pmf(count, peak * grey / 255), minlength=256)


def impulse_levels(grey: int, density: float) -> np.ndarray:
    shares = np.zeros(256)
    shares[[0, 255, grey]] = density / 2, density / 2, 1 - density
    return shares


def p_value(values: np.ndarray, shares: np.ndarray) -> float:
    """Test values in 0..255 against ``shares`` by chi-square; rare values are pooled into groups of 8 expected."""
    expected, observed = shares * values.size, np.bincount(values.ravel(), minlength=256)
    assert observed[expected < 1e-12 * values.size].sum() == 0
    order = np.argsort(-expected, kind="stable")
    groups = np.minimum(np.arange(256), np.count_nonzero(expected >= 8) - 1)
    pooled = [np.bincount(groups, counts[order]) for counts in (observed, expected)]
    # All rare values have joined the least likely group.
    pooled[1] *= pooled[0].sum() / pooled[1].sum()
    return 1.0 if len(pooled[0]) == 1 else scipy.stats.chisquare(*pooled).pvalue


EXPECTED = {
    "gaussian_noise": normal_levels,
    "gaussian_noise_grey": normal_levels,
    "speckle_noise": lambda grey, std: normal_levels(grey, grey * std),
    "impulse_noise": impulse_levels,
    "poisson_noise": poisson_levels,
    "poisson_noise_grey": poisson_levels,
}
GREY = {"gaussian_noise_grey", "poisson_noise_grey"}  # one number for the three channels


@pytest.mark.rung("reference")
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("grey", GREYS)
@pytest.mark.parametrize("name", EXPECTED)
def test_distribution_on_flat_grey(name, grey, level):
    (value,) = DEGRADATIONS[NAMES.index(name)].parameters[0].alternatives(level)
    out = run_one(flat(grey), name, value, seed=level)
    if name in GREY:
        assert (out == out[..., :1]).all()
        out = out[..., 0]
    assert p_value(out, EXPECTED[name](grey, value)) > 1e-3


@pytest.mark.parametrize("name", ["poisson_noise", "poisson_noise_grey"])
@pytest.mark.parametrize("peak", [1.0, 2.5, 37.3, 4096.0])
def test_photon_counts_are_exact_at_the_ends_of_the_peak_s_range(name, peak):
    """At 4,096 photons the distributions of the 256 values are half a megabyte, so they are processed in groups."""
    image = np.random.default_rng(8).integers(0, 256, (90, 110, 3), dtype=np.uint8)
    exact = REFERENCE[name](image, (np.float32(peak),), 5, 0)
    off = np.abs(run_one(image, name, peak, seed=5) - exact) > 0.502
    assert off.any(axis=-1).sum() <= 1  # a uniform number within 1e-6 of a cumulative probability


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


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("grey", GREYS)
def test_correlated_noise_has_the_marginals_and_covariance_of_its_draw(grey, level):
    (std,) = DEGRADATIONS[NAMES.index("gaussian_noise_cov")].parameters[0].alternatives(level)
    out = run_one(flat(grey), "gaussian_noise_cov", std, seed=level)
    covariance = std**2 * random_mixing(level, 0) @ random_mixing(level, 0).T
    for channel in range(3):
        assert p_value(out[..., channel], normal_levels(grey, np.sqrt(covariance[channel, channel]))) > 1e-3
    if grey == 128 and std <= 25:  # nothing clips
        measured = np.cov(out.reshape(-1, 3).T)
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs((measured - covariance) / scale).max() < 5 * np.sqrt(2) / SIDE


def test_covariances_favour_no_channel_and_no_pair():
    """Over many seeds: a random rotation of three uniform variances has the mean I / 2, and its least and largest
    eigenvalues have the means 1/4 and 3/4 of the least and largest of three uniform numbers."""
    drawn = np.array([random_mixing(seed, 1) @ random_mixing(seed, 1).T for seed in range(2000)])
    error = 5 * np.sqrt(1 / 12 / 2000)
    assert np.abs(drawn.mean(axis=0) - np.eye(3) / 2).max() < error
    values = np.linalg.eigvalsh(drawn)
    np.testing.assert_allclose(values.mean(axis=0), [1 / 4, 1 / 2, 3 / 4], atol=error)
    correlation = drawn[:, 0, 1] / np.sqrt(drawn[:, 0, 0] * drawn[:, 1, 1])
    assert (np.abs(correlation) > 0.3).mean() > 0.25  # strong tints are common


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
@pytest.mark.parametrize("grey", GREYS)
def test_iso_noise_adds_poisson_light_of_the_image_s_spread(grey, level):
    """Half of the image is `grey`, half 100 levels from it: the spread of the lightness is 50."""
    row = DEGRADATIONS[NAMES.index("iso_noise")]
    shift, intensity = (parameter.alternatives(level)[0] for parameter in row.parameters)
    image = np.concatenate([flat(grey), flat(grey + 100 if grey < 128 else grey - 100)])
    out = run_one(image, "iso_noise", shift, intensity, seed=level)
    assert (out == out[..., :1]).all()  # grey has no hue to turn
    count = np.arange(256)
    value = np.rint(grey + count * (255 - grey) / 255).astype(int)
    shares = np.bincount(value, scipy.stats.poisson.pmf(count, 50 * intensity), minlength=256)
    assert p_value(out[:SIDE, :, 0], shares) > 1e-3


@pytest.mark.parametrize("std_turns", [0.02, 0.05])
def test_iso_noise_turns_hue_by_a_normal_number(std_turns):
    """On one colour the lightness has no spread, so only hue moves."""
    image = np.full((SIDE, SIDE, 3), (230, 20, 20), np.uint8)
    hsv = skimage.color.rgb2hsv(run_one(image, "iso_noise", std_turns, 1.0, seed=3))
    hue = (hsv[..., 0] + 0.5) % 1 - 0.5  # red is 0
    assert np.abs(hsv[..., 1:] - [210 / 230, 230 / 255]).max() < 0.005
    assert abs(hue.mean()) < 5 * std_turns / SIDE
    assert abs(hue.std() / std_turns - 1) < 5 / np.sqrt(2) / SIDE
    assert scipy.stats.kstest(hue.ravel() / std_turns, "norm").pvalue > 1e-3
    assert abs((hue[:, 1:] * hue[:, :-1]).mean()) < 5 * std_turns**2 / SIDE


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
    for name, value in (("speckle_noise", 0.3), ("poisson_noise", 25.0), ("poisson_noise_grey", 25.0)):
        assert run_one(flat(0), name, value).max() == 0


def test_grey_photons_are_those_of_the_rounded_luma():
    """(187, 60, 60) has luma 98: it gets the noise of grey 98, and keeps the differences of its channels."""
    image = np.full((SIDE, SIDE, 3), (187, 60, 60), np.uint8)
    out = run_one(image, "poisson_noise_grey", 900.0, seed=1).astype(int)
    assert (out[..., 1] == out[..., 2]).all() and np.abs(out[..., 0] - out[..., 1] - 127).max() <= 1
    assert p_value(out[..., 1] + 38, poisson_levels(98, 900.0)) > 1e-3
