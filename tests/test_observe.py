"""Measurements of a step's embeddings, compared with NumPy, and the file that holds them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpt.errors import InputError
from qpt.pretraining.log import RunLog
from qpt.runs.log import read_log
from qpt.runs.observations import (
    BINS,
    KINDS,
    MAX_ROWS,
    OBSERVATIONS,
    Observation,
    ObservationWriter,
    bin_edges,
    mean_similarity,
    observe,
    read_observations,
)


def unit_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    x = rng.normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def by_definition(q: np.ndarray, k: np.ndarray, groups: np.ndarray, images: np.ndarray) -> dict[str, object]:
    """Pair by pair in float64."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    distances, potentials = [], []
    for i in range(len(q)):
        for j in range(len(k)):
            kind = "positive" if groups[i] == groups[j] else "same_image" if images[i] == images[j] else "other_image"
            found[kind].append(float(q[i].astype(float) @ k[j].astype(float)))
            if kind == "positive":
                distances.append(((q[i].astype(float) - k[j]) ** 2).sum())
        potentials += [np.exp(-2 * ((q[i].astype(float) - q[j]) ** 2).sum()) for j in range(i)]
    return {"alignment": np.mean(distances), "uniformity": np.log(np.mean(potentials)), "similarities": found}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 3), st.integers(1, 9))
