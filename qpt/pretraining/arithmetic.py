"""The arithmetic of an encoder under ``precision: auto``. Called by ``qpt.pretraining.learner``; the run's config.yaml
holds what was chosen, so that a run that is resumed or replayed keeps it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch

from qpt.build import processor_features
from qpt.models import build_encoder
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.process_group import ProcessGroup

# A processor that multiplies bfloat16 (x86, Arm). Others widen it, which float32 beats.
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
FLOAT16_UNITS = ("avx512_fp16", "amx_fp16", "asimdhp")
TRIAL_PATCHES = 8
#: Seconds of a trial in float32 below which it is taken: what is so short is measured badly, and matters little.
SHORT_S = 0.02
#: bfloat16 must be so much faster: less is not worth its rounding, and noise should not decide.
WORTHWHILE = 1.25

Chosen = Literal["float32", "bfloat16"]


def cpu_has(units: Iterable[str]) -> bool:
    """Return True if Linux lists one of these instruction sets of the processor."""
    return not set(units).isdisjoint(processor_features() or ())


def with_precision(config: PretrainConfig, device: torch.device, processes: ProcessGroup) -> PretrainConfig:
    """Return the config with ``precision: auto`` replaced by what it is on the device of the first process."""
    if config.precision != "auto":
        return config
    return replace(config, precision=processes.gather(fastest(config, device) if processes.main else None)[0])


def fastest(config: PretrainConfig, device: torch.device) -> Chosen:
    """Return bfloat16 where the device has units for it and, on a CPU, where a trial says so; else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type != "cpu" or not cpu_has(BFLOAT16_UNITS):
        return "float32"
    seconds = trial(config)
    faster = seconds["float32"] > max(SHORT_S, WORTHWHILE * seconds["bfloat16"])
    return "bfloat16" if faster else "float32"


def trial(config: PretrainConfig) -> dict[Chosen, float]:
    """Return the processor's seconds for a forward and backward pass over a few patches, in each arithmetic.

    They are seconds of the processor and not of a clock, so that what else runs on the machine does not decide.
    """
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(config.arch, config.width).train()
        patches = torch.rand(
            (TRIAL_PATCHES, 3, config.patch_size, config.patch_size), dtype=torch.float32, device="cpu"
        )
    if config.width >= 8:  # as the learner does
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        patches = patches.contiguous(memory_format=torch.channels_last)
    seconds: dict[Chosen, float] = {}
    names: tuple[Chosen, ...] = ("float32", "bfloat16")
    for name in names:
        passes = []
        for _ in range(3):  # the first one allocates
            started = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bfloat16"):
                features = encoder(patches)
            features.float().sum().backward()
            passes.append(time.process_time() - started)
        seconds[name] = min(passes[1:])
    return seconds
