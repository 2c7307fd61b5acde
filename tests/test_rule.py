"""Rules of composition: sizes compared with an enumeration, draws with the stated probabilities, own levels.

``enumerate_pass`` performs a rule step by step (draw members, drop some, choose an op and a level of each, order them)
along every path; it shares no code with the counting or the drawing.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from qpt.degradations import op_table
from qpt.degradations import space as space_module
from qpt.degradations.op_table import LEVELS
from qpt.degradations.space import ByLevel, DegradationSpace, Group, OpSpec, Rule, UniformRange
from qpt.errors import InputError

SPECS = (OpSpec("hue"), OpSpec("jpeg"), OpSpec("jpeg", levels={"quality": 50}), OpSpec("gamma"), OpSpec("contrast"))


def labels(spec: OpSpec, weighted: list[int], levels: bool) -> list[int]:
    if not levels:
        return [0]
    return [1] if spec.levels == {"quality": (50.0,) * LEVELS} else weighted


def enumerate_pass(rule: Rule, levels: bool) -> set[tuple]:
    """Return every list of types, or of (type, level) pairs, that one pass can draw."""
    weighted = [v for v, weight in zip(range(1, LEVELS + 1), rule.level_weights, strict=True) if weight]
    counts = range(rule.min_ops, rule.max_ops + 1)
    weights = rule.number_weights or [1] * len(counts)
    found = set()
    for number in (n for n, weight in zip(counts, weights, strict=True) if weight):
        members = range(len(rule.ops))
        ways = itertools.product(members, repeat=number) if rule.repeat else itertools.permutations(members, number)
        for drawn in ways:
            acting = [[True] if rule.groups[m].probability == 1 else [True, False] for m in drawn]
            for kept in itertools.product(*acting):
                act = [m for m, keep in zip(drawn, kept, strict=True) if keep]
                steps = [
                    [(m, k, v) for k, c in enumerate(rule.groups[m].specs) for v in labels(c, weighted, levels)]
                    for m in act
                ]
                for way in itertools.product(*steps):
                    ordered = way if rule.shuffle else sorted(way)
                    named = [(rule.groups[m].specs[k].type, v) for m, k, v in ordered]
                    found.add(tuple(named))
    return found


def enumerate_space(space: DegradationSpace, levels: bool) -> set[tuple]:
    passes = [enumerate_pass(rule, levels) for rule in space.passes]
    found = {sum(parts, ()) for parts in itertools.product(*passes)}
    return found | {()} if space.pristine else found


@st.composite
def rules(draw, kind=Rule, most_members=3, most_ops=2):
    members = []
    for k in range(draw(st.integers(1, most_members))):
        specs = draw(st.lists(st.sampled_from(SPECS), min_size=1, max_size=3))
        weights = draw(st.lists(st.sampled_from([0.5, 1, 2]), min_size=len(specs), max_size=len(specs)))
        group = Group(
            tuple(replace(spec, weight=weight) for spec, weight in zip(specs, weights, strict=True)),
            name=f"g{k}",
            weight=draw(st.sampled_from([1, 3])),
            probability=draw(st.sampled_from([1, 1, 0.4])),
        )
        members.append(group)
    repeat = draw(st.booleans())
    hi = draw(st.integers(0, most_ops if repeat else min(most_ops, len(members))))
    lo = draw(st.integers(0, hi))
    numbers = draw(st.lists(st.sampled_from([0, 1, 2]), min_size=hi - lo + 1, max_size=hi - lo + 1))
    return kind(
        tuple(members),
        max_ops=hi,
        min_ops=lo,
        repeat=repeat,
        shuffle=draw(st.booleans()),
        number_weights=tuple(numbers) if sum(numbers) else (),
        level_weights=draw(st.sampled_from([(1, 1, 1, 1, 1), (0, 1, 0, 3, 0), (0, 0, 0, 0, 1)])),
        **({"then": tuple(draw(st.lists(rules(most_members=2, most_ops=1), max_size=2)))} if kind is not Rule else {}),
        **({"pristine": draw(st.sampled_from([0, 0.2]))} if kind is not Rule else {}),
    )


@settings(deadline=None)
@given(rules(DegradationSpace))
def test_size_is_the_number_of_compositions_that_the_rules_can_make(space):
    assert space.size() == len(enumerate_space(space, levels=False))
    assert space.size(levels=True) == len(enumerate_space(space, levels=True))


@settings(deadline=None)
@given(rules(DegradationSpace), st.integers(0, 99))
def test_every_drawn_chain_is_one_that_the_rules_can_make(space, seed):
    program = space.sample(40, distinct=False, generator=torch.Generator().manual_seed(seed))
    program.check("test")
    allowed = {tuple((kind[0], level) for kind, level in chain) for chain in enumerate_space(space, levels=True)}
    for ops, chain in zip(program.ops.tolist(), program, strict=True):
        assert tuple((step.name, step.level) for step in chain.steps) in allowed
        assert ops[len(chain) :] == [-1] * (len(ops) - len(chain)), "unused slots are last"


def drawn(space: DegradationSpace, n: int = 30_000, seed: int = 0) -> list[tuple[tuple[str, int], ...]]:
    program = space.sample(n, distinct=False, generator=torch.Generator().manual_seed(seed))
    return [tuple((op_table.NAMES[op], level) for op, level in chain) for chain in program.compositions()]


def follows(counts: Counter, shares: dict) -> bool:
    """Test counts against shares of 1 by chi-square; draws are seeded, so the p-value does not change between runs."""
    assert math.isclose(sum(shares.values()), 1)
    assert set(counts) <= set(shares)
    total = sum(counts.values())
    return chisquare([counts[key] for key in shares], [share * total for share in shares.values()]).pvalue > 1e-6


def test_one_op_of_each_group_in_any_order():
    blur, noise = Group(("gaussian_blur", "motion_blur")), Group(("speckle_noise", "poisson_noise", "impulse_noise"))
    space = DegradationSpace((blur, noise, "jpeg"), max_ops=2, min_ops=2, repeat=False)
    assert space.size() == 2 * (2 * 3 + 2 * 1 + 3 * 1)
    shares = {}
    for first, second in itertools.permutations(space.groups, 2):
        for a, b in itertools.product(first.ops, second.ops):
            shares[a, b] = 1 / 6 / len(first.ops) / len(second.ops)
    assert follows(Counter(tuple(op for op, _ in chain) for chain in drawn(space)), shares)


def test_weights_of_ops_numbers_levels_and_members():
    members = (Group((OpSpec("hue", 3), "gamma")), OpSpec("jpeg", 2.5), "contrast")
    space = DegradationSpace(
        members, min_ops=1, max_ops=3, number_weights=(2, 0, 1), level_weights=(4, 3, 2, 1, 0), repeat=True
    )
    chains = drawn(space)
    assert follows(Counter(map(len, chains)), {1: 2 / 3, 3: 1 / 3})
    steps = [step for chain in chains for step in chain]
    of_all = 1 + 2.5 + 1
    ops = {"hue": 0.75 / of_all, "gamma": 0.25 / of_all, "jpeg": 2.5 / of_all, "contrast": 1 / of_all}
    assert follows(Counter(op for op, _ in steps), ops)
    assert follows(Counter(level for _, level in steps), {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1})
    pairs = Counter((chain[0][0], chain[1][0]) for chain in chains if len(chain) == 3)
    assert follows(pairs, {(a, b): ops[a] * ops[b] for a in ops for b in ops})


def test_weights_without_repetition_are_drawn_one_after_another():
    weights = {"hue": 5.0, "jpeg": 2.0, "gamma": 1.0}
    space = DegradationSpace(tuple(map(OpSpec, weights, weights.values())), max_ops=2, min_ops=2, repeat=False)
    shares = {(a, b): weights[a] / 8 * weights[b] / (8 - weights[a]) for a, b in itertools.permutations(weights, 2)}
    assert follows(Counter(tuple(op for op, _ in chain) for chain in drawn(space)), shares)


def test_a_group_acts_with_its_probability_and_its_place_stays():
    blur, noise = Group(("gaussian_blur",), probability=0.8), Group(("gaussian_noise",), probability=0.3)
    space = DegradationSpace((blur, noise, "jpeg"), min_ops=3, max_ops=3, repeat=False, shuffle=False)
    shares = {
        ("gaussian_blur", "gaussian_noise", "jpeg"): 0.8 * 0.3,
        ("gaussian_blur", "jpeg"): 0.8 * 0.7,
        ("gaussian_noise", "jpeg"): 0.2 * 0.3,
        ("jpeg",): 0.2 * 0.7,
    }
    assert space.size() == 4
    assert follows(Counter(tuple(op for op, _ in chain) for chain in drawn(space)), shares)


def test_pristine_has_its_probability_beside_an_empty_draw():
    space = DegradationSpace(("jpeg",), min_ops=0, max_ops=1, pristine=0.3)
    assert space.size() == 2
    assert follows(Counter(map(len, drawn(space))), {0: 0.3 + 0.7 / 2, 1: 0.7 / 2})
    assert DegradationSpace(("jpeg",), min_ops=1, max_ops=1, pristine=0.3).size(levels=True) == 1 + LEVELS


def test_a_second_pass_has_its_own_rule_and_numbers():
    first = {"quality": ByLevel(95, 60)}
    second = Rule((OpSpec("jpeg", levels={"quality": UniformRange(10, 20)}), "hue"), min_ops=1, max_ops=1)
    space = DegradationSpace((OpSpec("jpeg", levels=first),), min_ops=1, max_ops=1, then=(second,))
    assert (space.names, space.size(), space.size(levels=True)) == (("jpeg", "hue"), 2, LEVELS * (1 + LEVELS))
    assert [spec.op for spec in space.types] == ["jpeg", "jpeg", "hue"]
    assert len(space.every_level(2, seed=0)) == 2 * 3 * LEVELS
    program = space.sample(4000, generator=torch.Generator().manual_seed(1))
    qualities = [[step.params["quality"] for step in chain.steps if step.name == "jpeg"] for chain in program]
    assert all(60 <= q[0] <= 95 for q in qualities)
    assert all(10 <= q[1] <= 20 for q in qualities if len(q) > 1)
    assert follows(Counter(map(len, qualities)), {1: 0.5, 2: 0.5})


def test_own_levels_are_values_alternatives_ranges_and_parts_of_a_range():
    own = {"sigma_px": [0.5, (1.0, 2.0), UniformRange(3, 4), 5, 6]}
    space = DegradationSpace((OpSpec("gaussian_blur", levels=own),), min_ops=1, max_ops=1)
    sigma = {v: set() for v in range(1, LEVELS + 1)}
    for chain in space.sample(3000, generator=torch.Generator().manual_seed(2)):
        sigma[chain.steps[0].level].add(chain.steps[0].params["sigma_px"])
    assert (sigma[1], sigma[2], sigma[4], sigma[5]) == ({0.5}, {1.0, 2.0}, {5.0}, {6.0})
    assert kstest([s - 3 for s in sigma[3]], "uniform").pvalue > 1e-4
    every = space.every_level(30, seed=0)
    assert set(every.params[every.levels[:, 0] == 4, 0, 0].tolist()) == {5.0}


def test_parameters_not_named_keep_the_op_tables_levels():
    space = DegradationSpace((OpSpec("motion_blur", levels={"angle_deg": 90}),), min_ops=1, max_ops=1)
    program = space.every_level(1, seed=0)
    table = op_table.DEGRADATIONS[op_table.op_id("motion_blur")]
    assert program.params[:, 0, 0].tolist() == list(table.parameters[0].levels)
    assert program.params[:, 0, 1].tolist() == [90.0] * LEVELS


def test_a_range_by_level_is_uniform_over_the_whole_and_monotone_in_the_level():
    space = DegradationSpace((OpSpec("gaussian_noise", levels={"std": ByLevel(1, 30)}),), min_ops=1, max_ops=1)
    program = space.sample(5000, generator=torch.Generator().manual_seed(3))
    std = program.params[:, 0, 0].numpy()
    assert kstest((std - 1) / 29, "uniform").pvalue > 1e-4
    ends = 1 + 29 * np.arange(LEVELS + 1) / LEVELS
    levels = program.levels[:, 0].numpy()
    assert (ends[levels - 1] <= std).all() and (std <= ends[levels] + 1e-5).all()


def test_an_op_without_levels_of_its_own_is_labelled_one():
    flat = OpSpec("gaussian_noise", levels={"std": UniformRange(1, 30)})
    space = DegradationSpace((flat, "gaussian_blur"), min_ops=1, max_ops=1)
    assert (space.size(), space.size(levels=True)) == (2, 1 + LEVELS)
    shares = {(("gaussian_noise", 1),): 0.5} | {(("gaussian_blur", v),): 0.1 for v in range(1, LEVELS + 1)}
    assert follows(Counter(drawn(space)), shares)


def test_a_range_by_level_ends_where_it_was_said_to():
    assert ByLevel(0.6612529357664265, 8.0).parts(integer=False)[-1].high == 8.0


def test_integers_by_level_are_all_drawn_and_no_others():
    space = DegradationSpace((OpSpec("jpeg", levels={"quality": ByLevel(95, 30)}),), min_ops=1, max_ops=1)
    program = space.sample(20_000, generator=torch.Generator().manual_seed(4))
    quality, level = program.params[:, 0, 0].numpy(), program.levels[:, 0].numpy()
    assert set(quality) == set(range(30, 96))
    assert [(quality[level == v].max(), quality[level == v].min()) for v in range(1, 6)] == [
        (95, 82),
        (81, 69),
        (68, 56),
        (55, 43),
        (42, 30),
    ]
    assert ByLevel(1, 5).parts(integer=True) == tuple(UniformRange(v, v) for v in range(1, 6))


def test_an_image_rows_depend_on_its_seed_alone_under_every_rule():
    blur = Group(("gaussian_blur", OpSpec("motion_blur", 2)), probability=0.6)
    space = DegradationSpace(
        (blur, "jpeg"), min_ops=1, max_ops=2, repeat=False, then=(Rule(("hue", "jpeg"), max_ops=2),), pristine=0.1
    )
    batch = space.sample_seeded(torch.arange(50), views=3)
    for image in (0, 17, 49):
        alone = space.sample_seeded(torch.tensor([image]), views=3)
        part = batch[3 * image : 3 * image + 3]
        assert torch.equal(part.ops, alone.ops) and torch.equal(part.params, alone.params)
        assert len(set(part.compositions())) == 3


def test_views_that_cannot_differ_in_practice_are_refused(monkeypatch):
    monkeypatch.setattr(space_module, "_MAX_ATTEMPTS", 100)
    space = DegradationSpace(("jpeg",), min_ops=1, max_ops=1, level_weights=(1, 1e-12, 0, 0, 0))
    assert space.size(levels=True) == 2
    with pytest.raises(InputError, match="100 redraws of one view found no other composition"):
        space.sample_seeded(torch.arange(2), views=2)


def test_views_of_one_op_may_differ_in_its_values():
    kinds = (OpSpec("jpeg", levels={"quality": 20}), OpSpec("jpeg", levels={"quality": 80}))
    space = DegradationSpace((Group(kinds),), min_ops=1, max_ops=1)
    assert space.size(levels=True) == 2
    program = space.sample_seeded(torch.arange(20), views=2)
    assert [sorted(pair) for pair in program.params[:, 0, 0].view(20, 2).tolist()] == [[20.0, 80.0]] * 20


def test_rules_are_described_in_words():
    space = DegradationSpace(
        (Group(("hue", "jpeg"), probability=0.5), "gamma"),
        min_ops=2,
        max_ops=2,
        repeat=False,
        then=(Rule(("jpeg", "hue"), max_ops=1, shuffle=False),),
        pristine=0.05,
    )
    assert space.describe() == (
        "2 of 2 groups, one op of each, in any order, without repetition, some left out by chance; "
        "then 0 to 1 of 2 ops; pristine with probability 0.05"
    )


def blur(**levels):
    return OpSpec("gaussian_blur", levels=levels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DegradationSpace((3,)), "ops must be op names, OpSpecs or Groups, got 3"),
        (lambda: blur(sigma=1), r"levels of gaussian_blur must name its parameters \(sigma_px\), got 'sigma'"),
        (lambda: blur(sigma_px=9), r"levels of gaussian_blur, sigma_px must be in \[0.1, 8\] px, got 9"),
        (lambda: blur(sigma_px=[1, 2, 3]), r"must be a number, a range or 5 values, got \[1, 2, 3\]"),
        (lambda: blur(sigma_px=[1, 2, 3, 4, float("nan")]), "sigma_px must be in .* got nan"),
        (lambda: blur(sigma_px=UniformRange(2, 1)), "must be a range from low to high"),
        (lambda: blur(sigma_px=UniformRange(0.1, 20)), "sigma_px must be in .* got 20"),
        (lambda: blur(sigma_px=["a"] * 5), "sigma_px must be in .* got 'a'"),
        (lambda: OpSpec("jpeg", levels={"quality": 50.5}), "quality must be an integer in"),
        (lambda: OpSpec("jpg"), "did you mean jpeg"),
        (lambda: OpSpec("jpeg", weight=0), "weight of jpeg must be a number above 0, got 0"),
        (lambda: OpSpec("jpeg", levels=[1]), "levels of jpeg must be a mapping"),
        (lambda: OpSpec("jpeg", levels={"quality": ByLevel(30, 32)}), "two ends that leave 5 parts"),
        (lambda: OpSpec("jpeg", levels={"quality": [(), 1, 2, 3, 4]}), "must be a value or several, got none"),
        (lambda: Group(()), "ops of a group must be a list of ops, at least one"),
        (lambda: Group("jpeg"), "ops of a group must be a list of ops"),
        (lambda: Group((3,)), "ops of a group must be op names or OpSpecs, got 3"),
        (lambda: Group(("jpeg",), probability=0), r"probability of group jpeg must be above 0 and at most 1, got 0"),
        (lambda: Group(("jpeg",), name=3), "name of a group must be text"),
        (lambda: Rule(("jpeg",), repeat=1), "repeat must be true or false, got 1"),
        (lambda: Rule(("jpeg",), number_weights=(1, 2)), r"number_weights must be 6 numbers, for 0\.\.5 ops"),
        (lambda: Rule(("jpeg",), level_weights=(0,) * 5), "level_weights must be 5 numbers, one for each level"),
        (lambda: Rule(("jpeg",), level_weights=(-1, 1, 1, 1, 1)), "none below 0"),
        (lambda: DegradationSpace(("jpeg",), pristine=1.5), "pristine must be a probability"),
        (lambda: DegradationSpace(("jpeg",), then=("jpeg",)), "then must be a list of passes"),
        (lambda: DegradationSpace(("jpeg",), then=Rule(("jpeg",))), "then must be a list of passes"),
        (lambda: DegradationSpace(("jpeg",), then=(DegradationSpace(("jpeg",)),)), "each a Rule"),
        (
            lambda: DegradationSpace(("jpeg",), max_ops=60, then=(Rule(("jpeg",)),)),
            "max_ops of all passes must be 64 together, got 65",
        ),
        (lambda: DegradationSpace(("jpeg",)).single_ops([0] * 7), "seeds must be a multiple of 5, got 7"),
    ],
)
def test_rules_refuse(make, message):
    with pytest.raises(InputError, match=message):
        make()
