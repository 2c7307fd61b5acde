"""The records of a run, and the page it writes from them."""

import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpt import PretrainConfig, cli, load_encoder, pretrain
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.models.encoder import untrained_encoder
from qpt.ops.degrade.api import degrade
from qpt.pretraining.learner import Learner
from qpt.pretraining.log import RunPage
from qpt.report import build
from qpt.report.curves import moving_average
from qpt.report.neighbours import gallery_features, make_gallery, nearest
from qpt.report.run_records import read_runs
from qpt.report.thumbnails import patches_in_a_row
from qpt.runs.first_batch import FIRST_BATCH, read_first_batch
from qpt.runs.history import HISTORY, note_start, read_history
from qpt.runs.log import read_log
from qpt.runs.observations import read_observations
from tests.labelled import image_regions, write_run
from tests.labelled import one_thread as one_thread
from tests.pages import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainConfig, list[torch.Tensor]]:
    """A finished run on six photographs and a broken file; and the patches of its steps."""
    folder = tmp_path_factory.mktemp("training")
    pictures = folder / "photographs"
    pictures.mkdir()
    for name, pixels in image_regions().items():
        Image.fromarray(pixels).save(pictures / f"{name}.png")
    (pictures / "broken.png").write_bytes((pictures / "cat.png").read_bytes()[:80])
    config = PretrainConfig(
        *(str(pictures), str(folder / "run")),
        arch="resnet18",
        width=8,
        projection_dim=8,
        patch_size=24,
        batch_images=7,
        steps=45,
        pool_size=32,
        threads=1,
        log_every=1,
        observe_every=20,
        tensorboard=False,
    )
    given: list[torch.Tensor] = []
    step = Learner.step

    def spy(self: Learner, patches: torch.Tensor, *rest):
        given.append(patches.clone())
        return step(self, patches, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qpt.report.neighbours.IMAGES", 3)
        patch.setattr(Learner, "step", spy)
        assert pretrain(config).finished
    return config, given


def test_a_run_writes_its_own_page(run: tuple[PretrainConfig, list[torch.Tensor]]) -> None:
    config, _ = run
    folder = Path(config.out)
    page = Page(folder / "index.html")
    page.assert_self_contained()
    assert str(folder.parent) not in page.source
    assert not list(folder.glob("*.part"))
    assert tuple(page.text)[1:] == (
        *("Summary", "Training", "Similarities of pairs", "Throughput", "What the run saw"),
        *("Nearest neighbours by quality", "Record", "Settings", "Not shown"),
    )
    assert [len(found) for found in page.pictures.values()] == [0, 0, 5, 2, 2, 12, 36, 0, 0, 0]
    log, observed = read_log(folder), read_observations(folder)
    assert list(observed) == [1, 20, 40]
    assert f"last loss\n{log['loss'][-1]:.3f}\n" in page.text["Summary"]
    assert f"{observed[40].alignment:.3f}" in page.text["Summary"]
    assert "broken.png" in page.text["Record"] and "1 file was skipped." in page.text["Record"]
    assert "started after step 0" in page.text["Record"] and torch.__version__ in page.text["Record"]
    assert "photographs that the run learned from" in page.text["Nearest neighbours by quality"]
    assert "patch_size: 24" in page.text["Settings"]


def test_observed_figures_are_those_of_the_logged_step(run: tuple[PretrainConfig, list[torch.Tensor]]) -> None:
    """Both are of the same embeddings: mean ||q - k||^2 = 2 - 2 mean q.k, whatever else either does."""
    folder = Path(run[0].out)
    log, observed = read_log(folder), read_observations(folder)
    for step in (1, 20, 40):
        row = log["step"].index(step)
        assert log["alignment"][row] == pytest.approx(observed[step].alignment, rel=1e-5)
        assert observed[step].alignment == pytest.approx(2 - 2 * log["positive_similarity"][row], abs=1e-4)
        assert observed[step].rows == log["valid_rows"][row] == sum(observed[step].positive)


def test_seen_patches_are_what_the_learner_got(run: tuple[PretrainConfig, list[torch.Tensor]]) -> None:
    config, given = run
    seen = read_first_batch(Path(config.out))
    assert seen is not None
    np.testing.assert_array_equal(seen.patches, given[0].permute(0, 1, 3, 4, 2).numpy()[:12])
    assert seen.image_numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    text = Page(Path(config.out) / "index.html").text["What the run saw"]
    assert all(chain in text for chain in seen.chains) and "Photograph 6, B: " in text


def test_resuming_is_noted_and_keeps_the_records(
    run: tuple[PretrainConfig, list[torch.Tensor]], tmp_path: Path
) -> None:
    config = dataclasses.replace(run[0], out=str(tmp_path / "run"), steps=6, observe_every=2, page=False)
    pretrain(config)
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in (FIRST_BATCH, "observations.jsonl", "log.csv")}
    pretrain(config, resume=True)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept
    assert [entry["step"] for entry in read_history(tmp_path / "run")] == [0, 6]
    assert cli.main(["report", config.out, "--out", str(tmp_path / "page.html")]) == 0
    assert "resumed after step 6" in Page(tmp_path / "page.html").text["Record"]


