"""What the documents tell a reader to type is valid: the Python example runs, every `qpt` command line parses."""

import re
import shlex
from pathlib import Path

import pytest

from qpt.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("results", "datasets", "evaluation", "export", "report", "runs")
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in NAMES))


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every `qpt ...` line of the shell blocks, continuation lines joined, comments dropped."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "qpt":  # up to where its output goes
                    found.append(shlex.join(words[: words.index(">")] if ">" in words else words))
    return found


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("README.md", "python")
    namespace: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), namespace)
    assert "compositions by type" in capsys.readouterr().out
    assert len(namespace["pool"]) == 16  # type: ignore[arg-type]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "experiments" / "recipes" / "photos.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text((ROOT / "experiments" / "recipes" / "photos.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    arguments = [re.sub(r"\$\w+", "1", word) for word in shlex.split(command)[1:]]
    assert build_parser().parse_args(arguments).command == arguments[0]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 8
