"""Settings of pre-training that start from a trained encoder: inputs of the head, rates, auxiliary terms."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qpt import PretrainConfig, load_encoder, pretrain
from qpt.degradations.op_table import DEGRADATIONS
from qpt.errors import InputError
from qpt.evaluate.features import FeatureProtocol
from qpt.evaluate.scorer import Scorer
from qpt.evaluate.table import read_table
from qpt.models import build_encoder
from qpt.models.checkpoint_file import read_checkpoint
from qpt.models.encoder import load_weights
from qpt.models.heads import projection_head, stage_means, stage_statistics
from qpt.models.two_trunks import TwoTrunks
from qpt.pretraining import engine
from qpt.pretraining import learner as learner_module
from qpt.pretraining.learner import Learner
from qpt.pretraining.optimisers import parameter_stages, set_rate
from qpt.pretraining.targets import COLUMNS, KINDS, OPS, severities
from tests.labelled import image_regions, write_set
from tests.programs import sample
from tests.test_embed import CPU, OneGraph, batch, settings
from tests.test_pretrain import assert_same_bytes, tiny
from tests.test_pretrain import image_folder as image_folder


def test_stage_statistics_are_those_of_positions() -> None:
    maps = [torch.randn(3, 4, 5, 6), torch.randn(3, 2, 1, 1).bfloat16()]
    values = stage_statistics(maps)
    assert values.shape == (3, 12) and values.dtype == torch.float32
    torch.testing.assert_close(values[:, :4], maps[0].mean((2, 3)))
    torch.testing.assert_close(values[:, 4:8], maps[0].std((2, 3), correction=0), rtol=1e-5, atol=1e-5)
    assert torch.equal(values[:, 8:10], maps[1].float()[:, :, 0, 0])
    torch.testing.assert_close(values[:, 10:], torch.full((3, 2), 1e-3))
    torch.testing.assert_close(stage_means(maps), values[:, [0, 1, 2, 3, 8, 9]])


def test_the_gradient_of_a_constant_channel_is_finite() -> None:
    flat = torch.ones(2, 3, 4, 4, requires_grad=True)
    stage_statistics([flat]).sum().backward()
    assert flat.grad.isfinite().all()


def test_a_head_with_layer_norm_ignores_the_scale_of_a_row() -> None:
    head, rows = projection_head(12, 4, 6, layer_norm=True), torch.randn(5, 12)
    torch.testing.assert_close(head(rows), head(rows * 40), rtol=1e-3, atol=1e-4)


def assert_chunks_are_one_graph(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    """Compare the gradients of cached chunks with those of one graph over the same chunks."""
    config = settings(chunk_images=3, **options)
    cached, plain = Learner(config, CPU), Learner(config, CPU)
    given = batch(config)
    loss, _ = cached.gradients(*given, **extra)
    monkeypatch.setattr(learner_module, "Embeddings", OneGraph)
    expected, _ = plain.gradients(*given, **extra)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for (name, a), b in zip(cached.query.named_parameters(), plain.query.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm() + 1e-7, name
    for a, b in zip(cached.query.buffers(), plain.query.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options", [{"mode": "moco", "symmetric": True}, {"mode": "in_batch", "accumulate": 2}], ids=str
)
def test_a_head_on_all_stages_works_in_chunks(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_chunks_are_one_graph({"head_input": "stages", **options}, monkeypatch)


def test_a_head_on_all_stages_trains_every_stage_and_its_key_encoder() -> None:
    config = settings(mode="moco", head_input="stages")
    learner = Learner(config, CPU)
    assert learner.query["head"][0].normalized_shape == (2 * sum(learner.query["encoder"].stage_dims),)
    assert learner.key is not None
    before = [parameter.clone() for parameter in learner.key.parameters()]
    learner.step(*batch(config), 0.1)
    assert all(parameter.grad is not None for parameter in learner.query.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, learner.key.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_activation_checkpointing_keeps_the_gradients_of_a_head_on_all_stages() -> None:
    options = {"mode": "in_batch", "head_input": "stages"}
    plain, frugal = (Learner(settings(**options, activation_checkpointing=on), CPU) for on in (False, True))
    for learner in (plain, frugal):
        learner.gradients(*batch(learner.config))
    for (name, a), b in zip(frugal.query.named_parameters(), plain.query.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_compiled_stages_give_the_same_step() -> None:
    options = {"mode": "moco", "width": 8, "chunk_images": 4, "head_input": "stages"}
    plain, compiled = (Learner(settings(**options, compile=on), CPU) for on in (False, True))
    for seed in range(2):
        a, b = (learner.step(*batch(learner.config, seed), 0.03) for learner in (plain, compiled))
        assert b.loss == pytest.approx(a.loss, rel=1e-3)
    assert compiled.state_dict()["encoder"].keys() == plain.state_dict()["encoder"].keys()


def test_rates_of_stages_fall_toward_the_first() -> None:
    config = settings(optimizer="sgd", lr=1.0, encoder_lr_scale=0.5, stage_lr_decay=0.1)
    learner = Learner(config, CPU)
    for rate in (1.0, 0.2):
        set_rate(learner.optimizer, rate)
        rates = {id(p): group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
        assert len(rates) == len(list(learner.query.parameters()))
        for name, parameter in learner.query.named_parameters():
            stage = 4 if name.startswith("head") else int(name.split(".")[1][-1]) if ".layer" in name else 1
            expected = rate if name.startswith("head") else rate * 0.5 * 0.1 ** (4 - stage)
            assert rates[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_scale_of_zero_keeps_the_encoder(optimizer: str) -> None:
    config = settings(optimizer=optimizer, encoder_lr_scale=0.0)
    learner = Learner(config, CPU)
    before = {name: p.detach().clone() for name, p in learner.query.named_parameters()}
    learner.step(*batch(config), 0.1)
    for name, parameter in learner.query.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("encoder"), name
    fresh = Learner(config, CPU)
    fresh.load_state_dict(learner.state_dict())
    fresh.step(*batch(config, 1), 0.1)


def test_lars_keeps_its_exceptions_within_each_rate() -> None:
    groups = Learner(settings(optimizer="lars", stage_lr_decay=0.5), CPU).optimizer.param_groups
    assert len(groups) == 8  # the last stage has the rate of the head
    for group in groups:
        assert all((p.ndim > 1) == group["adapt"] for p in group["params"])
        assert (group["weight_decay"] > 0) == group["adapt"]


def test_parameters_of_an_encoder_without_named_stages_are_divided_in_order() -> None:
    encoder = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(6)))
    encoder.stage_dims = (2, 2, 2)  # type: ignore[assignment]
    assert list(parameter_stages(encoder).values()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(mode: str) -> None:
    config = settings(mode=mode, freeze_batch_norm=True, chunk_images=3)
    learner = Learner(config, CPU)
    statistics = {name: value.clone() for name, value in learner.query.named_buffers()}
    weight = learner.query["encoder"].bn1.weight.detach().clone()
    learner.step(*batch(config), 0.1)
    assert all(torch.equal(value, statistics[name]) for name, value in learner.query.named_buffers())
    assert not torch.equal(learner.query["encoder"].bn1.weight, weight)
    assert learner.query["encoder"].training  # activation checkpointing works in training only


@pytest.mark.parametrize(
    ("field", "value"), [("encoder_lr_scale", -1.0), ("stage_lr_decay", 0.0), ("head_input", "all")]
)
def test_bad_values_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"pretrain: {field} must be"):
        settings(**{field: value})


def targets_of(config: PretrainConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the further arguments of a step: random targets, if the config has a regression head."""
    if not config.regression:
        return {}
    shape = (config.batch_images * config.compositions, config.patches, COLUMNS)
    return {"measured": torch.rand(shape, generator=torch.Generator().manual_seed(seed))}


