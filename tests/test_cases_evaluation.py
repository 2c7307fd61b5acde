"""Inputs that failed, by kind: outputs over inputs, names that are no text, closed streams, shared images, and others.

Each test is named after its kind; kinds within one module are in that module's tests.
"""

import ast
import csv as csv_module
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import qpt
from qpt import cli
from qpt.commands.demo_run import run_demo
from qpt.errors import InputError
from qpt.evaluate.leaks import between_tables, leak_warnings
from qpt.evaluate.quality_map import is_quality_map
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table
from qpt.io import shown
from tests.labelled import image_regions, write_run, write_set
from tests.labelled import one_thread as one_thread

PACKAGE = Path(cli.__file__).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (csv, run, scorer file)."""
    folder = tmp_path_factory.mktemp("cases")
    csv, run, out = write_set(folder / "set"), write_run(folder / "run"), folder / "scorer.pt"
    assert cli.main(["fit", str(run), "--csv", str(csv), "--out", str(out)]) == 0
    return csv, run, out


@pytest.fixture
def copies(made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with copies of set, run and scorer.pt, which is the working folder too."""
    csv, run, scorer = made
    shutil.copytree(csv.parent, tmp_path / "set")
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(scorer, tmp_path / "scorer.pt")
    shutil.copy(scorer, tmp_path / "encoder.pth")
    (tmp_path / "link.png").symlink_to("set/images/cat0.png")
    (tmp_path / "result.json").write_text('{"format": "qpt-evaluation-2"}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "features"
    }


@pytest.mark.parametrize(
    "words",
    [
        "score set/images --scorer scorer.pt --heatmap set/images",
        "score link.png --scorer scorer.pt --heatmap set/images/../images/cat0.png/..",
        "fit run --csv set/scores.csv --out set/scores.csv",
        "fit run --csv set/scores.csv --out run/checkpoint.pt",
        "fit run --csv set/scores.csv --out set/images/cat0.png",
        "evaluate run --csv set/scores.csv --out set/scores.csv",
        "compare result.json --method-b b --out ./result.json",
        "report run --csv set/scores.csv --out set/images/cup1.png",
        "report run --photographs set/images --out link.png",
        "export encoder.pth --out .",
        "degrade link.png --out set/images/cat0.png",
    ],
)
def test_no_command_writes_over_what_it_reads(
    copies: Path, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copies)
    assert cli.main(words.split()) == 2
    error = capsys.readouterr().err
    assert "must not write over" in error or "must be a" in error, error
    assert contents(copies) == before


def test_maps_replace_only_maps_and_are_no_photographs(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copies / "own").mkdir()
    shutil.copy("set/images/cat0.png", "own/a.png")
    command = ["score", "own", "--scorer", "scorer.pt", "--heatmap", "own/maps", "--tile-px", "128"]
    assert cli.main(command) == 0 and is_quality_map("own/maps/a.png") and not is_quality_map("own/a.png")
    capsys.readouterr()
    assert cli.main([*command, "--json"]) == 0  # again, over the map; which is below the folder that is scored
    captured = capsys.readouterr()
    assert [item["image"] for item in json.loads(captured.out)["scores"]] == ["own/a.png"]
    assert "1 heat map(s) of qpt are left out" in captured.err
    assert cli.main(["score", "own/maps/a.png", "--scorer", "scorer.pt"]) == 1
    assert "a heat map of qpt, no photograph" in capsys.readouterr().err
    shutil.copy("set/images/cup0.png", "own/maps/a.png")  # another photograph of that name
    before = Path("own/maps/a.png").read_bytes()
    assert cli.main([*command[:1], "own/a.png", *command[2:]]) == 2
    assert Path("own/maps/a.png").read_bytes() == before


def test_the_demonstration_is_not_made_inside_its_data(copies: Path) -> None:
    for out, data in (("set/demo", "set"), ("set", "set/images"), ("set", "set")):
        with pytest.raises(InputError, match="must lie apart from data"):
            run_demo(Path(out), Path(data), None)  # type: ignore[arg-type]


