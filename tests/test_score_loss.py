"""Scorer.as_metric(as_loss=True): the scorer's value, a right gradient, steps that raise a score, what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from qpt.errors import InputError
from qpt.evaluate.calibration import LogisticCalibration
from qpt.evaluate.features import FeatureProtocol, ReadOut, prepare
from qpt.evaluate.image_crops import half_scale, mirror_pad
from qpt.evaluate.score_loss import _half_scale, _mirror_pad
from qpt.evaluate.scorer import Scorer
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions
from tests.labelled import one_thread as one_thread

READ_OUTS = (ReadOut("all", "mean+std"), ReadOut("all", "mean", 3, "full and differences"), ReadOut("last", "std", 3))


def make_scorer(read_out=READ_OUTS[0], protocol=None, calibration=None, width=2) -> Scorer:
    """Return a scorer of a narrow encoder with random weights, whose scores are some tens."""
    encoder = prepare(untrained_encoder("resnet18", width, seed=3))
    shape = (1, read_out.scales, 2, sum(encoder.stage_dims))
    count = read_out.select(np.zeros(shape, np.float32), encoder.stage_dims).shape[1]
    weights = np.random.default_rng(1).normal(0, 10 / count**0.5, count)
    protocol = protocol or FeatureProtocol()
    return Scorer(encoder, read_out, protocol, weights, 50.0, 0.0, 100.0, {"name": "none"}, calibration)


def as_batch(*pictures, dtype=torch.float32):
    """Return (N, 3, H, W) values of 0 to 1 that require a gradient."""
    stack = np.stack(pictures).transpose(0, 3, 1, 2)
    return (torch.from_numpy(stack.copy()).to(dtype) / 255).requires_grad_()


@pytest.mark.parametrize("read_out", READ_OUTS, ids=str)
@pytest.mark.parametrize("calibration", [None, LogisticCalibration(10.0, 90.0, 48.0, 7.0)], ids=["raw", "calibrated"])
@pytest.mark.parametrize("crops", [FeatureProtocol(), FeatureProtocol(48, 4)], ids=["whole", "crops"])
def test_the_value_is_the_scorers(read_out, calibration, crops):
    """Up to the rounding of the scorer's half and quarter scale to 8 bits."""
    scorer = make_scorer(read_out, crops, calibration)
    pictures = [image_regions()[name] for name in ("cat", "rocket")]
    scores = scorer.as_metric(as_loss=True, loss_reduction="none")(as_batch(*pictures))
    expected = [scorer(picture) for picture in pictures]
    assert scores.shape == (2, 1) and scores.dtype == torch.float32
    assert abs(expected[0] - expected[1]) > 2  # so that the tolerance tells images apart
    np.testing.assert_allclose(scores[:, 0].detach(), expected, atol=0.3)


def test_at_full_scale_alone_the_value_is_exact():
    """With the half scale's weights at 0, nothing is rounded."""
    scorer = make_scorer()
    half = len(scorer.weights) // 2
    scorer.weights[half:] = 0
    picture = image_regions()["cup"]
    found = scorer.as_metric(as_loss=True)(as_batch(picture)).item()
    assert found == pytest.approx(scorer(picture), abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (33, 47)])
def test_small_images_are_padded_alike(shape):
    scorer = make_scorer()
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = scorer.as_metric(as_loss=True)(as_batch(picture))
    assert found.item() == pytest.approx(scorer(picture), abs=0.3)
    padded = _mirror_pad(as_batch(picture), 32).detach()
    np.testing.assert_array_equal((padded[0] * 255).round().permute(1, 2, 0).byte(), mirror_pad(picture))


@pytest.mark.parametrize(("shape", "levels"), [((2, 3), 256), ((33, 40), 256), ((90, 31), 128), ((64, 64), 256)])
def test_the_half_scale_is_pillows_before_rounding(shape, levels):
    """The tall image leaves room: Pillow clips between its passes too, of which another is the first before 13."""
    picture = np.random.default_rng(0).integers(128 - levels // 2, 128 + levels // 2, (*shape, 3), np.uint8)
    found = _half_scale(as_batch(picture)).detach()[0].permute(1, 2, 0) * 255
    assert np.abs(found.numpy() - half_scale(picture)).max() <= 1.2  # half a level of rounding in each of two passes


@pytest.mark.parametrize("calibration", [None, LogisticCalibration(10.0, 90.0, 48.0, 7.0)], ids=["raw", "calibrated"])
def test_the_gradient_is_that_of_finite_differences(calibration):
    """In float64; the image is padded, halved, and seen through several crops."""
    scorer = make_scorer(READ_OUTS[0], FeatureProtocol(32, 1), calibration)
    loss = scorer.as_metric(as_loss=True, loss_reduction="none").double()
    generator = torch.Generator().manual_seed(0)
    x = (0.3 + 0.4 * torch.rand(1, 3, 5, 34, dtype=torch.float64, generator=generator)).requires_grad_()
    assert loss(x).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (x,), eps=1e-6, atol=1e-5, fast_mode=True)


