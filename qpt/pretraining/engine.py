"""``pretrain(config)``: the loop from a folder of photographs to a checkpoint.

Loads regions, draws a degradation program per photograph, cuts patches, steps the learner, logs and checkpoints. A run
is a function of its config, the photographs and the op table: interrupted and resumed, it ends in the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from qpt import degradations
from qpt.data.regions import Batch, RegionDataset
from qpt.data.sources import open_source
from qpt.errors import InputError, StalledError
from qpt.ops.degrade import degrade_patches
from qpt.pretraining.checkpoint import load_for_resume, save_checkpoint
from qpt.pretraining.clocks import StageClocks
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.feed import Feed
from qpt.pretraining.learner import Learner, learning_rate
from qpt.pretraining.log import RunLog
from qpt.program import Program
from qpt.space import DegradationSpace
from qpt.version import __version__

MAX_POOL_ROWS_PER_PHOTOGRAPH = 2


@dataclass(frozen=True)
class PretrainResult:
    """run: the run directory.  step: steps done.  finished: False when a signal asked the run to stop early."""

    run: Path
    step: int
    finished: bool


def pretrain(config: PretrainConfig, *, resume: bool = False) -> PretrainResult:
    """Pre-train an encoder as ``config`` says and leave ``checkpoint.pt``, ``config.yaml``, ``log.csv``,
    ``summary.json``.

    resume: continue the run in ``config.out`` from its last checkpoint; the result is the same, byte for byte, as if it
    had never stopped (same machine and thread count). SIGTERM or Ctrl-C finish the step, save and return.
    Raises InputError for a folder without images, an existing run without ``resume``, a checkpoint of other settings,
    an unwritable ``out``, fewer photographs than ``batch_images``; files that cannot be read are skipped and listed.
    """
    source = open_source(config.data)
    if len(source) < config.batch_images:
        raise InputError(
            f"pretrain: batch_images must be at most the number of photographs in data ({len(source)}), "
            f"got {config.batch_images}"
        )
    steps = config.steps or config.epochs * (len(source) // config.batch_images)
    space = DegradationSpace.named(config.space)
    dataset = RegionDataset(
        source,
        seed=config.seed,
        region_size=config.region,
        patch_size=config.patch_size,
        iou=(config.iou_min, config.iou_max),
        compositions=config.compositions,
        shared_boxes=config.boxes == "shared",
        resize_shorter=config.resize_shorter,
        cache_mib=config.cache_mib,
    )
    fingerprint = source.fingerprint()
    table = degradations.fingerprint()
    run = _open_run(config, resume)
    with _threads(config.threads):
        learner = Learner(config, _device(config.device))
        first, unreadable, seconds = 0, {}, 0.0
        if resume:
            state = load_for_resume(run, config, fingerprint, table, space.fingerprint())
            learner.load_state_dict(state["learner"])
            first, unreadable, seconds = state["step"], dict(state["unreadable"]), state["seconds"]
            if state["threads"] != torch.get_num_threads():
                print(
                    f"pretrain: started with {state['threads']} threads, going on with {torch.get_num_threads()}: "
                    "sums round differently, so the weights will not be those of an uninterrupted run, byte for byte",
                    file=sys.stderr,
                )
        else:
            config.save(run / "config.yaml")
            space.to_yaml(run / "space.yaml")  # the file that config.space names may change
        _warn_about_pool(config, len(source))
        loop = _Loop(config, learner, dataset, space, steps, first, unreadable, seconds, fingerprint, table, run)
        return loop.run_all()


class _Loop:
    """The running state of one call of ``pretrain``."""

    def __init__(
        self,
        config: PretrainConfig,
        learner: Learner,
        dataset: RegionDataset,
        space: DegradationSpace,
        steps: int,
        first: int,
        unreadable: dict[int, str],
        seconds: float,
        fingerprint: str,
        table: str,
        run: Path,
    ) -> None:
        self.config, self.learner, self.dataset, self.space, self.steps = config, learner, dataset, space, steps
        self.step, self.unreadable, self.seconds = first, unreadable, seconds
        self.fingerprint, self.table, self.run = fingerprint, table, run
        self.clocks = StageClocks(learner.device, config.workers)

    def run_all(self) -> PretrainResult:
        config = self.config
        feed = Feed(
            self.dataset,
            batch_images=config.batch_images,
            seed=config.seed,
            first_step=self.step,
            steps=self.steps,
            workers=config.workers,
            device=self.learner.device,
            stall_seconds=config.stall_seconds,
        )
        started, saved = time.monotonic() - self.seconds, self.step
        log = RunLog(self.run, first_step=self.step, steps=self.steps, tensorboard=config.tensorboard)
        with log, _stop_signals() as stop, feed:
            while self.step < self.steps and not stop.asked:
                try:
                    fed = feed.next(lambda: stop.asked)
                except StalledError as error:
                    self._save()
                    raise StalledError(f"{error}; step {self.step} is saved, continue with --resume") from error
                if fed is None:
                    self._save()
                    break
                batch, load = fed
                self.clocks.loaded(load)
                self._one(batch, log)
                self.seconds = time.monotonic() - started
                if self.step - saved >= config.checkpoint_every or self.step == self.steps or stop.asked:
                    self._save()
                    saved = self.step
            for index, reason in sorted(self.unreadable.items()):
                log.console.print(f"skipped {self.dataset.source.name(index)}: {reason}", highlight=False, markup=False)
            self.clocks.lap()
            if self.clocks.total.images:
                log.console.print(self.clocks.total.text(), highlight=False)
            if stop.asked and self.step < self.steps:
                log.console.print(f"stopped after step {self.step} of {self.steps}; continue with --resume")
        if self.step == self.steps:
            self._summary()
        return PretrainResult(self.run, self.step, self.step == self.steps)

    def _one(self, batch: Batch, log: RunLog) -> None:
        """Step ``self.step``: a batch without enough readable photographs is counted and changes nothing."""
        lr = learning_rate(self.config, self.step, self.steps)
        self.unreadable.update(batch.unreadable)
        if len(batch.images) < 2:
            if len(self.unreadable) == len(self.dataset):
                raise InputError(f"pretrain: data must hold readable images, got none among {len(self.dataset)} files")
            self.step += 1
            return
        compositions = self.config.compositions
        with self.clocks.stage("degrade"):
            program = self.space.sample_seeded(batch.program_seeds, views=compositions)
            patches = degrade_patches(
                batch.regions,
                program,
                batch.boxes.flatten(0, 1),
                self.config.patch_size,
                dtype=torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32,
            )
        rows = len(program)
        base = self.step * self.config.batch_images * compositions  # no earlier step used these ids
        groups = torch.arange(base, base + rows, device=self.learner.device)
        images = batch.images.repeat_interleave(compositions)
        try:
            with self.clocks.stage("step"):
                result = self.learner.step(patches, groups, images, lr)
        except InputError as error:
            raise InputError(f"{error}\n  {self._keep_failed(batch, program)}") from error
        self.step += 1
        log.advance(self.step)
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            lap = self.clocks.lap()
            log.write(
                {
                    "step": self.step,
                    "lr": lr,
                    **asdict(result),
                    "pool_rows": len(self.learner.pool) if self.learner.pool is not None else 0,
                    "images_per_s": lap.images_per_s,
                    "load_share": lap.load_share,
                    "degrade_share": lap.stages["degrade"] / lap.seconds,
                    **{f"{stage}_images_per_s": lap.rate(stage) or 0.0 for stage in lap.stages},
                }
            )

    def _keep_failed(self, batch: Batch, program: Program) -> str:
        """Save what a failed step was given, so that it can be looked at; returns where."""
        path = self.run / f"failed_step_{self.step + 1}"
        torch.save({"regions": batch.regions, "images": batch.images, "boxes": batch.boxes}, path.with_suffix(".pt"))
        program.save(path.with_suffix(".program.npz"))
        return f"the batch and its degradation program are in {path.with_suffix('.pt')} and {path.name}.program.npz"

    def _save(self) -> None:
        save_checkpoint(
            self.run,
            {
                "config": asdict(self.config),
                "step": self.step,
                "learner": (learner := self.learner.state_dict()),
                "encoder": learner["encoder"],  # same tensors, stored once: where load_encoder looks
                "unreadable": sorted(self.unreadable.items()),
                "seconds": self.seconds,
                "data_fingerprint": self.fingerprint,
                "table": self.table,
                "space": self.space.fingerprint(),
                "threads": torch.get_num_threads(),
            },
        )

    def _summary(self) -> None:
        summary = {
            "data": self.config.data,
            "steps": self.steps,
            "photographs": len(self.dataset),
            "unreadable": [
                {"file": self.dataset.source.name(index), "reason": reason}
                for index, reason in sorted(self.unreadable.items())
            ],
            "seconds": round(self.seconds, 1),
            "throughput": self.clocks.total.record(),
            "data_fingerprint": self.fingerprint,
            "op_table": self.table,
            "space": self.space.fingerprint(),
            "versions": {"qpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
        (self.run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _open_run(config: PretrainConfig, resume: bool) -> Path:
    run = Path(config.out)
    if not resume and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"pretrain: out must be a new or empty folder (or use --resume), got {run}")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"pretrain: out must be a folder that can be created, got {run}: {error.strerror}") from error
    if not os.access(run, os.W_OK | os.X_OK):
        raise InputError(f"pretrain: out must be writable, got {run}")
    return run


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"pretrain: device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"pretrain: device must be usable here (see `qpt doctor`), got {name!r} without a CUDA device")
    return device


def _warn_about_pool(config: PretrainConfig, photographs: int) -> None:
    rows = config.pool_size if config.mode == "moco" else 0
    if rows > MAX_POOL_ROWS_PER_PHOTOGRAPH * photographs:
        print(
            f"pretrain: the pool holds {rows} keys of {photographs} photographs: over {MAX_POOL_ROWS_PER_PHOTOGRAPH} "
            "old views of each are negatives of it (they take same_image_weight); a smaller pool_size avoids that",
            file=sys.stderr,
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(count or usable)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stop:
    asked = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGTERM and SIGINT ask the loop to stop after its step; a second SIGINT interrupts at once."""
    stop = _Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
