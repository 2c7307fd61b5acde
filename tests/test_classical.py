"""BRISQUE's features against the PyPI package and by definition, the 68 statistics, and their cache."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.special import gamma

from qpt.errors import InputError
from qpt.evaluate import classical
from qpt.evaluate import run as evaluation
from qpt.evaluate.brisque import (
    BRISQUE_NAMES,
    brisque_features,
    fit_asymmetric,
    fit_symmetric,
    half_plane,
    local_moments,
    normalise_locally,
)
from qpt.evaluate.classical import CLASSICAL, centre, classical_features, image_classical, luminance
from qpt.evaluate.result import render_result
from qpt.evaluate.run import SUPERVISED, evaluate
from qpt.evaluate.statistics_68 import STATISTICS_COUNT, image_statistics
from qpt.evaluate.table import read_table
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread

COEFFICIENTS = np.array(["mscn" in name for name in BRISQUE_NAMES])


def package_features(planes):
    """Return the features of the package ``brisque`` for two planes of luminance, 0 to 255."""
    package = pytest.importorskip("brisque.brisque")
    model = package.BRISQUE.__new__(package.BRISQUE)  # its constructor loads a trained regressor, which is not needed
    found = [model.calculate_brisque_features(plane / 255, kernel_size=7, sigma=7 / 6) for plane in planes]
    return np.array([float(np.squeeze(value)) for value in np.concatenate(found)])


@pytest.mark.parametrize("name", image_regions())
def test_brisque_features_equal_the_package(name):
    """The 32 features of paired products agree to a relative 1e-4, given the same half scale.

    The 4 of the coefficients themselves differ by definition: the paper fits a symmetric generalised Gaussian, the
    package an asymmetric one, whose left and right variance it averages. They agree to 10 %.
    """
    grey = luminance(image_regions()[name]).astype(np.float64)
    ours = brisque_features(grey)
    expected = package_features([grey, half_plane(grey, Image.Resampling.BICUBIC)])
    np.testing.assert_allclose(ours[~COEFFICIENTS], expected[~COEFFICIENTS], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours[COEFFICIENTS], expected[COEFFICIENTS], rtol=0.1)


@pytest.mark.parametrize("name", image_regions())
def test_brisque_half_scale_against_the_package(name):
    """The package halves with OpenCV's bicubic, which does not filter first as the paper and MATLAB's imresize do.

    An aliased plane keeps more contrast: the variance of its coefficients is higher, and all of its features are within
    0.5 of ours, most of them within 0.1.
    """
    cv2 = pytest.importorskip("cv2")
    grey = luminance(image_regions()[name]).astype(np.float64)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    ours, expected = brisque_features(grey)[18:], package_features([half])
    assert half.shape == half_plane(grey, Image.Resampling.BICUBIC).shape
    assert ours[1] < expected[1] < ours[1] * 1.5
    difference = np.abs(ours - expected)
    assert difference[1:].max() < 0.2 and difference[0] < 0.6 and np.median(difference) < 0.1


def test_local_moments_by_definition():
    plane = np.random.default_rng(0).uniform(0, 255, (12, 15))
    y, x = np.mgrid[-3:4, -3:4]
    window = np.exp(-(x**2 + y**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean, deviation = local_moments(plane, border="constant")
    inner = plane[2:9, 4:11]
    expected = (window * inner).sum()
    assert mean[5, 7] == pytest.approx(expected, rel=1e-9)
    assert deviation[5, 7] == pytest.approx(np.sqrt((window * (inner - expected) ** 2).sum()), rel=1e-9)
    corner = (window[3:, 3:] * plane[:4, :4]).sum()  # zeros outside
    assert mean[0, 0] == pytest.approx(corner, rel=1e-9)
    coefficients, again = normalise_locally(plane, border="constant")
    np.testing.assert_allclose(coefficients, (plane - mean) / (deviation + 1), rtol=1e-12)
    np.testing.assert_array_equal(again, deviation)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_fits_find_the_parameters_of_drawn_samples(shape):
    generator, count = np.random.default_rng(3), 400_000
    # |x / scale|^shape is gamma(1 / shape) distributed; the scale makes the variance 1.
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    sizes = scale * generator.gamma(1 / shape, size=count) ** (1 / shape)
    found, variance = fit_symmetric(sizes * generator.choice([-1.0, 1.0], count))
    assert found == pytest.approx(shape, rel=0.03) and variance == pytest.approx(1, rel=0.03)
    # Asymmetric: a side is as likely as it is wide.
    left, right = 0.5, 1.5
    values = sizes * np.where(generator.random(count) < left / (left + right), -left, right)
    found, mean, left_variance, right_variance = fit_asymmetric(values)
    assert found == pytest.approx(shape, rel=0.03) and mean == pytest.approx(values.mean(), rel=0.03)
    assert left_variance == pytest.approx(left**2, rel=0.03) and right_variance == pytest.approx(right**2, rel=0.03)


@pytest.mark.parametrize("value", [0, 90, 255])
@pytest.mark.parametrize("side", [32, 33, 50])
def test_flat_images_have_finite_features(value, side):
    found = image_classical(np.full((side, 32, 3), value, np.uint8))
    assert found.shape == (sum(CLASSICAL.values()),) and np.isfinite(found).all()
    assert fit_symmetric(np.zeros((4, 4))) == (0.2, 0.0)
    assert np.isfinite(fit_asymmetric(np.zeros((4, 4)))).all() and np.isfinite(fit_asymmetric(np.ones((4, 4)))).all()


def test_statistics_by_definition():
    pixels = image_regions()["table"]
    values = image_statistics(pixels, luminance(pixels))
    assert len(values) == STATISTICS_COUNT == 68
    rgb = pixels.astype(float)
    grey = rgb @ [0.299, 0.587, 0.114]
    gradient = np.hypot(grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1])
    boxes = grey.reshape(grey.shape[0] // 2, 2, grey.shape[1] // 2, 2).mean((1, 3))
    _, deviation = local_moments(boxes, border="reflect")
    for name, expected in {
        "red_green_std": (rgb[..., 0] - rgb[..., 1]).std(),
        "yellow_blue_mean": (rgb[..., :2].mean(-1) - rgb[..., 2]).mean(),
        "saturation_mean": ((rgb.max(-1) - rgb.min(-1)) / (rgb.max(-1) + 1)).mean(),
        "bright_share": (rgb.max(-1) > 250).mean(),
        "dark_share": (rgb.min(-1) < 5).mean(),
        "scale_1_log_gradient_mean": np.log(1 + gradient.mean()),
        "scale_1_log_gradient_p90": np.log(1 + np.percentile(gradient[::2, ::2], 90)),
        "scale_2_log_deviation_mean": np.log(1 + deviation.mean()),
        "scale_1_log_laplacian_variance": classical.log_laplacian_variance(luminance(pixels)),
    }.items():
        assert values[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_large_images_are_measured_on_their_centre():
    pixels = np.random.default_rng(0).integers(0, 256, (1300, 1700, 3), np.uint8)
    inner = pixels[50:1250, 50:1650]
    np.testing.assert_array_equal(centre(pixels), inner)
    assert centre(inner) is inner and centre(pixels[:, :1]).shape == (1300, 1, 3)
    assert centre(pixels[:100].repeat(2, 1)).shape == (100, 3400, 3)
    whole, part = image_classical(pixels), image_classical(inner)
    np.testing.assert_array_equal(whole[2:], part[2:])
    assert (whole[:2] != part[:2]).all()  # contrast and Laplacian are of the whole image


def test_classical_cache_is_used_keyed_and_follows_the_definition(tmp_path, monkeypatch):
    paths = []
    for name, pixels in list(image_regions().items())[:2]:
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    options = {"cache": tmp_path / "kept", "images_key": "set 1", "quiet": True}
    first = classical_features(paths, **options)
    assert {name: x.shape for name, x in first.items()} == {name: (2, count) for name, count in CLASSICAL.items()}

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(classical, "image_classical", refuse)
    again = classical_features(paths, **options)
    for name, features in first.items():
        np.testing.assert_array_equal(again[name], features)
    for change in ({"images_key": "set 2"}, {"cache": None}):
        with pytest.raises(AssertionError, match="computed again"):
            classical_features(paths, **options | change)
    monkeypatch.setattr(classical, "DEFINITION", "another")
    with pytest.raises(AssertionError, match="computed again"):
        classical_features(paths, **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return write_run(folder / "first"), read_table(write_set(folder / "set"))


def supervised_row(tiny, monkeypatch, load, **options):
    """Evaluate with ``load`` in place of the loader of the supervised encoder."""
    run, table = tiny
    loader = evaluation.load_encoder
    monkeypatch.setattr(evaluation, "load_encoder", lambda path: load() if path == SUPERVISED else loader(path))
    return evaluate([run], table, untrained=0, quiet=True, **options)


def test_supervised_encoder_has_a_row_without_pairs(tiny, monkeypatch):
    result = supervised_row(tiny, monkeypatch, lambda: untrained_encoder("resnet18", 4, 9))
    assert [(m["name"], m["kind"]) for m in result["methods"]] == [
        ("first", "pretrained"), (SUPERVISED, "supervised"), *((name, "classical") for name in CLASSICAL),
    ]  # fmt: skip
    row = result["methods"][1]
    assert len(row["weights_sha256"]) == 64 and row["regimes"]["all"]["summary"]["chosen_read_outs"]
    assert result["notes"] == [] and result["paired"] == []


def test_missing_extra_is_a_note_and_no_error(tiny, monkeypatch, capsys):
    def missing():
        raise InputError("load_encoder: its package is missing; pip install 'qpt[x]'")

    result = supervised_row(tiny, monkeypatch, missing)
    assert [m["kind"] for m in result["methods"]] == ["pretrained", *["classical"] * 4]
    reason = "load_encoder: its package is missing; pip install 'qpt[x]'"
    assert result["notes"] == [f"{SUPERVISED} is not measured: {reason}"]
    Console(width=300).print(render_result(result))
    assert result["notes"][0] in capsys.readouterr().out
    assert supervised_row(tiny, monkeypatch, missing, supervised=False)["notes"] == []
    Console(width=300).print(render_result({key: value for key, value in result.items() if key != "notes"}))