def test_gradient_steps_raise_the_score_of_a_degraded_image():
    scorer = make_scorer(width=4)
    blurred = np.asarray(Image.fromarray(image_regions()["face"][:64, :64]).filter(ImageFilter.GaussianBlur(2)))
    loss, x = scorer.as_metric(as_loss=True), as_batch(blurred)
    optimiser = torch.optim.Adam([x], lr=0.01)
    scores = [scorer(blurred)]
    for _ in range(8):
        optimiser.zero_grad()
        value = -loss(x)
        value.backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0
        optimiser.step()
        with torch.no_grad():
            x.clamp_(0, 1)
        pixels = (x.detach()[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        scores.append(scorer(pixels))
    assert np.isfinite(scores).all() and scores[-1] > scores[0] + 1
    assert scores[-1] == pytest.approx(loss(x).item(), abs=0.2)  # the scorer agrees on the rounded result


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (70, 40)])
def test_an_image_of_one_colour_has_a_finite_gradient(value, shape):
    """Its channels are constant, or nearly: their standard deviation is 0, where a square root has no derivative."""
    x = torch.full((1, 3, *shape), value, requires_grad=True)
    make_scorer().as_metric(as_loss=True)(x).backward()
    assert x.grad.isfinite().all()


def test_the_reductions():
    scorer, x = make_scorer(), as_batch(*[picture[:40, :40] for picture in image_regions().values()][:3])
    each = scorer.as_metric(as_loss=True, loss_reduction="none")(x)
    assert scorer.as_metric(as_loss=True)(x).shape == ()
    assert scorer.as_metric(as_loss=True)(x).item() == pytest.approx(each.mean().item())
    assert scorer.as_metric(as_loss=True, loss_reduction="sum")(x).item() == pytest.approx(each.sum().item())
    alone = scorer.as_metric(as_loss=True)(x[1:2])
    assert alone.item() == pytest.approx(each[1].item(), abs=1e-4)  # an image's score does not depend on its batch
    with pytest.raises(InputError, match=r"^metric: loss_reduction must be one of mean, sum, none, got 'max'"):
        scorer.as_metric(as_loss=True, loss_reduction="max")


def test_it_belongs_to_a_network_without_being_trained():
    """In a module that is trained, the encoder keeps its weights, its statistics and its mode."""
    scorer = make_scorer()
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Sigmoid(), scorer.as_metric(as_loss=True))
    network.train()
    before = {name: value.clone() for name, value in network[2].state_dict().items()}
    assert not network[2].encoder.training and [p for p in network[2].parameters() if p.requires_grad] == []
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    (-network(torch.rand(2, 3, 40, 40))).backward()
    optimiser.step()
    assert network[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in network[2].state_dict().items())
    assert all(p.requires_grad for p in scorer.encoder.parameters())  # the scorer's own encoder is another one
    assert network[2].lower_better is False and network[2].metric_mode == "NR" and network[2].score_range == "0, 100"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_autocast(dtype):
    scorer, picture = make_scorer(), image_regions()["cat"][:40, :40]
    loss = scorer.as_metric(as_loss=True)
    x = as_batch(picture, dtype=dtype)
    with torch.autocast("cpu"):
        value = loss(x)
    value.backward()
    assert value.dtype == dtype and x.grad.dtype == dtype and x.grad.isfinite().all()
    assert value.item() == pytest.approx(scorer(picture), abs=0.5)
    half = make_scorer().in_dtype("bfloat16").as_metric(as_loss=True)
    assert half(as_batch(picture)).item() == pytest.approx(scorer(picture), abs=2)


GOOD = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def test_tensors_refused():
    loss = make_scorer().as_metric(as_loss=True)
    with pytest.raises(InputError, match=r"^metric: target must require a gradient under as_loss, got .* without one"):
        loss(GOOD)
    with torch.no_grad():
        assert loss(GOOD).isfinite()  # a value for validation
    for wrong in (GOOD[0], GOOD[:, :2], GOOD[:0], GOOD[:, :, :0], GOOD.byte(), GOOD.numpy(), "photo.png", None):
        with pytest.raises(InputError, match=r"^metric: target must be an \(N, 3, H, W\) float tensor .* got"):
            loss(wrong)
    for wrong in (GOOD * 255, GOOD - 1, GOOD * float("nan"), GOOD / 0):
        with pytest.raises(InputError, match=r"^metric: target must hold values from 0 to 1, got"):
            loss(wrong.requires_grad_())
    assert loss((GOOD * 0 + 1 + 1e-6).requires_grad_()).isfinite()  # rounding errors are let through
