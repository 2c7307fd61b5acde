"""Arguments that are numbers: of any type that is one, NumPy's first, and never a bool."""

import ast
import dataclasses
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import qpt
from qpt.degradations.rule import ByLevel, Group, OpSpec, UniformRange
from qpt.errors import InputError, as_flag, as_integer, as_number, check_int, check_number
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.finetune import FineTuning
from qpt.evaluate.regimes import EvaluationConfig
from tests.programs import smooth_images

INTEGERS = [
    3,
    np.int8(3),
    np.uint64(3),
    np.array(3),
    torch.tensor(3),
    type("Index", (), {"__index__": lambda self: 3})(),
]
REALS = [
    0.5,
    np.float16(0.5),
    np.float32(0.5),
    np.float64(0.5),
    np.array(0.5),
    Fraction(1, 2),
    Decimal("0.5"),
    torch.tensor(0.5),
]
NOT_NUMBERS = [
    True,
    np.True_,
    torch.tensor(True),
    np.array(True),
    "3",
    np.str_("3"),
    b"3",
    None,
    [3],
    np.array([3]),
    np.array([0.5]),
    1j,
    np.complex64(1),
]


@pytest.mark.parametrize("value", INTEGERS, ids=lambda value: type(value).__name__)
def test_whatever_has_an_index_is_an_integer_and_a_number(value) -> None:
    assert type(as_integer(value)) is int and as_integer(value) == 3 == check_int("f", "n", value, 1, 3)
    assert type(as_number(value)) is float and as_number(value) == 3 == check_number("f", "n", value)
    with pytest.raises(InputError, match=r"^f: n must be an integer of at least 4, got "):
        check_int("f", "n", value, 4)


@pytest.mark.parametrize("value", REALS, ids=lambda value: type(value).__name__)
def test_every_real_number_is_a_number_and_no_integer(value) -> None:
    assert type(as_number(value)) is float and as_number(value) == 0.5 == check_number("f", "n", value, above=0)
    assert as_integer(value) is None
    with pytest.raises(InputError, match=r"^f: n must be a finite number above 1, got "):
        check_number("f", "n", value, above=1)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_a_bool_and_text_are_neither(value) -> None:
    assert as_integer(value) is None and as_number(value) is None


@pytest.mark.parametrize("value", [np.nan, np.float32("inf"), 10**400, Decimal("nan")], ids=repr)
def test_a_number_is_finite(value) -> None:
    with pytest.raises(InputError, match=r"^f: n must be a finite number, got "):
        check_number("f", "n", value)


def test_a_flag_is_a_bool_of_python_or_numpy() -> None:
    assert as_flag(np.True_) is True and as_flag(False) is False
    assert as_flag(1) is None and as_flag("true") is None


