"""``pretrain(config)``: the loop from a folder of photographs to a checkpoint.

Loads regions, draws a degradation program per photograph, cuts patches, steps the learner, logs and checkpoints. A run
is a function of its config, the photographs and the op table: interrupted and resumed, it ends in the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qpt.data.regions import Batch, RegionDataset
from qpt.data.sources import Source, open_source
from qpt.degradations import op_table
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError, StalledError
from qpt.io import write_whole
from qpt.pretraining.checkpoint import (
    SmoothedLoss,
    has_checkpoint,
    load_for_resume,
    make_resumable,
    save_checkpoint,
)
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.failure import StepGuard, StepInput, failed_folder, keep_failed_step
from qpt.pretraining.learner import Learner, StepResult, learning_rate
from qpt.pretraining.loader import Feed
from qpt.pretraining.log import RunLog
from qpt.pretraining.process_group import World, join, threads
from qpt.pretraining.run_page import RunPage
from qpt.pretraining.signals import Asked, listening
from qpt.pretraining.throughput import StageClocks
from qpt.runs.first_batch import SEEN, keep_seen
from qpt.runs.history import note_start
from qpt.runs.observations import observe
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
    ``summary.json``, ``index.html`` and what docs/report.md says of a run's records.

    resume: continue the run in ``config.out`` from its last checkpoint; the result is the same, byte for byte, as if it
    had never stopped (same machine and thread count). A run killed before its first checkpoint starts at step 0.
    SIGTERM or Ctrl-C finish the step, save and return; SIGUSR1 saves and goes on (docs/runs.md).
    Raises InputError for a folder without images, an existing run without ``resume``, a checkpoint of other settings,
    an unwritable ``out``, fewer photographs than ``batch_images``; files that cannot be read are skipped and listed.
    Started by torchrun, its processes share each batch and end with the same weights; the first one writes the files.
    """
    source = open_source(config.data)
    if len(source) < config.batch_images:
        raise InputError(
            f"pretrain: batch_images must be at most the number of photographs in data ({len(source)}), "
            f"got {config.batch_images}"
        )
    with join(config.device) as (world, device), threads(config.threads, world.neighbours):
        _check_world(config, world)
        return _pretrain(config, source, resume, world, device)


