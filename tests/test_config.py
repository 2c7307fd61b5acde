"""Settings of a run: checked, saved, loaded, and refused with the field's name."""

import dataclasses
import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpt import InputError, PretrainConfig


@given(
    lr=st.floats(1e-6, 10, allow_nan=False),
    steps=st.integers(1, 10**6),
    mode=st.sampled_from(["moco", "in_batch"]),
    symmetric=st.booleans(),
)
def test_save_and_load_are_inverse(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps: int, mode: str, symmetric: bool
) -> None:
    config = PretrainConfig("a", "b", lr=lr, steps=steps, mode=mode, symmetric=symmetric)  # type: ignore[arg-type]
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    config.save(path)
    assert PretrainConfig.load(path, data="a", out="b") == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("lr", -1.0),
        ("lr", "fast"),
        ("batch_images", 1),
        ("batch_images", 2.5),
        ("mode", "byol"),
        ("symmetric", 1),
        ("same_image_weight", -0.5),
        ("momentum", 1.5),
        ("arch", "vgg16"),
        ("patches", 1),
        ("positives", "photograph"),
        ("trust_coefficient", 0.0),
        ("seed", True),
        ("data", 3),
    ],
)
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"pretrain: {field} must be"):
        PretrainConfig(**{"data": "a", "out": "b", field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lr: [", "YAML"),
        ("- 1", "mapping"),
        ("data: a\nout: b\nlearning_rate: 1", "learning_rate"),
        ("lr: 1", "data and out"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        PretrainConfig.load(path)


def test_differences_name_the_fields_that_the_result_depends_on() -> None:
    base = PretrainConfig("a", "b")
    other = dataclasses.replace(base, data="elsewhere", workers=4, lr=0.5)
    assert base.differences(other) == ["lr: 0.03 -> 0.5"]
    assert base.differences(base) == []


def test_positives_by_image_need_two_compositions() -> None:
    with pytest.raises(InputError, match="compositions must be >= 2 when positives is image, got 1"):
        PretrainConfig("a", "b", positives="image", compositions=1)


@pytest.mark.parametrize("value", [-1, 4.0, True, "4"])
def test_bad_integers_are_named(value: object) -> None:
    integers = [field.name for field in dataclasses.fields(PretrainConfig) if field.type == "int"]
    assert len(integers) > 20
    for name in integers:
        with pytest.raises(InputError, match=f"pretrain: {name} must be"):
            PretrainConfig("a", "b", **{name: value})  # type: ignore[arg-type]


def test_every_field_is_documented() -> None:
    documented = inspect.getdoc(PretrainConfig) or ""  # __doc__ itself has no indentation since Python 3.13
    for field in dataclasses.fields(PretrainConfig):
        assert f"\n    {field.name}: " in documented


@pytest.mark.parametrize(
    ("old", "new", "value"), [("preset", "space", "kadid"), ("keys_travel", "key_exchange", "ring")]
)
def test_a_former_name_loads_with_a_warning(old: str, new: str, value: str) -> None:
    fields = {"data": "a", "out": "b"}
    with pytest.warns(FutureWarning, match=f"config key {old} is now called {new}"):
        assert PretrainConfig.from_dict({**fields, old: value}) == PretrainConfig.from_dict({**fields, new: value})


def test_loss_precisions_of_tensor_cores_are_refused_elsewhere():
    for precision in ("auto", "ieee"):
        PretrainConfig("photos", "run", loss_precision=precision).check_device("cpu")
    config = PretrainConfig("photos", "run", loss_precision="bf16x3")
    config.check_device("cuda")
    with pytest.raises(InputError, match=r"^pretrain: loss_precision must be auto or ieee on cpu, got 'bf16x3'"):
        config.check_device("cpu")
    with pytest.raises(InputError, match=r"^pretrain: loss_precision must be one of auto, ieee, .*, got 'fp32'"):
        PretrainConfig("photos", "run", loss_precision="fp32")
