"""Experiments: records, verdicts of the study, and a study that is killed and continues."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from experiments import __main__ as command
from experiments import model, study, study_tables, task
from experiments.recipe import RECIPE, choose, read_recipe
from qpt import InputError, load_encoder
from qpt.evaluate.features import FeatureProtocol, extract, images_key
from qpt.evaluate.table import read_table
from qpt.models.encoder import untrained_encoder
from qpt.models.shipped import FILE
from qpt.models.two_trunks import TwoTrunks
from tests.labelled import write_set

TINY = yaml.safe_load("""
base: {arch: resnet18, width: 4, mode: in_batch, patch_size: 24, batch_images: 4, steps: 6, threads: 1, device: cpu,
  checkpoint_every: 2, log_every: 2, tensorboard: false}
arms:
  base: {about: a, group: one, against: untrained}
  hot: {about: b, group: three, settings: {temperature: 0.5}}
  untrained: {about: c, group: one, kind: untrained, against: untrained}
  clean: {about: d, group: two, kind: recalibrated, of: base}
  both: {about: e, group: two, kind: beside, of: base}
  classical-brisque: {about: f, group: two, kind: classical}
""")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("study") / "blurred")


@pytest.fixture
def arguments(tmp_path: Path, labelled: Path) -> list[str]:
    recipe = tmp_path / "arms.yaml"
    recipe.write_text(yaml.safe_dump(TINY, sort_keys=False))
    places = ["--table", labelled, "--out", tmp_path / "out", "--results", tmp_path / "study.json", "--recipe", recipe]
    return ["study", *map(str, [labelled.parent / "images", *places]), "--seeds", "1", "--crops", "1"]


@pytest.mark.parametrize("path", sorted(study.RESULTS.parent.glob("*.json")), ids=lambda path: path.stem)
def test_committed_records_say_how_they_were_made(path: Path) -> None:
    content = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    if path.stem == "model":
        assert content["format"] == model.FORMAT and len(content["tables"]) == 3
        assert content["sha256"] == hashlib.sha256(FILE.read_bytes()).hexdigest(), "the record is of another file"
        return
    assert content["format"] == study.FORMAT and content["commands"]
    for row in content["rows"]:
        hashed = content["arms"][row["arm"]]["kind"] != "classical"
        assert len(row["weights_sha256"]) == 64 * hashed and row["environment"]["commit"]
        for table in row["tables"].values():
            assert all(-1 <= value <= 1 for regimes in (table["srcc"],) for value in regimes.values())


def content_of(results: dict[str, list[float]], **abouts: dict[str, object]) -> dict[str, object]:
    """Content of a study: arm -> SRCC by seed, in one table and regime after another."""
    about = {"about": "", "kind": "pretrained", "against": "base", "settings": {}, "steps": 5}
    tables = [
        {"t": {"srcc": dict.fromkeys(study_tables.REGIMES, value)}} for values in results.values() for value in values
    ]
    seeds = [(arm, seed) for arm, values in results.items() for seed in range(len(values))]
    return {
        "base": {"steps": 5},
        "arms": {arm: {**about, **abouts.get(arm, {})} for arm in results},
        "rows": [
            {"arm": arm, "seed": seed, "steps": 5, "seconds": 60.0, "tables": table}
            for (arm, seed), table in zip(seeds, tables, strict=True)
        ],
    }


@pytest.mark.parametrize(
    ("mine", "other", "verdict"),
    [
        ([0.70, 0.71, 0.72], [0.60, 0.61, 0.62], "better"),
        ([0.50, 0.51, 0.52], [0.60, 0.61, 0.62], "worse"),
        ([0.70, 0.71, 0.62], [0.60, 0.61, 0.63], study_tables.NOTHING),  # one seed the other way
        ([0.66, 0.70, 0.74], [0.60, 0.64, 0.68], study_tables.NOTHING),  # +0.06 in each, seeds 0.08 apart
        ([0.70, 0.71], [0.60, 0.61], "needs 3 seeds"),
    ],
)
def test_a_finding_has_one_sign_and_exceeds_the_spread(mine: list[float], other: list[float], verdict: str) -> None:
    content = content_of({"base": other, "mine": mine})
    pair = study_tables.difference(*(study_tables.scores(content, arm, "t", "all") for arm in ("mine", "base")))
    assert pair is not None and pair.verdict == verdict
    assert pair.by_seed == pytest.approx([a - b for a, b in zip(mine, other, strict=True)])
    assert ("| mine − base |" in study_tables.findings(content)) == (verdict in ("better", "worse"))
    assert f"{pair.median:+.3f}" in study_tables.markdown(content)


def test_an_arm_of_one_seed_is_compared_with_every_seed() -> None:
    content = content_of(
        {"base": [0.70, 0.71, 0.72], "named": [0.6]}, base={"against": "named"}, named={"kind": "named"}
    )
    assert "+0.110 [+0.100, +0.110, +0.120] better" in study_tables.findings(content)


def test_the_best_arm_is_a_trained_one_of_the_common_length() -> None:
    results = {"base": [0.5, 0.6, 0.7], "other": [0.62, 0.61, 0.9], "longer": [0.9] * 3, "untrained": [0.95] * 3}
    content = content_of(results, longer={"steps": 50}, untrained={"kind": "untrained", "against": "untrained"})
    assert study_tables.best_arm(content) == "other"
    assert study_tables.opponents(content, "other") == ["base", "untrained"]


def test_every_arm_of_the_recipe_can_be_run(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPE)
    assert len(choose(recipe, ["claims"])) == 8
    assert all(
        recipe.config(arm, tmp_path, 3)["seed"] == 3 for arm in recipe.arms.values()
    )  # checked by PretrainConfig
    assert read_recipe(RECIPE, steps=5).arms["four-times-longer"].settings["steps"] == 20


@pytest.mark.parametrize(
    ("change", "named"),
    [({"kind": "trained"}, "kind of arm"), ({"against": "nothing"}, "against of arm"), ({"sets": {}}, "known fields")],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    arms = {**TINY["arms"], "hot": {"about": "b", "group": "three", **change}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump({**TINY, "arms": arms}))
    with pytest.raises(InputError, match=named):
        read_recipe(tmp_path / "arms.yaml")


@pytest.mark.timeout(900)  # five processes, each of which imports torch and evaluates
def test_a_study_from_end_to_end(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All kinds of arms are run once; a long run is added; other settings, tables or weights are run, or refused."""
    assert command.main([*arguments, "--arms", "one", "two", "--jobs", "2"]) == 0
    file = tmp_path / "study.json"
    content = json.loads(file.read_text())
    found = [(row["arm"], row["seed"], row["steps"]) for row in content["rows"]]
    assert found == [
        ("base", 0, 6),
        ("untrained", 0, 0),
        *((arm, 0, 0) for arm in ("clean", "both", "classical-brisque")),
    ]
    assert str(tmp_path) not in json.dumps(content)
    found = content["rows"][0]["tables"]["blurred"]
    assert set(found["srcc"]) == set(found["plcc_logistic"]) == {"all", "few"}
    assert set(found["clean_distance"]) == {"1", "0.9"} and all(abs(v) <= 1 for v in found["clean_distance"].values())

    folders = {arm: tmp_path / "out" / arm / "seed0" / "run" for arm in ("base", "untrained", "clean")}
    weights = {arm: load_encoder(folder).state_dict() for arm, folder in folders.items()}
    first = untrained_encoder("resnet18", 4, 0).state_dict()
    assert all(torch.equal(first[name], weights["untrained"][name]) for name in first)
    for name, value in weights["base"].items():  # only the statistics are new
        new = "running" in name or "num_batches" in name
        assert torch.equal(value, weights["clean"][name]) != new, name
    both = load_encoder(tmp_path / "out" / "both" / "seed0" / "run")
    assert isinstance(both, TwoTrunks)
    for trunk, arm in ((both.frozen, "untrained"), (both.tuned, "base")):
        assert all(torch.equal(value, weights[arm][name]) for name, value in trunk.state_dict().items())
    table, protocol = read_table(arguments[arguments.index("--table") + 1]), FeatureProtocol(crops=1)
    joined = task.features_of(both, table.paths, images_key(table), protocol, tmp_path / "out" / "features")
    assert np.array_equal(joined, extract(both, table.paths, protocol=protocol, label="both", quiet=True))

    assert command.main([*arguments, "--arms", "one", "two", "--best", "0.01"]) == 0
    after = json.loads(file.read_text())
    assert after["rows"][:5] == content["rows"]
    assert after["rows"][5]["arm"].endswith("-long") and after["rows"][5]["seed"] == 1
    capsys.readouterr()
    for extra, message in (
        (["--arms", "fourth"], "arms must be names or groups"),
        (["--arms", "one", "--steps", "7"], "holds another study"),
        (["--arms", "one", "--steps", "7", "--results", str(tmp_path / "other.json")], "begun with other config"),
    ):
        assert command.main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err

    asked: list[str] = []
    monkeypatch.setattr(study.Study, "run", lambda self, folders: not asked.extend(map(str, folders)))

    def run(*extra: str) -> list[str]:
        asked.clear()
        shutil.rmtree(tmp_path / "out")  # rows are enough, but for weights that another arm starts from
        assert command.main([*arguments, *extra]) == 0
        (tmp_path / "out").mkdir(exist_ok=True)
        return [str(Path(folder).relative_to(tmp_path / "out")) for folder in asked]

    assert run("--arms", "one") == []
    assert run("--arms", "one", "--first-seed", "1") == ["base/seed1", "untrained/seed1"]
    assert run("--arms", "one", "--crops", "2") == ["base/seed0", "untrained/seed0"]
    assert run("--arms", "one", "two") == ["base/seed0"]


