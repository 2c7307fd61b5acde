"""The command line as a whole: help with examples, one-line errors, lazy imports."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qpt
from qpt.cli import COMMANDS, build_parser, command_parser, invocation, main
from qpt.data.faults import ReadError
from qpt.errors import BackendError, InputError, StalledError

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


def test_a_home_folder_that_no_shell_has_expanded_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    words = ["~/photos", "--out=~/run", "--init", "", "--space", "x~/y"]
    arguments = build_parser().parse_args(["pretrain", *words]).pretrain
    assert (arguments.data, arguments.out) == ("/home/a/photos", "/home/a/run")
    assert (arguments.init, arguments.space) == ("", "x~/y")


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
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == front.render_cli(), "run `python docs/front.py cli`"


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "--batchimages", "8"], "there is no option --batchimages; did you mean --batch-images?"),
        (["pretrain", "--batch_imags=8"], "there is no option --batch-imags; did you mean --batch-images?"),
        (["pretrain", "--no-page"], "there is no option --no-page; did you mean --page?"),
        (["pretrain", "-lr", "1"], "there is no option -lr; did you mean --lr?"),
        (
            ["pretrain", "--data", "a"],
            "there is no option --data; give the value without it, as in qpt pretrain [DATA]",
        ),
        (["pretrain", "--mode", "MOCO"], "got 'MOCO'; did you mean moco?"),
        (["pretrain", "--zzz", "1"], "there is no option --zzz; see qpt pretrain --help"),
        (["pretrain", "a", "b"], "there is no place for the argument 'b'; see qpt pretrain --help"),
        (["pretrain", "--batch-images", "8.5"], "--batch-images must be an integer, got '8.5'"),
        (["pretrain", "--batch-images", "many"], "--batch-images must be an integer, got 'many'"),
        (["pretrain", "--lr", "fast"], "--lr must be a number, got 'fast'"),
        (["pretrain", "--page", "perhaps"], "--page must be true or false, got 'perhaps'"),
        (
            ["pretrain", "--mode", "inbatch"],
            "--mode must be one of moco, in_batch, got 'inbatch'; did you mean in_batch?",
        ),
        (["pretrain", "--config", "absent.yaml"], "--config: File does not exist"),
        (["plan", "--steps", "1.5", "24"], "--steps must be an integer, got '1.5'"),
        (["score", "a", "--tile-px", "1.5"], "--tile-px must be an integer, got '1.5'"),
        (["score", "a", "--heatmap", ""], "--heatmap must not be empty"),
        (["score", "a", "--heatmap="], "--heatmap must not be empty"),
        (["score", "a", "--json", ""], "an argument must not be empty"),
        (["evaluate", ""], "an argument must not be empty"),
        (["plan"], "gpu must be given"),
        (["compare", "a", "b", "--seed", "x"], "--seed must be an integer, got 'x'"),
        (["pretrian"], "COMMAND must be one of "),
        (["pretrian"], "got 'pretrian'; did you mean pretrain?"),
        ([], "COMMAND must be given"),
    ],
)
def test_a_refusal_is_one_line_with_the_reason(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
    assert re.match(r"qpt( \w+)?: error: ", error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("batch_imagez: 8", "known settings only, got 'batch_imagez': did you mean batch_images?"),
        ("batch_images: x", "--batch-images must be an integer, got 'x'"),
        ("batch_images: [", "config must be YAML, got: "),
        ("- 1", "config must be a YAML mapping of settings, got list"),
        ("lr: 1\nlr: 2", "'lr' is given twice"),
    ],
)
def test_a_file_of_settings_is_refused_in_one_line(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "photos", "--config", str(tmp_path / "a.yaml"), "--out", "new"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("value", ["8", "8.0", "8.", "8e0", "0.8e1", "80E-1", "+8"])
@pytest.mark.parametrize("words", [["--batch-images={}"], ["--batch_images", "{}"], ["--batch-im", "{}"]])
def test_a_whole_number_is_an_integer_however_it_is_written(value: str, words: list[str]) -> None:
    words = [word.format(value) for word in words]
    arguments = build_parser().parse_args(["pretrain", "8.0", "--out", "8e0", *words]).pretrain
    assert arguments.batch_images == 8 and type(arguments.batch_images) is int
    assert (arguments.data, arguments.out) == ("8.0", "8e0")
    assert build_parser().parse_args(["compare", "a", "--seed", "1e3"]).compare.seed == 1000


def test_an_option_has_one_form_in_all_commands() -> None:
    forms: dict[str, set[tuple[str, object]]] = {}
    for command in COMMANDS:
        for action in command_parser(command)._actions:
            for option in action.option_strings:
                kind = getattr(action, "_typehint", None)
                form = "a choice" if action.choices else invocation(action).partition(" ")[2]
                forms.setdefault(option, set()).add((form, kind))
    several = {option: {form for form, _ in found} for option, found in forms.items() if len(found) > 1}
    assert several == {"--out": {"FILE", "FOLDER"}}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["probe", "run", "data", "--photographs", "7"], "photograph_count", 7),
        (["probe", "run", "data", "--size=64"], "crop_px", 64),
        (["degrade", "a.png", "--out", "b.png", "--size", "128"], "cell_px", 128),
    ],
)
def test_a_former_option_is_read_with_a_warning(words: list[str], name: str, value: int) -> None:
    with pytest.warns(FutureWarning, match=f"--(photographs|size) is now called --{name.replace('_', '-')}"):
        arguments = build_parser().parse_args(words)[words[0]]
    assert getattr(arguments, name) == value


#: The fewest arguments of each command, and some for which it refuses its input.
FEWEST = {
    "doctor": ([], ["--jsn"]),
    "degrade": ([], ["absent.png", "--out", "a.png"]),
    "plan": (["24"], ["no-such-gpu"]),
    "pretrain": ([], ["absent", "--out", "run"]),
    "evaluate": (["run"], ["absent", "--csv", "absent.csv"]),
    "compare": (["a"], ["absent.json"]),
    "fit": (["run", "--out", "a"], ["absent", "--csv", "absent.csv", "--out", "a.pt"]),
    "score": ([], ["absent.png", "--scorer", "absent.pt"]),
    "export": (["run", "--out", "a"], ["absent", "--out", "a"]),
    "datasets": ([], ["check", "koniq10k", "--root", "absent"]),
    "probe": (["run", "data"], ["absent", "absent"]),
    "report": (["run", "--out", "a"], ["absent", "--out", "a.html"]),
    "demo": ([], ["--data", "absent", "--out", "a"]),
}
ERRORS = [
    (InputError("size must be 1, got 2"), 2, "size must be 1, got 2"),
    (BackendError("no kernels: pip install them"), 2, "no kernels"),
    (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "a.csv"),
    (PermissionError(13, "Permission denied", "a.csv"), 2, "a.csv"),
    (StalledError("no photograph for 600 s"), 1, "no photograph"),
    (OSError(28, "No space left on device", "a.json"), 1, "No space left"),
    (ReadError("a.png could not be read in 4 attempts"), 1, "a.png"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_exit_status_says_whose_error_it_is(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fewest, wrong = FEWEST[command]
    try:
        status: object = main([command, *wrong])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and error.startswith(f"qpt {command}: error: ") and "Traceback" not in error
    assert not list(tmp_path.iterdir())
    for raised, expected, said in ERRORS:

        def fail(args: object, raised: BaseException = raised) -> int:
            raise raised

        monkeypatch.setattr(f"qpt.commands.{command}.run", fail)
        assert main([command, *fewest]) == expected
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and error.startswith(f"qpt {command}: ")


def test_an_interrupt_during_the_imports_is_one_line() -> None:
    code = """
import builtins, sys
real = builtins.__import__
def interrupted(name, *rest, **named):
    if name.startswith("jsonargparse"):
        raise KeyboardInterrupt
    return real(name, *rest, **named)
builtins.__import__ = interrupted
from qpt.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "qpt: interrupted\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands_their_options_and_files(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert stop.value.code == 0 and all(command in script for command in COMMANDS)
    assert "patch-size" in script and "in_batch" in script and "patch_size PATCH_SIZE" not in script
    if shell != "bash":
        return
    (tmp_path / "scores.csv").touch()
    words = {"eval": "evaluate", "fit --low": "--lower-better", "fit --csv sco": "scores.csv"}
    words["pretrain --boxes ind"] = "independent"
    for typed, completed in words.items():
        line = f"COMP_WORDS=(qpt {typed}); COMP_CWORD={len(typed.split())}; _shtab_qpt; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.split() == [completed], (typed, done.stdout, done.stderr)


def test_completion_without_its_extra_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "bash"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "qpt: error: --print-completion needs shtab: pip install 'qpt[completion]'\n"