def _pretrain(
    config: PretrainConfig, source: Source, resume: bool, world: World, device: torch.device
) -> PretrainResult:
    steps = config.steps or config.epochs * (len(source) // config.batch_images)
    space = DegradationSpace.named(config.space)
    dataset = RegionDataset(
        source,
        seed=config.seed,
        region_size=config.region,
        patch_size=config.patch_size,
        iou=(config.iou_min, config.iou_max),
        compositions=config.compositions,
        patches=config.patches,
        shared_boxes=config.boxes == "shared",
        resize_shorter=config.resize_shorter,
        cache_mib=config.cache_mib,
    )
    fingerprint = source.fingerprint()
    table = op_table.fingerprint()
    run = Path(config.out)
    world.on_main(lambda: _open_run(config, resume))
    resume = world.gather(resume and has_checkpoint(run))[0]
    learner = Learner(config, device, world)
    first, unreadable, seconds, smoothed = 0, {}, 0.0, SmoothedLoss()
    if resume:
        state = load_for_resume(run, config, fingerprint, table, space.fingerprint())
        learner.load_state_dict(state["learner"])
        first, unreadable, seconds = state["step"], dict(state["unreadable"]), state["seconds"]
        smoothed = SmoothedLoss(**state.get("smoothed", {}))
        if world.main:
            _warn_about_sums(state, world)
    elif world.main:
        write_whole(run / "space.yaml", space.to_yaml)  # the file that config.space names may change
        write_whole(run / "config.yaml", config.save)
    if world.main:
        _warn_about_pool(config, len(source))
        note_start(run, first, device)
    loop = _Loop(config, learner, dataset, space, steps, first, unreadable, seconds, smoothed, fingerprint, table, run)
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
        smoothed: SmoothedLoss,
        fingerprint: str,
        table: str,
        run: Path,
    ) -> None:
        self.config, self.learner, self.dataset, self.space, self.steps = config, learner, dataset, space, steps
        self.world = learner.world
        self.step, self.unreadable, self.seconds, self.smoothed = first, unreadable, seconds, smoothed
        self.fingerprint, self.table, self.run = fingerprint, table, run
        self.guard = StepGuard(learner)
        self.clocks = StageClocks(learner.device, config.workers, self.world.size)
        self.page = RunPage(run) if config.page and self.world.main else None
        self.seen = (run / SEEN).is_file()

    def run_all(self) -> PretrainResult:
        config = self.config
        feed = Feed(
            self.dataset,
            batch_images=config.batch_images,
            seed=config.seed,
            first_step=self.step,
            steps=self.steps,
            share=self.world.share(config.batch_images),
            workers=config.workers,
            device=self.learner.device,
            stall_seconds=config.stall_seconds,
        )
        started, saved, tried = time.monotonic() - self.seconds, self.step, self.step
        with self._log() as log, listening() as asked, feed:
            stop = 0
            while self.step < self.steps and not stop:
                batch = self._next(feed, asked, log)
                if batch is None:
                    break
                self._one(batch, log)
                self.seconds = time.monotonic() - started
                if self.step - tried >= config.checkpoint_every:
                    saved, tried = self.step if self._save(log) else saved, self.step
                stop, save = self.world.sum(asked.stop, asked.save)  # all processes act after the same step
                if save:
                    asked.save, tried = False, self.step
                    saved = self.step if self._save(log) else saved
                if self.page and log and tried == self.step:
                    self.page.update(log.say)
            if saved < self.step:
                self._save(log, last=True)
            if log is not None:
                self._last_words(log)
            if self.step == self.steps and self.world.main:
                self._summary()
                if self.page and log:
                    self.page.update(log.say, finished=True)
        return PretrainResult(self.run, self.step, self.step == self.steps)

    def _next(self, feed: Feed, asked: Asked, log: RunLog | None) -> Batch | None:
        """The next batch, or None when a signal came before it. Alone, a process need not wait for it; of several, all
        finish the step, and one that stalls cannot make the others save."""
        alone = self.world.size == 1
        try:
            fed = feed.next(lambda: alone and asked.stop)
        except StalledError as error:
            if not alone:
                raise
            self._save(log, last=True)
            raise StalledError(f"{error}; step {self.step} is saved, continue with --resume") from error
        if fed is None:
            return None
        batch, load = fed
        self.clocks.loaded(load)
        return batch

    def _last_words(self, log: RunLog) -> None:
        for index, reason in sorted(self.unreadable.items()):
            log.console.print(f"skipped {self.dataset.source.name(index)}: {reason}", highlight=False, markup=False)
        self.clocks.lap()
        if self.clocks.total.images:
            log.console.print(self.clocks.total.text(), highlight=False)
        if self.step < self.steps:
            log.console.print(f"stopped after step {self.step} of {self.steps}; continue with --resume")

    def _log(self) -> AbstractContextManager[RunLog | None]:
        if not self.world.main:
            return nullcontext()
        return RunLog(self.run, first_step=self.step, steps=self.steps, tensorboard=self.config.tensorboard)

    def _one(self, batch: Batch, log: RunLog | None) -> None:
        """Step ``self.step``: a batch without enough readable photographs is counted and changes nothing."""
        lr = learning_rate(self.config, self.step, self.steps)
        self.unreadable.update(batch.unreadable)
        readable = self.world.sum(len(batch.images))[0]
        if readable < 2:
            if readable == 0 and len(self._all_unreadable()) == len(self.dataset):
                raise InputError(f"pretrain: data must hold readable images, got none among {len(self.dataset)} files")
            self.step += 1
            return
        compositions = self.config.compositions
        rows = len(batch.images) * compositions
        first = self.step * self.config.batch_images + self.world.share(self.config.batch_images).start
        base = first * compositions  # no earlier step and no other process used these ids
        groups = base + torch.arange(rows, device=self.learner.device) // self.config.rows_alike
        images = batch.images.repeat_interleave(compositions)
        with self.clocks.stage("degrade"):
            program = self.space.sample_seeded(batch.program_seeds, views=compositions)
            given = StepInput(batch.regions, batch.boxes.flatten(0, 1), program, groups, images, lr)
            patches = given.patches(self.config.patch_size, self.learner.device)
        self.guard.remember()
        try:
            with self.clocks.stage("step"):
                result = self.learner.step(patches, groups, images, lr)
        except (InputError, RuntimeError) as error:
            noticed = self.world.size > 1 and failed_folder(self.run, self.step + 1).exists()  # by another process
            if isinstance(error, RuntimeError) and not noticed:
                raise
            kind = InputError if isinstance(error, InputError) else RuntimeError
            raise kind(f"{error}\n  {self._keep_failed(given, error)}") from error
        self.step += 1
        if (pool := self.learner.pool) is None or len(pool) == pool.capacity:
            self.smoothed.add(result.loss)
        if log is not None:
            log.advance(self.step)
            self._look(log, patches, given, result)
        if self.step % self.config.log_every and self.step != self.steps:
            return
        lap = self.clocks.lap()
        if log is not None:
            log.write(
                {
                    "step": self.step,
                    "lr": lr,
                    **vars(result),
                    "pool_rows": len(self.learner.pool) if self.learner.pool is not None else 0,
                    **lap.row(),
                }
            )

    def _look(self, log: RunLog, patches: torch.Tensor, given: StepInput, result: StepResult) -> None:
        """Keep the first batch, and measure the embeddings of some steps."""
        if not self.seen:
            with log.going_on(self.step):
                keep_seen(self.run, patches, given.images, given.program)
            self.seen = True
        every = self.config.observe_every
        if every and (self.step % every == 0 or self.step == 1):
            each = self.config.patches - 1  # a query has a row for each of its keys: one is enough
            log.observe(self.step, observe(*(rows[::each] for rows in result.embedded)))

    def _keep_failed(self, given: StepInput, error: Exception) -> str:
        """Take back what the failed step has changed and save the step for replay; returns where."""
        self.guard.take_back()
        state = self._state(self.learner.state_dict(own=True))
        names = [self.dataset.source.name(index) for index in given.images[:: self.config.compositions].tolist()]
        try:
            folder = keep_failed_step(self.run, state, given, self.learner, str(error), names)
        except OSError as full:
            return f"the step could not be kept: {full}"
        return f"the step is kept: qpt pretrain --replay {folder}"

    def _all_unreadable(self) -> dict[int, str]:
        """What any process could not read."""
        return {index: reason for found in self.world.gather(self.unreadable) for index, reason in found.items()}

    def _state(self, learner: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "config": asdict(self.config),
            "step": self.step,
            "learner": learner,
            "encoder": learner["encoder"],  # same tensors, stored once: where load_encoder looks
            "unreadable": sorted(self.unreadable.items()),
            "seconds": self.seconds,
            "smoothed": asdict(self.smoothed),
            "data_fingerprint": self.fingerprint,
            "table": self.table,
            "space": self.space.fingerprint(),
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
        }

    def _save(self, log: RunLog | None, *, last: bool = False) -> bool:
        """Save a checkpoint; False when the disk is full, which is an error only if there is no later attempt."""
        learner, self.unreadable = self.learner.state_dict(), self._all_unreadable()
        failed = ""
        if log is not None:
            try:
                log.flush()
                save_checkpoint(self.run, self._state(learner), self.config.keep_checkpoints)
            except OSError as error:
                failed = f"the checkpoint of step {self.step} could not be saved, the one before is kept: {error}"
        failed = self.world.gather(failed)[0]
        if failed and last:
            raise InputError(f"pretrain: {failed}; make room and continue with --resume")
        if failed and log is not None:
            log.console.print(f"{failed}; next attempt in {self.config.checkpoint_every} steps")
        return not failed

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
            "processes": self.world.size,
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
    if resume:
        make_resumable(run, config)
    return run


