"""Views that a setting changes: siblings, which differ in the level of one op, and patches seen at half scale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpt import PretrainConfig, degrade, pretrain
from qpt.degradations.op_table import DEGRADATIONS, op_id
from qpt.degradations.program import Step
from qpt.degradations.rule import Group, OpSpec, Rule, UniformRange
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.evaluate.image_crops import half_scale as half_scale_of_evaluation
from qpt.models.encoder import read_checkpoint
from qpt.pretraining import engine, failure
from qpt.pretraining.failure import StepInput, read_failed_step
from qpt.pretraining.half_scale import draw_half_scale, halve
from qpt.pretraining.learner import Learner, StepResult
from qpt.pretraining.replay import replay
from tests.programs import SPACE, smooth_images
from tests.test_pretrain import assert_same_bytes, tiny
from tests.test_pretrain import image_folder as image_folder

SEEDS = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 2000))


def has_other_level(step: Step) -> bool:
    return any(len(set(p.levels)) > 1 for p in DEGRADATIONS[op_id(step.name)].parameters)


def assert_at_another_level(first: Step, second: Step) -> None:
    """Check that a step is another one at a further level: the same alternatives and free parameters."""
    assert first.name == second.name and first.level != second.level and 1 <= second.level <= 5
    for p in DEGRADATIONS[op_id(first.name)].parameters:
        if p.levels:
            before, after = (np.float32(p.alternatives(step.level)) for step in (first, second))
            places = [
                np.flatnonzero(values == np.float32(step.params[p.name])).tolist()
                for values, step in ((before, first), (after, second))
            ]
            assert set(places[0]) & set(places[1]) or len(before) != len(after)
        else:
            assert first.params[p.name] == second.params[p.name]


def differing(first: tuple[Step, ...], second: tuple[Step, ...]) -> list[int]:
    """Return the places at which two chains of one length differ."""
    assert len(first) == len(second)
    return [place for place, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


def test_without_siblings_a_program_is_as_before() -> None:
    assert SPACE.sample_seeded(SEEDS, views=3, siblings=0.0).equal(SPACE.sample_seeded(SEEDS, views=3))


def test_a_sibling_is_the_first_view_with_another_level_of_one_op() -> None:
    program, plain = (SPACE.sample_seeded(SEEDS, views=3, siblings=share) for share in (1.0, 0.0))
    for image in range(len(SEEDS)):
        first, second, third = (program[3 * image + view] for view in range(3))
        assert (first, third) == (plain[3 * image], plain[3 * image + 2])
        if not any(map(has_other_level, first.steps)):
            assert second == plain[3 * image + 1]
            continue
        (place,) = differing(first.steps, second.steps)
        assert_at_another_level(first.steps[place], second.steps[place])
        assert program.seeds[3 * image] == program.seeds[3 * image + 1]
    program.check("test")
    assert torch.equal(program.source, plain.source)


def test_the_share_of_siblings_is_that_of_the_images() -> None:
    program, plain, every = (SPACE.sample_seeded(SEEDS, views=2, siblings=share) for share in (0.3, 0.0, 1.0))
    rows = range(1, 2 * len(SEEDS), 2)
    chosen = [program[row] != plain[row] for row in rows]
    assert 0.3 * len(rows) * 0.75 < sum(chosen) < 0.3 * len(rows) * 1.1  # some images have no sibling
    for row, is_sibling in zip(rows, chosen, strict=True):
        assert program[row] == (every if is_sibling else plain)[row]


def test_ops_and_levels_are_drawn_uniformly() -> None:
    space = DegradationSpace(("jpeg", "gaussian_blur"), min_ops=3, max_ops=3)
    program = space.sample_seeded(SEEDS, views=2, siblings=1.0)
    places, steps = [], []
    for image in range(len(SEEDS)):
        first, second = program[2 * image].steps, program[2 * image + 1].steps
        (place,) = differing(first, second)
        places.append(place)
        steps.append((first[place].level, second[place].level))
    expected = len(SEEDS) / 3
    assert sum((places.count(place) - expected) ** 2 / expected for place in range(3)) < 14  # chi-squared, p = 0.001
    expected = len(SEEDS) / 20
    counts = [steps.count((a, b)) for a in range(1, 6) for b in range(1, 6) if a != b]
    assert sum((count - expected) ** 2 / expected for count in counts) < 44  # 19 degrees of freedom


def test_siblings_follow_the_rules_of_their_pass() -> None:
    """Levels of weight 0 are never drawn; own levels are the op's own; ops without levels and no op have no sibling."""
    jpeg = OpSpec("jpeg", levels={"quality": (90, UniformRange(70, 80), 50, 30, (10, 20))})
    space = DegradationSpace(
        (jpeg, OpSpec("gaussian_blur", levels={"sigma_px": 1.0})),
        max_ops=2,
        level_weights=(1, 1, 0, 0, 1),
        then=(Rule((Group((jpeg, "hue"), probability=0.7),), max_ops=1, level_weights=(0, 0, 1, 1, 0)),),
        pristine=0.2,
    )
    program, plain = (space.sample_seeded(SEEDS, views=2, siblings=share) for share in (1.0, 0.0))
    quality = {1: (90, 90), 2: (70, 80), 3: (50, 50), 4: (30, 30), 5: (10, 20)}
    kept = 0
    for image in range(len(SEEDS)):
        first, second = program[2 * image].steps, program[2 * image + 1].steps
        if not any(step.name in ("jpeg", "hue") for step in first):
            assert second == plain[2 * image + 1].steps
            kept += 1
            continue
        (place,) = differing(first, second)
        old, new = first[place], second[place]
        assert old.name == new.name != "gaussian_blur"
        assert any({old.level, new.level} <= levels for levels in ({1, 2, 5}, {3, 4}))
        if new.name == "jpeg":
            low, high = quality[new.level]
            assert low <= new.params["quality"] <= high
    # Pristine, or neither of up to two ops of the first pass nor an op of the second one.
    assert kept / len(SEEDS) == pytest.approx(0.2 + 0.8 * (7 / 12) * (1 - 0.7 / 2), abs=0.05)


