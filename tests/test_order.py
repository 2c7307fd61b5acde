"""Rows in the order of falling cost: the estimate, and that the result does not depend on the order."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from qpt.degradations.op_table import DEGRADATIONS, LEVELS, NAMES, costs
from qpt.degradations.program import Program
from qpt.io import read_yaml, to_yaml
from qpt.ops.degrade import order
from qpt.ops.degrade.api import degrade, degrade_patches
from qpt.ops.degrade.order import costly_first, gpu_costs, row_costs
from qpt.ops.degrade.patches import row_windows
from tests.programs import sample, smooth_images


def cost(name: str, level: int) -> float:
    (entry,) = (row for row in DEGRADATIONS if row.name == name)
    return float(np.broadcast_to(entry.cost, LEVELS)[level - 1])


def test_every_op_has_a_cost_at_every_level():
    assert (costs() > 0).all()
    assert (gpu_costs() > 0).all()
    assert set(read_yaml(order.GPU_COSTS)["instructions"]) == set(NAMES)


def test_the_page_lists_every_op_that_executes_more_than_1500_instructions_a_pixel():
    page = Path(__file__).parents[1].joinpath("docs", "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z].*?) \| ([\d,]+) \|", page, flags=re.MULTILINE)
    listed = {name: int(count.replace(",", "")) for ops, count in rows for name in re.findall(r"[a-z_]+_?[a-z]+", ops)}
    counted = {name: max(levels) for name, levels in read_yaml(order.GPU_COSTS)["instructions"].items()}
    costly = {name: count for name, count in counted.items() if count > 1500}
    assert costly.keys() == listed.keys() & counted.keys()
    for name, count in costly.items():
        assert listed[name] == pytest.approx(count, rel=0.01), name


def test_an_op_that_was_not_counted_has_the_scaled_cost_of_a_cpu(tmp_path):
    counted = {name: (3 * costs()[op, 1:]).tolist() for op, name in enumerate(NAMES) if name != "jpeg"}
    tmp_path.joinpath("costs.yaml").write_text(to_yaml({"instructions": counted}))
    np.testing.assert_allclose(order.read_costs(tmp_path / "costs.yaml"), 3 * costs())


def test_the_cost_of_a_row_is_that_of_its_ops_on_their_areas():
    chains = [
        [],
        [("median_blur", 5), ("hue", 1)],
        [("median_blur", (3.0,))],  # no level: the middle one
        [("contrast", 2), ("hue", 3)],
        [("hue", 1), ("resize_to", (0.5, 1)), ("hue", 1), ("resize_to", (1.0, 1)), ("hue", 1)],
    ]
    program = Program.from_chains(chains, seeds=range(len(chains)))
    whole = row_costs(program, None, 100, 100)
    hue, resize = cost("hue", 1), cost("resize_to", 1)
    expected = [
        0,
        cost("median_blur", 5) + hue,
        cost("median_blur", 3),
        cost("contrast", 2) + hue,
        hue + resize + hue / 4 + resize / 4 + hue,
    ]
    np.testing.assert_allclose(whole, expected)
    assert costly_first(program, None, 100, 100).tolist() == np.argsort(-np.array(expected), kind="stable").tolist()
    boxes = torch.full((len(chains), 1, 2), 40, dtype=torch.int32)
    windows = row_windows(program, boxes, 10, 100, 100)
    patches = row_costs(program, windows, 100, 100)
    np.testing.assert_allclose(patches[3], cost("contrast", 2) + hue * (10 / 100) ** 2)
    np.testing.assert_allclose(patches[1], (cost("median_blur", 5) + hue) * (20 / 100) ** 2)


@pytest.mark.parametrize("order", ["as they are", "reversed"])
def test_the_order_changes_no_byte(monkeypatch, order):
    images, program = smooth_images(6, 40, 52), sample(6)
    boxes = torch.tensor([[[3, 5], [8, 20]]], dtype=torch.int32).expand(12, 2, 2)
    expected = degrade(images, program), degrade_patches(images, program, boxes, 20)
    forced = torch.arange(12, dtype=torch.int32)
    forced = forced if order == "as they are" else forced.flip(0)
    monkeypatch.setattr("qpt.ops.degrade.cpu.costly_first", lambda *_: forced)
    for threads in (1, 3):
        assert torch.equal(degrade(images, program, threads=threads), expected[0])
        assert torch.equal(degrade_patches(images, program, boxes, 20, threads=threads), expected[1])
