"""Spaces in YAML: reading, writing, and errors that name the key."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qpt.degradations.space import ByLevel, DegradationSpace, Group, OpSpec, Rule, UniformRange
from qpt.errors import InputError


def from_text(text: str, tmp_path) -> DegradationSpace:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return DegradationSpace.from_yaml(path)


FULL = """
# everything that can be said
source: a paper
differs: [nothing]
ops:
  - hue
  - {op: gamma, weight: 2}
  - name: blur
    weight: 0.5
    probability: 0.8
    ops:
      - motion_blur
      - op: gaussian_blur
        weight: 3
        levels:
          sigma_px: [0.5, [1, 2], {uniform: [3, 4]}, 5, 6]
  - {op: jpeg, levels: {quality: {by_level: [95, 30]}}}
min_ops: 1
max_ops: 3
repeat: false
shuffle: false
number_weights: [1, 0, 2]
level_weights: [5, 4, 3, 2, 1]
pristine: 0.05
then:
  - ops: [{op: gaussian_noise, levels: {std: {uniform: [1, 9]}}}, {op: impulse_noise, levels: {density: 0.01}}]
    max_ops: 2
"""
BLUR = OpSpec("gaussian_blur", 3, {"sigma_px": [0.5, (1, 2), UniformRange(3, 4), 5, 6]})
SAME = DegradationSpace(
    (
        "hue",
        OpSpec("gamma", 2),
        Group(("motion_blur", BLUR), "blur", 0.5, 0.8),
        OpSpec("jpeg", levels={"quality": ByLevel(95, 30)}),
    ),
    min_ops=1,
    max_ops=3,
    repeat=False,
    shuffle=False,
    number_weights=(1, 0, 2),
    level_weights=(5, 4, 3, 2, 1),
    pristine=0.05,
    then=(
        Rule(
            (
                OpSpec("gaussian_noise", levels={"std": UniformRange(1, 9)}),
                OpSpec("impulse_noise", levels={"density": 0.01}),
            ),
            max_ops=2,
        ),
    ),
)


def test_yaml_says_what_the_fields_say(tmp_path):
    space = from_text(FULL, tmp_path)
    assert space == SAME
    assert (space.source, space.differs) == ("a paper", ("nothing",))
    assert space.sample_seeded(torch.arange(30)).equal(SAME.sample_seeded(torch.arange(30)))


def test_writing_and_reading_are_inverse(tmp_path):
    path = tmp_path / "written.yaml"
    written = SAME.to_yaml(path)
    assert path.read_text(encoding="utf-8") == written
    again = DegradationSpace.from_yaml(path)
    assert again == SAME
    assert again.fingerprint() == SAME.fingerprint()
    assert again.to_yaml() == written


@settings(deadline=None)
@given(st.data())
def test_any_numbers_survive_the_text(tmp_path_factory, data):
    value = st.floats(0.1, 8).map(float)
    pair = st.tuples(value, value).filter(lambda ends: ends[0] < ends[1])
    one = st.one_of(
        value, st.lists(value, min_size=2, max_size=3).map(tuple), pair.map(lambda ends: UniformRange(*ends))
    )
    levels = data.draw(st.one_of(value, pair.map(lambda ends: ByLevel(*ends)), st.lists(one, min_size=5, max_size=5)))
    space = DegradationSpace((OpSpec("gaussian_blur", data.draw(st.floats(0.1, 9)), {"sigma_px": levels}),))
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    space.to_yaml(path)
    assert DegradationSpace.from_yaml(path) == space


def test_defaults_are_not_written():
    assert yaml.safe_load(DegradationSpace(("jpeg", OpSpec("hue"))).to_yaml()) == {"ops": ["jpeg", "hue"]}


def test_fingerprints_follow_rules_and_numbers_only(tmp_path):
    base = from_text("ops: [jpeg, hue]", tmp_path)
    assert base.fingerprint() == from_text("ops: [jpeg, hue]\nsource: a paper\nmin_ops: 0", tmp_path).fingerprint()
    whole, real = (DegradationSpace((Group(("jpeg",), weight=w, probability=p),)) for w, p in ((2, 1), (2.0, 1.0)))
    assert whole == real and whole.fingerprint() == real.fingerprint()
    others = [
        "ops: [hue, jpeg]",
        "ops: [jpeg, hue]\nmin_ops: 1",
        "ops: [jpeg, hue]\npristine: 0.5",
        "ops: [{op: jpeg, levels: {quality: 50}}, hue]",
        "ops: [jpeg, hue]\nthen: [{ops: [jpeg]}]",
    ]
    assert len({from_text(text, tmp_path).fingerprint() for text in others} | {base.fingerprint()}) == 6


def test_a_space_is_named_by_preset_or_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ops: [jpeg]")
    assert DegradationSpace.named(str(path)) == DegradationSpace(("jpeg",))
    assert DegradationSpace.named("qpt") == DegradationSpace.preset("qpt")
    with pytest.raises(InputError, match=r"space must be one of qpt.* or a YAML file, got 'qtp'"):
        DegradationSpace.named("qtp")
    with pytest.raises(InputError, match=r"space must be a readable YAML file, got missing\.yaml"):
        DegradationSpace.named("missing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "must be a readable YAML file"),
        ("jpeg", "must be a mapping with the keys of a space, got 'jpeg'"),
        ("max_ops: 3", "ops must be given, got only max_ops"),
        ("{}", "ops must be given, got only nothing"),
        ("ops: jpeg", "ops must be a list of ops, got 'jpeg'"),
        ("ops: [jpeg]\nmaxops: 3", "maxops must be a key of a space, got 'maxops'; did you mean max_ops"),
        ("ops: [jpg]", "mine.yaml: op must be a name of the op table, got 'jpg'; did you mean jpeg"),
        ("ops: [jpeg, 3]", r"ops\[1\] must be the name of an op, or a mapping with op or ops, got 3"),
        ("ops: [{levels: {}}]", r"ops\[0\]: op must be given, got only levels"),
        (
            "ops: [{op: jpeg, level: {}}]",
            r"ops\[0\]: level must be a key of an op, .* did you mean levels",
        ),
        ("ops: [{op: jpeg, levels: 3}]", r"ops\[0\]: levels of jpeg must be a mapping of parameters, got 3"),
        (
            "ops: [{op: jpeg, levels: {quality: 0}}]",
            r"ops\[0\]: levels of jpeg, quality must be an integer in \[1, 100",
        ),
        (
            "ops: [{op: jpeg, levels: {quality: {range: [1, 2]}}}]",
            r"ops\[0\]: levels: quality must be a number, 5 values, \{uniform: .* got \{'range': \[1, 2\]\}",
        ),
        ("ops: [{op: jpeg, levels: {quality: {uniform: 3}}}]", "levels: quality must be a number, 5 values"),
        (
            "ops: [{op: jpeg, levels: {quality: [1, 2, 3, 4, {by: 1}]}}]",
            r"levels: quality: level 5 must be a number",
        ),
        (
            "ops: [{ops: [jpeg], probability: 2}]",
            r"ops\[0\]: probability of group jpeg must be above 0 and at most 1, got 2",
        ),
        ("ops: [{ops: [{ops: [jpeg]}]}]", r"ops\[0\]: ops\[0\]: ops must be a key of an op,"),
        ("ops: [jpeg]\nthen: jpeg", "then must be a list of passes, got 'jpeg'"),
        (
            "ops: [jpeg]\nthen: [{ops: [jpeg], max_ops: -1}]",
            r"then\[0\]: max_ops must be an integer in 0\.\.64, got -1",
        ),
        ("ops: [jpeg]\nthen: [{ops: [jpeg], pristine: 1}]", r"then\[0\]: pristine must be a key of a pass"),
        ("ops: [jpeg]\nrepeat: often", "repeat must be true or false, got 'often'"),
        ("ops: [jpeg]\ndiffers: a lot", "differs must be a list of sentences, got 'a lot'"),
    ],
)
def test_reading_names_the_file_the_key_and_what_was_given(text, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        from_text(text, tmp_path)
    assert "mine.yaml" in str(refused.value)


def test_the_example_of_the_documentation_is_a_space(tmp_path):
    text = (Path(__file__).resolve().parent.parent / "docs" / "spaces.md").read_text(encoding="utf-8")
    example, *_ = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    space = from_text(example, tmp_path)
    assert [rule.max_ops for rule in space.passes] == [3, 1]
    # 2, 2 and 1 types: none drawn alone or left out, then in any order, each before the JPEG
    singles, pairs, triples = 5, 2 * (2 * 2 + 2 + 2), 6 * 2 * 2
    assert space.size() == 1 + (1 + singles + pairs + triples)