@pytest.mark.timeout(900)
def test_a_killed_study_continues(arguments: list[str], tmp_path: Path) -> None:
    """SIGTERM to the study, which passes it on; then SIGKILL to it and what it started; then to the end."""
    line = [sys.executable, "-m", "experiments", *arguments, "--arms", "base", "--steps", "60"]
    log = tmp_path / "out" / "base" / "seed0" / "run" / "log.csv"

    def begin_and_signal(number: int, lines: int) -> int:
        child = subprocess.Popen(line, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("\n") > lines:
                (os.kill if number == signal.SIGTERM else os.killpg)(child.pid, number)
                break
            time.sleep(0.005)
        return child.wait(timeout=120)

    assert begin_and_signal(signal.SIGTERM, 5) == 130
    step = torch.load(log.with_name("checkpoint.pt"), weights_only=True)["step"]
    assert 0 < step < 60
    assert begin_and_signal(signal.SIGKILL, 15) == -signal.SIGKILL
    assert not (tmp_path / "study.json").exists()
    assert subprocess.run(line, capture_output=True).returncode == 0
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert row["steps"] == 60
    assert [int(line.split(",")[0]) for line in log.read_text().splitlines()[1:]] == list(range(2, 61, 2))


def test_a_failed_arm_does_not_end_the_others(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {**TINY, "arms": {**TINY["arms"], "hot": {"about": "b", "group": "one", "settings": {"lr": 1e30}}}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(recipe))
    assert command.main([*arguments, "--arms", "hot", "untrained"]) == 1
    assert "hot seed0: ended with status 1" in capsys.readouterr().err
    assert "must be finite" in (tmp_path / "out" / "hot" / "seed0" / "output.txt").read_text()
    assert [row["arm"] for row in json.loads((tmp_path / "study.json").read_text())["rows"]] == ["untrained"]
