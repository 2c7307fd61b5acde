"""The protocol: ridge against scikit-learn, splits, inner choice, summaries, and the command end to end."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.protocol import (
    REGIMES,
    choose_read_out,
    evaluate_splits,
    inner_folds,
    make_splits,
)
from qpt.evaluate.regimes import EvaluationConfig
from qpt.evaluate.ridge import PENALTIES, fit_ridge
from qpt.evaluate.run import evaluate
from qpt.evaluate.summary import paired_difference, summarise
from qpt.evaluate.table import read_table
from qpt.io import to_json
from tests.labelled import one_thread as one_thread
from tests.labelled import write_run, write_set


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12), (20, 20), (5, 1), (2, 3)])
def test_ridge_equals_scikit_learn_for_every_penalty(n, d):
    generator = np.random.default_rng(n * d)
    x = generator.normal(3, 2, (n, d)) * generator.uniform(0.01, 100, d)
    x[:, 0] = 4.0 if d > 1 else x[:, 0]  # a feature that never varies
    y, test = generator.normal(50, 9, n), generator.normal(3, 2, (7, d))
    found = fit_ridge(x, y).predict(test)
    assert found.shape == (len(PENALTIES), 7)
    for penalty, predictions in zip(PENALTIES, found, strict=True):
        expected = make_pipeline(StandardScaler(), Ridge(alpha=penalty * d)).fit(x, y).predict(test)
        np.testing.assert_allclose(predictions, expected, rtol=1e-6, atol=1e-6)


@given(st.integers(3, 40), st.integers(1, 5), st.integers(0, 99))
def test_splits_keep_groups_together_and_sizes(groups, per_group, seed):
    owner = np.repeat(np.arange(groups), per_group)
    mos = np.random.default_rng(seed).normal(size=len(owner))
    for regime in REGIMES:
        try:
            splits = make_splits(mos, owner, regime, seed)
        except InputError:
            # One test image has no order: the only set this small that cannot be split.
            train = max(2, round(regime.train_share * groups))
            assert train >= groups or (groups - train) * per_group < 2
            continue
        assert len(splits) == regime.splits
        for split in splits:
            assert not set(owner[split.train]) & set(owner[split.test])
            assert sorted([*split.train, *split.test]) == list(range(len(owner)))
            assert len(set(owner[split.train])) == max(2, round(regime.train_share * groups))
        again = make_splits(mos, owner, regime, seed)
        assert all(np.array_equal(a.train, b.train) and a.seed == b.seed for a, b in zip(splits, again, strict=True))


def test_splits_differ_where_they_can_and_follow_the_seed():
    owner, mos = np.repeat(np.arange(12), 9), np.random.default_rng(0).normal(size=108)
    few = REGIMES[1]
    splits = make_splits(mos, owner, few, 0)
    assert len({tuple(split.train) for split in splits}) == few.splits
    assert {tuple(s.train) for s in splits} != {tuple(s.train) for s in make_splits(mos, owner, few, 1)}


def test_both_parts_of_a_split_have_different_scores():
    owner = np.arange(10)
    mos = np.array([1.0] * 7 + [2.0, 3.0, 4.0])
    for regime in REGIMES:
        for split in make_splits(mos, owner, regime, 0):
            assert np.ptp(mos[split.train]) > 0 and np.ptp(mos[split.test]) > 0
    with pytest.raises(InputError, match="mos must differ"):
        make_splits(np.array([1.0] * 9 + [2.0]), owner, REGIMES[0], 0)


def test_inner_folds_are_by_group_or_leave_one_image_out():
    owner = np.repeat(np.arange(7), 3)
    folds, name = inner_folds(owner, (0,))
    assert name == "GroupKFold(5)" and len(folds) == 5
    assert all(not set(owner[fitted]) & set(owner[held]) for fitted, held in folds)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(21))
    folds, name = inner_folds(np.repeat([4, 9], 3), (0,))
    assert name == "leave one image out"
    assert [list(held) for _, held in folds] == [[i] for i in range(6)]
    assert all(len(fitted) == 5 and held[0] not in fitted for fitted, held in folds)
    assert inner_folds(np.array([1, 1, 2, 3]), (0,))[1] == "GroupKFold(3)"


def linear_features(n=60, seed=0):
    """Return a read-out in which MOS is linear, and one of noise only; groups of three images."""
    generator = np.random.default_rng(seed)
    signal, noise = generator.normal(size=(n, 3)), generator.normal(size=(n, 50))
    mos = 50 + signal @ [9.0, 4.0, 1.0]
    return {"noise": noise, "signal": signal}, mos, np.repeat(np.arange(n // 3), 3)


def test_the_choice_finds_the_read_out_that_holds_the_signal():
    chosen = choose_read_out(*linear_features(), (0,))
    assert chosen.read_out == "signal" and chosen.srcc > 0.99 and chosen.penalty <= 1
    assert chosen.folds == "GroupKFold(5)"


def test_the_choice_prefers_the_first_of_read_outs_that_the_labels_cannot_tell_apart():
    """With three groups a small difference of SRCC is within the standard error; with sixty it is not."""
    generator = np.random.default_rng(0)
    mos = generator.normal(size=180)
    worse, better = (mos[:, None] + generator.normal(0, noise, (180, 1)) for noise in (0.4, 0.3))
    features = {"worse": worse, "better": better}
    for groups, expected in ((np.arange(180) % 3, "worse"), (np.arange(180) % 60, "better")):
        chosen = choose_read_out(features, mos, groups, (0,))
        assert chosen.read_out == expected
    assert choose_read_out(dict(reversed(features.items())), mos, np.arange(180) % 3, (0,)).read_out == "better"


def test_read_outs_can_be_fixed():
    names = ("all, mean", "all, mean, full and differences")
    assert EvaluationConfig(read_outs=names).read_outs == names[::-1]  # in the order of preference
    for wrong in ((), ("all, median",)):
        with pytest.raises(InputError, match="read_outs must be among"):
            EvaluationConfig(read_outs=wrong)


def test_the_choice_sees_the_training_part_only():
    """Scrambling the test part changes its metrics, but neither the choice nor the error of the choice."""
    features, mos, groups = linear_features()
    splits = make_splits(mos, groups, REGIMES[1], 0)[:3]
    before = evaluate_splits(features, mos, groups, splits)
    for split, record in zip(splits, before, strict=True):
        broken = {name: x.copy() for name, x in features.items()}
        for x in broken.values():
            x[split.test] = np.random.default_rng(1).normal(size=x[split.test].shape) * 100
        after = evaluate_splits(broken, mos, groups, [split])[0]
        assert after["srcc"] != record["srcc"]
        for key in ("chosen_read_out", "chosen_penalty", "chosen_srcc", "chosen_rmse"):
            assert after[key] == record[key]


def test_records_and_summary():
    features, mos, groups = linear_features()
    splits = make_splits(mos, groups, REGIMES[0], 0)
    records = evaluate_splits(features, mos, groups, splits)
    summary = summarise(records)
    values = sorted(record["srcc"] for record in records)
    assert summary["srcc"]["median"] == pytest.approx((values[4] + values[5]) / 2)
    assert summary["srcc"]["iqr"] == pytest.approx(summary["srcc"]["q75"] - summary["srcc"]["q25"])
    assert summary["srcc"]["median"] > 0.99 and summary["splits"] == 10
    assert summary["chosen_read_outs"] == {"signal": 10}
    assert [tuple(record["seed"]) for record in records] == [split.seed for split in splits]


def test_constant_predictions_count_as_zero_and_are_counted():
    _, mos, groups = linear_features()
    records = evaluate_splits({"flat": np.ones((60, 2))}, mos, groups, make_splits(mos, groups, REGIMES[1], 0))
    assert all(math.isnan(record["srcc"]) and record["rmse"] > 0 for record in records)
    summary = summarise(records)
    assert summary["srcc"]["median"] == 0 and summary["srcc"]["undefined"] == 20
    assert summary["rmse"]["undefined"] == 0
    assert "NaN" not in to_json(records) and json.loads(to_json(records))[0]["srcc"] is None


def test_paired_difference_is_split_by_split():
    def records(*values):
        return [{"srcc": value} for value in values]

    ours = [records(0.5, 0.9, 0.4), records(0.6, 0.6, float("nan"))]
    random = [records(0.4, 0.2, 0.5)]
    found = paired_difference(ours, random)
    # Differences: (0.1, 0.7, -0.1) and (0.2, 0.4, -0.5, a nan counting as 0): medians 0.1 and 0.2.
    np.testing.assert_allclose(found["per_pair"], [[0.1], [0.2]])
    assert found["median"] == pytest.approx(0.15)
    assert (found["min"], found["max"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert found["share_positive"] == pytest.approx(4 / 6)
    with pytest.raises(InputError, match="same splits"):
        paired_difference(ours, [records(0.1)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return folder, write_set(folder / "set"), write_run(folder / "first"), write_run(folder / "second", seed=6)


def test_command_writes_a_result_that_names_everything_and_no_path(tiny, tmp_path, capsys):
    folder, csv, first, second = tiny
    out = tmp_path / "results" / "result.json"
    options = ["--untrained", "2", "--no-supervised", "--out", str(out)]
    assert cli.main(["evaluate", str(first), str(second), "--csv", str(csv), *options]) == 0
    printed = capsys.readouterr().out
    for words in ("set: 24 images, 6 groups, split by ref", "first", "untrained 1", "contrast", "laplacian",
                  "PLCC logistic", "leave one image out", "few labels, SRCC paired over 20 splits"):  # fmt: skip
        assert words in printed, printed
    text = out.read_text(encoding="utf-8")
    assert str(folder) not in text
    result = json.loads(text)
    assert [m["name"] for m in result["methods"]] == [
        "first", "second", "untrained 0", "untrained 1", "contrast", "laplacian", "brisque", "statistics",
    ]  # fmt: skip
    assert len(result["methods"][0]["checkpoint_sha256"]) == 64 and result["methods"][0]["config"]["width"] == 4
    assert result["data"]["sha256"] == read_table(csv).fingerprint
    seeds = {
        name: [[s["seed"] for s in m["regimes"][name]["splits"]] for m in result["methods"]] for name in ("all", "few")
    }
    for name, count in (("all", 10), ("few", 20)):
        assert len(seeds[name][0]) == count and all(other == seeds[name][0] for other in seeds[name])
    assert [np.shape(p["per_pair"]) for p in result["paired"]] == [(2, 2), (2, 2)]
    assert {"torch", "numpy", "scipy", "scikit-learn", "qpt"} <= set(result["versions"])
    # MOS falls with blur, so the Laplacian's variance must rise with it.
    laplacian, brisque, statistics = (m["regimes"]["all"]["summary"]["srcc"]["median"] for m in result["methods"][-3:])
    assert laplacian > 0.5 and brisque > 0.5 and statistics > 0.5
    assert len(list((first / "features").glob("*.npz"))) == 5  # four encoders, and the classical features together


def leaves(value, path=()):
    """Return every number, text or null in nested dicts and lists by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    return {key: leaf for name, item in items for key, leaf in leaves(item, (*path, name)).items()}