def test_views_with_siblings_are_distinct() -> None:
    space = DegradationSpace(("hue",), max_ops=1)
    program = space.sample_seeded(SEEDS[:300], views=5, siblings=1.0)
    for image in range(300):
        assert len(set(program.compositions()[5 * image : 5 * image + 5])) == 5


def test_siblings_of_an_image_depend_on_its_seed_alone() -> None:
    batch = SPACE.sample_seeded(SEEDS[:40], views=2, siblings=0.5)
    for image in range(40):
        alone = SPACE.sample_seeded(SEEDS[image : image + 1], views=2, siblings=0.5)
        part = batch[2 * image : 2 * image + 2]
        assert part.compositions() == alone.compositions()
        assert torch.equal(part.params, alone.params) and torch.equal(part.seeds, alone.seeds)


@pytest.mark.parametrize(
    ("views", "siblings"), [(2, -0.1), (2, 1.1), (2, float("nan")), (2, "many"), (1, 0.5)], ids=str
)
def test_a_share_of_siblings_out_of_range_is_refused(views: int, siblings: Any) -> None:
    with pytest.raises(InputError, match=r"sample_seeded: siblings must be"):
        SPACE.sample_seeded(SEEDS[:4], views=views, siblings=siblings)


def test_a_space_and_a_batch_without_ops_have_no_siblings() -> None:
    empty = DegradationSpace(("hue",), max_ops=0)
    assert len(empty.sample_seeded(SEEDS[:4], views=2, distinct=False, siblings=1.0)) == 8
    assert len(SPACE.sample_seeded(SEEDS[:0], views=2, siblings=1.0)) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"siblings": -1.0},
        {"siblings": 0.5, "compositions": 1},
        {"siblings": 0.5, "positives": "image"},
        {"half_scale": 1.5},
        {"half_scale": 0.5, "patch_size": 160, "region_size": 319},
    ],
    ids=str,
)
def test_settings_that_leave_no_such_view_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"pretrain: {next(iter(options))} must be"):
        PretrainConfig("data", "out", **options)