def test_observing_can_be_left_out_and_changes_no_weight(
    run: tuple[PretrainConfig, list[torch.Tensor]], tmp_path: Path
) -> None:
    config = dataclasses.replace(run[0], out=str(tmp_path / "run"), observe_every=0, page=False, log_every=9)
    pretrain(config)
    assert read_observations(tmp_path / "run") == {} and not (tmp_path / "run" / "index.html").exists()
    mine, theirs = (load_encoder(out).state_dict() for out in (config.out, run[0].out))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    build.write_report([config.out], tmp_path / "page.html", neighbours=False, quiet=True)
    page = Page(tmp_path / "page.html")
    assert len(page.pictures["Training"]) == 3 and "observe_every" in page.text["Not shown"]


def test_pages_before_the_end_take_one_percent_and_fail_softly(
    run: tuple[PretrainConfig, list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, now, said, written = Path(run[0].out), [1000.0], [], []

    def slow(runs: list[Path], out: Path, *, neighbours: bool, quiet: bool) -> None:
        now[0] += 2.0
        written.append((now[0], neighbours))
        out.write_text("page")

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(build, "write_report", slow)
    whole = (folder / "index.html").read_bytes()
    page = RunPage(folder)
    while now[0] < 2500:
        now[0] += 10.0
        page.update(said.append)
    assert [round(at) for at, _ in written] == [1502, 1704, 1906, 2108, 2310]
    page.update(said.append, finished=True)
    assert [neighbours for _, neighbours in written] == [False] * 5 + [True] and not said
    assert (folder / "index.html").read_text() == "page"

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_report", broken)
    page.update(said.append, finished=True)
    assert said == ["index.html was not written: OSError: [Errno 28] No space left on device"]
    (folder / "index.html").write_bytes(whole)


def test_histories_and_batches_survive_a_crash_or_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert read_history(folder) == [] and read_first_batch(folder) is None
    note_start(folder, 0, torch.device("cpu"))
    with open(folder / HISTORY, "a") as stream:
        stream.write('{"step": 3, "ti')
    note_start(folder, 5, torch.device("cpu"))
    assert [entry["step"] for entry in read_history(folder)] == [0, 5]
    assert read_history(folder)[0]["threads"] == torch.get_num_threads()
    (folder / FIRST_BATCH).write_bytes(b"PK not a batch")
    with pytest.raises(InputError, match=r"seen\.npz of run must hold a batch's patches"):
        read_first_batch(folder)
    np.savez(
        folder / FIRST_BATCH, patches=np.zeros((2, 3), np.uint8), photographs=np.zeros(2), chains=np.array(["a", "b"])
    )
    with pytest.raises(InputError, match="must hold patches"):
        read_first_batch(folder)


def test_damaged_summaries_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for content in ("{", "[1]"):
        (folder / "summary.json").write_text(content, encoding="utf-8")
        (record,) = read_runs([folder])
        assert record.summary == {}
        assert record.faults[0].startswith("summary.json of run: it must hold a mapping")


def test_nearest_are_of_other_groups_and_best_first() -> None:
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(24, 5)), np.repeat(np.arange(6), 4)
    found = nearest(features, groups, 5)
    for row in range(24):
        others = [other for other in range(24) if groups[other] != groups[row]]
        assert found[row].tolist() == sorted(others, key=lambda o: -features[row] @ features[o])[:5]
    assert nearest(features[:5], groups[:5], 5).shape == (5, 1)  # of the group of four there is one other


def test_a_gallery_takes_every_image_through_the_same_compositions() -> None:
    space = DegradationSpace.preset("qpt")
    pixels = list(image_regions().values())[:3]
    gallery = make_gallery(pixels, space, 64, seed=4)
    chains = gallery.program.compositions()
    assert gallery.compositions == 20 and len(set(chains[:20])) == 20
    assert chains[:20] == chains[20:40] == chains[40:]
    assert gallery.image_of_row.tolist() == np.repeat(np.arange(3), 20).tolist()
    assert len(set(gallery.program.seeds.tolist())) == 60  # no two share their noise
    assert degrade(gallery.crops, gallery.program).shape == (60, 64, 64, 3)
    features = gallery_features(untrained_encoder("resnet18", 4, 0), gallery)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1)
    few = make_gallery(pixels, DegradationSpace(ops=("jpeg",), min_ops=1, max_ops=1), 1000, seed=0)
    assert few.compositions == 5 and few.crops.shape[1] == 96  # all there are; the shorter side of an image


def test_moving_averages_are_means_of_the_neighbourhood() -> None:
    values = np.random.default_rng(1).normal(size=200)
    smooth = moving_average(values)
    assert smooth is not None
    expected = [values[max(0, i - 5) : i + 6].mean() for i in range(200)]
    np.testing.assert_allclose(smooth, expected)
    assert moving_average(values[:39]) is None


def test_small_patches_are_enlarged_by_a_whole_factor() -> None:
    patch = np.full((48, 48, 3), 200, np.uint8)
    picture = Image.open(io.BytesIO(patches_in_a_row([patch, patch])))
    assert picture.size == (2 * 192 + 6, 192)
    assert np.asarray(picture)[10, 10].tolist() == [200, 200, 200] and np.asarray(picture)[10, 195].min() > 240
    large = Image.open(io.BytesIO(patches_in_a_row([np.zeros((160, 160, 3), np.uint8)])))
    assert large.size == (160, 160)
