"""The command line as a whole: help with examples, one-line errors, lazy imports."""

import subprocess
import sys

import pytest

from qpt.cli import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  qpt {command}" in text


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
    import qpt

    for name in qpt.__all__:
        assert getattr(qpt, name) is not None
    with pytest.raises(AttributeError, match="absent"):
        _ = qpt.absent
    assert callable(qpt.pretrain) and callable(qpt.degrade)