def test_names_that_differ_are_shown_differently() -> None:
    names = [
        "caf\udce9.jpg",
        "caf\udce8.jpg",
        "café.jpg",
        r"caf\xe9.jpg",
        r"caf\x5cxe9.jpg",
        "a\nb",
        "a\\nb",
        "a b",
        "日.png",
    ]
    texts = [shown(name) for name in names]
    assert len(set(texts)) == len(names) and all("\n" not in text for text in texts)
    assert [text.encode("utf-8").decode() for text in texts] == texts
    assert texts[2] == "café.jpg" and texts[0] == r"caf\xe9.jpg" and texts[-1] == "日.png"


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_a_name_that_is_not_utf8_is_scored_mapped_and_told_apart(
    copies: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        shutil.copy("set/images/cat0.png", os.fsdecode(name))
    files = [os.fsdecode(name) for name in (b"caf\xe9.png", b"caf\xe8.png")]
    options = ["--scorer", "scorer.pt", "--heatmap", "maps", "--tile-px", "128", "--format", style]
    assert cli.main(["score", *files, *options]) == 0
    out = capsys.readouterr().out
    assert out.isascii() or style == "table"
    assert len(list(Path("maps").iterdir())) == 2
    for name in ("caf\\xe9.png", "caf\\xe8.png") if style != "json" else ("caf\\udce9.png", "caf\\udce8.png"):
        assert name in out


def test_a_page_of_runs_and_sets_whose_folders_are_no_utf8(copies: Path) -> None:
    odd = copies / os.fsdecode(b"r\xe9")
    shutil.copytree("run", odd)
    shutil.copytree("set", odd / "set")
    page = odd / "p.html"
    assert cli.main(["report", str(odd), "--photographs", str(odd / "set" / "images"), "--out", str(page)]) == 0
    assert r"r\xe9" in page.read_text(encoding="utf-8")
    assert read_table(odd / "set/scores.csv").name == "set"


def test_a_terminal_that_cannot_show_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["degrade", "--list"]) == 0
    assert b"\\xb7" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_every_text_file_has_an_encoding() -> None:
    """A call that opens a text file names UTF-8: the locale must not decide."""
    found = []
    root = PACKAGE.parent
    folders = [PACKAGE, *(root / name for name in ("benchmarks", "experiments", "docs", "examples"))]
    for path in (*(path for folder in folders for path in folder.rglob("*.py")), root / "setup.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            constants = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
            modes = [text for text in constants if isinstance(text, str) and re.fullmatch(r"[rwxa][bt+]*", text)]
            # ``open`` of a Path too, which is told from that of an image or a source by its mode.
            opens = name == "open" and (isinstance(node.func, ast.Name) or bool(modes))
            text = name in ("read_text", "write_text") or (opens and not any("b" in mode for mode in modes))
            if text and not any(keyword.arg == "encoding" for keyword in node.keywords):
                found.append(f"{path.name}:{node.lineno}")
    # ``read_text`` of tables takes no encoding: it is the project's own, which reads bytes.
    assert [place for place in found if not place.startswith(("tabular.py", "layouts.py"))] == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    """What is opened next must not get the number of a stream: a library's message would go into that file."""
    code = (
        "import sys; from qpt.commands.streams import prepare_streams; prepare_streams()\n"
        "file = open('out.txt', 'w'); print('shown', file=file); assert file.fileno() > 2\n"
        "print('out'); print('error', file=sys.stderr); sys.stdin.read(); file.close()"
    )
    words = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if ">&- " in f"{closed} ".replace("2>&- ", "") else "out\n")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "shown\n"