def test_evaluation_repeats(tiny, tmp_path):
    """All choices repeat; numbers do up to the last digits, which BLAS may sum in another order."""
    _, csv, first, _ = tiny
    table = read_table(csv)
    one, two = (leaves(evaluate([first], table, cache=tmp_path / name, quiet=True)) for name in ("a", "b"))
    assert one.keys() == two.keys()
    for path, value in one.items():
        if isinstance(value, float):
            assert two[path] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), path
        else:
            assert two[path] == value, path
    other = leaves(evaluate([first], table, cache=tmp_path / "a", seed=1, quiet=True))
    assert other["methods", 0, "regimes", "few", "splits", 0, "seed", 0] == 1
    srcc = [path for path in one if path[0] == "methods" and path[-1] == "srcc"]
    assert any(one[path] != other[path] for path in srcc)


def test_json_on_standard_output_and_no_untrained_encoder(tiny, capsys):
    _, csv, first, _ = tiny
    options = ["--untrained", "0", "--no-supervised", "--json"]
    assert cli.main(["evaluate", str(first / "checkpoint.pt"), "--csv", str(csv), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [m["kind"] for m in result["methods"]] == ["pretrained", *["classical"] * 4]
    assert result["paired"] == []


def test_half_precision_and_the_best_regressor_are_named_and_kept_apart(tiny, tmp_path, capsys):
    _, csv, first, _ = tiny
    options = ["--untrained", "0", "--no-supervised", "--split-count", "2", "--label-shares", "--json"]
    found = {}
    for dtype in ("float32", "bfloat16"):
        given = ["--dtype", dtype, "--regressor", "best", "--cache", str(tmp_path), *options]
        assert cli.main(["evaluate", str(first), "--csv", str(csv), *given]) == 0
        found[dtype] = json.loads(capsys.readouterr().out)
        assert found[dtype]["protocol"]["features"]["dtype"] == dtype
        assert found[dtype]["protocol"]["settings"][0] == {"penalty": PENALTIES[0]}
        assert found[dtype]["protocol"]["settings"][-1] == {"C": 100.0, "gamma_times_d": 1.0}
        for method in found[dtype]["methods"]:
            assert all(("chosen_penalty" in s) != ("chosen_C" in s) for s in method["regimes"]["all"]["splits"])
    assert len(list(tmp_path.glob("*.npz"))) == 3  # one of each dtype, and the classical features
    encoders = [stored for path in tmp_path.glob("*.npz") if (stored := np.load(path)["features"]).ndim == 4]
    np.testing.assert_allclose(*encoders, rtol=0.05, atol=0.05)
    assert not np.array_equal(*encoders)
    hashes = {method.get("weights_sha256") for result in found.values() for method in result["methods"]}
    assert len(hashes - {None}) == 1


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(InputError, match="evaluate: dtype must be one of float32, bfloat16, got 'float64'"):
        evaluate([tiny[2]], read_table(tiny[1]), dtype="float64", quiet=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": "nowhere"}, "checkpoint"),
        ({"--csv": "nowhere.csv"}, "csv must be a file"),
        ({"--untrained": "-1"}, "untrained must be an integer of at least 0, got -1"),
        ({"--crops": "0"}, "crops must be an integer of at least 1, got 0"),
        ({"--out": "/proc/nothing/result.json"}, "out must be a writable file"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(tiny, capsys, change, words):
    _, csv, first, _ = tiny
    change = dict(change)
    run = change.pop("run", str(first))
    options = {"--csv": str(csv), **change}
    assert cli.main(["evaluate", run, *(word for pair in options.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qpt evaluate: error: ") and words in error and "Traceback" not in error


def test_damaged_image_is_found_before_the_long_passes(tmp_path, tiny, capsys):
    csv = write_set(tmp_path / "set")
    file = csv.parent / "images/cup2.png"
    file.write_bytes(file.read_bytes()[:3000])
    assert cli.main(["evaluate", str(tiny[2]), "--csv", str(csv)]) == 2
    assert "cup2.png" in capsys.readouterr().err