def test_losses_take_numpy_numbers() -> None:
    q, k = (torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    ids = torch.arange(8) // 2
    pool = qpt.NegativePool(np.int64(64), np.uint8(16))
    pool.push(k, pool.new_groups(np.int32(8)))
    kwargs = {"query_groups": ids, "key_groups": ids, "query_images": ids // 2, "key_images": ids // 2, "pool": pool}
    expected = qpt.contrastive_loss(q, k, **kwargs, temperature=0.5, same_image_weight=0.25)
    for half, quarter in ((np.float32(0.5), np.float16(0.25)), (Fraction(1, 2), Fraction(1, 4))):
        given = {"temperature": half, "same_image_weight": quarter, "check_finite": np.True_}
        assert qpt.contrastive_loss(q, k, **kwargs, **given) == expected
        module = qpt.QualityContrastiveLoss(half, same_image_weight=quarter, in_batch_negatives=np.True_)
        assert module(q, k, **kwargs) == expected
    assert qpt.nt_xent(q, k, temperature=np.int64(1)) == qpt.nt_xent(q, k, temperature=1.0)
    for name in ("temperature", "same_image_weight"):
        with pytest.raises(InputError, match=f"^contrastive_loss: {name} must be "):
            qpt.contrastive_loss(q, k, **kwargs, **{name: np.True_})


def test_degradations_take_numpy_numbers() -> None:
    images, two = smooth_images(2, 40, 40), np.int64(2)
    numpy = qpt.DegradationSpace(
        ops=(Group(("jpeg", "hue"), weight=np.float32(2), probability=np.float16(0.5)), "gamma",
             OpSpec("gaussian_blur", np.int64(1), {"sigma_px": np.linspace(1, 2, 5, dtype=np.float32)}),
             OpSpec("contrast", levels={"factor": UniformRange(np.float32(0.5), np.float64(1))}),
             OpSpec("non_eccentricity_patch", levels={"patches": ByLevel(np.uint8(20), np.uint8(5))})),
        max_ops=two, min_ops=np.uint8(1), number_weights=np.array([1, 3]),
        level_weights=np.ones(5), pristine=np.float32(0.25),
    )  # fmt: skip
    plain = qpt.DegradationSpace(
        ops=(Group(("jpeg", "hue"), weight=2.0, probability=0.5), "gamma",
             OpSpec("gaussian_blur", 1.0, {"sigma_px": (1.0, 1.25, 1.5, 1.75, 2.0)}),
             OpSpec("contrast", levels={"factor": UniformRange(0.5, 1)}),
             OpSpec("non_eccentricity_patch", levels={"patches": ByLevel(20, 5)})),
        max_ops=2, min_ops=1, number_weights=(1, 3), level_weights=(1,) * 5, pristine=0.25,
    )  # fmt: skip
    assert numpy == plain and numpy.to_yaml() == plain.to_yaml() and numpy.fingerprint() == plain.fingerprint()
    seeds = torch.tensor([3, 4])
    program = numpy.sample_seeded(seeds, views=two)
    assert program.equal(plain.sample_seeded(seeds, views=2))
    chains = [[("jpeg", np.int64(3))], [("jpeg", np.array(3))]]
    assert qpt.Program.from_chains(chains, seeds=np.array([1, 2])).levels.tolist() == [[3], [3]]
    assert str(program[np.int64(1)]) == str(program[1])
    shifted = qpt.Program.concat([program, program], source_offsets=np.array([0, 2]))
    assert shifted.source.dtype == torch.int32 and int(shifted.source.max()) == 3
    boxes = torch.zeros((4, 1, 2), dtype=torch.int32)
    given = qpt.degrade_patches(images, program, boxes, np.int16(32), threads=two)
    assert torch.equal(given, qpt.degrade_patches(images, program, boxes, 32))


def test_settings_keep_python_s_numbers_whatever_they_are_given(tmp_path: Path) -> None:
    settings = {
        "data": "photos",
        "out": "run",
        "lr": np.float32(0.25),
        "steps": np.int64(5),
        "page": np.True_,
        "width": np.uint8(8),
    }
    config = qpt.PretrainConfig(**settings)
    kinds = [type(getattr(config, name)) for name in ("lr", "steps", "page", "width")]
    assert kinds == [float, int, bool, int]
    config.save(tmp_path / "config.yaml")  # PyYAML knows no numbers of NumPy
    assert qpt.PretrainConfig.load(tmp_path / "config.yaml", data="photos", out="run") == config
    for settings in (
        FeatureProtocol(np.int64(64), np.int32(4)),
        FineTuning(epochs=np.int64(2), lr=np.float32(0.5), weight_decay=np.int64(0)),
        EvaluationConfig(splits=np.int64(3), label_shares=np.array([0.25, 0.5])),
    ):
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                assert type(item).__module__ != "numpy", (field.name, value)
    for name in ("lr", "steps"):
        with pytest.raises(InputError, match=f"^pretrain: {name} must be "):
            qpt.PretrainConfig(data="photos", out="run", **{name: True})


def test_a_scorer_made_with_numpy_numbers_is_loaded_again(tmp_path: Path) -> None:
    from qpt.evaluate.scorer import Scorer
    from qpt.evaluate.table import read_table
    from qpt.models.encoder import untrained_encoder
    from tests.labelled import write_set

    table = read_table(write_set(tmp_path / "set", levels=2))
    protocol = FeatureProtocol(np.int64(64), np.int32(4))
    encoder = untrained_encoder("resnet18", np.int64(4), np.int64(0))
    Scorer.fit(encoder, table, protocol=protocol, quiet=True).save(tmp_path / "scorer.pt")
    assert qpt.Scorer.load(tmp_path / "scorer.pt", max_pixels=np.int64(10**6)).max_pixels == 10**6


def test_no_argument_is_checked_by_the_type_of_python_s_numbers() -> None:
    package, found = Path(qpt.__file__).parent, []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and path.name != "errors.py":
                kinds = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                if kinds & {"int", "float"}:
                    found.append(f"{path.relative_to(package)}: {ast.unparse(node)}")
    # Numbers of our own and of files, not arguments: JSON's nan, a spreadsheet's cells, the colour that is
    # transparent, a line of a record; and text of a command line or of YAML that becomes an integer.
    allowed = ("io.py: ", "data/tabular.py: ", "data/colour.py: ", "runs/history.py: ")
    allowed += ("cli.py: isinstance(value, float)", "pretraining/config.py: isinstance(value, float)")
    assert [line for line in found if not line.startswith(allowed)] == []
