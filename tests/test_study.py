"""The study: its arms, its verdicts, and that it can be killed and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import __main__ as benchmarks
from benchmarks import study, study_tables, study_task
from qpt import DegradationSpace, InputError, load_encoder
from qpt.models.encoder import untrained_encoder
from qpt.pretraining.config import PretrainConfig
from tests.labelled import write_set

TINY = yaml.safe_load("""
base: {arch: resnet18, width: 4, mode: in_batch, patch_size: 24, batch_images: 4, steps: 6, threads: 1, device: cpu,
  checkpoint_every: 2, log_every: 2, tensorboard: false}
arms:
  base: {about: a, group: one, against: untrained}
  hot: {about: b, group: three, settings: {temperature: 0.5}}
  untrained: {about: c, group: one, kind: untrained, against: untrained}
  clean: {about: d, group: two, kind: recalibrated, of: base}
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


def rows(results: dict[str, dict[str, list[float]]]) -> dict[str, object]:
    """Results of one table and regime: arm -> SRCC by seed."""
    return {
        "base": {"steps": 5},
        "arms": {
            arm: {
                "about": arm,
                "kind": "pretrained",
                "against": "base",
                "settings": {},
                "steps": 5,
                **given.get("about", {}),
            }
            for arm, given in results.items()
        },
        "rows": [
            {
                "arm": arm,
                "seed": seed,
                "steps": 5,
                "seconds": 60.0,
                "tables": {
                    "t": {
                        "regimes": {
                            name: {"srcc": [None, srcc, 1.0], "srcc_of_read_out": {"last, mean": [srcc]}}
                            for name in study_tables.REGIMES
                        }
                    }
                },
            }
            for arm, given in results.items()
            for seed, srcc in enumerate(given["srcc"])
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
    content = rows({"mine": {"srcc": mine}, "base": {"srcc": other}})
    pair = study_tables.difference(*(study_tables.scores(content, arm, "t", "all") for arm in ("mine", "base")))
    assert pair is not None and pair.verdict == verdict
    assert pair.by_seed == pytest.approx([a - b for a, b in zip(mine, other, strict=True)])


def test_arms_are_paired_on_the_seed() -> None:
    pair = study_tables.difference({0: 0.5, 2: 0.9}, {2: 0.7, 0: 0.4, 1: 0.0})
    assert pair is not None and pair.by_seed == pytest.approx((0.1, 0.2)) and pair.spread == pytest.approx(0.4)
    assert study_tables.difference({3: 0.5}, {0: 0.5}) is None


def test_the_best_arm_is_a_trained_one_of_the_common_length() -> None:
    content = rows(
        {
            "base": {"srcc": [0.5, 0.6, 0.7]},
            "other": {"srcc": [0.62, 0.61, 0.9]},
            "longer": {"srcc": [0.9] * 3, "about": {"steps": 50}},
            "untrained": {"srcc": [0.95] * 3, "about": {"kind": "untrained"}},
        }
    )
    assert study_tables.best_arm(content) == "other"


def test_the_table_has_figures_and_verdicts() -> None:
    text = study_tables.markdown(rows({"base": {"srcc": [0.6, 0.61, 0.62]}, "mine": {"srcc": [0.7, 0.71, 0.72]}}))
    assert "| mine | mine | 3 | 5 | 1.0 | 0.710 (0.020) | 0.710 (0.020) |" in text
    assert "| mine − base | +0.100 [+0.100, +0.100, +0.100] better |" in text
    assert "| base | last, mean | 0.610 (0.020) |" in text


def test_arms_are_also_compared_with_the_initial_weights_of_their_network() -> None:
    untrained = {"kind": "untrained", "against": "first"}
    arms = {
        "base": {"srcc": [0.6], "about": {"against": "first"}},
        "mine": {"srcc": [0.7]},
        "wide": {"srcc": [0.7], "about": {"settings": {"width": 64}, "against": "wide-first"}},
        "first": {"srcc": [0.5], "about": untrained},
        "wide-first": {"srcc": [0.5], "about": {**untrained, "settings": {"width": 64}}},
    }
    content = rows(arms)
    found = {arm: study_tables.opponents(content, arm) for arm in arms}
    assert found == {
        "base": ["first"],
        "mine": ["base", "first"],
        "wide": ["wide-first"],
        "first": [],
        "wide-first": ["first"],
    }


def test_every_arm_of_the_recipe_is_a_run_that_can_be(tmp_path: Path) -> None:
    recipe = study.read_recipe(study.RECIPE)
    assert len(study.choose(recipe, ["claims"])) == 8
    assert len(study.choose(recipe, ["causes"])) >= 7
    ops = DegradationSpace.preset("qpt").names
    for arm in recipe.arms.values():
        config = PretrainConfig.from_dict(recipe.config(arm, tmp_path, 3))
        assert config.seed == 3 and config.threads == 1
        names = DegradationSpace.named(config.space).names
        assert names == ops if arm.name != "sharpness" else set(names) < set(ops)
    short = study.read_recipe(study.RECIPE, steps=5)
    assert short.base["steps"] == 5 and short.arms["four-times-longer"].settings["steps"] == 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "trained"}, "kind of arm hot"),
        ({"against": "nothing"}, "against of arm hot"),
        ({"sets": {}}, "known fields, got sets"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    arms = {**TINY["arms"], "hot": {"about": "b", "group": "three", **change}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump({**TINY, "arms": arms}))
    with pytest.raises(InputError, match=named):
        study.read_recipe(tmp_path / "arms.yaml")


def test_unknown_arms_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main([*arguments, "--arms", "fourth"]) == 2
    assert "arms must be names or groups" in capsys.readouterr().err


@pytest.mark.timeout(900)  # five processes, each of which imports torch and evaluates
def test_a_study_from_end_to_end(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All kinds of arms; then nothing is done twice, a long run is added, and other settings are refused."""
    assert benchmarks.main([*arguments, "--arms", "one", "two", "--jobs", "2"]) == 0
    content = json.loads((tmp_path / "study.json").read_text())
    assert [(row["arm"], row["seed"], row["steps"]) for row in content["rows"]] == [
        ("base", 0, 6),
        ("untrained", 0, 0),
        ("clean", 0, 0),
    ]
    assert str(tmp_path) not in json.dumps(content)
    regimes = content["rows"][0]["tables"]["blurred"]["regimes"]
    assert len(regimes["all"]["srcc"]) == 10 and len(regimes["few"]["srcc_of_read_out"]["all, mean"]) == 20

    weights = {
        arm: load_encoder(tmp_path / "out" / arm / "seed0" / "run").state_dict()
        for arm in ("base", "untrained", "clean")
    }
    first = untrained_encoder("resnet18", 4, 0).state_dict()
    assert all(torch.equal(first[name], weights["untrained"][name]) for name in first)
    for name, value in weights["base"].items():  # only the statistics are new
        new = "running" in name or "num_batches" in name
        assert torch.equal(value, weights["clean"][name]) != new, name

    started: list[str] = []
    popen = subprocess.Popen

    def noted(command: list[str], **given: object) -> "subprocess.Popen[bytes]":
        if "benchmarks.study_task" in command:
            started.append(command[-1])
        return popen(command, **given)  # type: ignore[call-overload]

    monkeypatch.setattr(study.subprocess, "Popen", noted)
    for _ in range(2):
        assert benchmarks.main([*arguments, "--arms", "one", "two", "--best", "0.01"]) == 0
        assert len(started) == 1 and "-long" in started[0]
    long = json.loads((tmp_path / "study.json").read_text())["rows"][-1]
    assert long["arm"].endswith("-long") and long["seed"] == 1
    capsys.readouterr()
    assert benchmarks.main([*arguments, "--arms", "one", "--steps", "7"]) == 2
    assert "holds another study" in capsys.readouterr().err
    elsewhere = [*arguments, "--arms", "one", "--steps", "7", "--results", str(tmp_path / "other.json")]
    assert benchmarks.main(elsewhere) == 2
    assert "begun with other config" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_what_the_results_hold_is_not_run_again(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is gone, the row stays; other settings or weights that another arm is made from are run."""
    assert benchmarks.main([*arguments, "--arms", "untrained"]) == 0
    file = tmp_path / "study.json"
    content = json.loads(file.read_text())
    (row,) = content["rows"]
    base = {**row, "arm": "base", "kind": "pretrained"}
    content["rows"] = [row, base]
    file.write_text(json.dumps(content))
    asked: list[str] = []
    monkeypatch.setattr(study.Study, "run", lambda self, folders: not asked.extend(map(str, folders)))

    def run(*extra: str) -> list[str]:
        asked.clear()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert benchmarks.main([*arguments, *extra]) == 0
        return [str(Path(folder).relative_to(tmp_path / "out")) for folder in asked]

    assert run("--arms", "one") == []
    assert run("--arms", "one", "--seeds", "2") == ["base/seed1", "untrained/seed1"]
    assert run("--arms", "one", "--first-seed", "1") == ["base/seed1", "untrained/seed1"]
    assert run("--arms", "one", "--crops", "2") == ["base/seed0", "untrained/seed0"]
    assert run("--arms", "one", "two", "--crops", "1") == ["base/seed0", "clean/seed0"]


@pytest.mark.timeout(900)
def test_a_killed_study_goes_on(arguments: list[str], tmp_path: Path) -> None:
    """SIGTERM to the study, which passes it on; then SIGKILL to it and what it started; then to the end."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--arms", "base", "--steps", "60"]
    log = tmp_path / "out" / "base" / "seed0" / "run" / "log.csv"

    def begin_and_signal(number: int, lines: int) -> int:
        child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
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
    assert subprocess.run(command, capture_output=True).returncode == 0
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert row["steps"] == 60
    assert [int(line.split(",")[0]) for line in log.read_text().splitlines()[1:]] == list(range(2, 61, 2))


def test_a_failed_arm_does_not_end_the_others(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {**TINY, "arms": {**TINY["arms"], "hot": {"about": "b", "group": "one", "settings": {"lr": 1e30}}}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(recipe))
    assert benchmarks.main([*arguments, "--arms", "hot", "untrained"]) == 1
    assert "hot seed0: ended with status 1" in capsys.readouterr().err
    assert "must be finite" in (tmp_path / "out" / "hot" / "seed0" / "output.txt").read_text()
    assert [row["arm"] for row in json.loads((tmp_path / "study.json").read_text())["rows"]] == ["untrained"]


def test_two_processes_do_not_work_on_one_arm(tmp_path: Path) -> None:
    with study_task._alone(tmp_path):
        code = "import pathlib\nfrom benchmarks.study_task import _alone\n"
        code += f"with _alone(pathlib.Path({str(tmp_path)!r})): print('in')"
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, "-c", code], timeout=15)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "in\n"
