"""Scorers: fitted, saved, loaded, and the same score for an image whatever is scored beside it."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import optimize

import qpt
from qpt import cli
from qpt.errors import InputError
from qpt.evaluate.calibration import fit_calibration
from qpt.evaluate.features import FeatureProtocol, read_out_features
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return (folder, csv, run, scorer file), the scorer made by the command."""
    folder = tmp_path_factory.mktemp("scoring")
    csv, run, out = write_set(folder / "set"), write_run(folder / "run"), folder / "scorer.pt"
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", str(out)]) == 0
    return folder, csv, run, out


def test_scorer_is_the_ridge_on_the_features_of_evaluation(fitted):
    """The score of a training image equals the prediction of the standardised ridge it was made from."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    _, csv, run, out = fitted
    table, scorer = read_table(csv), qpt.Scorer.load(out)
    read_outs = read_out_features(qpt.load_encoder(run), table, FeatureProtocol(), label="", cache=None, quiet=True)
    features = read_outs[scorer.fitted_on["read_out"]]
    standard = StandardScaler().fit(features)
    ridge = Ridge(alpha=scorer.fitted_on["penalty"] * features.shape[1]).fit(standard.transform(features), table.mos)
    expected = ridge.predict(standard.transform(features))
    assert [scorer(path) for path in table.paths[:6]] == pytest.approx(expected[:6], rel=1e-5)
    assert (scorer.mos_min, scorer.mos_max) == (table.mos.min(), table.mos.max())


def test_blur_lowers_the_score(fitted):
    """Higher is better: the sharp images of the set score above the most blurred ones."""
    _, csv, _, out = fitted
    scorer, folder = Scorer.load(out), csv.parent / "images"
    sharp = np.mean([scorer(folder / f"{name}0.png") for name in image_regions()])
    assert sharp > np.mean([scorer(folder / f"{name}3.png") for name in image_regions()])


def test_same_number_alone_together_in_any_order_and_as_pixels(fitted, capsys):
    _, csv, _, out = fitted
    files = [str(csv.parent / f"images/{name}1.png") for name in image_regions()]

    def scores(names):
        assert cli.main(["score", *names, "--scorer", str(out), "--json"]) == 0
        return {item["image"]: item["score"] for item in json.loads(capsys.readouterr().out)["scores"]}

    together, backwards = scores(files), scores(files[::-1])
    assert together == backwards and len(together) == 6
    assert scores(files[:1]) == {files[0]: together[files[0]]}
    assert Scorer.load(out)(np.asarray(Image.open(files[0]))) == together[files[0]]


def test_saved_and_loaded_scorers_agree(fitted, tmp_path):
    _, csv, run, _ = fitted
    scorer = Scorer.fit(qpt.load_encoder(run), read_table(csv), protocol=FeatureProtocol(48, 4), quiet=True)
    scorer.save(tmp_path / "other.pt")
    loaded = Scorer.load(tmp_path / "other.pt")
    assert loaded(image_regions()["cat"]) == scorer(image_regions()["cat"])
    with pytest.warns(FutureWarning, match="photograph is now called image"):
        assert loaded(photograph=image_regions()["cat"]) == scorer(image_regions()["cat"])
    assert (loaded.protocol, loaded.read_out, loaded.fitted_on) == (scorer.protocol, scorer.read_out, scorer.fitted_on)
    assert [file.name for file in tmp_path.iterdir()] == ["other.pt"]


def test_scoring_with_a_run_and_a_table_gives_the_same_number(fitted, capsys):
    _, csv, run, out = fitted
    image = str(csv.parent / "images/cat2.png")
    assert cli.main(["score", image, "--run", str(run), "--csv", str(csv), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["scores"][0]["score"] == Scorer.load(out)(image)
    assert answer["scale"]["higher_is_better"] is True and answer["scale"]["max"] == read_table(csv).mos.max()


@pytest.mark.parametrize("words", [["--tile-px", "64"], ["--json", "--format", "csv"]])
def test_what_would_be_ignored_is_refused(words, tmp_path, capsys):
    assert cli.main(["score", str(tmp_path / "a.jpg"), *words]) == 2
    assert words[-2] in capsys.readouterr().err


@pytest.mark.parametrize("srcc", [-0.1, 0.1])
def test_labels_that_order_nothing_are_warned_of(fitted, tmp_path, capsys, monkeypatch, srcc):
    _, csv, run, out = fitted
    found = Scorer.load(out)
    found.fitted_on["srcc"] = srcc
    monkeypatch.setattr(Scorer, "fit", lambda *_, **__: found)
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", str(tmp_path / "scorer.pt")]) == 0
    assert ("do not order photographs held out" in capsys.readouterr().err) == (srcc < 0)


def test_the_printed_score_comes_with_its_scale(fitted, capsys):
    _, csv, _, out = fitted
    image = str(csv.parent / "images/cat2.png")
    assert cli.main(["score", image, "--scorer", str(out)]) == 0
    *_, row, scale = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert row.split() == [f"{Scorer.load(out)(image):.3f}", image]
    assert "from 33 (worst) to 96 (best); higher is better" in scale


def test_fit_prints_the_choice(fitted, tmp_path, capsys):
    _, csv, run, _ = fitted
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", str(tmp_path / "s.pt"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["images"] == 24 and answer["name"] == "set" and answer["folds"] == "GroupKFold(5)"
    assert -1 <= answer["srcc"] <= 1 and answer["read_out"] and answer["penalty"] > 0


def test_good_images_are_scored_beside_bad_ones(fitted, tmp_path, capsys):
    _, csv, _, out = fitted
    good, cut = str(csv.parent / "images/cat2.png"), tmp_path / "cut.png"
    cut.write_bytes((csv.parent / "images/cat0.png").read_bytes()[:3000])
    assert cli.main(["score", str(cut), good, "none.jpg", "--scorer", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [item["image"] for item in answer["scores"]] == [good]
    assert set(answer["errors"]) == {str(cut), "none.jpg"}
    assert "2 photograph(s) cannot be used" in captured.err and "none.jpg: no such file" in captured.err


@pytest.mark.parametrize("given", [["--run"], ["--csv"], ["--scorer", "--run"], ["--scorer", "--run", "--csv"]])
def test_without_one_clear_scale_the_error_says_how_to_fit(fitted, capsys, given):
    _, csv, run, out = fitted
    values = {"--run": run, "--csv": csv, "--scorer": out}
    options = [word for name in given for word in (name, str(values[name]))]
    assert cli.main(["score", str(csv.parent / "images/cat2.png"), *options]) == 2
    assert "qpt fit RUN --csv scores.csv --out scorer.pt" in capsys.readouterr().err


def test_files_that_are_no_scorer(fitted, tmp_path):
    _, _, run, out = fitted
    with pytest.raises(InputError, match="qpt fit"):
        Scorer.load(tmp_path / "none.pt")
    for name, content, kind in (
        ("text.pt", b"hello", "a file that torch.save did not write"),
        ("zero.pt", b"", "an empty file"),
        ("cut.pt", out.read_bytes()[:5000], "a file that is cut short"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"tensors and plain data, got {kind}"):
            Scorer.load(tmp_path / name)
    with pytest.raises(InputError, match="got another file"):
        Scorer.load(run / "checkpoint.pt")
    state = torch.load(out, weights_only=True)
    del state["encoder"]["conv1.weight"]
    torch.save(state, tmp_path / "damaged.pt")
    with pytest.raises(InputError, match="damaged"):
        Scorer.load(tmp_path / "damaged.pt")
    state = torch.load(out, weights_only=True)
    for weights in (state["weights"][1:], state["weights"] * float("nan"), "none"):
        torch.save({**state, "weights": weights}, tmp_path / "damaged.pt")
        with pytest.raises(InputError, match="damaged"):
            Scorer.load(tmp_path / "damaged.pt")


def test_a_scorer_file_cannot_carry_code(tmp_path):
    class Call:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"format": "qpt-scorer-2", "x": Call()}, tmp_path / "code.pt")
    with pytest.raises(InputError, match=r"tensors and plain data, got .* code, which is never run"):
        Scorer.load(tmp_path / "code.pt")


def test_the_output_is_checked_before_the_fit(fitted, tmp_path, capsys):
    _, csv, run, _ = fitted
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", str(tmp_path)]) == 2
    assert "fit: error: out must be a writable file" in capsys.readouterr().err


def test_fit_keeps_the_record_of_the_run_without_its_paths(fitted):
    _, _, run, out = fitted
    record = Scorer.load(out).pretraining
    assert record["config"] == {"arch": "resnet18", "width": 4, "data": "somewhere"}
    assert record["checkpoint_sha256"] == hashlib.sha256((run / "checkpoint.pt").read_bytes()).hexdigest()


def test_calibration_is_monotone_bounded_and_measured_out_of_fold(fitted, tmp_path, capsys):
    """Scores keep their order, the file keeps the map, and the error is that of images it was not fitted on."""
    _, csv, run, out = fitted
    arguments = ["fit", str(run), "--csv", str(csv), "--out", str(tmp_path / "s.pt"), "--calibrate"]
    assert cli.main(arguments) == 0
    assert "calibration: RMSE over held-out photographs" in capsys.readouterr().out
    plain, bent = Scorer.load(out), Scorer.load(tmp_path / "s.pt")
    pictures = list(image_regions().values())
    raw, mapped = np.array([plain(p) for p in pictures]), np.array([bent(p) for p in pictures])
    assert np.array_equal(np.argsort(raw), np.argsort(mapped))
    np.testing.assert_allclose(mapped, bent.calibration(raw), rtol=1e-12)
    span = plain.mos_max - plain.mos_min
    assert np.all((mapped > plain.mos_min - span) & (mapped < plain.mos_max + span))
    errors = bent.fitted_on["calibration"]
    assert errors["rmse_raw"] == pytest.approx(bent.fitted_on["rmse"], rel=1e-9) and errors["rmse_calibrated"] > 0


def test_calibration_finds_a_known_logistic():
    """SciPy's curve_fit of the same four parameters gives the same on noisy data."""
    rng = np.random.default_rng(0)
    raw = rng.uniform(0, 6, 400)

    def logistic(x, low, high, centre, width):
        return low + (high - low) / (1 + np.exp(-(x - centre) / width))

    mos = logistic(raw, 1, 5, 3.5, 0.6) + rng.normal(0, 0.1, 400)
    expected = optimize.curve_fit(logistic, raw, mos, p0=(1, 5, 3, 1))[0]
    found = fit_calibration(raw, mos)
    assert (found.low, found.high, found.centre, found.width) == pytest.approx(expected, rel=1e-3)