def programs_of(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> list[StepInput]:
    """Run pre-training and return the input of every step."""
    seen: list[StepInput] = []
    patches = StepInput.patches

    def noted(self: StepInput, size: int, device: torch.device) -> torch.Tensor:
        seen.append(self)
        return patches(self, size, device)

    with monkeypatch.context() as patch:
        patch.setattr(StepInput, "patches", noted)
        pretrain(config)
    return seen


def test_pretraining_makes_siblings(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = programs_of(tiny(image_folder, tmp_path / "with", siblings=1.0), monkeypatch)
    without = programs_of(tiny(image_folder, tmp_path / "without"), monkeypatch)
    found = 0
    for a, b in zip(with_them, without, strict=True):
        assert torch.equal(a.groups, b.groups) and len(set(a.groups.tolist())) == len(a.groups)
        for row in range(0, len(a.program), 2):
            first, second = a.program[row], a.program[row + 1]
            assert first == b.program[row]
            if any(map(has_other_level, first.steps)):
                assert len(differing(first.steps, second.steps)) == 1
                found += 1
    assert found > 10


def halved(pixels: np.ndarray) -> np.ndarray:
    """Return the antialiased bicubic half of (2 s, 2 s, 3) pixels, float64, not rounded: 8 taps on each axis."""
    distance = (np.arange(-4, 4) + 0.5) / 2
    x = np.abs(distance)
    taps = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)  # Keys, a = -0.5
    out = pixels.astype(np.float64)
    for axis in (0, 1):
        side = out.shape[axis]
        rows = []
        for k in range(side // 2):
            places = 2 * k + np.arange(-3, 5)
            inside = (places >= 0) & (places < side)
            weights = taps[inside] / taps[inside].sum()
            rows.append(np.tensordot(weights, out.take(places[inside], axis), (0, axis)))
        out = np.stack(rows, axis)
    return out


def test_half_is_that_of_pillow() -> None:
    pixels = smooth_images(2, 48, 48)
    got = halve(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy().astype(int)
    for image, half in zip(pixels.numpy(), got, strict=True):
        assert np.abs(half - halved(image)).max() <= 0.5 + 1e-3
        assert np.abs(half - half_scale_of_evaluation(image)).max() <= 1


def assert_patches_are_by_definition(step: StepInput, size: int, patches: np.ndarray, pixels: np.ndarray) -> None:
    """Compare (r, P, s, s, 3) patches with those cut from the pixels of each row, (r, R, R, 3)."""
    assert step.half_scale is not None
    side = pixels.shape[1]
    for row, place in np.ndindex(patches.shape[:2]):
        top, left = step.boxes[row, place].tolist()
        if step.half_scale[row] != place:
            assert (patches[row, place] == pixels[row, top : top + size, left : left + size]).all()
            continue
        top, left = (min(max(corner - size // 2, 0), side - 2 * size) for corner in (top, left))
        expected = halved(pixels[row, top : top + 2 * size, left : left + 2 * size])
        assert np.abs(patches[row, place] - expected.clip(0, 255)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("region", [48, 61])
def test_one_patch_is_the_half_of_the_square_around_it(region: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "ROWS_AT_ONCE", 3)
    size, compositions, count = 24, 2, 3
    regions = smooth_images(10, region, region)
    seeds, rng = SEEDS[20:30], np.random.default_rng(1)
    program = SPACE.sample_seeded(seeds, views=compositions)
    boxes = torch.from_numpy(rng.integers(0, region - size + 1, (len(program), count, 2)).astype(np.int32))
    places = draw_half_scale(seeds, compositions, count, 0.7)
    assert len(set(places.tolist())) == 4
    step = StepInput(regions, boxes, program, torch.arange(20), torch.arange(20), 0.1, places)
    patches = step.patches(size, torch.device("cpu"))
    assert patches.shape == (20, count, 3, size, size) and patches.dtype == torch.uint8
    assert_patches_are_by_definition(
        step, size, patches.permute(0, 1, 3, 4, 2).numpy(), degrade(regions, program).numpy()
    )
    # The undegraded patches that the regression head's measures compare with are cut in the same way.
    undegraded: list[torch.Tensor] = []
    monkeypatch.setattr(failure, "measure", lambda a, b: undegraded.append(b) or torch.zeros(len(a), 9))
    step.measured(patches)
    clean = undegraded[0].unflatten(0, (20, count)).permute(0, 1, 3, 4, 2).numpy()
    assert_patches_are_by_definition(step, size, clean, regions[program.source.long()].numpy())


def test_places_at_half_scale_have_their_share_and_depend_on_the_seed_alone() -> None:
    places = draw_half_scale(SEEDS, 2, 3, 0.4)
    assert places.shape == (2 * len(SEEDS),) and places.dtype == torch.int64
    for place in range(3):
        assert float((places == place).double().mean()) == pytest.approx(0.4 / 3, abs=0.02)
    pairs = places.view(-1, 2)
    assert float((pairs >= 0).all(1).double().mean()) == pytest.approx(0.16, abs=0.03)  # compositions are independent
    for image in (0, 7):
        assert torch.equal(draw_half_scale(SEEDS[image : image + 1], 2, 3, 0.4), pairs[image])
    assert (draw_half_scale(SEEDS, 2, 3, 1.0) >= 0).all()


def test_pretraining_makes_patches_at_half_scale(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_them = programs_of(tiny(image_folder, tmp_path / "with", half_scale=0.5, steps=6), monkeypatch)
    without = programs_of(tiny(image_folder, tmp_path / "without", steps=6), monkeypatch)
    places: list[int] = []
    for a, b in zip(with_them, without, strict=True):
        assert b.half_scale is None and a.half_scale is not None
        assert a.program.equal(b.program) and torch.equal(a.boxes, b.boxes) and torch.equal(a.groups, b.groups)
        places += a.half_scale.tolist()
    assert set(places) == {-1, 0, 1}


def test_a_failed_step_keeps_its_patches_at_half_scale(image_folder: Path, tmp_path: Path) -> None:
    config = tiny(image_folder, tmp_path / "run", half_scale=0.7, regression=1.0)
    seen: list[torch.Tensor] = []

    def fail(self: Learner, patches: torch.Tensor, *given: Any, **named: Any) -> StepResult:
        seen.append(patches.clone())
        raise InputError("pretrain: spoilt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Learner, "step", fail)
        with pytest.raises(InputError, match="spoilt"):
            pretrain(config)
    folder = tmp_path / "run" / "failed_step_1"
    assert torch.equal(read_failed_step(folder).step_input.patches(24, torch.device("cpu")), seen[0])
    assert not replay(folder).reproduced


@pytest.mark.parametrize(
    "options",
    [
        {"siblings": 0.5},
        {"half_scale": 0.5},
        {"siblings": 0.5, "half_scale": 0.5, "mode": "in_batch", "patches": 3, "regression": 1.0},
    ],
    ids=str,
)
def test_a_run_with_changed_views_resumes_to_the_same_bytes(
    options: dict[str, Any], image_folder: Path, tmp_path: Path
) -> None:
    pretrain(tiny(image_folder, tmp_path / "whole", **options))

    class Stopped(Exception):
        pass

    def stop(self: Learner, *given: Any, **named: Any) -> StepResult:
        if self.updates == 5:
            raise Stopped
        return step(self, *given, **named)

    step = Learner.step
    part = tiny(image_folder, tmp_path / "part", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Learner, "step", stop)
        with pytest.raises(Stopped):
            pretrain(part)
    assert read_checkpoint(tmp_path / "part")["step"] == 3
    pretrain(part, resume=True)
    assert_same_bytes(tmp_path / "whole", tmp_path / "part")
