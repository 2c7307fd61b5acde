"""The peers of the score without opinions: NIQE by its definition, and the package ``brisque``."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from experiments.opinion_unaware import BLOCK_PX, PEERS, Niqe, block_features, peer_scores
from qpt.data.sample_images import sample_images
from qpt.evaluate.brisque import fit_asymmetric, fit_symmetric, half_plane, normalise_locally
from qpt.evaluate.classical import luminance
from qpt.evaluate.image_crops import load_image


@pytest.fixture(scope="module")
def niqe() -> Niqe:
    return Niqe.fit(sample_images()[:6])


def test_blocks_have_the_statistics_of_their_own_pixels() -> None:
    """Features of the second block of the second row, from the coefficients of the whole image."""
    grey = luminance(load_image(sample_images()[1])[:300, :400]).astype(np.float64)
    features, sharpness = block_features(grey)
    assert features.shape == (3 * 4, 36) and sharpness.shape == (12,)
    whole = grey[: 3 * BLOCK_PX, : 4 * BLOCK_PX]
    for level, plane in enumerate((whole, half_plane(whole, Image.Resampling.BICUBIC))):
        side = BLOCK_PX >> level
        coefficients, deviation = normalise_locally(plane, border="nearest")
        block = coefficients[side : 2 * side, side : 2 * side]
        row = features[5, 18 * level : 18 * (level + 1)]
        assert tuple(row[:2]) == fit_symmetric(block)
        across = block * np.concatenate([block[:, -1:], block[:, :-1]], axis=1)  # each pixel and its left neighbour
        assert tuple(row[2:6]) == fit_asymmetric(across)
        if level == 0:
            assert sharpness[5] == deviation[side : 2 * side, side : 2 * side].mean()


def test_the_distance_is_that_of_two_gaussians(niqe) -> None:
    pixels = load_image(sample_images()[1])
    features, _ = block_features(luminance(pixels).astype(np.float64))
    middle = (niqe.covariance + np.cov(features.T)) / 2
    difference = features.mean(0) - niqe.mean
    expected = difference @ np.linalg.lstsq(middle, difference, rcond=None)[0]
    assert niqe(pixels) == pytest.approx(np.sqrt(expected), rel=1e-6)


def test_it_grows_with_blur_and_noise_and_takes_small_images(niqe) -> None:
    clean = load_image(sample_images()[7])[:288, :384]
    blurred = np.asarray(Image.fromarray(clean).filter(ImageFilter.GaussianBlur(3)))
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 30, clean.shape), 0, 255).astype(np.uint8)
    assert niqe(clean) < min(niqe(blurred), niqe(noisy))
    assert np.isfinite(niqe(clean[:40, :50]))


def test_scores_of_peers_are_higher_for_better_and_kept(tmp_path, monkeypatch) -> None:
    clean = load_image(sample_images()[7])[:288, :384]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, sigma in zip(paths, (0, 4), strict=True):
        Image.fromarray(clean).filter(ImageFilter.GaussianBlur(sigma)).save(path)
    found = peer_scores(paths, sample_images()[:3], cache=tmp_path / "cache", images_key="two")
    assert tuple(found) == PEERS
    assert all(better > worse for better, worse in found.values())
    monkeypatch.setattr("experiments.opinion_unaware.Niqe", None)  # nothing is computed again
    again = peer_scores(paths, sample_images()[:3], cache=tmp_path / "cache", images_key="two")
    assert all(np.array_equal(again[name], found[name]) for name in PEERS)
