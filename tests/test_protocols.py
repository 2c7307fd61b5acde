"""Protocols beyond random splits: imported splits, several tables, shares of labels, SVR, fine-tuning, intervals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from skimage import data
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.bootstrap import draw_weights, resample
from qpt.evaluate.classical import CLASSICAL
from qpt.evaluate.finetune import FineTuning, fine_tune, hold_out
from qpt.evaluate.metrics import measure, measure_and_fit
from qpt.evaluate.protocol import evaluate_splits, label_share, official_splits
from qpt.evaluate.regimes import EvaluationConfig, make_regimes
from qpt.evaluate.regressors import REGRESSORS, BestRegressor, RidgeRegressor, SupportVectorRegressor
from qpt.evaluate.run import evaluate
from qpt.evaluate.summary import summarise_on
from qpt.evaluate.table import Split, read_table
from qpt.models import build_encoder
from tests.labelled import one_thread as one_thread
from tests.labelled import write_run, write_set
from tests.layouts import bid


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return write_set(folder / "first"), write_set(folder / "second", levels=3), write_run(folder / "run")


@pytest.fixture(scope="module")
def table(tiny):
    """Return the small set with kinds, levels and one official split by original: 3 / 1 / 2 originals."""
    table = read_table(tiny[0])
    train, val, test = (np.flatnonzero(np.isin(table.groups, groups)) for groups in ([0, 1, 2], [3], [4, 5]))
    levels = np.tile(np.arange(4), 6)
    kinds = tuple("sharp" if level < 2 else "blur" for level in levels)
    return replace(table, kinds=kinds, levels=levels, splits=(Split(train, test, val, "official"),))


def test_official_splits_choose_on_the_validation_part_and_never_fit_on_it(table):
    splits = official_splits(table, 0)
    assert [len(part) for part in (splits[0].train, splits[0].val, splits[0].test)] == [12, 4, 8]
    generator = np.random.default_rng(0)
    features = {"signal": table.mos[:, None] + generator.normal(size=(24, 1)), "noise": generator.normal(size=(24, 5))}
    record = evaluate_splits(features, table.mos, table.groups, splits)[0]
    assert record["chosen_folds"] == "validation part" and record["chosen_read_out"] == "signal"
    # With the choice fixed, other scores of the validation part change nothing.
    mos = table.mos.copy()
    mos[splits[0].val] += 7.0
    again = evaluate_splits({"signal": features["signal"]}, mos, table.groups, splits)[0]
    assert again["predictions"] == record["predictions"] or again["chosen_penalty"] != record["chosen_penalty"]
    assert measure(record["predictions"], table.mos[splits[0].test])["srcc"] == record["srcc"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (([0, 1, 99], [], [4, 5]), "must number rows from 0 to 23, got 0 to 99"),
        (([0, 1, 2], [], [2, 3]), "must hold a row once"),
        (([0, 1, 2], [4], [9]), "test part of split 'bad' must have images of different MOS"),
        (([1], [], [5, 6]), "training part of split 'bad' must have images of different MOS"),
        (([], [], [5, 6]), "must have a train part"),
    ],
)
def test_unusable_imported_splits_are_refused(table, rows, words):
    train, val, test = (np.array(part, np.int64) for part in rows)
    bad = replace(table, splits=(Split(train, test, val, "bad"),))
    with pytest.raises(InputError, match=words):
        official_splits(bad, 0)


def test_configs_and_tables_that_do_not_fit(table):
    with pytest.raises(InputError, match="no official or imported splits"):
        make_regimes(EvaluationConfig("official"), [replace(table, splits=None)], 0)
    with pytest.raises(InputError, match="at least one other table"):
        make_regimes(EvaluationConfig("cross"), [table], 0)
    with pytest.raises(InputError, match="cross or leave-one-out for several tables, got 2"):
        make_regimes(EvaluationConfig(), [table, table], 0)
    with pytest.raises(InputError, match="different names"):
        make_regimes(EvaluationConfig("cross"), [table, table], 0)
    for arguments, words in (
        ({"protocol": "dance"}, "protocol must be one of"),
        ({"splits": 0}, "splits must be an integer of at least 1"),
        ({"label_shares": (0.1, 1.0)}, "above 0 and below 1"),
        ({"label_shares": (0.1, 0.1)}, "different"),
        ({"regressor": "forest"}, "regressor must be one of ridge, svr"),
    ):
        with pytest.raises(InputError, match=words):
            EvaluationConfig(**arguments)


def test_cross_and_leave_one_out_pool_tables_with_standardised_mos(table, tiny):
    others = [read_table(tiny[1], name="second"), replace(table, name="third", mos=table.mos * 3 - 8)]
    pooled, regimes = make_regimes(EvaluationConfig("leave-one-out"), [table, *others], 0)
    assert len(pooled) == 24 + 18 + 24 and list(regimes) == ["to first", "to second", "to third"]
    owner = np.repeat([0, 1, 2], [24, 18, 24])
    for number, splits in enumerate(regimes.values()):
        np.testing.assert_array_equal(splits[0].test, np.flatnonzero(owner == number))
        np.testing.assert_array_equal(splits[0].train, np.flatnonzero(owner != number))
        part = pooled.mos[owner == number]
        assert part.mean() == pytest.approx(0) and part.std() == pytest.approx(1)
        assert not set(pooled.groups[splits[0].train]) & set(pooled.groups[splits[0].test])
    assert pooled.images[24].startswith("second/") and pooled.kinds is None
    _, cross = make_regimes(EvaluationConfig("cross"), [table, *others], 0)
    assert list(cross) == ["to second", "to third"]
    assert all(list(splits[0].train) == list(range(24)) for splits in cross.values())


def test_shares_of_labels_are_nested_and_keep_the_test_part(table):
    groups = np.repeat(np.arange(40), 2)
    mos = np.random.default_rng(0).normal(size=80)
    full = make_regimes(EvaluationConfig(), [replace(table, mos=mos, groups=groups)], 0)[1]["all"]
    shares = [label_share(full, mos, groups, share) for share in (0.01, 0.25, 0.5)]
    for whole, *parts in zip(full, *shares, strict=True):
        assert [len(part.train) for part in parts] == [4, 16, 32]  # of 32 groups of two: at least two groups
        assert set(parts[0].train) < set(parts[1].train) < set(parts[2].train) < set(whole.train)
        assert all(np.array_equal(part.test, whole.test) for part in parts)
    with pytest.raises(InputError, match="label_shares"):
        label_share(full, mos, groups, 1.5)


def test_svr_equals_scikit_learns():
    generator = np.random.default_rng(1)
    x, y, asked = generator.normal(size=(30, 6)), generator.normal(50, 9, 30), generator.normal(size=(5, 6))
    found = SupportVectorRegressor().predict(x, y, asked, [2, 5])
    for row, number in zip(found, (2, 5), strict=True):
        setting = SupportVectorRegressor.settings[number]
        model = make_pipeline(StandardScaler(), SVR(C=setting["C"], gamma=setting["gamma_times_d"] / 6, epsilon=0.1))
        expected = model.fit(x, (y - y.mean()) / y.std()).predict(asked) * y.std() + y.mean()
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_the_best_regressor_has_the_predictions_of_both():
    generator = np.random.default_rng(1)
    given = generator.normal(size=(30, 6)), generator.normal(50, 9, 30), generator.normal(size=(5, 6))
    best, ridge, svr = BestRegressor(), RidgeRegressor(), SupportVectorRegressor()
    assert list(best.settings) == [*ridge.settings, *svr.settings]
    found = best.predict(*given, [18, 3, 15, 0])
    np.testing.assert_array_equal(found[[1, 3]], ridge.predict(*given, [3, 0]))
    np.testing.assert_array_equal(found[[0, 2]], svr.predict(*given, [3, 0]))


@pytest.mark.parametrize(("curved", "chosen"), [(False, "penalty"), (True, "C")])
def test_inner_cross_validation_chooses_between_the_regressors(curved, chosen):
    """A plane is fitted best by ridge, a bump by support vectors; the choice and the score are those of one of them."""
    generator = np.random.default_rng(2)
    x = generator.normal(size=(80, 3))
    y = np.exp(-(x**2).sum(1)) if curved else x @ [1.0, 2.0, 3.0]
    y = y + 0.01 * generator.normal(size=80)
    splits = [Split(np.arange(60), np.arange(60, 80), seed=(0, 0, 0, 0))]
    records = {
        name: evaluate_splits({"x": x}, y, np.arange(80), splits, REGRESSORS[name]())[0]
        for name in ("ridge", "svr", "best")
    }
    assert f"chosen_{chosen}" in records["best"]
    assert records["best"] == records["svr" if curved else "ridge"]
    assert records["best"]["chosen_srcc"] == max(records[name]["chosen_srcc"] for name in ("ridge", "svr"))


def test_resampled_metrics_equal_those_of_the_repeated_images():
    """A weight of k is the image k times over; ties, dropped images and whole groups included."""
    generator = np.random.default_rng(5)
    x, y = generator.integers(0, 9, 40).astype(float), generator.integers(0, 9, 40).astype(float)
    fits = measure_and_fit(x, y)[1]
    weights = draw_weights(np.repeat(np.arange(20), 2), seed=3, resamples=8)
    assert (weights[:, ::2] == weights[:, 1::2]).all() and (weights.sum(axis=1) == 40).all()
    found = resample(x, y, weights, fits)
    for number, row in enumerate(weights):
        a, b = np.repeat(x, row), np.repeat(y, row)
        assert found["srcc"][number] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert found["plcc_raw"][number] == pytest.approx(stats.pearsonr(a, b).statistic)
        assert found["krcc"][number] == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-6)
        assert found["rmse"][number] == pytest.approx(np.sqrt(np.mean((a - b) ** 2)))
    once = resample(x, y, np.ones((1, 40)), fits)
    for name, value in measure(x, y).items():
        assert once[name][0] == pytest.approx(value, abs=1e-6), name


def test_interval_agrees_with_scipys_bootstrap(table):
    """One split that tests every image, each its own group: the plain percentile bootstrap of SRCC."""
    generator = np.random.default_rng(2)
    mos = generator.normal(size=60)
    predicted = mos + generator.normal(size=60)
    metrics, fits = measure_and_fit(predicted, mos)
    record = {**metrics, "fits": fits, "predictions": predicted, "chosen_folds": "none"}
    labelled = replace(table, mos=mos, groups=np.arange(60), kinds=None, levels=None)
    found = summarise_on([record], [np.arange(60)], labelled, seed=0)["srcc"]
    theirs = stats.bootstrap(
        (predicted, mos), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=1000, method="percentile", random_state=0,
    ).confidence_interval  # fmt: skip
    assert found["ci_low"] < found["median"] < found["ci_high"]
    assert found["ci_low"] == pytest.approx(theirs.low, abs=0.04)
    assert found["ci_high"] == pytest.approx(theirs.high, abs=0.04)


def test_fine_tuning_learns_blur_and_repeats():
    """The images are 36 crops at four strengths of blur; those of the test part are in no other part."""
    sources = (data.astronaut(), data.coffee(), data.chelsea())
    pieces = [
        x[top : top + 64, left : left + 64] for x in sources for top in (40, 130, 220) for left in (40, 150, 260, 330)
    ]
    images = [
        np.array(Image.fromarray(piece).filter(ImageFilter.GaussianBlur(1.5 * level)))
        for piece in pieces
        for level in range(4)
    ]
    pieces_of, mos = np.arange(len(images)) // 4, 90.0 - 20 * (np.arange(len(images)) % 4)
    train, val, test = (np.flatnonzero(np.isin(pieces_of % 6, of)) for of in ([0, 1, 2, 3], [4], [5]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder("resnet18", 8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = FineTuning(epochs=12, patience=12, batch=8, crop_px=64, lr=1e-3)

    def run(mos, **changes):
        return fine_tune(
            encoder, lambda row: images[row], mos, train=train, val=val, test=test, config=replace(config, **changes),
            seed=(0, 1),
        )  # fmt: skip

    predicted, record = run(mos)
    assert len(test) == 24 and stats.spearmanr(predicted, mos[test]).statistic > 0.5  # by chance: once in 100
    assert 1 <= record["best_epoch"] <= record["epochs"] <= 12 and record["val_srcc"] > 0.5
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    # Test labels are not read; everything else repeats.
    scrambled = mos.copy()
    scrambled[test] = scrambled[test][::-1]
    np.testing.assert_allclose(run(scrambled, epochs=2)[0], run(mos, epochs=2)[0], rtol=1e-5)
    # Patience 1 ends after the first epoch that is no better.
    stopped = run(mos, patience=1, loss="plcc")[1]
    assert stopped["epochs"] == min(12, stopped["best_epoch"] + 1)


def test_hold_out_keeps_groups_and_refuses_too_little():
    groups, mos = np.repeat(np.arange(10), 3), np.random.default_rng(0).normal(size=30)
    train, val = hold_out(np.arange(24), mos, groups, (0,))
    assert sorted([*train, *val]) == list(range(24)) and not set(groups[train]) & set(groups[val])
    train, val = hold_out(np.arange(6), mos, groups, (0,))  # two groups: by image
    assert len(val) == 2 and len(train) == 4
    with pytest.raises(InputError, match="enough images to validate on, got 3"):
        hold_out(np.arange(3), mos, groups, (0,))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loss": "mse"}, "loss"),
        ({"epochs": 0}, "epochs"),
        ({"batch": 1}, "batch must be an integer of at least 2"),
        ({"lr": 0.0}, "lr must be"),
    ],
)
def test_bad_fine_tuning(arguments, words):
    with pytest.raises(InputError, match=words):
        FineTuning(**arguments)


def test_result_by_kind_and_level_with_fine_tuning_and_compare(table, tiny, tmp_path, capsys):
    config = EvaluationConfig("official", regressor="svr", fine_tuning=FineTuning(epochs=1, batch=8, crop_px=32))
    result = evaluate([tiny[2]], table, config=config, supervised=False, cache=tmp_path, quiet=True)
    names = [method["name"] for method in result["methods"]]
    fine_tuned = ["run, fine-tuned", "untrained 0, fine-tuned"]
    assert names == ["run", "untrained 0", *fine_tuned, *CLASSICAL]
    summary = result["methods"][0]["regimes"]["official"]["summary"]
    assert set(summary["by_kind"]) <= {"sharp", "blur"} and "by_level" in summary
    assert np.isnan(summary["srcc"]["std"]) and summary["srcc"]["mean"] == summary["srcc"]["median"]
    assert result["splits"]["official"][0]["val"] == table.splits[0].val.tolist()
    assert result["methods"][2]["regimes"]["official"]["splits"][0]["epochs"] == 1


def test_cross_command_writes_what_compare_reads(tiny, tmp_path, capsys):
    first, second, run = tiny
    out = tmp_path / "cross.json"
    arguments = ["evaluate", str(run), "--csv", str(first), "--protocol", "cross", "--test-csv", str(second),
                 "--label-shares", "0.5", "--cache", str(tmp_path), "--out", str(out)]  # fmt: skip
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "to second" in printed and "0.5 of labels" in printed and "95 % bootstrap" in printed
    result = json.loads(out.read_text())
    assert [table["name"] for table in result["data"]["tables"]] == ["first", "second"]
    assert result["protocol"]["mos_scale"] == "standardised in each table"
    assert cli.main(["compare", str(out), "--method-b", "laplacian", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["regimes"]) == ["to second", "to second, 0.5 of labels"]
    assert found["regimes"]["to second"]["corrected_t"] is None
    assert cli.main([*arguments[:-2], "--test-root", "a", "b"]) == 2
    assert "test_root must name one folder for each test_csv" in capsys.readouterr().err
    assert cli.main([*arguments[:-2], "--test-dataset", "clive"]) == 2
    assert "test_dataset must be NAME=FOLDER, got 'clive'" in capsys.readouterr().err


def test_an_official_data_set_can_be_the_other_table(tiny, tmp_path, capsys):
    first, _, run = tiny
    root = bid(tmp_path / "bid").root
    arguments = ["evaluate", str(run), "--csv", str(first), "--protocol", "cross", "--untrained", "0",
                 "--test-dataset", f"bid={root}", "--cache", str(tmp_path), "--json"]  # fmt: skip
    assert cli.main(arguments) == 0
    tables = json.loads(capsys.readouterr().out)["data"]["tables"]
    assert [table["name"] for table in tables] == ["first", "bid"]
    assert tables[1]["notes"][0] == "scores: Average Subjective Grade in DatabaseGrades.xlsx"
