"""Runs go on without the files that they began with; strange files and misplaced arguments get one line of error."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from qpt import InputError, load_encoder, pretrain
from qpt.cli import main
from qpt.data.arrays import read_npy
from qpt.data.images import load_rgb
from qpt.data.matlab import read_variables
from qpt.data.tabular import near_name, read_matlab, read_sheet
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import Row, TableError, assemble, read_table
from qpt.io import MOST_YAML_BYTES, parse_yaml
from qpt.pretraining import engine
from qpt.pretraining.checkpoint import INITIAL
from tests.fuzz_mutations import bomb
from tests.test_durable import assert_same_state
from tests.test_pretrain import image_folder, tiny

__all__ = ["image_folder"]


@pytest.mark.parametrize("settings", [{}, {"mode": "in_batch", "two_trunks": True}, {"distillation": 1.0}])
def test_a_run_with_init_that_was_killed_before_its_first_checkpoint_needs_its_own_folder_alone(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    first = pretrain(tiny(image_folder, tmp_path / "first", steps=2))
    config = tiny(image_folder, tmp_path / "run", steps=4, seed=3, init=str(first.run / "checkpoint.pt"), **settings)
    whole = pretrain(tiny(image_folder, tmp_path / "whole", steps=4, seed=3, init=config.init, **settings)).run
    assert not (whole / INITIAL).exists()

    take_step = engine._TrainingLoop._train_step

    def killed(self, batch, log):  # type: ignore[no-untyped-def]
        if self.step == 1:
            raise KeyboardInterrupt
        take_step(self, batch, log)

    with monkeypatch.context() as patched:
        patched.setattr(engine._TrainingLoop, "_train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    shutil.rmtree(first.run)
    assert pretrain(config, resume=True).finished
    assert_same_state(whole, tmp_path / "run")
    assert not (tmp_path / "run" / INITIAL).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("new", "12 images then, 13 now; the first difference: 03b.png is new"),
        ("missing", "12 images then, 11 now; the first difference: 03.png is missing"),
        ("last", "12 images then, 11 now; the first difference: nested/07.png is missing"),
        ("renamed", "12 images then, 12 now; the first difference: 03.png is missing"),
        ("size", r"12 images then, 12 now; the first difference: 03.png has \d+ bytes in place of \d+"),
    ],
)
def test_resume_says_how_the_photographs_differ(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    data = shutil.copytree(image_folder, tmp_path / "data")
    config = tiny(data, tmp_path / "run", steps=2, checkpoint_every=1)
    assert pretrain(config).finished
    one = data / "03.png"
    if change == "new":
        shutil.copy(one, data / "03b.png")
    elif change == "size":
        one.write_bytes(one.read_bytes() + b"\0")
    elif change == "renamed":
        one.rename(data / "04b.png")
    else:
        (data / "nested/07.png" if change == "last" else one).unlink()
    with pytest.raises(InputError, match=said):
        pretrain(config, resume=True)
    (tmp_path / "run" / "images.txt.gz").unlink()  # as of an older version
    with pytest.raises(InputError, match=r"file list is not the one the run was started on$"):
        pretrain(config, resume=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "got --steps too"),
        (["--page", "false", "--resume"], "got --page, --resume too"),
        (["--config", "{config}"], "got --config too"),
        (["--recipe", "laptop"], "got --recipe too"),
        (["--batch_images=4"], "got --batch-images too"),
    ],
)
def test_replay_takes_no_settings(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("steps: 3\nlr: 0.1\n")
    words = [word.format(config=tmp_path / "c.yaml") for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--replay", str(tmp_path), *words])
    assert ended.value.code == 2
    assert (
        f"qpt pretrain: error: --replay must be given alone or with --device (the step has its settings), {said}"
        in (capsys.readouterr().err)
    )


@pytest.mark.timeout(120)
def test_a_pipe_and_a_device_are_no_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opening a pipe would wait for ever, and /dev/zero has no end."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    os.symlink("loop.jpg", "loop.jpg")
    os.symlink("gone", "link.jpg")
    Path("empty.jpg").touch()
    names = ["pipe.jpg", "/dev/zero", "loop.jpg", "link.jpg", "empty.jpg", "absent.jpg"]
    assert main(["score", *names, "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    said = [
        "not a file",
        "not a file",
        "a link to nothing",
        "a link to nothing",
        "not an image: an empty file",
        "no such file",
    ]
    assert errors == dict(zip(names, said, strict=True))
    for name in names[:2]:
        with pytest.raises(InputError, match="not a file"):
            load_rgb(name)
        with pytest.raises(InputError, match="not a file"):
            Scorer.load()(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "a.png", "--heatmap", "a.png"], "--heatmap must be a folder, got the file a.png"),
        (["degrade", "a.png", "--out", "g.gif.d"], "--out must end in an image extension"),
        (["degrade", "a.png", "--out", "a.png/g.png"], "--out must be in a folder that exists, got a.png/g.png"),
        (["degrade", "a.png", "--out", "g.xbm", "--cell-px", "128"], "--out must be of a format that holds"),
        (["degrade", "a.png", "--out", "g.png", "--space", "long.csv"], "must be a mapping with the keys of a space"),
        (["score", "--from-file", "wide.txt"], "must be in a list of names, got UTF-16 text without a byte order mark"),
        (["pretrain", ".", "--out", "r", "--config", "deep.yaml"], "nested too deeply"),
        (
            ["pretrain", ".", "--out", "r", "--config", "a.png"],
            "config must be YAML in UTF-8, got a.png with byte 0x89",
        ),
    ],
)
def test_a_refusal_is_one_line_and_names_the_argument(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (9, 80, 200)).save("a.png")
    Path("long.csv").write_text("image,mos\n" + "a.png,1\n" * 5000)
    Path("wide.txt").write_bytes("a.png\nb.png\n".encode("utf-16-le"))
    Path("deep.yaml").write_text("steps: " + "[" * 2000 + "]" * 2000)
    try:
        status = main(words)
    except SystemExit as ended:
        status = int(str(ended.code))
    error = capsys.readouterr().err.strip()
    assert status == 2 and said in error and "\n" not in error and len(error) < 500
    assert not Path("g.xbm").exists() and not list(Path().glob("*.part"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!bool maybe", "a tag"),
        ("a: !!timestamp x", "a tag"),
        ("a: &a [*a]", "a value holds itself"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
            "more than",
        ),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("#" * (MOST_YAML_BYTES + 1), "at most"),
        ("? [1]\n: 2", "unhashable"),
    ],
)
def test_yaml_of_any_kind_is_read_or_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1}}


def test_matlab_files_are_read_as_scipy_does(tmp_path: Path) -> None:
    cells = np.empty((2, 3), object)
    cells[:] = [["a.bmp", "é.bmp", np.zeros((0, 0))], [5.0, np.array([["x"]], object), "longer name.png"]]
    variables = {
        "names": cells,
        "wide": np.arange(12.0).reshape(3, 4),
        "small": np.arange(6, dtype=np.uint8)[:, None],
        "words": np.array(["ab", "c"]),
        "word": "héllo",
        "flags": np.array([[True, False]]),
        "nothing": np.zeros((0, 3)),
        "long": np.array([[2**40]], np.int64),
        "other": {"a": 1},  # a struct that nobody asks for
    }
    wanted = [name for name in variables if name != "other"]
    for packed in (False, True):
        savemat(tmp_path / "m.mat", variables, do_compression=packed, long_field_names=True)
        theirs = loadmat(tmp_path / "m.mat", variable_names=wanted)
        ours = read_variables((tmp_path / "m.mat").read_bytes(), wanted)
        for name in wanted:
            if name == "names":
                assert ours[name].shape == theirs[name].shape
                for mine, other in zip(ours[name].ravel(), theirs[name].ravel(), strict=True):
                    assert mine.size == other.size and (other.dtype == object or mine.tolist() == other.tolist())
            else:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
                assert ours[name].dtype.kind == theirs[name].dtype.kind
    with pytest.raises(ValueError, match="real numbers, text or cells"):
        read_variables((tmp_path / "m.mat").read_bytes(), ["other"])
    savemat(tmp_path / "four.mat", {"x": np.arange(3.0)}, format="4")
    assert read_matlab(tmp_path / "four.mat", "x")[0].tolist() == [0, 1, 2]


def test_archives_that_unpack_to_gigabytes_are_refused_before(tmp_path: Path) -> None:
    for name, member, read in (
        ("p.npz", "ops.npy", Program.load),
        ("s.pt", "archive/data/0", Scorer.load),
        ("s.xlsx", "xl/worksheets/sheet1.xml", lambda path: read_sheet(path, ("image", "mos"))),
    ):
        others = [(f"{each}.npy", b"") for each in ("levels", "params", "seeds", "source", "table")]
        (tmp_path / name).write_bytes(bomb(member, others))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError):
            read(tmp_path / name)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_header_that_asks_for_more_than_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    content = (tmp_path / "a.npy").read_bytes()
    assert read_npy(tmp_path / "a.npy").tolist() == [0, 1, 2]
    for shape in (b"(9999999999,)", b"(-3,)", b"(1, 1, 3, 5)"):
        (tmp_path / "a.npy").write_bytes(content.replace(b"(3,), }" + b" " * 20, (shape + b", }").ljust(27), 1))
        with pytest.raises(ValueError, match="its header says"):
            read_npy(tmp_path / "a.npy")
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        read_npy(tmp_path / "o.npy")


def test_a_scorer_whose_width_does_not_fit_is_refused_before_its_network_is_built(tmp_path: Path) -> None:
    saved = Path(__file__).parent / "saved" / "scorer.pt"
    state = torch.load(saved, weights_only=True)
    for change in (
        {"width": 10**6},
        {"intercept": "1"},
        {"mos_max": float("nan")},
        {"fitted_on": None},
        {"seen": []},
    ):
        torch.save({**state, **change}, tmp_path / "s.pt")
        with pytest.raises(InputError, match="is damaged"):
            Scorer.load(tmp_path / "s.pt")
    tensors = {name: value.flatten()[:1].expand(1 << 40) for name, value in state["encoder"].items() if value.ndim}
    torch.save({**state, "encoder": tensors}, tmp_path / "s.pt")
    with pytest.raises(InputError, match="must hold tensors and plain data"):
        Scorer.load(tmp_path / "s.pt")


def test_a_missing_image_is_named_beside_the_file_that_may_be_meant(tmp_path: Path) -> None:
    for name in ("IMG_1.JPG", "b.png", "c.png", "c.jpg", "cafe\u0301.png"):
        (tmp_path / name).touch()
    said = {
        "img_1.jpg": "; there is IMG_1.JPG",
        "IMG_1": "; there is IMG_1.JPG",
        "b.jpeg": "; there is b.png",
        "c.tif": "",
        "caf\u00e9.png": "; there is cafe\u0301.png",
        "b.png": "",
        "gone.png": "",
        "x/b.png": "",
        "a" * 300: "",
    }
    for name, words in said.items():
        assert near_name(tmp_path / name) == words, name
    rows = [Row("line 2", "img_1.jpg", tmp_path / "img_1.jpg", "1")]
    with pytest.raises(TableError, match=r"img_1\.jpg: no such file; there is IMG_1\.JPG"):
        assemble("t.csv", rows, name="t")


def test_a_name_that_is_too_long_is_a_missing_image(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,mos\n" + "".join(f"{'a' * 300}{k}.png,{k}\n" for k in range(12)))
    with pytest.raises(TableError, match=r"line 2: a+0\.png: no such file"):
        read_table(tmp_path / "t.csv")


def test_a_checkpoint_of_another_network_is_refused_in_words(image_folder: Path, tmp_path: Path) -> None:
    """Its checksums are right, so nothing but its contents can tell."""
    config = tiny(image_folder, tmp_path / "run", steps=2)
    run = pretrain(config).run
    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    for change in ({"learner": None}, {"learner": {}}, {"learner": {**whole["learner"], "head": {}}}):
        torch.save({**whole, **change}, run / "checkpoint.pt")
        with pytest.raises(InputError, match="must hold the state of this network"):
            pretrain(config, resume=True)
    for change in ({"config": None}, {"config": {1: 2}}):
        torch.save({**whole, **change}, run / "checkpoint.pt")
        with pytest.raises(InputError, match="must be a mapping of settings"):
            pretrain(config, resume=True)
    torch.save({**whole, "encoder": {}}, run / "checkpoint.pt")
    with pytest.raises(InputError, match="is damaged"):
        load_encoder(run)


def test_text_of_letters_that_do_not_exist_is_refused(tmp_path: Path) -> None:
    for order in "<>":
        np.save(tmp_path / "a.npy", np.array(["ab", "c"], f"{order}U2"))
        assert read_npy(tmp_path / "a.npy").tolist() == ["ab", "c"]
        content = bytearray((tmp_path / "a.npy").read_bytes())
        content[-4:] = b"\x7f" * 4
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ValueError, match="letters that do not exist"):
            read_npy(tmp_path / "a.npy")


def test_a_space_of_thousands_of_ops_is_refused_before_it_is_counted(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("ops: [" + "hue, " * 3000 + "hue]\n")
    with pytest.raises(InputError, match="must be a list of at most 256 ops, got 3001"):
        DegradationSpace.from_yaml(tmp_path / "s.yaml")