def test_images_of_the_training_table_are_found_in_the_tested_one(
    copies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("set", "other")
    with Image.open("set/images/cat0.png") as image:
        image.resize((120, 90)).save("other/images/cat0.png")
    options = ["--protocol", "cross", "--test-csv", "other/scores.csv", "--untrained", "0", "--out", "r.json"]
    assert cli.main(["evaluate", "run", "--csv", "set/scores.csv", *options]) == 0
    captured = capsys.readouterr()
    assert "23 of 24 photograph(s) of other are, byte for byte, in set too" in captured.err
    assert "1 of 24 photograph(s) of other are, nearly, in set too" in captured.err
    assert "warning: 23 photograph(s) are in two tables" in " ".join(captured.out.split())
    assert len(json.loads(Path("r.json").read_text(encoding="utf-8"))["data"]["shared_between_tables"]) == 23
    first = read_table("set/scores.csv")
    tables = [dataclasses.replace(first, contents=(), paths=()), first, first]
    assert between_tables(tables, trained_on_first=True) == []
    assert len(between_tables(tables, trained_on_first=False, shown=0)) == 1


def test_refs_in_several_spellings_are_told(copies: Path) -> None:
    path = Path("set/scores.csv")
    lines = path.read_text(encoding="utf-8").splitlines()
    spellings = [
        "cat",
        "Cat ",
        "CAT.png",
        "ｃａｔ",
        "face",
        "FACE",
        "fa ce",
        "a-b",
        "a_b",
        "007",
        "7",
        "7.0",
        "1.1",
        "11",
    ]
    lines[1:15] = [f"{line.rsplit(',', 1)[0]},{ref}" for line, ref in zip(lines[1:15], spellings, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = read_table(path)
    assert [set(found) for found in table.alike_refs] == [
        {"cat", "Cat", "CAT.png", "ｃａｔ"},
        {"face", "FACE"},
        {"a-b", "a_b"},
        {"007", "7", "7.0"},
    ]
    assert "4 ref(s) in several spellings" in leak_warnings(table)[0]


def test_a_score_that_means_nothing_is_marked(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scorer = Scorer.load("scorer.pt")
    span = scorer.mos_max - scorer.mos_min
    inside = [scorer.mos_min - 0.2 * span, scorer.mos_max + 0.2 * span]
    assert [scorer.extrapolates(score) for score in inside] == [False, False]
    assert scorer.extrapolates(scorer.mos_min - 0.3 * span) and scorer.extrapolates(scorer.mos_max + 0.3 * span)
    dataclasses.replace(scorer, intercept=scorer.intercept + 1000).save("far.pt")
    Image.new("RGB", (64, 64), (9, 9, 9)).save("plain.png")
    command = ["score", "plain.png", "set/images/cat0.png", "--scorer", "far.pt"]
    assert cli.main(command) == 0
    table = capsys.readouterr().out
    assert "extrapolated, one colour" in table and "extrapolated: 2 of 2 score(s)" in table
    assert cli.main([*command, "--format", "csv"]) == 0
    rows = list(csv_module.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["note"] for row in rows] == ["extrapolated, one colour", "extrapolated"]
    assert cli.main([*command, "--json"]) == 0
    assert [item["note"] for item in json.loads(capsys.readouterr().out)["scores"]] == [row["note"] for row in rows]
    assert cli.main(["score", "set/images/cat0.png", "--scorer", "scorer.pt"]) == 0
    assert "note" not in capsys.readouterr().out


def test_a_set_without_variance_is_told(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("set/images").iterdir():
        Image.new("RGB", (40, 40), (99, 9, 9)).save(path)
    assert cli.main(["fit", "run", "--csv", "set/scores.csv", "--out", "same.pt"]) == 0
    assert "every score will be the same" in capsys.readouterr().err
    assert cli.main(["score", "set/images", "--scorer", "same.pt"]) == 0
    assert "all 24 scores are equal: they order nothing" in capsys.readouterr().err


def test_a_damaged_record_costs_only_itself(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copies / "run"
    (run / "log.csv").write_bytes(b"step,loss\n1,2.5\n2,oops\n3,1.5\n4,1\0\0\0\0\n5\n" + bytes(512))
    (run / "observations.jsonl").write_text('{"step": 1}\n[]\n', encoding="utf-8")
    (run / "history.jsonl").write_bytes(b'{"step": "x"}\n\0\0\0\n')
    (run / "seen.npz").write_bytes(bytes(64))
    (run / "summary.json").write_bytes(bytes(64))
    (run / "space.yaml").write_bytes(bytes(64))
    assert cli.main(["report", "run", "--out", "page.html"]) == 0
    error = capsys.readouterr().err
    for words in ("log.csv of run: 2 rows are used, 4 cannot be read", "observations.jsonl of run: 0 lines are",
                  "history.jsonl of run: 0 lines are used, 2 cannot be read", "seen.npz of run", "space.yaml of run",
                  "summary.json of run: it must hold a mapping, got what is no JSON"):  # fmt: skip
        assert words in error and words in Path("page.html").read_text(encoding="utf-8")
    assert "\0" not in error
    (run / "log.csv").write_bytes(b"")
    for name in ("observations.jsonl", "history.jsonl"):
        (run / name).write_bytes(b'{"step": 1')
    assert cli.main(["report", "run", "--out", "page.html"]) == 0
    error = capsys.readouterr().err
    for words in ("log.csv of run: it is empty", "observations.jsonl of run: 0 lines", "history.jsonl of run: 0 lines"):
        assert words in error


def test_values_that_round_to_the_same_8_bits_are_taken(copies: Path) -> None:
    metric = Scorer.load("scorer.pt").as_metric()
    ones = torch.ones(1, 3, 40, 40)
    assert torch.equal(metric(ones + 1e-6), metric(ones)) and torch.equal(metric(ones * -1e-6), metric(ones * 0))
    with pytest.raises(InputError, match=r"values from 0 to 1, got 255 to 255 in image 0; divide .* by 255.*clamp"):
        metric(ones * 255)
    with pytest.raises(InputError, match=r"got -0\.002 to -0\.002"):
        metric(ones * -0.002)


def test_images_in_memory_follow_the_rules_of_files(copies: Path) -> None:
    scorer = Scorer.load("scorer.pt")
    metric = scorer.as_metric()
    cat = Image.fromarray(image_regions()["cat"])
    exif = Image.Exif()
    exif[0x0112] = 6
    cat.save("turned.jpg", exif=exif)
    half = cat.convert("RGBA")
    half.putalpha(128)
    half.save("half.png")
    cat.convert("P").save("palette.gif")
    cat.convert("L").save("grey.png")
    for name in ("turned.jpg", "half.png", "palette.gif", "grey.png"):
        expected = scorer(name)
        with Image.open(name) as image:
            assert scorer(image) == expected and scorer(image) == expected  # not used up
            assert metric(image).item() == pytest.approx(expected) and metric(Path(name)).item() == metric(name).item()
    for other, words in (
        (b"x", "BytesIO"),
        (np.zeros((9, 9), np.uint8), "fromarray"),
        (torch.zeros(3, 9, 9), "permute"),
    ):
        with pytest.raises(InputError, match=f"pixels must be .*{words}"):
            scorer(other)  # type: ignore[arg-type]


def test_the_metric_inside_transforms_of_torch(copies: Path) -> None:
    metric, x = (
        Scorer.load("scorer.pt").as_metric(),
        torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)),
    )
    expected = metric(x)
    assert torch.equal(torch.compile(metric, backend="eager")(x), expected)
    assert torch.equal(torch.compile(lambda t: metric(t) * 2 + 1, backend="eager")(x), expected * 2 + 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metric(x), expected)
    for transform in (
        lambda: torch.func.vmap(lambda t: metric(t[None]))(x),
        lambda: torch.func.grad(lambda t: metric(t).sum())(x),
        lambda: torch.jit.trace(metric, x),
        lambda: torch.export.export(metric, (x,), strict=False),  # torch 2.6: True
    ):
        with pytest.raises(InputError, match="target must hold values"):
            transform()


def test_transforms_of_torch_are_refused_in_one_sentence(copies: Path) -> None:
    """The loss, the degradations and the metric as a loss refuse tensors that torch.func or vmap transforms."""
    rows = functional.normalize(torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0)), dim=2)
    images = torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)
    program = qpt.DegradationSpace.preset("qpt").sample(4)
    boxes = torch.zeros(4, 1, 2, dtype=torch.int32)
    loss = Scorer.load("scorer.pt").as_metric(as_loss=True)
    for transform in (
        lambda: torch.func.grad(lambda q: qpt.nt_xent(q, rows[1]))(rows[0]),
        lambda: torch.vmap(lambda q: qpt.nt_xent(q, rows[0]))(rows),
        lambda: torch.vmap(lambda image: qpt.degrade(image, program))(images),
        lambda: torch.vmap(lambda image: qpt.degrade_patches(image, program, boxes, 16))(images),
        lambda: torch.vmap(loss)(torch.rand(1, 1, 3, 64, 64)),
    ):
        with pytest.raises(InputError, match=r"must hold values, got a tensor that torch\.func or vmap transforms"):
            transform()


def test_other_libraries_say_nothing_on_the_terminal(copies: Path) -> None:
    """A home that cannot be written to, and a name in letters that matplotlib's font lacks."""
    shutil.copy("set/images/cat0.png", "日.png")
    words = [sys.executable, "-m", "qpt", "score", "日.png", "--scorer", "scorer.pt", "--heatmap", "maps"]
    environment = {**os.environ, "HOME": "/proc", "XDG_CACHE_HOME": "", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and done.stderr == "" and "日.png" in done.stdout


def test_side_data_and_exporters_say_nothing_on_the_terminal(copies: Path) -> None:
    side = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40  # of which Pillow says that it is corrupt
    Image.open("set/images/cat0.png").convert("RGB").save("exif.jpg", exif=side)
    for words in (["score", "exif.jpg", "--scorer", "scorer.pt"], ["export", "scorer.pt", "--out", "exported"]):
        done = subprocess.run([sys.executable, "-m", "qpt", *words], capture_output=True, text=True, encoding="utf-8")
        assert (done.returncode, done.stderr) == (0, "")