TERMS = [{"distillation": 2.0}, {"regression": 0.5, "head_input": "stages"}, {"distillation": 1.0, "regression": 1.0}]


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize(
    "options", [{"mode": "moco", "symmetric": True}, {"mode": "moco"}, {"mode": "in_batch", "accumulate": 2}], ids=str
)
def test_terms_work_in_chunks(options: dict[str, Any], terms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(**options, **terms)
    assert_chunks_are_one_graph({**options, **terms}, monkeypatch, **targets_of(config))


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_the_loss_is_the_sum_of_its_terms(terms: dict[str, Any]) -> None:
    """Where the encoder is still the initial one, in eval mode, distillation is 0."""
    config = settings(mode="in_batch", freeze_batch_norm=True, **terms)
    learner = Learner(config, CPU)
    plain = Learner(settings(mode="in_batch", head_input=config.head_input, freeze_batch_norm=True), CPU)
    patches, groups, images = batch(config)
    measured = targets_of(config)
    loss, _ = learner.gradients(patches, groups, images, **measured)
    expected, _ = plain.gradients(patches, groups, images)
    if config.regression:
        rows = measured["measured"].flatten(0, 1)
        regression = learner.query["regression"]
        moments = rows[:, :9].double()
        wanted = torch.cat([(moments - moments.mean(0)) / moments.std(0, correction=0), rows[:, 9:]], 1)
        with torch.no_grad():
            found = learner._embed_with(learner.query)(patches.flatten(0, 1))[:, 8 : 8 + COLUMNS].double()
        distance = (found - wanted).abs()
        smooth = torch.where(distance < 1, distance**2 / 2, distance - 0.5)[:, :9].mean()
        expected = expected + config.regression * (smooth + (distance[:, 9:] ** 2).sum(1).mean() / 10)
        assert regression.moments.count == len(rows)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_distillation_holds_the_encoder_back() -> None:
    moved = []
    for weight in (1e-9, 30.0):
        config = settings(mode="in_batch", distillation=weight, freeze_batch_norm=True, optimizer="adamw")
        learner = Learner(config, CPU)
        for seed in range(6):
            learner.step(*batch(config, seed), 3e-3)
        with torch.no_grad():
            patches = batch(config, 9)[0].flatten(0, 1)
            now, then = (stage_means(learner._maps(e, patches)) for e in (learner.query["encoder"], learner.frozen))
        moved.append(float((now - then).square().mean()))
        assert all(
            torch.equal(a, b) for a, b in zip(learner.frozen.parameters(), fresh_parameters(config), strict=True)
        )
    assert moved[1] < moved[0] / 2


def fresh_parameters(config: PretrainConfig) -> list[torch.Tensor]:
    return list(Learner(config, CPU).query["encoder"].parameters())


@pytest.mark.parametrize("options", [{"mode": "moco"}, {"mode": "in_batch", "symmetric": False}], ids=str)
def test_a_run_with_every_setting_resumes_to_the_same_bytes(
    image_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    every = {"head_input": "stages", "encoder_lr_scale": 0.5, "stage_lr_decay": 0.7, "freeze_batch_norm": True}
    every |= {"distillation": 0.5, "regression": 1.0, "two_trunks": True, "steps": 5, **options}
    first = pretrain(tiny(image_folder, tmp_path / "start", mode="in_batch", steps=2)).run
    whole = pretrain(tiny(image_folder, tmp_path / "whole", init=str(first), **every)).run
    halted = tiny(image_folder, tmp_path / "halted", init=str(first), **every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._TrainingLoop, "_train_step", stop_after(3, engine._TrainingLoop._train_step))
        with pytest.raises(KeyboardInterrupt):
            pretrain(halted)
    shutil.rmtree(first)  # a checkpoint does without it
    pretrain(halted, resume=True)
    assert_same_bytes(whole, tmp_path / "halted")


def severities_of(config: PretrainConfig, seed: int = 0) -> torch.Tensor:
    shape = (config.batch_images * config.compositions, len(KINDS))
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(seed)) / 5


@pytest.mark.parametrize(
    "options", [{"mode": "moco", "symmetric": True}, {"mode": "in_batch", "accumulate": 2}], ids=str
)
def test_graded_positives_work_in_chunks(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    graded = {**options, "graded_positives": 0.3}
    assert_chunks_are_one_graph(graded, monkeypatch, severities=severities_of(settings(**graded)))


@pytest.mark.parametrize("mode", ["moco", "in_batch"])
def test_graded_positives_are_those_of_the_loss(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(mode=mode, graded_positives=0.3)
    given: dict[str, Any] = {}
    monkeypatch.setattr(learner_module, "contrastive_loss", lambda q, k, **rest: given.update(rest) or q.sum() * 0)
    rows = severities_of(config)
    Learner(config, CPU).gradients(*batch(config), severities=rows)
    each = {"moco": (1, 1), "in_batch": (2, 2)}[mode]
    for side, times in zip(("query", "key"), each, strict=True):
        assert torch.equal(given[f"{side}_severities"], rows.repeat_interleave(times, 0))
    assert given["severity_width"] == 0.3
    same = [given[f"query_{name}"] is given[f"key_{name}"] for name in ("groups", "images", "severities")]
    assert all(same) == (mode == "in_batch")  # there the loss uses that similarities are symmetric


@pytest.mark.parametrize("options", [{"mode": "moco"}, {"mode": "in_batch"}], ids=str)
def test_a_run_with_graded_positives_resumes_to_the_same_bytes(
    image_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    graded = {"graded_positives": 0.2, "log_every": 1, "steps": 4, **options}
    whole = pretrain(tiny(image_folder, tmp_path / "whole", **graded)).run
    plain = pretrain(tiny(image_folder, tmp_path / "plain", **{**graded, "graded_positives": 0.0})).run
    halted = tiny(image_folder, tmp_path / "halted", **graded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._TrainingLoop, "_train_step", stop_after(2, engine._TrainingLoop._train_step))
        with pytest.raises(KeyboardInterrupt):
            pretrain(halted)
    pretrain(halted, resume=True)
    assert_same_bytes(whole, tmp_path / "halted")
    weights = [read_checkpoint(run)["learner"]["encoder"]["conv1.weight"] for run in (whole, plain)]
    assert not torch.equal(*weights)


def test_severities_are_the_highest_levels_of_each_kind() -> None:
    assert sorted(op for ops in KINDS.values() for op in ops) == sorted(OPS)
    names = [op.name for op in DEGRADATIONS]
    ops = [["gaussian_blur", "jpeg", "glass_blur"], ["hue", None, None], [None, None, None]]
    program = sample(3, seed=0)
    slots = torch.tensor([[-1 if op is None else names.index(op) for op in row] for row in ops], dtype=torch.int16)
    levels = torch.tensor([[2, 5, 3], [1, 0, 0], [0, 0, 0]], dtype=torch.int8)
    found = severities(dataclasses.replace(program, ops=slots, levels=levels))
    kinds = list(KINDS)
    expected = torch.zeros(3, len(kinds))
    expected[0, kinds.index("blur")], expected[0, kinds.index("compression")] = 3 / 5, 1
    expected[1, kinds.index("colour")] = 1 / 5
    assert found.dtype == torch.float32 and len(kinds) <= 8
    torch.testing.assert_close(found, expected)


def test_graded_positives_are_refused_where_there_are_none() -> None:
    for value in (-1.0, 1e-9):
        with pytest.raises(InputError, match="pretrain: graded_positives must be 0 or at least 1e-06, got"):
            settings(graded_positives=value)
    with pytest.raises(InputError, match="graded_positives must be 0 without in_batch_negatives, got"):
        settings(mode="moco", graded_positives=0.2, in_batch_negatives=False)
    settings(mode="in_batch", graded_positives=0.2, in_batch_negatives=False)  # a setting of moco mode
    with pytest.raises(InputError, match="graded_positives must be 0 with 2 processes, got"):
        settings(graded_positives=0.2).check_processes(2)


def stop_after(steps: int, train_step: Any) -> Any:
    """Return a method that takes steps until so many are done, then interrupts the run as a crash would."""

    def step(loop: Any, *arguments: Any) -> None:
        if loop.step == steps:
            raise KeyboardInterrupt
        train_step(loop, *arguments)

    return step


def test_two_trunks_are_the_initial_encoder_and_the_tuned_one(image_folder: Path, tmp_path: Path) -> None:
    first = pretrain(tiny(image_folder, tmp_path / "first", mode="in_batch", steps=2)).run
    options = {"mode": "in_batch", "steps": 3, "init": str(first)}
    one = load_encoder(pretrain(tiny(image_folder, tmp_path / "one", **options)).run)
    two = load_encoder(pretrain(tiny(image_folder, tmp_path / "two", two_trunks=True, **options)).run)
    assert isinstance(two, TwoTrunks) and not two.training
    assert (two.arch, two.width, two.stage_dims, two.feature_dim) == ("resnet18", 4, (8, 16, 32, 64), 64)
    x = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        before, after = load_encoder(first), one
        for both, a, b in zip(two.stages(x), before.stages(x), after.stages(x), strict=True):
            assert torch.equal(both, torch.cat([a, b], 1))
        assert torch.equal(two(x), torch.cat([before(x), after(x)], 1))
        torch.save(two.state_dict(), tmp_path / "two.pth")
        for source in (tmp_path / "two", tmp_path / "two" / "checkpoint.pt", tmp_path / "two.pth"):
            encoder = build_encoder("resnet18", 4).eval()
            load_weights(encoder, source)  # takes the trunk that was tuned
            assert torch.equal(encoder(x), after(x))


def test_regression_makes_its_targets_of_the_step(image_folder: Path, tmp_path: Path) -> None:
    run = pretrain(tiny(image_folder, tmp_path / "run", mode="moco", regression=1.0, log_every=1)).run
    state = read_checkpoint(run)["learner"]
    assert state["regression"]["moments.count"] == 8 * 4 * 2  # steps, images, compositions: one query each
    assert (state["regression"]["moments.squares"] > 0).all()
    assert not any(name.startswith("regression") for name in state["key"])


def test_a_scorer_of_two_trunks_is_saved_and_loaded(tmp_path: Path) -> None:
    table = read_table(write_set(tmp_path / "set"))
    encoder = build_encoder("resnet18", 4, two_trunks=True).eval()
    scorer = Scorer.fit(encoder, table, protocol=FeatureProtocol(crops=2, crop_px=96), quiet=True)
    scorer.save(tmp_path / "scorer.pt")
    loaded = Scorer.load(tmp_path / "scorer.pt")
    assert isinstance(loaded.encoder, TwoTrunks)
    image = next(iter(image_regions().values()))
    assert loaded(image) == scorer(image)
