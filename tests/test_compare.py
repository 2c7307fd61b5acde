"""Comparison of results: the corrected t-test by hand, the paired bootstrap on known cases, and refusals."""

import copy
import json
import math

import numpy as np
import pytest
from scipy import stats

from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.compare import compare, comparison_lines, corrected_t_test, find_method, read_result
from qpt.evaluate.protocol import REGIMES, make_splits, split_record
from qpt.evaluate.result import FORMAT
from qpt.io import to_json


def made_result(noise, seed=0, images=60):
    """Return a result of ``qpt evaluate`` for methods that are MOS plus noise of these sizes."""
    mos = np.random.default_rng(7).normal(size=images)
    groups = np.arange(images) // 2
    splits = make_splits(mos, groups, REGIMES[0], seed)
    generator = np.random.default_rng(1)
    methods = []
    for name, size in noise.items():
        predicted = mos + size * generator.normal(size=images)
        records = [split_record(split, predicted[split.test], mos, {"chosen_folds": ""}) for split in splits]
        methods.append({"name": name, "kind": "pretrained", "regimes": {"all": {"splits": records}}})
    places = [{"name": "", "train": s.train.tolist(), "val": [], "test": s.test.tolist()} for s in splits]
    data = {"name": "set", "sha256": "0", "images": images, "image_names": [str(i) for i in range(images)],
            "group_of_image": groups.tolist(), "mos": mos.tolist()}  # fmt: skip
    return json.loads(to_json({"format": FORMAT, "data": data, "splits": {"all": places}, "methods": methods}))


def test_corrected_t_test_by_hand():
    difference = np.array([0.1, 0.2, 0.0, 0.3])
    found = corrected_t_test(difference, train=80.0, test=20.0)
    variance = np.sum((difference - 0.15) ** 2) / 3
    t = 0.15 / math.sqrt((1 / 4 + 20 / 80) * variance)
    assert found["t"] == pytest.approx(t) and found["degrees"] == 3
    assert found["p"] == pytest.approx(2 * (1 - stats.t.cdf(t, 3)))
    plain = stats.ttest_1samp(difference, 0.0)
    assert found["p"] > plain.pvalue  # the correction can only make it larger
    # Without a test part the correction is nothing: the plain test.
    assert corrected_t_test(difference, train=80.0, test=0.0)["p"] == pytest.approx(plain.pvalue)
    assert corrected_t_test(difference[:1], train=80.0, test=20.0) is None
    assert corrected_t_test(np.zeros(3), train=80.0, test=20.0)["p"] == 1.0


def test_a_better_method_is_found_and_an_equal_one_is_not():
    result = made_result({"good": 0.3, "bad": 3.0, "good too": 0.3})
    found = compare(result, result, method_b="bad")["regimes"]["all"]
    assert found["median_difference"] > 0.2 and found["bootstrap"]["p"] < 0.05 and found["corrected_t"]["p"] < 0.05
    assert 0 < found["bootstrap"]["ci_low"] < found["median_difference"] < found["bootstrap"]["ci_high"]
    turned = compare(result, result, method_a="bad", method_b="good")["regimes"]["all"]
    assert turned["median_difference"] == pytest.approx(-found["median_difference"])
    assert turned["bootstrap"]["ci_low"] == pytest.approx(-found["bootstrap"]["ci_high"])
    same = compare(result, result, method_b="good too")["regimes"]["all"]
    assert same["bootstrap"]["p"] > 0.05 and same["corrected_t"]["p"] > 0.05
    # Of one method with itself, in two files, nothing is left.
    itself = compare(result, copy.deepcopy(result))["regimes"]["all"]
    assert itself["median_difference"] == 0 and itself["bootstrap"]["p"] == 1 and itself["corrected_t"]["p"] == 1
    assert "good minus bad" in comparison_lines(compare(result, result, method_b="bad"))[0]


def test_results_that_cannot_be_compared():
    result = made_result({"a": 0.3, "b": 0.3})
    for change, words in (("sha256", "same photographs"), ("mos", "same MOS")):
        other = copy.deepcopy(result)
        other["data"][change] = "another"
        with pytest.raises(InputError, match=words):
            compare(result, other)
    with pytest.raises(InputError, match="same splits"):
        compare(result, made_result({"a": 0.3}, seed=1))
    with pytest.raises(InputError, match="two different ones"):
        compare(result, result)
    with pytest.raises(InputError, match="method must be one of a, b, got 'c'"):
        find_method(result, "c")
    with pytest.raises(InputError, match="metric must be one of srcc"):
        compare(result, result, method_b="b", metric="accuracy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "result must be a JSON file of `qpt evaluate --out`"),
        ("[1]", "result must be a result of `qpt evaluate --out`"),
        ('{"format": "qpt-evaluation-9"}', f"must be a {FORMAT} file"),
        ('{"format": "qpt-evaluation-1"}', "has no predictions"),
        (json.dumps({"format": FORMAT}), "is damaged"),
    ],
)
def test_bad_files_are_one_line_and_exit_2(tmp_path, capsys, text, words):
    path = tmp_path / "result.json"
    path.write_text(text)
    assert cli.main(["compare", str(path), str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("qpt compare: error: ") and error.count("\n") == 1


def test_truncated_predictions_and_command(tmp_path, capsys):
    result = made_result({"a": 0.3, "b": 2.0})
    path, out = tmp_path / "result.json", tmp_path / "out.json"
    path.write_text(to_json(result))
    assert cli.main(["compare", str(path), "--method-b", "b", "--out", str(out)]) == 0
    assert "corrected resampled t-test" in capsys.readouterr().out
    assert json.loads(out.read_text())["regimes"]["all"]["splits"] == 10
    assert cli.main(["compare", str(path)]) == 2 and "method_b must be given" in capsys.readouterr().err
    assert cli.main(["compare", "1", "2", "3"]) == 2 and "one or two files" in capsys.readouterr().err
    del result["methods"][0]["regimes"]["all"]["splits"][0]["predictions"][0]
    path.write_text(to_json(result))
    with pytest.raises(InputError, match="a must predict every test image"):
        read_result(path)
    with pytest.raises(InputError, match="must be a JSON file"):
        read_result(tmp_path / "absent.json")
