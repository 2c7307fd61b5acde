"""The commands and code of the documents are valid: the Python example runs, every `qpt` command line parses."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from qpt.cli import build_parser
from qpt.degradations.op_table import NAMES
from qpt.ops.contrastive.pool import NegativePool

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return every `qpt ...` of the shell blocks: continuation lines joined, without comments, redirection and pipe."""
    found = set()
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "qpt" in words and words[0] in ("qpt", "torchrun", "python"):
                    end = min(words.index(mark) if mark in words else len(words) for mark in (">", "|"))
                    found.add(shlex.join(words[words.index("qpt") : end]))
    return sorted(found)


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_to_files(document: str) -> None:
    prose = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#:\s]+)[^):]*\)|src=\"([^\":]+)\"", prose)
    missing = [link for pair in links for link in pair if link and not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing


def test_the_readme_counts_the_ops() -> None:
    assert f"random chains drawn from {len(NAMES)} ops" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("README.md", "python")
    namespace: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), namespace)
    assert re.fullmatch(r"\w+\[\d\]( → \w+\[\d\])*\n", capsys.readouterr().out)
    assert len(namespace["pool"]) == 16  # type: ignore[arg-type]
    assert namespace["loss"].isfinite()  # type: ignore[attr-defined]


def test_the_example_can_be_put_in_a_loop() -> None:
    (example,) = blocks("README.md", "python")
    once, batch = example.split("# The rest once for every batch:\n")
    namespace: dict[str, object] = {}
    exec(once, namespace)
    for step in range(1, 5):
        exec(batch, namespace)
        pool: NegativePool = namespace["pool"]  # type: ignore[assignment]
        # No key of an earlier batch has an id of this one, nor its images: the positives are the batch's own.
        assert len(pool) == len(pool.groups.unique()) == 16 * step
        assert pool.images.unique(return_counts=True)[1].tolist() == [2] * 8 * step


def test_no_example_with_a_pool_has_constant_groups() -> None:
    files = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "qpt").rglob("*.py")]
    examples = [
        line for path in files for line in path.read_text(encoding="utf-8").splitlines() if "pool.push(" in line
    ]
    assert len(examples) >= 2
    for path in files:
        text = path.read_text(encoding="utf-8")
        if "pool.push(" in text and path.suffix == ".md":
            assert "pool.new_groups(" in text


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [re.sub(r"\$\w+", "1", word) for word in shlex.split(command)[1:]]
    for flag, path in pairwise(words):
        if flag == "--config":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else "seed: 1\n"
            Path(path).write_text(text, encoding="utf-8")
    words = [word for word in words if word != "--recipes"]  # which prints and ends
    assert build_parser().parse_args(words).command == words[0]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 30
