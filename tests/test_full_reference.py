"""reference_distance: equal to its definition, 0 for equal images, larger for stronger degradations; the command."""

import csv as csv_module
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import qpt
from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol, prepare
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions, write_run
from tests.labelled import one_thread as one_thread
from tests.test_score_loss import make_scorer

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def encoder():
    return prepare(untrained_encoder("resnet18", 4, seed=1))


def blurred(pixels, sigma):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def definition(encoder, x, y):
    """Return DISTS's formula on the image and the stages of one crop, in NumPy float64, with equal weights."""
    maps = []
    for pixels in (x, y):
        values = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
        with torch.no_grad():
            stages = encoder.stages(torch.from_numpy(values).float())
        maps.append([(pixels / 255).transpose(2, 0, 1), *(stage[0].double().numpy() for stage in stages)])
    terms = []
    for a, b in zip(*maps, strict=True):
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        texture = (2 * a.mean(1) * b.mean(1) + 1e-6) / (a.mean(1) ** 2 + b.mean(1) ** 2 + 1e-6)
        covariance = (a * b).mean(1) - a.mean(1) * b.mean(1)
        structure = (2 * covariance + 1e-6) / (a.var(1) + b.var(1) + 1e-6)
        terms.append((texture.mean() + structure.mean()) / 2)
    return 1 - np.mean(terms)


def test_the_distance_is_its_definition(encoder):
    pictures = image_regions()
    for x, y in ((pictures["cat"], blurred(pictures["cat"], 2)), (pictures["cup"], pictures["rocket"])):
        assert qpt.reference_distance(encoder, x, y) == pytest.approx(definition(encoder, x, y), rel=1e-4)


def test_crops_are_seen_as_one_image():
    """Moments of one layer over all crops are those of the crops side by side."""

    class Layer(qpt.models.Encoder):
        def __init__(self):
            super().__init__("layer")
            self.mix = torch.nn.Conv2d(3, 5, 1)
            self.stage_dims = (5,)

        def stages(self, x):
            return (self.mix(x).relu(),)

    torch.manual_seed(0)
    layer, x = Layer().eval(), image_regions()["face"]
    y = blurred(x, 1.5)
    seen = qpt.reference_distance(layer, x, y, protocol=FeatureProtocol(32, 4))
    places = [(top, left) for top in (0, 64) for left in (0, 96)]  # 96 x 128 px through 2 x 2 crops of 32
    beside = [np.concatenate([p[t : t + 32, le : le + 32] for t, le in places]) for p in (x, y)]
    assert seen == pytest.approx(definition(layer, *beside), rel=1e-4)
    assert seen != pytest.approx(definition(layer, x, y), rel=1e-4)


def test_equal_images_have_distance_0_and_the_distance_is_symmetric(encoder, tmp_path):
    x = image_regions()["suit"]
    Image.fromarray(x).save(tmp_path / "x.png")
    for same in (x, x.copy(), Image.fromarray(x), tmp_path / "x.png", str(tmp_path / "x.png")):
        assert qpt.reference_distance(encoder, same, x) == 0
    black, white = np.zeros((40, 50, 3), np.uint8), np.full((40, 50, 3), 255, np.uint8)
    assert qpt.reference_distance(encoder, black, black) == 0
    assert 0 < qpt.reference_distance(encoder, black, white) <= 2
    assert qpt.reference_distance(encoder, x, blurred(x, 3)) == qpt.reference_distance(encoder, blurred(x, 3), x)


def test_it_grows_with_the_level_of_a_degradation(encoder):
    for x in (image_regions()["cat"], image_regions()["table"]):
        noise = np.random.default_rng(0).normal(0, 1, x.shape)
        blurs = [blurred(x, sigma) for sigma in (0.5, 1, 2, 4)]
        noisy = [np.clip(x + sigma * noise, 0, 255).astype(np.uint8) for sigma in (4, 10, 25, 60)]
        for levels in (blurs, noisy):
            distances = [qpt.reference_distance(encoder, degraded, x) for degraded in levels]
            assert distances == sorted(distances) and distances[0] > 0


def test_a_scorer_gives_its_encoder_and_its_protocol():
    scorer = make_scorer(protocol=FeatureProtocol(48, 4))
    x, y = image_regions()["cat"], blurred(image_regions()["cat"], 2)
    found = qpt.reference_distance(scorer, x, y)
    assert found == qpt.reference_distance(scorer.encoder, x, y, protocol=FeatureProtocol(48, 4))
    assert found != qpt.reference_distance(scorer.encoder, x, y)
    half = qpt.reference_distance(scorer.in_dtype("bfloat16"), x, y)
    assert half == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (33, 47)])
def test_any_size_is_taken(encoder, shape):
    x, y = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    assert 0 < qpt.reference_distance(encoder, x, y) <= 2


def test_what_is_refused(encoder, tmp_path):
    x = image_regions()["cat"]
    with pytest.raises(
        InputError, match=r"^reference_distance: reference must have the size of the image, 128x96, got"
    ):
        qpt.reference_distance(encoder, x, x[:, :127])
    # Files under 32 px are padded for the encoder: their own sizes are compared.
    for name, pixels in (("a.png", x[:20]), ("b.png", x[:24])):
        Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(InputError, match="size of the image, 128x20, got 128x24 px"):
        qpt.reference_distance(encoder, tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(InputError, match=r"^reference_distance: model must be an encoder or a scorer, got str"):
        qpt.reference_distance("resnet18", x, x)
    with pytest.raises(InputError, match="no such file"):
        qpt.reference_distance(encoder, x, tmp_path / "none.png")
    with pytest.raises(InputError, match="is more than max_pixels"):
        qpt.reference_distance(encoder, x, x, max_pixels=100)
    broken = untrained_encoder("resnet18", 2, seed=1)
    with torch.no_grad():
        broken.conv1.weight.fill_(torch.inf)
    with pytest.raises(InputError, match="encoder must give finite features"):
        qpt.reference_distance(broken, x, x)