def _check_world(config: PretrainConfig, world: World) -> None:
    def require(name: str, rule: str, holds: bool) -> None:
        if not holds:
            raise InputError(
                f"pretrain: {name} must be {rule} with {world.size} processes, got {getattr(config, name)!r}"
            )

    parts = world.size * config.accumulate
    require("batch_images", f"a multiple of {parts} (processes x accumulate)", config.batch_images % parts == 0)
    if config.pool_layout == "sharded" and config.mode == "moco":
        require("pool_size", "a multiple of the number of processes", config.pool_size % world.size == 0)
    if config.mode == "in_batch" and world.size > 1:  # a key there has a gradient, and stays where it is
        require("batch_norm", "sync or local in in_batch mode", config.batch_norm != "shuffled")


def _warn_about_sums(state: dict[str, Any], world: World) -> None:
    """Say on resume what makes sums round differently than before."""
    now = {"threads": torch.get_num_threads(), "processes": world.size}
    for name, count in now.items():
        if state.get(name, 1) != count:
            print(
                f"pretrain: started with {state.get(name, 1)} {name}, going on with {count}: sums round differently, "
                "so the weights will not be those of an uninterrupted run, byte for byte",
                file=sys.stderr,
            )


def _warn_about_pool(config: PretrainConfig, photographs: int) -> None:
    rows = config.pool_size if config.mode == "moco" else 0
    if rows > MAX_POOL_ROWS_PER_PHOTOGRAPH * photographs:
        print(
            f"pretrain: the pool holds {rows} keys of {photographs} photographs: over {MAX_POOL_ROWS_PER_PHOTOGRAPH} "
            "old views of each are negatives of it (they take same_image_weight); a smaller pool_size avoids that",
            file=sys.stderr,
        )
