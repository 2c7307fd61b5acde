"""The command line as a whole: help with examples, one-line errors, lazy imports."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qpt
from qpt.cli import COMMANDS, build_parser, main

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  qpt {command}" in text


@pytest.mark.parametrize("command", ["pretrain", "plan"])
def test_help_shows_options_with_dashes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "--patch-size N" in text and "(default: 160)" in text
    assert not re.search(r"--[a-z-]+_", text.split("example:")[0])


@pytest.mark.parametrize(
    "words",
    [
        ["--patch-size", "96"],
        ["--patch_size", "96"],
        ["--patch-size=96"],
        ["--patch_size=96"],
        ["--patch-si", "96"],
        ["--patch_si=96"],
    ],
)
def test_an_option_is_read_in_either_spelling(words: list[str]) -> None:
    arguments = build_parser().parse_args(["pretrain", "my_photos", "--out", "my_run", *words]).pretrain
    assert (arguments.patch_size, arguments.data, arguments.out) == (96, "my_photos", "my_run")


def test_only_names_of_options_are_respelled() -> None:
    words = ["--out=--my_run", "--space=my_space", "--init", "x--my_init", "--", "--my_photos"]
    arguments = build_parser().parse_args(["pretrain", *words]).pretrain
    assert (arguments.out, arguments.space, arguments.init) == ("--my_run", "my_space", "x--my_init")
    assert arguments.data == "--my_photos"


@pytest.mark.parametrize("words", [["--preset", "kadid"], ["--preset=kadid"], ["--config", "settings.yaml"]])
def test_a_former_name_is_read_with_a_warning(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("preset: kadid\nlr: 1e-3\n")
    with pytest.warns(FutureWarning, match="preset is now called (--)?space"):
        arguments = build_parser().parse_args(["pretrain", "photos", "--out", "run", *words]).pretrain
    assert arguments.space == "kadid"
    assert arguments.lr == (1e-3 if "--config" in words else 0.03)


def test_keys_of_yaml_keep_underscores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("patch_size: 96\nmode: in_batch\n")
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--config", str(settings), "--print_config=skip_default"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines() == ["mode: in_batch", "patch_size: 96"]


def test_an_unknown_option_is_refused_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "photos", "--patch_sizes", "96"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 5 and "--patch-sizes" in lines[-1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"qpt {qpt.__version__}\n"


def test_the_page_of_commands_is_what_the_parsers_say() -> None:
    spec = importlib.util.spec_from_file_location("front", DOCS / "front.py")
    assert spec is not None and spec.loader is not None
    front = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(front)
    assert (DOCS / "cli.md").read_text() == front.render_cli(), "run `python docs/front.py cli`"


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["dance"])
    assert stop.value.code == 2
    assert "dance" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = "import sys, qpt.cli; qpt.cli.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_importable() -> None:
    for name in qpt.__all__:
        assert getattr(qpt, name) is not None
    with pytest.raises(AttributeError, match="absent"):
        _ = qpt.absent
    assert callable(qpt.pretrain) and callable(qpt.degrade)
    assert dir(qpt) == sorted(qpt.__all__)
