"""The presets: each states its source, has ops of the table only, and is of the size that its source gives."""

import collections
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import yaml

from qpt.degradations import presets
from qpt.degradations.op_table import LEVELS, NAMES
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.run_folder import as_started
from tests.test_rule import enumerate_space


@pytest.mark.parametrize("name", presets.NAMES)
def test_presets_state_their_source_and_survive_the_text(name, tmp_path):
    space = DegradationSpace.preset(name)
    assert space.source and space.differs
    assert all(sentence.endswith(".") for sentence in space.differs)
    space.to_yaml(tmp_path / "again.yaml")
    assert DegradationSpace.from_yaml(tmp_path / "again.yaml") == space
    program = space.sample(200, views=2, generator=torch.Generator().manual_seed(0))
    program.check("test")
    assert {NAMES[op] for op in program.ops.unique().tolist() if op >= 0} <= set(space.names)


def test_every_preset_file_is_registered_or_waits_for_an_op():
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in presets.path("x").parent.glob("*.yaml")
    }
    assert set(presets.NAMES) <= set(files)

    def ops(members):
        return itertools.chain.from_iterable(
            [m] if isinstance(m, str) else [m["op"]] if "op" in m else ops(m["ops"]) for m in members
        )

    for name, fields in files.items():
        named = {op for part in (fields, *fields.get("then", [])) for op in ops(part["ops"])}
        assert (name in presets.NAMES) == (named <= set(NAMES)), f"{name}: {sorted(named - set(NAMES))}"


@pytest.mark.parametrize("name", presets.earlier())
def test_earlier_revisions_keep_their_names_and_ops(name, tmp_path):
    space, now = DegradationSpace.preset(name), DegradationSpace.preset(name.split("@")[0])
    assert f"@{space.revision}" in name and space.revision < now.revision
    assert space != now and len(space.types) == len(now.types) and space.source
    assert DegradationSpace.named(name) == space
    # A program of the first revision has ops of version 0.1.0 alone.
    program = space.sample(200, generator=torch.Generator().manual_seed(0))
    assert program.ops.max() < 53


def test_revisions_are_counted_from_the_files():
    for name in presets.NAMES:
        earlier = [other for other in presets.earlier() if other.startswith(f"{name}@")]
        assert DegradationSpace.preset(name).revision == len(earlier) + 1
    with pytest.raises(InputError, match="got 'kadid@9'"):
        DegradationSpace.preset("kadid@9")
    with pytest.raises(InputError, match="revision must be an integer of at least 1, got 0"):
        DegradationSpace(["jpeg"], revision=0)


def test_a_resumed_run_keeps_the_revision_that_it_was_started_with(tmp_path):
    config = PretrainConfig(data="photos", out=str(tmp_path), space="kadid")
    config.save(tmp_path / "config.yaml")
    DegradationSpace.preset("kadid@1").to_yaml(tmp_path / "space.yaml")
    for given in ("kadid", "kadid@1", str(tmp_path / "space.yaml")):
        started, space = as_started(replace(config, space=given))
        assert (started.space, space) == ("kadid", DegradationSpace.preset("kadid@1"))
    assert as_started(replace(config, space="arniqa"))[1] == DegradationSpace.preset("arniqa")


@pytest.mark.parametrize(("name", "types"), [("kadid", 25), ("reiqa", 26), ("imagenet-c", 15)])
def test_single_op_presets_have_as_many_types_as_their_sources(name, types):
    space = DegradationSpace.preset(name)
    assert (len(space.types), space.size(), space.size(levels=True)) == (types, types, types * LEVELS)


def test_arniqa_draws_one_to_four_of_seven_groups():
    space = DegradationSpace.preset("arniqa")
    groups = [len(group.ops) for group in space.groups]
    assert (sorted(groups), sum(groups)) == ([2, 3, 3, 3, 4, 4, 5], 24)
    for per_type, size in ((1, space.size()), (LEVELS, space.size(levels=True))):
        ordered = (part for number in range(1, 5) for part in itertools.permutations(groups, number))
        assert size == 1 + sum(math.prod(types * per_type for types in part) for part in ordered)
    program = space.sample(20_000, generator=torch.Generator().manual_seed(0))
    pristine = (program.ops < 0).all(dim=1).float().mean().item()
    assert abs(pristine - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 20_000)


def test_arniqa_draws_as_its_source_does():
    """Numbers of distortions, groups at each place, ops of a group and levels, compared by chi-squared statistics.

    The source: randint(1, 4) groups by random.sample, one distortion of each by random.choice, its level by a Gaussian
    of standard deviation 2.5 about the mildest.
    """
    space = DegradationSpace.preset("arniqa")
    program = space.sample(20_000, generator=torch.Generator().manual_seed(1))
    chains = [chain.steps for chain in program if chain.steps]
    groups = [{spec.op for spec in group.specs} for group in space.groups]
    places: list[list[int]] = [[], [], [], []]
    ops = collections.Counter()
    for chain in chains:
        for place, step in enumerate(chain):
            (group,) = (k for k, names in enumerate(groups) if step.name in names)
            places[place].append(group)
            ops[step.name] += 1

    def agrees(counts, shares):
        expected = np.array(shares) / np.sum(shares) * np.sum(counts)
        return scipy.stats.chisquare(counts, expected).pvalue > 1e-4

    assert agrees(np.bincount([len(chain) for chain in chains])[1:], [1, 1, 1, 1])
    for group in places:
        assert agrees(np.bincount(group, minlength=7), [1] * 7)
    levels = np.bincount([step.level for chain in chains for step in chain])[1:]
    assert agrees(levels, np.exp(-(np.arange(5) ** 2) / (2 * 2.5**2)))
    noise = ("gaussian_noise", "gaussian_noise_ycbcr", "impulse_noise", "speckle_noise")
    assert agrees([ops[name] for name in noise], [1] * 4)
    assert agrees([ops["jpeg2000"], ops["jpeg"]], [1, 1])


def test_realesrgan_is_two_passes_and_a_tail():
    space = DegradationSpace.preset("realesrgan")
    # kinds of blur, resizing, noise; again, the blur perhaps left out; back to size; JPEG alone or beside a sinc
    assert space.size() == (12 * 3 * 4) * ((12 + 1) * 3 * 4) * 1 * (1 + 2)
    program = space.sample(500, generator=torch.Generator().manual_seed(0))
    assert {str(chain).count("jpeg") for chain in program} == {3}
    assert {str(chain).count("resize_to") for chain in program} == {3}


def test_bsrgan_shuffles_its_members():
    space = DegradationSpace.preset("bsrgan")
    assert space.size() == len(enumerate_space(space, levels=False))
    assert all(chain.steps[-1].name == "jpeg" for chain in space.sample(200))
