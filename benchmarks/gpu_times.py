"""Steps of ``gpu_day`` that time degradations and one step of pre-training, beside other ways and predictions."""

import functools
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import roofline_degrade
from benchmarks.gpu_checks import photographs
from benchmarks.gpu_loss import H200
from benchmarks.gpu_loss import predicted_ms as predicted_loss_ms
from benchmarks.gpu_steps import Day
from benchmarks.harness import RESULTS
from qpt.data.boxes import draw_pair
from qpt.degradations.op_table import NAMES
from qpt.degradations.program import Program
from qpt.degradations.space import DegradationSpace
from qpt.ops.degrade.api import degrade, degrade_patches

SIDE, PATCH = 320, 160
ROWS = (16, 64, 256, 512, 2048)
_OP_ROWS = (16, 256, 2048)
_LEVEL = 3
_CHAINS = "chains of preset qpt"  # as the record of predictions names them
_IMAGES = 64  # that all rows share


def degrade_times(day: Day) -> None:
    """Time chains of the preset and every op, by rows, beside torchvision and plain torch, after comparing bytes."""
    side, size = (48, 24) if day.dry_run else (SIDE, PATCH)
    crops, _ = photographs(4 if day.dry_run else _IMAGES, side)
    images = crops.to(day.device)
    instructions = _instructions()
    for rows in ROWS[:1] if day.dry_run else ROWS:
        source = torch.arange(rows, dtype=torch.int32) % len(images)
        program = DegradationSpace.preset("qpt").sample(rows, generator=torch.Generator().manual_seed(0))
        program = Program(program.ops, program.levels, program.params, program.seeds, source, program.table)
        rng = np.random.default_rng(0)
        pairs = [draw_pair(rng, size, side, 0.1, 0.3) for _ in range(rows)]
        boxes = torch.tensor(pairs, dtype=torch.int32)
        ms = day.milliseconds(lambda p=program, b=boxes: degrade_patches(images, p, b, size))  # type: ignore[misc]
        _row(day, f"{_CHAINS}, two patches", rows, ms, instructions.get(_CHAINS), side)
    for rows in _OP_ROWS[:1] if day.dry_run else _OP_ROWS:
        for name in NAMES[::18] if day.dry_run else NAMES:
            program = _of_one_op(name, rows, len(images))
            call = functools.partial(degrade, images, program, backend="cuda")
            if rows == _OP_ROWS[0] and not torch.equal(call().cpu(), degrade(crops, program, backend="cpu")):
                raise AssertionError(f"{name} has not the bytes of the CPU: it is not timed")
            _row(day, name, rows, day.milliseconds(call, 3), instructions.get(name), side)
    for rows in (4,) if day.dry_run else (16, 256):
        for name, call in _peers(images, rows):
            day.record("the same ops in other libraries", form=name, rows=rows, ms=day.milliseconds(call, 3))


def _of_one_op(name: str, rows: int, images: int) -> Program:
    return Program.from_chains([[(name, _LEVEL)]] * rows, seeds=range(rows), source=[i % images for i in range(rows)])


def _row(day: Day, op: str, rows: int, ms: float, per_pixel: float | None, side: int) -> None:
    predicted: dict[str, float] = {}
    if per_pixel is not None:
        expected = predicted_ms(per_pixel, rows, side)
        predicted = {"predicted_ms": expected, "measured_over_predicted": ms / expected}
    day.record("degradations", op=op, rows=rows, side=side, ms=ms, rows_per_s=1000 * rows / ms, **predicted)


