"""The training steps of the step's benchmark: contenders, agreement, first steps, remarks and their table.

Times are never asserted.
"""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import bench_step, tables
from benchmarks.bench_step import COMPILED, FUSED, PHOTOGRAPHS, TRAINING
from benchmarks.harness import RESULTS, Disagreement, Row, Settings
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.learner import Learner
from qpt.pretraining.optimisers import build_optimizer

CPU = torch.device("cpu")


def test_contenders_of_the_full_form_and_of_the_quick_one():
    full = {arch: bench_step.training_ways(arch, False, tried) for arch, tried in bench_step.ARCHITECTURES.items()}
    assert list(full) == ["resnet18", "resnet50", "efficientnet_lite0"]
    for arch, ways in full.items():
        assert set(ways) - {COMPILED} == {"float32", "bfloat16", FUSED}
        assert {(way.arch, way.width, way.patch_size, way.batch_images) for way in ways.values()} == {
            (arch, 64, 160, PHOTOGRAPHS)
        }
        for name, way in ways.items():
            assert (way.precision, way.compile) == (name.split(",")[0], name == COMPILED)
    assert {arch for arch, ways in full.items() if COMPILED in ways} == {"resnet18", "efficientnet_lite0"}
    quick = bench_step.training_ways("resnet50", True, False)
    assert (quick["float32"].width, quick["float32"].patch_size) == (8, 64) and COMPILED not in quick


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fused_optimiser_makes_the_same_updates_in_one_kernel(optimizer):
    config = PretrainConfig("-", "-", optimizer=optimizer, lr=0.1, weight_decay=0.01)
    networks = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = nn.ModuleDict({"encoder": nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 2)})
        network.to(memory_format=torch.channels_last)
        made = build_optimizer(config, network)
        if fused:
            bench_step.fuse(made)
        for step in range(3):
            x = torch.randn((2, 3, 5, 5), generator=torch.Generator().manual_seed(step))
            network["head"](network["encoder"](x).mean((2, 3))).square().sum().backward()
            with Names() as names:
                made.step()
            made.zero_grad()
        assert any("_fused_" in name for name in names.seen) == fused
        networks.append(network)
    for plain, fused in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)


def test_an_optimiser_without_a_fused_form_is_refused():
    network = nn.ModuleDict({"encoder": nn.Linear(3, 4)})
    with pytest.raises(ValueError, match="LARS must have a fused form"):
        bench_step.fuse(build_optimizer(PretrainConfig("-", "-", optimizer="lars"), network))


def test_the_difference_of_updates_by_hand():
    start, others = [torch.zeros(2), torch.ones(1)], [torch.tensor([3.0, 0.0]), torch.tensor([5.0])]
    assert bench_step.update_difference(others, others, start) == 0
    weights = [torch.tensor([3.0, 0.3]), torch.tensor([5.4])]
    assert bench_step.update_difference(weights, others, start) == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [None, "loss", "nan", "update"])
def test_a_training_step_that_differs_is_a_disagreement(wrong, monkeypatch):
    learners: list[Learner] = []
    filled = bench_step._filled
    monkeypatch.setattr(bench_step, "_filled", lambda learner: learners.append(learner) or filled(learner))
    case = bench_step._training_case(bench_step.training_ways("resnet18", True, False), CPU, {})
    assert case.op == TRAINING and case.items == 4
    answers = {contender.backend: contender.call() for contender in case.contenders}
    if wrong in ("loss", "nan"):
        answers["bfloat16"] *= 1.1 if wrong == "loss" else float("nan")
    if wrong == "update":
        next(learners[-1].query.parameters()).data.add_(1e-3)
    if wrong is not None:
        with pytest.raises(Disagreement, match=FUSED if wrong == "update" else "bfloat16 differs from float32"):
            case.agree(answers)
        return
    found = case.agree(answers)
    assert set(found) == {"bfloat16", FUSED}
    assert found[FUSED]["first_loss"] == 0 < found["bfloat16"]["first_loss"]


def test_the_first_step_of_a_compiled_network_is_noted(monkeypatch):
    compiled: list[Learner] = []
    monkeypatch.setattr(Learner, "_compile", lambda self, encoder: compiled.append(self))
    monkeypatch.setattr(bench_step, "require_compiler", lambda: None)
    monkeypatch.setattr(bench_step, "ARCHITECTURES", {"resnet18": True})
    ways = bench_step.training_ways
    monkeypatch.setattr(bench_step, "training_ways", lambda arch, quick, compiles: ways(arch, True, compiles))
    rows, remarks = bench_step.training_rows(Settings(rounds=1))
    notes = {row.backend: row.note for row in rows}
    assert notes.pop(COMPILED).startswith("first step ") and set(notes.values()) == {""}
    assert len(compiled) == 2  # the query encoder and the key encoder of one learner
    assert any("with torch.compile over that without: resnet18 " in remark for remark in remarks)


def test_without_a_compiler_the_rest_is_measured(monkeypatch):
    def missing():
        raise bench_step.Unavailable("there is none")

    monkeypatch.setattr(bench_step, "require_compiler", missing)
    monkeypatch.setattr(bench_step, "ARCHITECTURES", {"resnet18": True})
    ways = bench_step.training_ways
    monkeypatch.setattr(bench_step, "training_ways", lambda arch, quick, compiles: ways(arch, True, compiles))
    rows, remarks = bench_step.training_rows(Settings(rounds=1))
    assert [row.backend for row in rows] == ["float32", "bfloat16", FUSED]
    assert remarks[0] == f"Not measured: {COMPILED}: there is none."


def row_of(shape: str, backend: str, median_ms: float, op: str = TRAINING) -> Row:
    return Row(op, backend, shape, median_ms, 0.0, median_ms, 16000 / median_ms, None, 1, {}, "")


def test_what_the_trials_give_by_hand():
    times = {"float32": 1000.0, "bfloat16": 500.0, COMPILED: 400.0, FUSED: 990.0}
    rows = [row_of("a, width 64", name, ms) for name, ms in times.items()]
    fused, compiled = bench_step.trial_remarks(rows, {("a, width 64", COMPILED): 60.0})
    assert fused == "Time of a training step with a fused optimiser over that without: a 0.990."
    assert compiled.endswith(
        "with torch.compile over that without: a 0.80, its first step of 60 s paid for after 600 steps."
    )
    rows = [row_of("a", name, 600.0 if name == COMPILED else ms) for name, ms in times.items()]
    assert "a 1.20, its first step of 60 s never paid for" in bench_step.trial_remarks(rows, {("a", COMPILED): 60.0})[1]


def test_training_steps_are_a_table_by_architecture_and_old_records_have_none():
    content = json.loads((RESULTS / "step.json").read_text(encoding="utf-8"))
    content["rows"] = [row for row in content["rows"] if row["op"] != TRAINING]
    before = tables.step_of(content)
    assert "Photographs per second" not in before
    rows = [row_of("a", "float32", 1000.0), row_of("a", "bfloat16", 500.0), row_of("b", "float32", 100.0)]
    content["rows"] += [vars(row) for row in rows]
    after = tables.step_of(content)
    assert "| training step | a | 16 | 32 |\n| training step | b | 160 |  |" in after
    assert after.replace(after[after.index("Photographs per second") : after.index("- Of the whole")], "") == before
