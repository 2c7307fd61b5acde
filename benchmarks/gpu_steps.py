"""One step of ``gpu_day`` in a process of its own: ``python -m benchmarks.gpu_steps NAME --out FILE [--dry-run]``.

A step is a function that takes a ``Day`` and records rows with it; each row is a line of FILE at once, so that it
outlives the step. Steps are in ``gpu_checks.py`` and ``gpu_times.py``, and import only what a bare machine has.
"""

import argparse
import contextlib
import importlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STEPS = {
    "machine": "benchmarks.gpu_checks",
    "one_op": "benchmarks.gpu_checks",
    "all_ops": "benchmarks.gpu_checks",
    "small_rows": "benchmarks.gpu_checks",
    "loss": "benchmarks.gpu_loss",
    "degrade_times": "benchmarks.gpu_times",
    "loss_times": "benchmarks.gpu_loss",
    "learner_step": "benchmarks.gpu_times",
}


@dataclass(frozen=True)
class Day:
    """What a step is given.  dry_run: tensors are on the CPU, CUDA is replaced and sizes are to be tiny."""

    out: Path
    dry_run: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)

    def record(self, table: str, **row: Any) -> None:
        """Keep one row of a table, floats with six significant digits."""
        shown = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
        with self.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"table": table, **shown}) + "\n")

    def milliseconds(self, call: Callable[[], Any], repeats: int = 5) -> float:
        """Return the median time of a call on the device's clock, after one call that is not timed."""
        call()
        times = []
        for _ in range(1 if self.dry_run else repeats):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after))
        return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; an exception of the step ends it with its traceback and status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_steps")
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    replaced: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if options.dry_run:
        from benchmarks.fake_gpu import fake_gpu

        torch.set_num_threads(1)
        replaced = fake_gpu()
    with replaced:
        step = getattr(importlib.import_module(STEPS[options.name]), options.name)
        step(Day(options.out, options.dry_run))
    return 0


if __name__ == "__main__":
    # By its name, so that the processes of a step find what they are sent.
    sys.exit(importlib.import_module("benchmarks.gpu_steps").main())
