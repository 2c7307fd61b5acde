"""The scoring benchmark: equality before time, on the files of a table and on small images."""

import argparse
import json

import pytest

from benchmarks import bench_score
from benchmarks.harness import Disagreement, Settings, write_json
from tests.labelled import one_thread as one_thread
from tests.labelled import write_set

SETTINGS = Settings(rounds=1, quick=True)


def options(*arguments):
    parser = argparse.ArgumentParser()
    bench_score.add_arguments(parser)
    return parser.parse_args(arguments)


def test_times_of_both_are_recorded(tmp_path):
    report = bench_score.run(SETTINGS, options("--table", str(write_set(tmp_path / "set"))))
    content = write_json(report, SETTINGS, tmp_path / "score.json")
    backends = ["qpt", "qpt, alone", "brisque"]
    assert [(row["op"], row["backend"]) for row in content["rows"]] == [
        (op, backend) for op in ("score set", "score small images") for backend in backends
    ]
    for row in content["rows"][:2]:
        assert row["differences"]["another_order_share_of_range"] <= bench_score.SAME
    assert str(tmp_path) not in json.dumps(content)


def test_a_scorer_that_depends_on_the_order_is_not_timed(tmp_path, monkeypatch):
    csv = write_set(tmp_path / "set")
    calls = []
    monkeypatch.setattr(bench_score.Scorer, "__call__", lambda self, file: float(calls.append(file) or len(calls)))
    with pytest.raises(Disagreement, match="another order"):
        bench_score.run(SETTINGS, options("--table", str(csv)))
