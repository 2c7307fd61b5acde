"""Features of images: crops, scales, statistics over positions, the cache, the classical features."""

import copy
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from qpt.errors import InputError
from qpt.evaluate import features, image_crops
from qpt.evaluate.classical import classical_features, contrast, log_laplacian_variance, luminance
from qpt.evaluate.features import READ_OUTS, FeatureProtocol, ReadOut, extract, image_features, weights_hash
from qpt.evaluate.image_crops import crop_boxes, half_scale, load_image, map_images, mirror_pad, scaled_images
from qpt.models.encoder import untrained_encoder
from tests.labelled import image_regions
from tests.labelled import one_thread as one_thread

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def encoder():
    return untrained_encoder("resnet18", 4, seed=1)


def definition(encoder, images):
    """Return mean and standard deviation of every channel over the positions of all images, from the definition."""
    maps = []
    for image in images:
        x = torch.from_numpy(((image / 255.0 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            maps.append([stage[0].flatten(1).double() for stage in encoder.stages(x)])
    joined = [torch.cat(stage, dim=1) for stage in zip(*maps, strict=True)]
    means = torch.cat([stage.mean(1) for stage in joined])
    return means.numpy(), torch.cat([stage.std(1, unbiased=False) for stage in joined]).numpy()


def test_features_are_mean_and_std_over_positions_at_three_scales(encoder):
    pixels = image_regions()["cat"]
    found = image_features(encoder, pixels)
    assert found.shape == (3, 2, sum(encoder.stage_dims)) and found.dtype == np.float32
    for scale, image in enumerate((pixels, half_scale(pixels), half_scale(half_scale(pixels)))):
        mean, std = definition(encoder, [image])
        np.testing.assert_allclose(found[scale, 0], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[scale, 1], std, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(image_features(encoder, pixels, scales=2), found[:2])


def test_stages_are_as_many_as_the_encoder_has(encoder):
    """Three stages of any widths: nothing counts on the four of a ResNet."""
    three = copy.deepcopy(encoder)
    three.stages, three.stage_dims = lambda x: encoder.stages(x)[:3], encoder.stage_dims[:3]
    pixels = image_regions()["cat"]
    found = image_features(three, pixels)
    # One of them is folded (qpt.models.folded), which rounds otherwise.
    of_all = image_features(encoder, pixels)[:, :, : sum(three.stage_dims)]
    np.testing.assert_allclose(found, of_all, rtol=1e-4, atol=1e-5)
    last = ReadOut("last", "std").select(found[None], three.stage_dims)
    np.testing.assert_array_equal(last[0], found[:2, 1, -three.stage_dims[-1] :].reshape(-1))


def test_large_images_are_seen_through_a_grid_of_crops(encoder):
    pixels = image_regions()["face"]  # 96 x 128: more than 4 crops of 48 px at full scale, not more at half scale
    found = image_features(encoder, pixels, FeatureProtocol(crop_px=48, crops=4))
    corners = [pixels[:48, :48], pixels[:48, 80:], pixels[48:, :48], pixels[48:, 80:]]
    mean, std = definition(encoder, corners)
    np.testing.assert_allclose(found[0, 0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0, 1], std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1, 0], definition(encoder, [half_scale(pixels)])[0], rtol=1e-4, atol=1e-5)


def test_crops_of_one_image_are_shared_out_among_threads(encoder, monkeypatch):
    pixels, protocol = image_regions()["face"], FeatureProtocol(crop_px=48, crops=4)
    callers: list[int] = []
    moments = features._crop_moments

    def recorded(*arguments):
        callers.append(threading.get_ident())
        assert torch.get_num_threads() == 1
        return moments(*arguments)

    monkeypatch.setattr(features, "_crop_moments", recorded)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(image_features(encoder, pixels, protocol))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)
    alone, shared = set(callers[: len(callers) // 2]), set(callers[len(callers) // 2 :])
    assert alone == {threading.get_ident()} and shared.isdisjoint(alone)


@given(st.integers(32, 6000), st.integers(32, 6000), st.integers(1, 16), st.sampled_from([32, 384]))
def test_crop_boxes_are_bounded_equal_and_inside(width, height, count, side):
    boxes = crop_boxes(width, height, side=side, count=count)
    sizes = {(right - left, bottom - top) for left, top, right, bottom in boxes}
    assert 1 <= len(boxes) <= count and len(sizes) == 1
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) <= count * side * side
    assert all(0 <= left < right <= width and 0 <= top < bottom <= height for left, top, right, bottom in boxes)
    if width * height <= count * side * side:
        assert boxes == [(0, 0, width, height)]
    assert len(set(boxes)) == len(boxes)


def test_crop_boxes_of_a_4k_image_and_of_a_panorama():
    nine = crop_boxes(3840, 2160, side=384, count=9)
    assert nine[0] == (0, 0, 384, 384) and nine[4] == (1728, 888, 2112, 1272) and nine[8] == (3456, 1776, 3840, 2160)
    wide = crop_boxes(10000, 300, side=384, count=9)
    assert len(wide) == 9 and wide[0] == (0, 0, 384, 300) and wide[-1] == (9616, 0, 10000, 300)


def test_read_outs_select_what_they_name():
    dims = (1, 2, 3, 4)
    stack = np.arange(2 * 2 * 2 * 10, dtype=np.float32).reshape(2, 2, 2, 10)
    of_two = [ReadOut(stages, statistics) for stages in ("last", "all") for statistics in ("mean", "mean+std")]
    assert [str(r) for r in of_two] == ["last, mean", "last, mean+std", "all, mean", "all, mean+std"]
    widths = [r.select(stack, dims).shape[1] for r in of_two]
    assert widths == [2 * 4, 2 * 2 * 4, 2 * 10, 2 * 2 * 10]
    np.testing.assert_array_equal(of_two[0].select(stack, dims)[1], [46, 47, 48, 49, 66, 67, 68, 69])
    with pytest.raises(InputError, match="read-out"):
        ReadOut("first", "mean")
    with pytest.raises(InputError, match="scales must be 3 for differences"):
        ReadOut("all", "mean", across="differences")


def test_read_outs_of_three_scales_select_what_they_name():
    dims = (1, 2, 3, 4)
    stack = np.random.default_rng(0).normal(size=(3, 3, 2, 10)).astype(np.float32)
    full, half, quarter = np.moveaxis(stack.astype(np.float64), 1, 0)  # (3, 2, 10) each
    gaps = [(full - half)[:, 0], (half - quarter)[:, 0]]
    expected = {
        "all, mean, differences": gaps,
        "all, mean, full and differences": [full[:, 0], *gaps],
        "all, std": [full[:, 1], half[:, 1]],
        "all, mean+std, 3 scales": [stack.reshape(3, -1)],
        "all, mean+std, full and differences": [x.reshape(3, -1) for x in (full, full - half, half - quarter)],
    }
    by_name = {str(read_out): read_out for read_out in READ_OUTS}
    assert len(by_name) == len(READ_OUTS)
    for name, parts in expected.items():
        np.testing.assert_array_equal(by_name[name].select(stack, dims), np.concatenate(parts, axis=1))


@pytest.mark.parametrize("read_out", READ_OUTS, ids=str)
def test_coefficients_give_the_score_from_all_features(read_out):
    dims = (1, 2, 3, 4)
    stack = np.random.default_rng(0).normal(size=(3, 3, 2, 10)).astype(np.float32)
    selected = read_out.select(stack, dims)
    weights = np.random.default_rng(1).normal(size=selected.shape[1])
    coefficients = read_out.coefficients(weights, dims)
    assert coefficients.shape == (read_out.scales, 2, 10)
    found = (stack[:, : read_out.scales] * coefficients).sum((1, 2, 3))
    np.testing.assert_allclose(found, selected @ weights, rtol=1e-12)


def test_scored_upright(encoder, tmp_path):
    """An image of EXIF orientation 6 is upright after a turn by 90 degrees clockwise."""
    picture = Image.fromarray(image_regions()["cup"])
    picture.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "upright.png"), load_image(tmp_path / "turned.png"))


def test_cache_is_used_keyed_and_replaced_when_damaged(encoder, tmp_path, monkeypatch):
    paths = []
    for name, pixels in image_regions().items():
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    options = {"label": "x", "cache": tmp_path / "kept", "images_key": "set 1", "quiet": True}
    first = extract(encoder, paths, protocol=FeatureProtocol(), **options)
    (stored,) = (tmp_path / "kept").iterdir()

    def refuse(*_):
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(features, "image_features", refuse)
        np.testing.assert_array_equal(extract(encoder, paths, protocol=FeatureProtocol(), **options), first)
        for change in (
            {"encoder": untrained_encoder("resnet18", 4, seed=2)},
            {"protocol": FeatureProtocol(crops=1)},
            {"images_key": "set 2"},
        ):
            arguments = {"encoder": encoder, "protocol": FeatureProtocol(), **options, **change}
            with pytest.raises(AssertionError, match="computed again"):
                extract(paths=paths, **arguments)
    stored.write_bytes(stored.read_bytes()[:100])
    np.testing.assert_array_equal(extract(encoder, paths, protocol=FeatureProtocol(), **options), first)
    assert stored.stat().st_size > 100


def test_all_damaged_images_are_listed(tmp_path, encoder):
    for number, pixels in enumerate(image_regions().values()):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for number in (1, 4):
        file = tmp_path / f"{number}.png"
        file.write_bytes(file.read_bytes()[:2000])
    paths = sorted(tmp_path.glob("*.png"))
    for attempt in (
        lambda: classical_features(paths, quiet=True),
        lambda: extract(encoder, paths, protocol=FeatureProtocol(), label="x", quiet=True),
    ):
        with pytest.raises(InputError, match="2 cannot be used") as caught:
            attempt()
        assert "1.png" in str(caught.value) and "4.png" in str(caught.value)


def test_weights_hash_follows_values():
    first, again, other = (untrained_encoder("resnet18", 4, seed) for seed in (0, 0, 1))
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
    first.bn1.running_mean[0] += 1
    assert weights_hash(first) != weights_hash(again)


def test_untrained_encoder_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    untrained_encoder("resnet18", 2, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_classical_features_by_definition():
    pixels = image_regions()["table"]
    grey = pixels.astype(float) @ [0.299, 0.587, 0.114]
    assert contrast(luminance(pixels)) == pytest.approx(np.sqrt(np.mean((grey - grey.mean()) ** 2)), rel=1e-5)
    kernel = {(-1, 0): 1, (1, 0): 1, (0, -1): 1, (0, 1): 1, (0, 0): -4}
    h, w = grey.shape
    laplacian = sum(k * grey[1 + dy : h - 1 + dy, 1 + dx : w - 1 + dx] for (dy, dx), k in kernel.items())
    expected = np.log(1 + np.mean((laplacian - laplacian.mean()) ** 2))
    assert log_laplacian_variance(luminance(pixels)) == pytest.approx(expected, rel=1e-4)
    flat = np.full((40, 40, 3), 90, np.uint8)
    assert contrast(luminance(flat)) == pytest.approx(0, abs=1e-4)
    assert log_laplacian_variance(luminance(flat)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        "x.png",
        None,
    ],
)
def test_pixels_of_another_form_are_refused(encoder, pixels):
    with pytest.raises(InputError, match="pixels must be"):
        image_features(encoder, pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (31, 40), (5, 7), (33, 1)])
