"""A trial of torch.compile, which needs tools that torch does not bring, before a run is made.

Called by ``qpt.pretraining.engine``.
"""

from __future__ import annotations

import time

import torch

from qpt.errors import BackendError


def check_compiler(device: torch.device) -> None:
    """Compile and run a small function on ``device``. Raises BackendError if that does not work."""
    factor = 1.0 + time.time_ns() % 1_000_000_007  # new in each trial, so that no cache answers in a compiler's place

    def function(values: torch.Tensor) -> torch.Tensor:
        return (values * factor).relu().sum()

    try:
        values = torch.ones(64, device=device, dtype=torch.float32, requires_grad=True)
        torch.compile(function)(values).backward()
    except Exception as error:  # whatever torch, a compiler or the system raises
        raise compiler_error(error) from error


def compiler_error(error: Exception) -> BackendError:
    """Return what to say of an exception of torch.compile."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BackendError(
        "pretrain: compile needs what torch.compile needs, a C++ compiler on the CPU (g++, found by PATH or CXX) and "
        f"Triton with a C compiler on a GPU, got: {lines[0] if lines else type(error).__name__}; install it, or set "
        "compile to false"
    )
