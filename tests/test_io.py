"""YAML with the numbers of version 1.2, the same wherever the project reads it."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpt import DegradationSpace, InputError, PretrainConfig
from qpt.cli import build_parser
from qpt.io import parse_yaml, read_yaml, to_yaml

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("1e-3", 1e-3),
            ("1E3", 1000.0),
            ("-2e+1", -20.0),
            ("1.5e3", 1500.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("+.1e1", 1.0),
        ],
        *[("12", 12), ("-3", -3), ("010", 10), ("0o17", 15), ("0x1F", 31), ("1_000", 1000), ("1_000.5", 1000.5)],
        *[(".inf", math.inf), ("-.INF", -math.inf), ("1:30", "1:30"), ("190:20:30.15", "190:20:30.15")],
        *[("2020-01-01", "2020-01-01"), ("1e", "1e"), ("e3", "e3"), ("1.2.3", "1.2.3"), (".", "."), ("-", [None])],
        *[("true", True), ("null", None), ("'1e3'", "1e3"), ("lr: 1e-3", {"lr": 1e-3}), ("\ufeffa: 1", {"a": 1})],
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)
    assert math.isnan(parse_yaml(".nan"))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("0123456789_.eE+-:xo abc")


@given(st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab1e"), inner), max_leaves=8))
def test_what_is_written_is_read_alike(value: Any) -> None:
    assert parse_yaml(to_yaml(value)) == value


@pytest.mark.parametrize(
    "text", [b"a: [", b"a: 1\na: 2", b"\xff\xfe\x00", b"a: \xe9", b"? [1]: 2", b"!!python/none", b"\t- x"]
)
def test_what_is_not_plain_yaml_is_one_line(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(InputError, match="config must be a readable YAML file"):
        PretrainConfig.load(tmp_path / "x.yaml", data="a", out="b")
    with pytest.raises(InputError, match="space must be a readable YAML file"):
        DegradationSpace.from_yaml(tmp_path / "x.yaml")


def test_settings_are_read_alike_by_python_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("lr: 1e-3\nweight-decay: 1E-5\nbatch_images: 8.0\nsteps: 1e3\nseed: 010\nepochs: 1_000\n")
    config = PretrainConfig.load(path, data="a", out="b")
    assert (config.lr, config.weight_decay, config.batch_images, config.steps) == (1e-3, 1e-5, 8, 1000)
    assert (config.seed, config.epochs) == (10, 1000)
    parsed = build_parser().parse_args(["pretrain", "a", "--out", "b", "--config", str(path)]).pretrain
    names = ("lr", "weight_decay", "batch_images", "steps", "seed", "epochs")
    assert [getattr(parsed, name) for name in names] == [getattr(config, name) for name in names]


def test_a_space_takes_numbers_as_python_writes_them(tmp_path: Path) -> None:
    spaces = []
    for number in ("0.1", "1e-1"):
        (tmp_path / "space.yaml").write_text(f"ops: [jpeg]\npristine: {number}\n")
        spaces.append(DegradationSpace.from_yaml(tmp_path / "space.yaml"))
    assert spaces[0] == spaces[1]


def test_all_yaml_is_read_by_one_loader() -> None:
    folders = ("qpt", "experiments", "docs", "benchmarks")
    readers = [
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"yaml\.(safe_|full_|unsafe_)?load", path.read_text(encoding="utf-8"))
    ]
    assert readers == ["qpt/io.py"]