def test_measurements_equal_the_definitions(seed: int, images_count: int, views: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    rows = images_count * views
    q, k = unit_rows(rng, rows, dim), unit_rows(rng, rows, dim)
    groups, images = np.arange(rows) + 1000, np.repeat(rng.permutation(images_count), views)
    found = observe(*map(torch.from_numpy, (q, k, groups, images)))
    expected = by_definition(q, k, groups, images)
    assert found.rows == rows
    assert found.alignment == pytest.approx(expected["alignment"], rel=1e-5, abs=1e-6)
    assert found.uniformity == pytest.approx(expected["uniformity"], rel=1e-5, abs=1e-5)
    for kind, similarities in expected["similarities"].items():  # type: ignore[attr-defined]
        mine = np.array(getattr(found, kind))
        assert mine.sum() == len(similarities)
        # A similarity within rounding of an edge may fall on either side: counts below an edge bracket the true ones.
        for index, edge in enumerate(bin_edges()[1:-1], start=1):
            below = mine[:index].sum()
            assert (np.array(similarities) < edge - 1e-6).sum() <= below <= (np.array(similarities) < edge + 1e-6).sum()


def test_histogram_equals_numpys_away_from_edges() -> None:
    """Similarities placed in the middles of known bins, the ends of the range among them."""
    edges = np.array(bin_edges())
    np.testing.assert_allclose(edges, np.linspace(-1, 1, BINS + 1), atol=1e-12)
    cosines = np.concatenate([[-1.0, 1.0], (edges[:-1] + edges[1:])[::7] / 2])
    n = len(cosines)
    q = np.zeros((n, n + 1), np.float32)
    q[:, 0] = 1
    k = np.zeros_like(q)
    k[:, 0], k[np.arange(n), np.arange(n) + 1] = cosines, np.sqrt(1 - cosines**2)
    found = observe(torch.from_numpy(q), torch.from_numpy(k), torch.arange(n), torch.arange(n))
    expected = np.histogram(cosines, edges)[0]
    assert found.positive == expected.tolist() and sum(found.same_image) == 0
    assert found.other_image == ((n - 1) * expected).tolist()
    assert mean_similarity(found.positive) == pytest.approx(cosines.mean(), abs=1 / BINS)
    assert np.isnan(mean_similarity(found.same_image))


def test_known_answers() -> None:
    """All rows equal: uniformity and alignment 0. Two opposite points: log((exp(-8) + ...) / pairs)."""
    same = torch.tensor([[1.0, 0.0]] * 4)
    ids = torch.arange(4)
    found = observe(same, same, ids, ids // 2)
    assert found.alignment == 0 and found.uniformity == 0
    assert found.positive[-1] == 4 and found.same_image[-1] == 4 and found.other_image[-1] == 8
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = observe(poles, -poles, ids[:2], ids[:2])
    assert found.alignment == pytest.approx(4) and found.uniformity == pytest.approx(-8)
    assert found.positive[0] == 2 and found.other_image[-1] == 2


def test_large_batches_are_measured_by_their_first_rows_and_half_precision_is_widened() -> None:
    rng = np.random.default_rng(3)
    q, k = (torch.from_numpy(unit_rows(rng, MAX_ROWS + 50, 4)) for _ in range(2))
    ids = torch.arange(len(q))
    assert observe(q, k, ids, ids // 2) == observe(q[:MAX_ROWS], k[:MAX_ROWS], ids[:MAX_ROWS], ids[:MAX_ROWS] // 2)
    half = observe(q[:8].bfloat16(), k[:8].bfloat16(), ids[:8], ids[:8] // 2)
    assert half == observe(q[:8].bfloat16().float(), k[:8].bfloat16().float(), ids[:8], ids[:8] // 2)


def test_observing_leaves_the_generator_and_the_graph_alone() -> None:
    q = torch.nn.functional.normalize(torch.rand(6, 3), dim=1).requires_grad_()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    observe(q, q * 1, torch.arange(6), torch.arange(6) // 2)
    assert torch.equal(torch.rand(2), expected) and q.grad is None


def some(value: float) -> Observation:
    return Observation(4, value, -value, [1] * BINS, [0] * BINS, [2] * BINS)


def test_the_file_is_cut_back_where_a_run_goes_on(tmp_path: Path) -> None:
    log = ObservationWriter(tmp_path, 0)
    assert log.last is None and read_observations(tmp_path) == {}
    for step in (1, 10, 20, 30):
        log.write(step, some(step / 8))
        assert read_observations(tmp_path)[step] == some(step / 8)  # flushed
    log.close()
    with open(tmp_path / OBSERVATIONS, "a", encoding="utf-8") as stream:
        stream.write('{"step": 40, "rows": 4, "align')  # killed while writing
    assert list(read_observations(tmp_path)) == [1, 10, 20, 30]
    log = ObservationWriter(tmp_path, 20)
    assert log.last == some(20 / 8)
    log.write(30, some(1 / 3))
    log.close()
    assert read_observations(tmp_path) == {1: some(1 / 8), 10: some(10 / 8), 20: some(20 / 8), 30: some(1 / 3)}
    ObservationWriter(tmp_path, 0).close()
    assert read_observations(tmp_path) == {}


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": "x"}', None])
def test_a_damaged_file_is_refused(tmp_path: Path, line: str | None) -> None:
    if line is None:  # the right fields, a histogram of another length
        line = json.dumps({"step": 1, **some(1.0).__dict__, "positive": [1, 2]})
    (tmp_path / OBSERVATIONS).write_text(line + "\n")
    with pytest.raises(InputError, match=r"observations\.jsonl of .* must hold measurements"):
        read_observations(tmp_path)


ROW = {
    "step": 10,
    "loss": 1.5,
    "lr": 0.1,
    "positive_similarity": 0.5,
    "negative_similarity": 0.1,
    "valid_rows": 8,
    "same_image_similarity": 0.2,
    "pool_rows": 0,
    "images_per_s": 20.0,
    "load_share": 0.04,
    "degrade_share": 0.1,
    **{f"{stage}_images_per_s": 50.0 for stage in ("decode", "copy", "degrade", "step")},
}


def test_the_log_carries_the_latest_observation_and_resumes_with_it(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0, steps=40, tensorboard=False) as log:
        log.write(ROW)
        log.observe(12, some(0.25))
        log.write({**ROW, "step": 20})
        log.observe(22, some(0.75))
    with RunLog(tmp_path, first_step=20, steps=40, tensorboard=False) as log:
        log.write({**ROW, "step": 30})
    found = read_log(tmp_path)
    assert found["step"] == [10, 20, 30]
    np.testing.assert_array_equal(found["alignment"], [np.nan, 0.25, 0.25])
    np.testing.assert_array_equal(found["uniformity"], [np.nan, -0.25, -0.25])


def test_tensorboard_gets_the_histograms(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = Observation(4, 0.5, -1.0, [0] * 79 + [7], [0] * BINS, [2] * BINS)
    with RunLog(tmp_path, first_step=0, steps=40, tensorboard=True) as log:
        log.observe(12, seen)
        log.write({**ROW, "step": 20})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (positive,) = events.Histograms("similarity/positive")
    value = positive.histogram_value
    assert positive.step == 12 and value.num == 7 and sum(value.bucket) == 7 and value.bucket_limit[-1] == 1
    assert value.sum == pytest.approx(7 * 79 / 80) and value.min == value.max == pytest.approx(1 - 1 / 80)
    assert sum(events.Histograms("similarity/other_image")[0].histogram_value.bucket) == 2 * BINS
    assert "similarity/same_image" not in events.Tags()["histograms"]
    assert [(each.step, each.value) for each in events.Scalars("alignment")] == [(12, 0.5)]
    assert events.Scalars("loss")[0].value == 1.5


def test_a_line_in_15_seconds_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("qpt.pretraining.log.time.monotonic", lambda: now[0])
    with RunLog(tmp_path, first_step=0, steps=400, tensorboard=False) as log:
        for step in range(10, 401, 10):  # a row a second
            now[0] += 1.0
            log.write({**ROW, "step": step, "load_share": 0.4 if step > 200 else 0.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pre-training 160/400  loss 1.500  20 images/s  step-bound  ETA 0:00:24",
        "pre-training 320/400  loss 1.500  20 images/s  data-bound (40% waiting)  ETA 0:00:08",
        "pre-training 400/400  loss 1.500  20 images/s  data-bound (40% waiting)  ETA 0:00:00",
    ]


def test_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, first_step=0, steps=40, tensorboard=False) as log:
        log.write(ROW)
        whole, log._rows.stream = log._rows.stream, open("/dev/full", "w")  # noqa: SIM115 - closed below, in vain
        for step in (20, 30):
            log.write({**ROW, "step": step})
        with pytest.raises(OSError, match="No space"):
            log._rows.stream.close()
        log._rows.stream = whole
        log.write({**ROW, "step": 40})
    assert capsys.readouterr().err.count("cannot write the log") == 1
    assert read_log(tmp_path)["step"] == [10, 40]