def test_small_images_are_padded_by_mirroring(encoder, shape):
    """SciPy pads a signal the same way with its edge repeated, evenly on both ends."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = mirror_pad(pixels)
    assert found.shape == (max(32, shape[0]), max(32, shape[1]), 3)
    before = [max(0, 32 - side) // 2 for side in shape]
    ys, xs = (np.arange(length) - start for length, start in zip(found.shape[:2], before, strict=True))
    grid = np.meshgrid(ys, xs, indexing="ij")
    for channel in range(3):
        expected = ndimage.map_coordinates(pixels[..., channel], grid, order=0, mode="reflect")  # SciPy's name for it
        np.testing.assert_array_equal(found[..., channel], expected)
    np.testing.assert_array_equal(image_features(encoder, pixels), image_features(encoder, found))


@given(st.integers(2, 70), st.integers(2, 70), st.integers(1, 300))
def test_half_scale_by_bands_is_one_resize_of_pillow(height, width, band):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(image_crops, "_BAND_PIXELS", band)
        np.testing.assert_array_equal(half_scale(pixels), np.asarray(expected))


def test_smaller_scales_are_padded_to_half_of_what_the_full_scale_is():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 100, 3), np.uint8)
    assert [image.shape[:2] for image in scaled_images(pixels, 3)] == [(32, 100), (16, 50), (16, 25)]
    half, quarter = list(scaled_images(pixels, 3))[1:]
    np.testing.assert_array_equal(quarter, mirror_pad(half_scale(half), 16))


def test_protocol_bounds():
    for bad in ({"crops": 0}, {"crop_px": 31}):
        with pytest.raises(InputError, match="must be an integer of at least"):
            FeatureProtocol(**bad)


def write_images(folder, pixels):
    paths = [folder / f"{number}.png" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_images_are_mapped_in_order_in_as_many_threads(workers, tmp_path):
    paths = write_images(tmp_path, [np.full((40, 40, 3), number, np.uint8) for number in range(12)])
    barrier, threads, started = threading.Barrier(workers), set(), []

    def compute(pixels):
        if pixels[0, 0, 0] < workers:
            barrier.wait(timeout=60)  # passes only with so many threads at once
        threads.add(threading.get_ident())
        return int(pixels[0, 0, 0])

    options = {"workers": workers, "label": "", "quiet": True, "start": lambda: started.append(threading.get_ident())}
    assert list(map_images(compute, paths, **options)) == list(range(12))
    assert set(started) == threads and len(threads) == workers
    assert list(map_images(compute, [], **options)) == []


def test_an_error_of_the_computation_is_raised_at_its_image(tmp_path):
    paths = write_images(tmp_path, [np.full((40, 40, 3), number, np.uint8) for number in range(9)])
    taken = []

    def compute(pixels):
        if pixels[0, 0, 0] == 3:
            raise InputError("encoder: too small")
        return int(pixels[0, 0, 0])

    with pytest.raises(InputError, match="encoder: too small"):
        taken.extend(map_images(compute, paths, workers=2, label="", quiet=True))
    assert taken == [0, 1, 2]


def test_nothing_is_computed_after_a_damaged_image(tmp_path):
    paths = write_images(tmp_path, [np.full((40, 40, 3), number, np.uint8) for number in range(20)])
    paths[1].write_bytes(b"no image")
    paths[19].unlink()
    computed, taken = [], []

    def compute(pixels):
        computed.append(int(pixels[0, 0, 0]))
        return computed[-1]

    with pytest.raises(InputError, match="2 cannot be used") as caught:
        taken.extend(map_images(compute, paths, workers=1, label="", quiet=True))
    assert taken == [0] and max(computed) < 10  # those that the thread took before the caller saw the fault
    assert str(caught.value).index("1.png") < str(caught.value).index("19.png")


def test_features_of_a_set_are_those_of_each_image_and_leave_the_threads_as_they_were(encoder, tmp_path):
    images = list(image_regions().values())
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = extract(encoder, write_images(tmp_path, images), protocol=FeatureProtocol(), label="", quiet=True)
            assert torch.get_num_threads() == threads
            for row, image in zip(found, images, strict=True):
                np.testing.assert_allclose(row, image_features(encoder, image), rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(before)
