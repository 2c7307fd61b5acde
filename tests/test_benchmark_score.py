"""The scoring benchmark on a small labelled set: equality before time, and both scorers compared with the labels."""

import argparse
import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import bench_score
from benchmarks.harness import Disagreement, Settings, write_json
from qpt.evaluate.table import read_table
from tests.labelled import one_thread as one_thread
from tests.labelled import write_run, write_set

SETTINGS = Settings(rounds=1, quick=True)


def options(*arguments):
    parser = argparse.ArgumentParser()
    bench_score.add_arguments(parser)
    return parser.parse_args(arguments)


def test_times_and_agreement_of_both_are_recorded(tmp_path):
    """MOS falls with the blur in this set, and BRISQUE, whose scores fall with quality, gets its sign turned."""
    csv, run = write_set(tmp_path / "set"), write_run(tmp_path / "narrow")
    report = bench_score.run(SETTINGS, options("--table", str(csv), "--encoder", str(run)))
    content = write_json(report, SETTINGS, tmp_path / "score.json")
    assert [row["backend"] for row in content["rows"]] == ["qpt", "brisque"]
    assert content["rows"][0]["differences"]["another_order_share_of_range"] <= bench_score.SAME
    (found,) = content["agreement"]
    assert (found["table"], found["images"], len(found["sha256"])) == ("set", 24, 64)
    assert len(found["srcc"]["qpt"]) == len(found["srcc"]["brisque"]) == 10
    assert "narrow" in report.remarks[0] and str(tmp_path) not in json.dumps(content)
    table, metric = read_table(csv), bench_score.brisque()
    scores = [metric.score(bench_score.load_image(path)) for path in table.paths]
    expected = -stats.spearmanr(np.array(scores, float).ravel(), table.mos).statistic
    assert found["srcc_brisque_on_all"] == pytest.approx(expected, abs=1e-5) and expected > 0.3


def test_a_scorer_that_depends_on_the_order_is_not_timed(tmp_path, monkeypatch):
    csv = write_set(tmp_path / "set")
    calls = []
    monkeypatch.setattr(bench_score.Scorer, "__call__", lambda self, file: float(calls.append(file) or len(calls)))
    with pytest.raises(Disagreement, match="another order"):
        bench_score.run(SETTINGS, options("--table", str(csv)))
