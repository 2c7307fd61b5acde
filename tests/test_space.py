"""DegradationSpace and Program: exact sizes compared with an enumeration, draws with the rule; saving and replaying.

The enumeration applies the rule to every sequence of draws; it shares no code with the counting.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from qpt.degradations import op_table
from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError


def enumerate_compositions(types: int, levels: int, lo: int, hi: int, repeat: bool, shuffle: bool) -> set:
    """Return every composition that the rule allows, as (type, level) pairs, by going through all draws."""
    pairs = list(itertools.product(range(types), range(levels)))
    found = set()
    for s in range(lo, hi + 1):
        for chain in itertools.product(pairs, repeat=s):
            used = [kind for kind, _ in chain]
            if not repeat and len(set(used)) < s:
                continue
            found.add(chain if shuffle else tuple(sorted(chain)))
    return found


def closed_form(types: int, levels: int, lo: int, hi: int, repeat: bool, shuffle: bool) -> int:
    """Return the number of lists of ops: arrangements and combinations, with and without repetition."""

    def of(s: int) -> int:
        if repeat:
            return (types * levels) ** s if shuffle else math.comb(types * levels + s - 1, s)
        return (math.perm if shuffle else math.comb)(types, s) * levels**s

    return sum(map(of, range(lo, hi + 1)))


@given(st.data())
def test_closed_form_is_the_number_of_enumerated_compositions(data):
    types, levels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    repeat, shuffle = data.draw(st.booleans()), data.draw(st.booleans())
    hi = data.draw(st.integers(0, 4 if repeat else types))
    lo = data.draw(st.integers(0, hi))
    expected = len(enumerate_compositions(types, levels, lo, hi, repeat, shuffle))
    assert closed_form(types, levels, lo, hi, repeat, shuffle) == expected


@given(st.data())
def test_size_is_the_closed_form_for_any_number_of_ops(data):
    repeat, shuffle = data.draw(st.booleans()), data.draw(st.booleans())
    types = data.draw(st.integers(1, 12 if repeat and not shuffle else len(NAMES)))
    hi = data.draw(st.integers(0, 5 if repeat else min(9, types)))
    lo = data.draw(st.integers(0, hi))
    space = DegradationSpace(NAMES[:types], max_ops=hi, min_ops=lo, repeat=repeat, shuffle=shuffle)
    assert space.size() == closed_form(types, 1, lo, hi, repeat, shuffle)
    assert space.size(levels=True) == closed_form(types, LEVELS, lo, hi, repeat, shuffle)


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_enumerated_composition_is_drawn_and_no_other(repeat, shuffle):
    space = DegradationSpace(ops=("hue", "jpeg"), max_ops=2, repeat=repeat, shuffle=shuffle)
    drawn = set(space.sample(6000, generator=torch.Generator().manual_seed(0)).compositions())
    ids = [op_table.op_id(name) for name in space.ops]
    listed = enumerate_compositions(2, LEVELS, 0, 2, repeat, shuffle)
    assert drawn == {tuple((ids[kind], level + 1) for kind, level in chain) for chain in listed}
    assert len(drawn) == space.size(levels=True)
    by_type = {tuple(op for op, _ in chain) for chain in drawn}
    assert len(by_type) == space.size()


def test_the_rule_of_preset_qpt_gives_the_published_order_of_magnitude():
    at_most_five = closed_form(29, 1, 0, 5, repeat=True, shuffle=True)
    assert at_most_five == 1 + 29 + 841 + 24_389 + 707_281 + 20_511_149
    space = DegradationSpace.preset("qpt")
    assert (space.min_ops, space.max_ops, space.repeat, space.shuffle) == (0, 5, True, True)
    assert len(set(space.ops)) == len(space.ops) == 29 and set(space.ops) <= set(NAMES)
    assert space.size() == at_most_five


@given(st.data())
def test_every_row_obeys_its_space(data):
    ops = tuple(data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True)))
    repeat, shuffle = data.draw(st.booleans()), data.draw(st.booleans())
    hi = data.draw(st.integers(0, 7 if repeat else len(ops)))
    lo = data.draw(st.integers(0, hi))
    space = DegradationSpace(ops=ops, max_ops=hi, min_ops=lo, repeat=repeat, shuffle=shuffle)
    views = data.draw(st.integers(1, min(3, space.size(levels=True))))
    n = data.draw(st.integers(0, 5))
    program = space.sample(n, views=views, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    program.check("test")
    assert program.source.tolist() == [row // views for row in range(n * views)]
    assert program.ops.shape == (n * views, hi)
    place = {op_table.op_id(name): k for k, name in enumerate(ops)}
    rows = program.compositions()
    for chain in rows:
        kinds = [place[op] for op, _ in chain]  # a KeyError here is an op from outside the space
        assert lo <= len(chain) <= hi
        assert repeat or len(set(kinds)) == len(kinds)
        assert shuffle or [(k, v) for k, (_, v) in zip(kinds, chain, strict=True)] == sorted(
            (k, v) for k, (_, v) in zip(kinds, chain, strict=True)
        )
        assert all(1 <= level <= LEVELS for _, level in chain)
    for image in range(n):
        assert len(set(rows[image * views : (image + 1) * views])) == views


def looks_uniform(counts: Counter, outcomes: list) -> bool:
    """Test counts by chi-square; the draws are seeded, so the p-value does not change between runs."""
    assert set(counts) == set(outcomes)
    return chisquare([counts[outcome] for outcome in outcomes]).pvalue > 1e-6


def test_draws_are_uniform_over_lengths_ops_and_levels():
    space = DegradationSpace.preset("qpt")
    program = space.sample(20_000, generator=torch.Generator().manual_seed(1))
    ids = [op_table.op_id(name) for name in space.ops]
    rows = program.compositions()
    pairs = [pair for chain in rows for pair in chain]
    assert looks_uniform(Counter(map(len, rows)), list(range(6)))
    assert looks_uniform(Counter(op for op, _ in pairs), ids)
    assert looks_uniform(Counter(level for _, level in pairs), list(range(1, LEVELS + 1)))
    first_two = Counter((chain[0][0], chain[1][0]) for chain in rows if len(chain) > 1)
    assert looks_uniform(first_two, [(a, b) for a in ids for b in ids])


def test_draws_without_repetition_are_uniform_over_orders():
    space = DegradationSpace(ops=("hue", "jpeg", "contrast"), max_ops=3, min_ops=3, repeat=False)
    orders = Counter(tuple(row) for row in space.sample(6000, generator=torch.Generator().manual_seed(2)).ops.tolist())
    ids = [op_table.op_id(name) for name in space.ops]
    assert looks_uniform(orders, list(itertools.permutations(ids)))


def test_parameters_come_from_the_level_or_from_the_stated_range():
    program = DegradationSpace.preset("qpt").sample(3000, generator=torch.Generator().manual_seed(3))
    seen: dict[tuple[int, int, int], set[float]] = {}
    for ops, levels, params in zip(program.ops.tolist(), program.levels.tolist(), program.params.tolist(), strict=True):
        for op, level, values in zip(ops, levels, params, strict=True):
            if op < 0:
                assert (level, values) == (0, [0.0] * 4)
                continue
            for slot in range(len(DEGRADATIONS[op].parameters)):
                seen.setdefault((op, level, slot), set()).add(values[slot])
    for (op, level, slot), values in seen.items():
        p = DEGRADATIONS[op].parameters[slot]
        if p.levels:
            assert values == {float(np.float32(v)) for v in p.alternatives(level)}, (
                DEGRADATIONS[op].name,
                p.name,
                level,
            )
        else:
            low, high = min(values), max(values)
            assert p.low <= low < p.low + 0.1 * (p.high - p.low)
            assert p.high - 0.1 * (p.high - p.low) < high <= p.high


def test_same_generator_state_same_program_and_seeds_differ_between_rows():
    space = DegradationSpace.preset("qpt")
    first = space.sample(50, views=2, generator=torch.Generator().manual_seed(4))
    again = space.sample(50, views=2, generator=torch.Generator().manual_seed(4))
    other = space.sample(50, views=2, generator=torch.Generator().manual_seed(5))
    assert first.equal(again)
    assert not first.equal(other)
    assert len(set(first.seeds.tolist())) == len(first)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.integers(1, 3), st.data())
def test_an_image_rows_depend_on_its_seed_alone(seeds, views, data):
    # 31 compositions: views of one image often clash, so redrawing is exercised too.
    space = DegradationSpace(ops=("hue", "jpeg"), max_ops=1)
    batch = space.sample_seeded(torch.tensor(seeds), views=views)
    image = data.draw(st.integers(0, len(seeds) - 1))
    alone = space.sample_seeded(torch.tensor(seeds[image : image + 1]), views=views)
    part = batch[image * views : (image + 1) * views]
    assert replace(part, source=alone.source).equal(alone)


def test_more_views_extend_an_image_without_changing_the_first_ones():
    space, seeds = DegradationSpace.preset("qpt"), torch.arange(20)
    two, four = space.sample_seeded(seeds, views=2), space.sample_seeded(seeds, views=4)
    kept = four.select([4 * image + view for image in range(20) for view in range(2)])
    assert kept.equal(two)


def test_views_are_distinct_up_to_the_whole_space():
    space = DegradationSpace(ops=("hue",), max_ops=1)  # pristine and five levels
    program = space.sample_seeded(torch.arange(40), views=6)
    for image in range(40):
        assert len(set(program.compositions()[6 * image : 6 * image + 6])) == 6
    repeated = space.sample_seeded(torch.arange(40), views=6, distinct=False).compositions()
    assert any(len(set(repeated[6 * i : 6 * i + 6])) < 6 for i in range(40))
    with pytest.raises(InputError, match="views must be at most the 6 compositions"):
        space.sample_seeded(torch.arange(1), views=7)


def test_every_level_lists_image_op_level_in_order():
    space = DegradationSpace(ops=("jpeg", "hue"))
    program = space.every_level(2, seed=9)
    expected = [(i, op_table.op_id(name), v) for i in range(2) for name in space.ops for v in range(1, 6)]
    got = zip(program.source.tolist(), program.ops[:, 0].tolist(), program.levels[:, 0].tolist(), strict=True)
    assert list(got) == expected
    assert len(set(program.seeds.tolist())) == 20


def test_chains_print_as_documented():
    program = Program.from_chains(
        [[("gaussian_blur", 3), ("jpeg", 1), ("hue", 4)], [], [("jpeg", (37.0,))]], seeds=[1, 2, 3]
    )
    assert [str(chain) for chain in program] == ["gaussian_blur[3] → jpeg[1] → hue[4]", "pristine", "jpeg[quality=37]"]
    assert program[0].steps[0].params == {"sigma_px": pytest.approx(1.8)}
    assert str(program[-1]) == "jpeg[quality=37]"
    with pytest.raises(IndexError):
        program[3]


def test_compositions_ignore_unused_slots():
    program = Program.from_chains([[("hue", 1), ("jpeg", 2)], [("hue", 1)]], seeds=[0, 0])
    shifted = replace(program, ops=program.ops.flip(1), levels=program.levels.flip(1))
    assert shifted.compositions()[1] == program.compositions()[1]
    assert shifted.compositions()[0] != program.compositions()[0]


def test_concat_pads_slots_and_moves_sources():
    a = Program.from_chains([[("hue", 1)]], seeds=[1])
    b = Program.from_chains([[("jpeg", 2), ("hue", 3)], []], seeds=[2, 3], source=[0, 1])
    both = Program.concat([a, b], source_offsets=[0, 1])
    assert [str(chain) for chain in both] == [str(chain) for chain in [*a, *b]]
    assert both.source.tolist() == [0, 1, 2]
    assert Program.concat([a, b]).source.tolist() == [0, 0, 1]
    both.check("test")


def test_save_and_load_are_exact(tmp_path):
    program = DegradationSpace.preset("qpt").sample(30, views=2, generator=torch.Generator().manual_seed(6))
    path = tmp_path / "program.bin"  # the name is kept as given
    program.save(path)
    assert Program.load(path).equal(program)
    assert [p.name for p in tmp_path.iterdir()] == ["program.bin"]


@pytest.mark.parametrize("content", [b"", b"not a program", b"PK\x03\x04 cut short"])
def test_load_refuses_other_files(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="must be a saved program"):
        Program.load(path)


def test_load_refuses_missing_fields_pickles_and_other_tables(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, ops=np.zeros((1, 1), np.int16))
    with pytest.raises(InputError, match="must be a saved program"):
        Program.load(path)
    np.savez(path, ops=np.array([object()], dtype=object))
    with pytest.raises(InputError, match="must be a saved program"):
        Program.load(path)
    replace(Program.from_chains([[]], seeds=[0]), table="0123456789abcdef").save(path)
    with pytest.raises(InputError, match=r"op table .* got 0123456789abcdef"):
        Program.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ops": ()}, "at least one"),
        ({"ops": "jpeg"}, "ops must be a list of ops, at least one, got 'jpeg'"),
        ({"ops": ("jpg",)}, "did you mean jpeg"),
        ({"ops": ("jpeg", "jpeg")}, "jpeg more than once"),
        ({"ops": ("jpeg",), "max_ops": -1}, "max_ops must be an integer in 0"),
        ({"ops": ("jpeg",), "max_ops": 2.0}, "max_ops must be an integer"),
        (
            {"ops": ("jpeg",), "max_ops": 2, "repeat": False},
            "max_ops must be at most 1, .* without repetition, got 2",
        ),
        ({"ops": ("jpeg",), "max_ops": 1, "min_ops": 2}, "min_ops must be at most max_ops"),
    ],
)
def test_space_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        DegradationSpace(**arguments)


def test_sampling_refuses():
    space = DegradationSpace.preset("qpt")
    with pytest.raises(InputError, match="name must be one of qpt"):
        DegradationSpace.preset("nothing")
    for n in (-1, 2.0, True):
        with pytest.raises(InputError, match="n must be an integer"):
            space.sample(n)
    with pytest.raises(InputError, match="views must be an integer"):
        space.sample(1, views=0)
    for seeds in (torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64), [1, 2]):
        with pytest.raises(InputError, match=r"seeds must be \(n,\) int64"):
            space.sample_seeded(seeds)
    with pytest.raises(InputError, match="seed must be an integer"):
        space.every_level(1, seed=2**63)


@pytest.mark.parametrize(
    ("chains", "arguments", "message"),
    [
        ([[("blurr", 1)]], {"seeds": [0]}, "did you mean"),
        ([[("jpeg", 6)]], {"seeds": [0]}, r"level must be in 1\.\.5"),
        ([[("jpeg", 2.5)]], {"seeds": [0]}, r"jpeg must have a level in 1\.\.5 or parameters \(quality\), got 2.5"),
        ([[("jpeg", "50")]], {"seeds": [0]}, "jpeg must have a level .* got '50'"),
        ([[("jpeg", True)]], {"seeds": [0]}, "jpeg must have a level .* got True"),
        ([[("jpeg", ["a"])]], {"seeds": [0]}, r"jpeg must have .* parameters \(quality\)"),
        ([[("jpeg", (1.0, 2.0))]], {"seeds": [0]}, r"jpeg must have .* parameters \(quality\)"),
        ([["jpeg"]], {"seeds": [0]}, r"a step must be \(op name, level or parameters\), got 'jpeg'"),
        ([[("jpeg", (50.5,))]], {"seeds": [0]}, "quality an integer"),
        ([[("jpeg", (101.0,))]], {"seeds": [0]}, "quality"),
        ([[("jpeg", 1)]], {"seeds": [0, 1]}, "seeds must be 1 integers of 64 bits with a sign, got"),
        ([[("jpeg", 1)]], {"seeds": [2**63]}, "64 bits"),
        ([[("jpeg", 1)]], {"seeds": [2**64]}, "64 bits"),
        ([[("jpeg", 1)]], {"seeds": [1.5]}, r"seeds must be 1 integers .* got \[1.5\]"),
        ([[("jpeg", 1)]], {"seeds": ["7"]}, "seeds must be 1 integers"),
        ([[("jpeg", 1)]], {"seeds": None}, "seeds must be 1 integers .* got None"),
        ([[("jpeg", 1)]], {"seeds": [0], "source": [0, 0]}, "source must be 1 integers"),
        ([[("jpeg", 1)]], {"seeds": [0], "source": [0.7]}, r"source must be 1 integers .* got \[0.7\]"),
        ([[("jpeg", 1)]], {"seeds": [0], "source": [2**31]}, "source must be 1 integers of 32 bits"),
        ([[("jpeg", 1)]], {"seeds": [0], "source": [-1]}, "image indices from 0"),
    ],
)
def test_from_chains_refuses(chains, arguments, message):
    with pytest.raises(InputError, match=message):
        Program.from_chains(chains, **arguments)


def test_concat_refuses():
    program = Program.from_chains([[]], seeds=[0])
    with pytest.raises(InputError, match="at least one program"):
        Program.concat([])
    with pytest.raises(InputError, match="one op table"):
        Program.concat([program, replace(program, table="0")])
    with pytest.raises(InputError, match="source_offsets must be 1"):
        Program.concat([program], source_offsets=[0, 1])


def test_the_table_is_complete_and_consistent():
    assert len(set(NAMES)) == len(NAMES)
    for row in DEGRADATIONS:
        assert row.family in ("texture", "geometry", "colour")
        assert row.source
        assert row.oracle
        assert row.doc.endswith(".")
        assert 1 <= len(row.parameters) <= op_table.MAX_PARAMS
        assert any(p.levels for p in row.parameters), f"{row.name}: no parameter depends on the level"
        for p in row.parameters:
            assert p.low < p.high
            assert len(p.levels) in (0, LEVELS)
            for value in [v for level in range(1, LEVELS + 1) for v in p.alternatives(level)]:
                assert p.low <= value <= p.high
                assert not p.integer or value == int(value)


def test_fingerprint_follows_the_meaning_of_the_table(monkeypatch):
    def fingerprint(rows: tuple) -> str:
        op_table.fingerprint.cache_clear()
        monkeypatch.setattr(op_table, "DEGRADATIONS", rows)
        return op_table.fingerprint()

    first, *rest = DEGRADATIONS
    base = fingerprint((first, *rest))
    p = first.parameters[0]
    changed = [
        (*rest, first),  # ids
        (replace(first, name="gaussian"), *rest),
        (replace(first, revision=2), *rest),
        (replace(first, parameters=(replace(p, levels=(0.6, 1.1, 1.8, 2.8, 4.3)),)), *rest),
        (replace(first, parameters=(replace(p, high=p.high + 1),)), *rest),
    ]
    prints = [fingerprint(rows) for rows in changed]
    assert len({base, *prints}) == 1 + len(changed)
    assert fingerprint((replace(first, doc="Reworded."), *rest)) == base
    monkeypatch.undo()
    op_table.fingerprint.cache_clear()
    assert len(base) == 16
    int(base, 16)


def test_earlier_tables_are_beginnings_of_this_one(monkeypatch):
    """The rows of version 0.1.0 with the bounds that they had: what it saved has the same meaning."""

    def as_it_was(row):
        if row.name != "motion_blur":
            return row
        length, angle = row.parameters
        assert length.low <= 1.0
        return replace(row, parameters=(replace(length, low=1.0), angle))

    op_table.fingerprint.cache_clear()
    monkeypatch.setattr(op_table, "DEGRADATIONS", tuple(map(as_it_was, DEGRADATIONS[:53])))
    assert op_table.fingerprint() == op_table.EARLIER[0] == "17c6eb63c4ad1b55"
    monkeypatch.undo()
    op_table.fingerprint.cache_clear()
    assert op_table.accepts(op_table.EARLIER[0]) and op_table.accepts(op_table.fingerprint())
    assert not op_table.accepts("0" * 16) and op_table.fingerprint() not in op_table.EARLIER


def test_halo_grows_with_the_parameters():
    by_name = {row.name: row for row in DEGRADATIONS}
    assert by_name["gaussian_blur"].halo_px([1.1]) == 4
    assert by_name["gaussian_blur_aniso"].halo_px([0.5, 2.0, 0.0]) == 6
    assert by_name["contrast"].halo_px([0.5]) is None
    assert by_name["hue"].halo_px([10.0]) == 0
