"""The options --csv, --dataset, --root, --splits and --lower-better of evaluate, fit and score."""

import json

import numpy as np
import pytest
from PIL import Image

from qpt import cli
from qpt.commands.options import add_table_arguments, read_table_arguments
from qpt.evaluate.scorer import Scorer
from tests import layouts
from tests.labelled import one_thread as one_thread
from tests.labelled import write_run, write_set


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("arguments") / "set")


@pytest.fixture(scope="module")
def bid(csv):
    """Write the same 24 images in the layout of BID."""
    made = layouts.Root(csv.parent.parent / "bid")
    rows = [line.split(",") for line in csv.read_text(encoding="utf-8").splitlines()[1:]]
    for number, (image, _, _) in enumerate(rows, start=1):
        Image.open(csv.parent / image).save(made.root / f"DatabaseImage{number:04d}.JPG")
    header = ["Image Number", "Average Subjective Grade", "std"]
    grades = [[number, float(mos) / 20, 0.5] for number, (_, mos, _) in enumerate(rows, start=1)]
    made.sheets("DatabaseGrades.xlsx", Plan1=[header, *grades])
    return made.root


@pytest.fixture(scope="module")
def run(csv):
    return write_run(csv.parent.parent / "run")


def table_of(*words, leaks=False):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    add_table_arguments(parser, required=True)
    return read_table_arguments(parser.parse_args([str(word) for word in words]), leaks=leaks)


def test_evaluate_fit_and_score_take_an_official_layout(bid, run, tmp_path, capsys):
    chosen = ["--dataset", "bid", "--root", str(bid)]
    assert cli.main(["evaluate", str(run), *chosen, "--untrained", "0", "--json"]) == 0
    out, notes = capsys.readouterr()
    data = json.loads(out)["data"]
    assert (data["name"], data["images"], data["split_by"]) == ("bid", 24, "image")
    assert "scores: Average Subjective Grade" in notes and "24 rows where 586 are published" in notes
    # Each blurred version is its own group in BID's layout: what the leak check is for.
    assert "warning: " in notes and "near-duplicates in different groups" in notes
    scorer = tmp_path / "scorer.pt"
    assert cli.main(["fit", str(run), *chosen, "--out", str(scorer)]) == 0
    assert Scorer.load(scorer).fitted_on["name"] == "bid"
    photograph = str(bid / "DatabaseImage0003.JPG")
    capsys.readouterr()
    assert cli.main(["score", photograph, "--scorer", str(scorer), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["scores"][0]["score"]
    assert cli.main(["score", photograph, "--run", str(run), *chosen, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["score"] == pytest.approx(first, abs=1e-4)


def test_splits_and_direction_of_a_csv(csv, tmp_path):
    np.save(tmp_path / "train.npy", [*range(16)])
    np.save(tmp_path / "test.npy", [*range(16, 24)])
    table = table_of("--csv", csv, "--splits", tmp_path, "--lower-better", "--name", "mine")
    assert table.name == "mine" and table.lower_better and len(table.splits) == 1
    np.testing.assert_array_equal(table.mos, -table.raw_scores)


def test_a_leaked_reference_stops_every_command(csv, run, tmp_path, capsys):
    np.save(tmp_path / "train.npy", [*range(15)])
    np.save(tmp_path / "test.npy", [*range(15, 24)])
    image = str(csv.parent / "images/cat0.png")
    out = str(tmp_path / "scorer.pt")
    for words in (["evaluate", str(run)], ["fit", str(run), "--out", out], ["score", image, "--run", str(run)]):
        assert cli.main([*words, "--csv", str(csv), "--splits", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "must keep references apart, got 1 in both train and test" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got neither"),
        (["--csv", "a.csv", "--dataset", "bid"], "got both"),
        (["--dataset", "bid"], "--dataset needs --root"),
        (["--dataset", "bid", "--root", ".", "--lower-better"], "knows the direction"),
        (["--dataset", "photos", "--root", "."], "name must be one of live"),
        (["--dataset", "bid", "--root", "nowhere"], "root must be a folder"),
    ],
)
def test_arguments_that_do_not_name_one_table(run, capsys, words, message):
    assert cli.main(["evaluate", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qpt evaluate: error: ") and message in error
