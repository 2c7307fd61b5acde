"""The distance to clean images: against SciPy's Mahalanobis distance, its invariances, its errors, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.spatial.distance import mahalanobis
from scipy.stats import spearmanr
from sklearn.covariance import shrunk_covariance

from qpt import InputError, cli
from qpt.data.sources import data_fingerprint
from qpt.evaluate.clean_distance import CleanReference, clean_distances, clean_reference
from qpt.evaluate.features import FeatureProtocol, image_features
from qpt.evaluate.table import read_table
from qpt.models import load_encoder
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread

DIMS = (2, 3, 4, 5)  # channels of the stages of an imagined encoder
EARLY = 4 * (2 + 3 + 4)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve different parts of six images."""
    place = tmp_path_factory.mktemp("clean")
    for name, pixels in image_regions().items():
        for half, part in {"left": pixels[:, :80], "right": pixels[:, 48:]}.items():
            Image.fromarray(part).save(place / f"{name}-{half}.png")
    return place


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("scored"))


def some_features(n: int, seed: int = 0) -> np.ndarray:
    """Return (n, 3, 2, 14) correlated features in different units."""
    rng = np.random.default_rng(seed)
    size = 3 * 2 * sum(DIMS)
    mixed = rng.normal(size=(n, size)) @ (np.eye(size) + 0.2 * np.random.default_rng(9).normal(size=(size, size)))
    return (mixed * np.linspace(0.1, 10, size) + 3).reshape(n, 3, 2, sum(DIMS)).astype(np.float32)


def early(features: np.ndarray) -> np.ndarray:
    """Return the full and the half scale, mean and std, of the first three stages."""
    return features[:, :2, :, :9].reshape(len(features), -1).astype(np.float64)


def test_distances_are_mahalanobis_distances_of_the_sample_covariance() -> None:
    fitted, asked = some_features(2000), some_features(7, seed=1) + 5
    x = early(fitted)
    inverse = np.linalg.inv(np.cov(x, rowvar=False))
    expected = [mahalanobis(row, x.mean(0), inverse) for row in early(asked)]
    found = CleanReference.fit(fitted, DIMS, shrinkage=0).distances(asked)
    assert x.shape[1] == EARLY and found == pytest.approx(expected, rel=1e-8)
    # Of samples of one normal distribution, the squares have a chi-squared distribution of d degrees.
    squares = CleanReference.fit(fitted, DIMS, shrinkage=0).distances(some_features(2000, seed=2)) ** 2
    assert squares.mean() == pytest.approx(EARLY, rel=0.05)


