"""A score learnt without opinions: what it learns, what its examples depend on, what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from qpt.cli import main
from qpt.data.crops import cut_crops
from qpt.data.sample_images import sample_images
from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.unlabelled import CLEAN_SCORE, REGION_PX, SPACES, _gmsd
from qpt.models import load_encoder
from qpt.models.encoder import untrained_encoder
from tests.labelled import one_thread as one_thread
from tests.labelled import write_run

WIDTH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve clean regions of different photographs, and one file that is none."""
    place = tmp_path_factory.mktemp("clean")
    photographs = [load_image(path) for path in sample_images()[:6]]
    for index, crop in enumerate(cut_crops(photographs, 12, size=160, seed=0)):
        Image.fromarray(crop).save(place / f"{index:02d}.png")
    (place / "99.png").write_bytes(b"no image")
    return place


@pytest.fixture(scope="module")
def scorer(folder) -> Scorer:
    """Of an encoder that knows photographs: random weights tell little of other images than those learnt from."""
    return Scorer.fit_unlabelled(load_encoder("efficientnet_lite0-imagenet"), folder, quiet=True)


def test_the_score_falls_with_blur_and_noise_and_stays_within_its_scale(scorer) -> None:
    clean = load_image(sample_images()[1])[100:260, 100:260]
    blurred = [np.asarray(Image.fromarray(clean).filter(ImageFilter.GaussianBlur(sigma))) for sigma in (1, 2, 4)]
    noise = np.random.default_rng(0).normal(0, 1, clean.shape)
    noisy = [np.clip(clean + sigma * noise, 0, 255).astype(np.uint8) for sigma in (10, 25, 60)]
    for images in (blurred, noisy):
        scores = [scorer(image) for image in (clean, *images)]
        assert scores[0] > scores[-1] + 10
        assert all(0 < score < 100 for score in scores)
    assert (scorer.mos_min, scorer.mos_max, scorer.opinions) == (0.0, 100.0, False)


def test_what_it_learnt_from_is_recorded(scorer) -> None:
    fitted = scorer.fitted_on
    assert (fitted["images"], fitted["unreadable"], fitted["examples"]) == (12, 1, 12 * (1 + len(SPACES)))
    assert fitted["srcc"] > 0.5  # with the damage to two images held out
    low, high = scorer.seen
    assert 0 < low < CLEAN_SCORE < high < 100
    assert not scorer.extrapolates((low + high) / 2)
    assert not scorer.extrapolates(low) and not scorer.extrapolates(high)
    assert all(scorer.extrapolates(score) for score in (0.0, 0.01, 99.99, 100.0))


def test_examples_depend_on_the_pixels_and_the_seed_alone(folder, tmp_path) -> None:
    """The same images under other names and in another order give the same scorer, up to the order of sums."""
    for index, path in enumerate(sorted(folder.glob("[01]*.png"), reverse=True)):
        shutil.copy(path, tmp_path / f"{index}.png")
    encoder = untrained_encoder("resnet18", WIDTH, seed=1)
    first = Scorer.fit_unlabelled(encoder, folder, quiet=True)
    again = Scorer.fit_unlabelled(encoder, tmp_path, quiet=True)
    np.testing.assert_allclose(again.weights, first.weights, rtol=1e-6, atol=1e-9)
    other = Scorer.fit_unlabelled(encoder, tmp_path, seed=1, quiet=True)
    assert np.abs(other.weights - first.weights).max() > 1e-4 * np.abs(first.weights).max()


def test_an_interrupted_fit_goes_on_from_its_cache(folder, tmp_path, monkeypatch) -> None:
    encoder = untrained_encoder("resnet18", WIDTH, seed=1)
    first = Scorer.fit_unlabelled(encoder, folder, cache=tmp_path, quiet=True)
    monkeypatch.setattr("qpt.evaluate.unlabelled.compute_rows", None)  # a second pass computes nothing
    again = Scorer.fit_unlabelled(encoder, folder, cache=tmp_path, quiet=True)
    np.testing.assert_array_equal(first.weights, again.weights)


def test_a_file_keeps_it(scorer, tmp_path) -> None:
    scorer.save(tmp_path / "scorer.pt")
    loaded = Scorer.load(tmp_path / "scorer.pt")
    assert (loaded.seen, loaded.opinions, loaded.fitted_on) == (scorer.seen, False, scorer.fitted_on)
    image = load_image(sample_images()[3])[:200, :200]
    assert loaded(image) == scorer(image)


def test_the_damage_is_gmsd() -> None:
    """By its definition (Xue et al., 2014): Prewitt's gradients of luma halved by a mean of 2 x 2, c = 170."""
    from scipy.ndimage import prewitt

    rng = np.random.default_rng(3)
    clean = np.asarray(Image.fromarray(load_image(sample_images()[1])[:96, :128]))
    degraded = np.clip(clean + rng.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)

    def gradient(pixels: np.ndarray) -> np.ndarray:
        luma = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        half = luma.reshape(48, 2, 64, 2).mean((1, 3))
        return np.hypot(prewitt(half, 0) / 3, prewitt(half, 1) / 3)[1:-1, 1:-1]

    a, b = gradient(degraded), gradient(clean)
    expected = ((2 * a * b + 170) / (a * a + b * b + 170)).std()
    assert _gmsd(degraded, clean) == pytest.approx(expected, rel=1e-4)
    assert _gmsd(clean, clean) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", [20, REGION_PX + 40])
def test_images_of_any_size(side, tmp_path) -> None:
    rng = np.random.default_rng(side)
    for index in range(10):
        Image.fromarray(rng.integers(0, 256, (side, side + 8, 3), np.uint8)).save(tmp_path / f"{index}.png")
    small = Scorer.fit_unlabelled(
        untrained_encoder("resnet18", 2, seed=0), tmp_path, protocol=FeatureProtocol(64, 2), quiet=True
    )
    assert np.isfinite(small.weights).all()


def test_too_few_images_and_an_encoder_that_sees_nothing(folder, tmp_path) -> None:
    encoder = untrained_encoder("resnet18", 2, seed=0)
    for name in ("00.png", "01.png", "99.png"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(InputError, match="folder must hold 10 images that can be decoded, got 2"):
        Scorer.fit_unlabelled(encoder, tmp_path, quiet=True)
    with pytest.raises(InputError, match="images must be"):
        Scorer.fit_unlabelled(encoder, folder, images=3, quiet=True)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    with pytest.raises(InputError, match="encoder must tell clean images from degraded ones"):
        Scorer.fit_unlabelled(encoder, folder, quiet=True)


def test_the_command(folder, tmp_path, capsys) -> None:
    run = write_run(tmp_path / "run")
    out = tmp_path / "scorer.pt"
    assert main(["fit", str(run), "--unlabelled", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "learnt without opinions from 12 photographs (1 more cannot be decoded)" in said
    assert main(["score", str(folder / "00.png"), "--scorer", str(out)]) == 0
    assert "not from opinions" in capsys.readouterr().out
    arguments = ["fit", str(run), "--unlabelled", str(folder), "--csv", "x.csv", "--out", str(out)]
    assert main(arguments) == 2
    assert "--csv must be left out with --unlabelled" in capsys.readouterr().err
