"""Notes on standard error at the start of a run: settings that are sound and yet seldom what was meant.

Called by ``qpt.pretraining.engine`` in the process that writes the run's files.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import torch

from qpt.pretraining.arithmetic import FLOAT16_UNITS, cpu_has
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.process_group import ProcessGroup

MAX_POOL_KEYS_PER_IMAGE = 2


def note_rounding(state: dict[str, Any], processes: ProcessGroup) -> None:
    """Say on resume that sums will round differently from before, if they will."""
    now = {"threads": torch.get_num_threads(), "processes": processes.size}
    for name, count in now.items():
        if state.get(name, 1) != count:
            _say(
                f"started with {state.get(name, 1)} {name}, going on with {count}: sums round differently, "
                "so the weights will not be those of an uninterrupted run, byte for byte"
            )


def note_settings(config: PretrainConfig, images: int, device: torch.device) -> None:
    """Say of a pool that holds many keys of each image, and of a precision that the device imitates, that they do."""
    keys = config.pool_size if config.mode == "moco" else 0
    if keys > MAX_POOL_KEYS_PER_IMAGE * images:
        _say(
            f"the pool holds {keys} keys of {images} images: over {MAX_POOL_KEYS_PER_IMAGE} "
            "old views of each are negatives of it (they take same_image_weight); a smaller pool_size avoids that"
        )
    if imitated(config.precision, device):
        _say(f"{device.type} here only imitates {config.precision}, which can take ten times as long as float32")


def imitated(precision: str, device: torch.device) -> bool:
    """Return True if the device has no arithmetic of this precision and imitates it at a great cost."""
    if device.type == "cuda":
        return precision == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0)
    if precision != "float16":  # bfloat16 is widened to float32 at little cost
        return False
    return not cpu_has(FLOAT16_UNITS)


def note_nothing_left(config: PretrainConfig, steps: int) -> None:
    """Say that a run which is resumed is complete, and how to train on."""
    arguments = shlex.join([config.data, "--out", "NEW", "--init", config.out])
    _say(f"nothing left to do: {steps} of {steps} steps; to train on from its weights: qpt pretrain {arguments}")


def _say(text: str) -> None:
    print(f"pretrain: {text}", file=sys.stderr)