@pytest.mark.parametrize("shrinkage", [0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("images", [10, 20, 400])
def test_a_shrunk_correlation_is_that_of_scikit_learn(images: int, shrinkage: float) -> None:
    fitted, asked = some_features(images), some_features(7, seed=1) * 3
    x = early(fitted)
    deviation = x.std(0, ddof=1)
    correlation = shrunk_covariance(np.corrcoef(x, rowvar=False), shrinkage=shrinkage)
    inverse = np.linalg.inv(correlation * np.outer(deviation, deviation))
    expected = [mahalanobis(row, x.mean(0), inverse) for row in early(asked)]
    assert CleanReference.fit(fitted, DIMS, shrinkage=shrinkage).distances(asked) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
def test_order_batches_units_and_late_stages_do_not_count(shrinkage: float) -> None:
    fitted, asked = some_features(30).astype(np.float64), some_features(9, seed=1).astype(np.float64)
    reference = CleanReference.fit(fitted, DIMS, shrinkage=shrinkage)
    found = reference.distances(asked)
    order = np.random.default_rng(0).permutation(30)
    reordered = CleanReference.fit(fitted[order], DIMS, shrinkage=shrinkage)
    assert reordered.distances(asked) == pytest.approx(found, rel=1e-9)
    assert np.concatenate([reference.distances(asked[i : i + 1]) for i in range(9)]) == pytest.approx(found, rel=1e-12)
    assert reference.distances(asked[::-1])[::-1] == pytest.approx(found, rel=1e-12)
    units = np.random.default_rng(1).uniform(0.5, 2, fitted.shape[1:])
    rescaled = CleanReference.fit(fitted * units, DIMS, shrinkage=shrinkage)
    assert rescaled.distances(asked * units) == pytest.approx(found, rel=1e-9)
    changed = asked.copy()
    changed[:, :, :, 9:] += 100  # the last stage
    changed[:, 2] += 100  # the quarter scale
    assert (reference.distances(changed) == found).all()
    assert (reference.distances(asked[:, :2]) == found).all()
    assert reference.distances(asked[:0]).shape == (0,)
    assert reference.distances(fitted.mean(0, keepdims=True)) == pytest.approx(0, abs=1e-6)


def test_an_encoder_of_fewer_stages_has_all_of_them_used() -> None:
    fitted = some_features(20)[..., :5]
    x = fitted[:, :2].reshape(20, -1).astype(np.float64)
    expected = np.linalg.norm((x - x.mean(0)) / x.std(0, ddof=1), axis=1)
    assert CleanReference.fit(fitted, (2, 3)).distances(fitted) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shrinkage", [0.5, 1.0])
def test_channels_that_clean_images_do_not_activate_do_not_decide_alone(shrinkage: float) -> None:
    fitted, asked = some_features(20), some_features(1, seed=1)
    fitted[:, :, :, 4] = 0
    asked[:, :, :, 4] = 0
    reference = CleanReference.fit(fitted, DIMS, shrinkage=shrinkage)
    before = reference.distances(asked)
    assert np.isfinite(before).all()
    asked[:, 0, 0, 4] = 0.01 * np.median(early(fitted).std(0, ddof=1))
    after = reference.distances(asked)
    assert before < after < before + 3


@pytest.mark.parametrize(
    ("features", "dims", "shrinkage", "words"),
    [
        (some_features(9), DIMS, 1.0, "clean images must be at least 10, got 9"),
        (some_features(1).repeat(12, 0), DIMS, 1.0, "clean images must differ, got 12 with equal features"),
        (np.zeros((12, 3, 2, 14)), DIMS, 1.0, "clean images must differ"),
        (np.full((12, 3, 2, 14), np.nan), DIMS, 1.0, "features must be finite, got 432 not"),
        (some_features(12)[:, :1], DIMS, 1.0, "features must be (n, 2 scales or more, 2, 14)"),
        (some_features(12), (4, 8), 1.0, "for an encoder with stages of 4, 8 channels, got (12, 3, 2, 14) float32"),
        (some_features(12), DIMS, 0, "shrinkage must be above 0 for a covariance without an inverse, got 0 with 12"),
        (some_features(36), DIMS, 0, "shrinkage must be above 0"),  # 36 images span 35 directions
        (some_features(12), DIMS, -0.1, "shrinkage must be a finite number of at least 0, got -0.1"),
        (some_features(12), DIMS, 1.5, "shrinkage must be at most 1, got 1.5"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(features: np.ndarray, dims: tuple, shrinkage: float, words: str) -> None:
    with pytest.raises(InputError) as error:
        CleanReference.fit(features, dims, shrinkage=shrinkage)
    assert str(error.value).startswith("clean_distance: ") and words in str(error.value)


def test_features_of_another_encoder_are_an_error() -> None:
    reference = CleanReference.fit(some_features(12), DIMS)
    with pytest.raises(InputError, match=r"2, 14\) for an encoder with stages of 2, 3, 4, 5 channels, got"):
        reference.distances(np.zeros((1, 2, 2, 9)))
    with pytest.raises(InputError, match="must be finite, got 1 not"):
        reference.distances(np.where(np.arange(84).reshape(1, 3, 2, 14) == 3, np.inf, 0))


def test_blur_and_noise_move_images_away_from_clean_ones(clean: Path, tmp_path: Path) -> None:
    encoder = load_encoder("efficientnet_lite0-imagenet")
    paths = []
    for name, pixels in image_regions().items():
        versions = [Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4)]
        noise = np.random.default_rng(0).normal(0, 60, pixels.shape)
        versions.append(Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)))
        for number, version in enumerate(versions):
            paths.append(tmp_path / f"{name}{number}.png")
            version.save(paths[-1])
    found = clean_distances(encoder, clean, paths)
    sharp, *blurred, noisy = found.reshape(6, 5).T
    assert (np.diff([sharp.mean(), *(row.mean() for row in blurred)]) > 0).all()
    assert (blurred[-1] > sharp).all() and (noisy > sharp).all()
    features = np.stack([image_features(encoder, np.array(Image.open(path)), FeatureProtocol()) for path in paths])
    assert clean_reference(encoder, clean).distances(features) == pytest.approx(found, rel=1e-6)


def test_small_images_are_padded(clean: Path, tmp_path: Path) -> None:
    encoder = untrained_encoder("resnet18", 4, 0)
    Image.new("RGB", (1, 1), (200, 10, 10)).save(tmp_path / "pixel.png")
    Image.fromarray(image_regions()["cat"][:20, :70]).save(tmp_path / "strip.png")
    found = clean_distances(encoder, clean, [tmp_path / "pixel.png", tmp_path / "strip.png"])
    assert found.shape == (2,) and np.isfinite(found).all() and found[0] > found[1]


def test_folders_that_cannot_be_used_are_an_error(clean: Path, tmp_path: Path) -> None:
    encoder = untrained_encoder("resnet18", 4, 0)
    few = tmp_path / "few"
    few.mkdir()
    for index, path in enumerate(sorted(clean.iterdir())):
        if index < 9:
            (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="clean must be a folder of at least 10 images, got 9"):
        clean_reference(encoder, few)
    (few / "damaged.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="1 cannot be used"):
        clean_reference(encoder, few)
    with pytest.raises(InputError, match="folder must be an existing folder"):
        clean_reference(encoder, tmp_path / "nowhere")
    broken = untrained_encoder("resnet18", 4, 0)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="encoder must give finite features"):
        clean_reference(broken, clean)


def test_the_command_reports_the_agreement_with_scores(clean: Path, table: Path, tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", width=8)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["data_fingerprint"] = data_fingerprint(clean, sorted(clean.glob("*.png")))
    torch.save(state, run / "checkpoint.pt")
    arguments = ["probe", str(run), str(clean), "--crop-px", "48", "--crops", "1", "--photograph-count", "6"]
    scores = ["--clean", str(clean), "--csv", str(table)]
    assert cli.main([*arguments, *scores, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    measured = result["clean_distance"]
    assert measured["clean"] == clean.name and measured["trained_on_clean"] and measured["scores"] == table.parent.name
    encoder = untrained_encoder("resnet18", 8, 5)  # the weights of ``write_run``
    read = read_table(table)
    expected = clean_distances(encoder, clean, read.paths)
    assert measured["trained"]["srcc"] == pytest.approx(spearmanr(-expected, read.mos).statistic)
    assert measured["trained"]["median"] == pytest.approx(np.median(expected))
    assert measured["untrained"]["srcc"] != measured["trained"]["srcc"]
    assert measured["trained"]["clean_images"] == 12 and measured["trained"]["images"] == 24
    assert measured["shrinkage"] == 1
    assert str(tmp_path) not in json.dumps(result) and str(clean) not in json.dumps(result)

    assert cli.main([*arguments, *scores]) == 0  # the second time from the cache of features
    text = " ".join(capsys.readouterr().out.split())
    assert f"scores of 24 photographs of {table.parent.name}: trained {measured['trained']['srcc']:.3f}" in text
    assert "distance to the 12 clean photographs" in text and "was trained on the clean photographs" in text

    assert cli.main([*arguments, *scores, "--clean-shrinkage", "0.9", "--json"]) == 0
    shrunk = json.loads(capsys.readouterr().out)["clean_distance"]
    expected = clean_distances(encoder, clean, read.paths, shrinkage=0.9)
    assert shrunk["shrinkage"] == 0.9
    assert shrunk["trained"]["median"] == pytest.approx(np.median(expected), rel=1e-5)

    assert cli.main([*arguments, "--clean", str(clean)]) == 0
    assert "median of 6 photographs: trained" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--csv", "TABLE"], "clean must be a folder of clean photographs where scores are given, got none"),
        (["--clean", "nowhere"], "folder must be an existing folder"),
        (["--clean", "SIX"], "clean must be a folder of at least 10 images, got 6"),
        (["--clean", "CLEAN", "--clean-shrinkage", "2"], "shrinkage must be at most 1, got 2"),
    ],
)
def test_bad_options_exit_2(clean: Path, table: Path, tmp_path: Path, capsys, options: list[str], words: str) -> None:
    six = tmp_path / "six"
    six.mkdir()
    for name, pixels in image_regions().items():
        Image.fromarray(pixels).save(six / f"{name}.png")
    places = {"TABLE": str(table), "SIX": str(six), "CLEAN": str(clean)}
    run = write_run(tmp_path / "run")
    arguments = ["probe", str(run), str(clean), "--crop-px", "48", "--crops", "1", "--photograph-count", "6"]
    assert cli.main([*arguments, *(places.get(option, option) for option in options)]) == 2
    assert words in capsys.readouterr().err
