"""The demonstration's parts: crops, the page, and the folder it may clear. ``make demo`` runs the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpt import InputError
from qpt.commands.demo_run import CROP, MARKER, SCALES, _clear
from qpt.commands.demo_scores import OPS, score_sections
from qpt.data.crops import cut_crops
from qpt.data.sample_images import sample_images
from qpt.degradations.space import DegradationSpace
from qpt.evaluate.image_crops import load_image
from qpt.evaluate.probe import probe
from qpt.evaluate.probe_set import probe_set
from qpt.evaluate.scorer import Scorer
from qpt.models.encoder import untrained_encoder
from qpt.report.page import Picture, Section, write_page
from qpt.runs.log import read_log


def test_the_two_wheels_hold_the_sample_images() -> None:
    found = sample_images()
    assert len(found) == 13
    assert all(path.suffix in (".png", ".jpg") for path in found)


@pytest.mark.parametrize("size", [(300, 450), (CROP, CROP), (60, 500), (1, 1)])
def test_crops_have_one_size_whatever_the_image(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    crops = cut_crops([image], 6, size=CROP, seed=0, scales=SCALES)
    assert crops.shape == (6, CROP, CROP, 3) and crops.dtype == np.uint8
    np.testing.assert_array_equal(crops, cut_crops([image], 6, size=CROP, seed=0, scales=SCALES))


def test_only_a_demonstration_is_cleared(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="out must be a new folder or an earlier demonstration"):
        _clear(precious)
    assert (precious / "chapter.txt").exists()
    (precious / MARKER).touch()
    _clear(precious)
    assert not precious.exists()


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (3, 3)).save(picture)
    section = Section(
        "A & B", "x < y", ["name", "value"], [["one", "1"]], [Picture(picture.read_bytes(), "black")], code="lr: 0.1"
    )
    write_page(tmp_path / "page.html", "Title", "Lead.", [section])
    text = (tmp_path / "page.html").read_text()
    assert "A &amp; B" in text and "x &lt; y" in text and "data:image/png;base64," in text and "lr: 0.1" in text
    assert "http" not in text and str(tmp_path) not in text


def test_read_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,2.5\n2,2.25\n")
    assert read_log(tmp_path) == {"step": [1.0, 2.0], "loss": [2.5, 2.25]}


def test_probe_finds_what_the_features_hold() -> None:
    """Features that hold the level predict it; the probe set covers every op and level once per crop."""
    space = DegradationSpace(ops=("gaussian_noise", "brightness"), max_ops=1)
    crops = torch.from_numpy(
        cut_crops([np.full((64, 64, 3), value, np.uint8) for value in (90, 110, 130, 150)], 8, size=CROP, seed=0)
    )
    sources = np.arange(8) % 4
    fit_on, measure_on = (probe_set(crops, sources, space, seed) for seed in (0, 1))
    assert len(fit_on.program) == 8 * 2 * 5
    assert fit_on.sources.tolist() == sources.repeat(10).tolist()
    result = probe(untrained_encoder("resnet18", 8, 0), fit_on, measure_on)
    assert result.op_accuracy > 0.8
    assert result.level_srcc_per_op["gaussian_noise"] > 0.9
    assert result.level_srcc == pytest.approx(np.mean(list(result.level_srcc_per_op.values())))


def test_the_scores_of_the_page() -> None:
    """Sections for whatever images there are: one small one, or more than are shown."""
    photograph = load_image(sample_images()[1])
    scorer = Scorer.load()
    for images in ({"a/one.png": photograph[:60, :70]}, {f"{i}.png": photograph[i : i + 90, :100] for i in range(14)}):
        sections = score_sections(images, scorer)
        head, strips = sections[0], [section for section in sections[1:] if section.size == "small"]
        assert len(head.pictures) == min(len(images), 12)
        scores = [float(picture.caption.split(": ")[1]) for picture in head.pictures]
        assert scores == sorted(scores, reverse=True) and "/" not in head.pictures[0].caption
        assert len(strips) == len(OPS)
        assert all(len(strip.pictures) == 6 for strip in strips)
        assert strips[0].pictures[3].caption.startswith("level 3: ")