def _instructions() -> dict[str, float]:
    """Return the instructions per pixel that the committed record counted, by op."""
    try:
        record = json.loads((RESULTS / "roofline_degrade.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return {entry["op"]: float(entry["instructions_per_pixel"]) for entry in record["predictions"]}


def predicted_ms(per_pixel: float, rows: int, side: int) -> float:
    """Return what the model of ``roofline_degrade`` gives for rows that are alike."""
    return roofline_degrade.alike_ms(per_pixel, rows, side, H200)


def _peers(images: Tensor, rows: int) -> list[tuple[str, Callable[[], Any]]]:
    """Return ops of other libraries: a batch at one parameter, and image by image as parameters of their own need."""
    index = torch.arange(rows, device=images.device) % len(images)
    batch = images[index].permute(0, 3, 1, 2).contiguous()
    kernel = torch.ones(1, 1, 13, 13, device=images.device) / 169

    def blur_loop() -> list[Tensor]:
        padded = torch.nn.functional.pad(batch.float(), (6, 6, 6, 6), mode="reflect")
        return [torch.nn.functional.conv2d(image[:, None], kernel)[:, 0] for image in padded]

    def noise_loop() -> list[Tensor]:
        return [(image + 10 * torch.randn_like(image)).clamp(0, 255).byte() for image in batch.float()]

    found: list[tuple[str, Callable[[], Any]]] = [
        ("plain torch, image by image: a blur of 13 x 13 taps", blur_loop),
        ("plain torch, image by image: gaussian noise", noise_loop),
    ]
    try:
        from torchvision.transforms.v2 import functional as v2
    except Exception:
        return found
    ops: dict[str, Callable[[Tensor], Tensor]] = {
        "gaussian_blur": lambda x: v2.gaussian_blur(x, [13, 13], [2.0, 2.0]),
        "brightness": lambda x: v2.adjust_brightness(x, 1.2),
        "contrast": lambda x: v2.adjust_contrast(x, 1.2),
        "saturation": lambda x: v2.adjust_saturation(x, 1.2),
        "hue": lambda x: v2.adjust_hue(x, 0.1),
        "gamma": lambda x: v2.adjust_gamma(x, 1.2),
        "posterise": lambda x: v2.posterize(x, 3),
    }
    for name, op in ops.items():
        found.append((f"torchvision v2, one parameter for the batch: {name}", lambda op=op: op(batch)))  # type: ignore[misc]
        one_by_one = lambda op=op: [op(image) for image in batch]  # type: ignore[misc] # noqa: E731
        found.append((f"torchvision v2, image by image: {name}", one_by_one))
    return found


def learner_step(day: Day) -> None:
    """Profile real steps of ResNet-50 with 256 images: parts, the device's idle share, and waits of the host."""
    from qpt.pretraining.config import PretrainConfig
    from qpt.pretraining.failure import StepInput
    from qpt.pretraining.learner import Learner

    small = {"arch": "resnet18", "width": 8, "patch_size": 32, "batch_images": 4, "pool_size": 64}
    full = {"arch": "resnet50", "patch_size": PATCH, "batch_images": 256, "precision": "bfloat16"}
    config = PretrainConfig("-", "-", mode="moco", **(small if day.dry_run else full))  # type: ignore[arg-type]
    learner = Learner(config, day.device)
    crops, _ = photographs(config.batch_images, config.region)
    regions, images = crops.to(day.device), torch.arange(config.batch_images, device=day.device).repeat_interleave(2)
    space, rng = DegradationSpace.named(config.space), np.random.default_rng(0)
    assert learner.pool is not None
    pool = learner.pool
    keys = torch.nn.functional.normalize(torch.randn(pool.capacity, pool.dim, device=day.device), dim=1)
    pool.push(keys, pool.new_groups(pool.capacity), torch.arange(pool.capacity, device=day.device) + len(images))
    steps = 0

    def patches() -> tuple[Any, Tensor]:
        nonlocal steps
        steps += 1
        seeds = torch.arange(config.batch_images) + steps * config.batch_images
        pairs = [
            draw_pair(rng, config.patch_size, config.region, config.iou_min, config.iou_max) for _ in range(len(seeds))
        ]
        boxes = torch.tensor(pairs, dtype=torch.int32).repeat_interleave(config.compositions, 0)
        program = space.sample_seeded(seeds, views=config.compositions)
        groups = pool.new_groups(len(images))
        step_input = StepInput(regions, boxes, program, groups, images, 1e-6)
        return step_input, step_input.patches(config.patch_size, day.device)

    def step() -> None:
        step_input, cut = patches()
        result = learner.step(cut, step_input.groups, step_input.images, 1e-6)
        if not math.isfinite(result.loss):
            raise AssertionError(f"the loss of a step is {result.loss}")

    for _ in range(1 if day.dry_run else 3):
        step()
    whole, degradations = day.milliseconds(step), day.milliseconds(patches)
    day.record("a step", part="whole", ms=whole, share=1.0, images_per_s=1000 * config.batch_images / whole)
    per_pixel = _instructions().get(_CHAINS)
    predicted = {"predicted_ms": predicted_ms(per_pixel, len(images), config.region)} if per_pixel else {}
    day.record("a step", part="degradations, alone", ms=degradations, share=degradations / whole, **predicted)
    expected = predicted_loss_ms(len(images), len(images) + pool.capacity, "float32", fused=True)
    day.record("a step", part="loss, predicted alone", share=expected / whole, predicted_ms=expected)
    for name, count in _waits(step).items():
        day.record("waits of the host in one step", place=name, times=count)
    _profile(day, step)


def _waits(step: Callable[[], None]) -> dict[str, int]:
    """Return the places where the host waits for the device in one step, as torch warns of them."""
    found: dict[str, int] = {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            place = f"{'/'.join(warning.filename.split('/')[-3:])}:{warning.lineno}"
            found[place] = found.get(place, 0) + 1
    return found


def _profile(day: Day, step: Callable[[], None]) -> None:
    """Record the kernels of one step by their share, and how long the device had none."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [] if day.dry_run else [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events() or []
        if (event.device_type != torch.autograd.DeviceType.CPU or day.dry_run)
        and not getattr(event, "is_user_annotation", False)  # it covers kernels that are listed too
    ]
    if not spans:
        raise AssertionError("the profiler saw no kernel")
    busy, end = 0.0, min(start for start, _, _ in spans)
    first = end
    for start, stop, _ in sorted(spans):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    wall = max(end - first, 1e-9)
    by_name: dict[str, float] = {}
    for start, stop, name in spans:
        by_name[name] = by_name.get(name, 0.0) + stop - start
    total = sum(by_name.values()) or 1.0
    ours = {"degradations": ("qpt_degrade",), "loss": ("_pass_kernel", "_merge_kernel")}
    day.record("profile of a step", what="device busy", ms=busy / 1000, share=busy / wall)
    day.record("profile of a step", what="device idle", ms=(wall - busy) / 1000, share=1 - busy / wall)
    for what, names in ours.items():
        spent = sum(us for name, us in by_name.items() if name.startswith(names))
        day.record("profile of a step", what=f"kernels of the {what}", ms=spent / 1000, share=spent / total)
    for name, us in sorted(by_name.items(), key=lambda item: -item[1])[:12]:
        day.record("largest kernels", kernel=name[:90], ms=us / 1000, share=us / total)
