"""``pretrain(config)``: the loop from a folder of photographs to a checkpoint.

Loads regions, draws a degradation program per photograph, cuts patches, steps the learner, logs and checkpoints. A run
is a function of its config, the photographs and the op table: interrupted and resumed, it ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from qpt import degradations
from qpt.data.images import list_images
from qpt.data.regions import Batch, RegionDataset, StepSampler, collate
from qpt.errors import InputError
from qpt.ops.degrade import degrade_patches
from qpt.pretraining.checkpoint import load_for_resume, save_checkpoint
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.learner import Learner, learning_rate
from qpt.pretraining.log import RunLog
from qpt.pretraining.world import World, join, threads
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
    Started by torchrun, its processes share each batch and end with the same weights; the first one writes the files.
    """
    files = list_images(config.data)
    if len(files) < config.batch_images:
        raise InputError(
            f"pretrain: batch_images must be at most the number of photographs in data ({len(files)}), "
            f"got {config.batch_images}"
        )
    with join(config.device) as (world, device), threads(config.threads, world.neighbours):
        _check_world(config, world)
        return _pretrain(config, files, resume, world, device)


def _pretrain(
    config: PretrainConfig, files: list[Path], resume: bool, world: World, device: torch.device
) -> PretrainResult:
    steps = config.steps or config.epochs * (len(files) // config.batch_images)
    space = DegradationSpace.named(config.space)
    dataset = RegionDataset(
        files,
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
    fingerprint = data_fingerprint(Path(config.data), files)
    table = degradations.fingerprint()
    run = Path(config.out)
    world.on_main(lambda: _open_run(config, resume))
    learner = Learner(config, device, world)
    first, unreadable, seconds = 0, {}, 0.0
    if resume:
        state = load_for_resume(run, config, fingerprint, table, space.fingerprint())
        learner.load_state_dict(state["learner"])
        first, unreadable, seconds = state["step"], dict(state["unreadable"]), state["seconds"]
        if world.main:
            _warn_about_sums(state)
    elif world.main:
        config.save(run / "config.yaml")
        space.to_yaml(run / "space.yaml")  # the file that config.space names may change
    if world.main:
        _warn_about_pool(config, len(files))
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
        self.world = learner.world
        self.step, self.unreadable, self.seconds = first, unreadable, seconds
        self.fingerprint, self.table, self.run = fingerprint, table, run
        self.spent = {"load": 0.0, "degrade": 0.0, "step": 0.0}

    def run_all(self) -> PretrainResult:
        config = self.config
        share = self.world.share(config.batch_images)
        sampler = StepSampler(len(self.dataset), config.batch_images, config.seed, self.step, self.steps, share)
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=config.workers,
            generator=torch.Generator(),  # its own: the global one is the caller's
            pin_memory=self.learner.device.type == "cuda",
        )
        started, saved = time.monotonic() - self.seconds, self.step
        with self._log() as log, _stop_signals() as stop:
            batches = iter(loader)
            stopped = False
            while self.step < self.steps and not stopped:
                mark = time.monotonic()
                batch = next(batches)
                self.spent["load"] += time.monotonic() - mark
                self._one(batch, log)
                self.seconds = time.monotonic() - started
                stopped = self.world.sum(stop.asked)[0] > 0  # all processes stop after the same step
                if self.step - saved >= config.checkpoint_every or self.step == self.steps or stopped:
                    self._save()
                    saved = self.step
            if log is not None:
                self._last_words(log)
        if self.step == self.steps and self.world.main:
            self._summary()
        return PretrainResult(self.run, self.step, self.step == self.steps)

    def _last_words(self, log: RunLog) -> None:
        for index, reason in sorted(self.unreadable.items()):
            log.console.print(f"skipped {self.dataset.files[index]}: {reason}", highlight=False, markup=False)
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
        mark = time.monotonic()
        compositions = self.config.compositions
        program = self.space.sample_seeded(batch.program_seeds, views=compositions)
        patches = degrade_patches(
            batch.regions.to(self.learner.device, non_blocking=True),
            program,
            batch.boxes.flatten(0, 1),
            self.config.patch_size,
            dtype=torch.uint8,
        )
        self.spent["degrade"] += time.monotonic() - mark
        mark = time.monotonic()
        rows = len(program)
        first = self.step * self.config.batch_images + self.world.share(self.config.batch_images).start
        base = first * compositions  # no earlier step and no other process used these ids
        groups = base + torch.arange(rows, device=self.learner.device) // self.config.rows_alike
        images = batch.images.repeat_interleave(compositions).to(self.learner.device)
        try:
            result = self.learner.step(patches, groups, images, lr)
        except InputError as error:
            raise InputError(f"{error}\n  {self._keep_failed(batch, program)}") from error
        self.spent["step"] += time.monotonic() - mark
        self.step += 1
        if log is None:
            return
        log.advance(self.step)
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            total = sum(self.spent.values())
            log.write(
                {
                    "step": self.step,
                    "lr": lr,
                    **asdict(result),
                    "pool_rows": len(self.learner.pool) if self.learner.pool is not None else 0,
                    "images_per_s": self.config.batch_images * self.config.log_every / total,
                    "load_share": self.spent["load"] / total,
                    "degrade_share": self.spent["degrade"] / total,
                }
            )
            self.spent = dict.fromkeys(self.spent, 0.0)

    def _keep_failed(self, batch: Batch, program: Program) -> str:
        """Save what a failed step was given, so that it can be looked at; returns where."""
        path = self.run / (f"failed_step_{self.step + 1}" + (f"_rank_{self.world.rank}" if self.world.size > 1 else ""))
        torch.save({"regions": batch.regions, "images": batch.images, "boxes": batch.boxes}, path.with_suffix(".pt"))
        program.save(path.with_suffix(".program.npz"))
        return f"the batch and its degradation program are in {path.with_suffix('.pt')} and {path.name}.program.npz"

    def _all_unreadable(self) -> dict[int, str]:
        """What any process could not read."""
        return {index: reason for found in self.world.gather(self.unreadable) for index, reason in found.items()}

    def _save(self) -> None:
        learner, self.unreadable = self.learner.state_dict(), self._all_unreadable()
        if not self.world.main:
            return
        save_checkpoint(
            self.run,
            {
                "config": asdict(self.config),
                "step": self.step,
                "learner": learner,
                "encoder": learner["encoder"],  # same tensors, stored once: where load_encoder looks
                "unreadable": sorted(self.unreadable.items()),
                "seconds": self.seconds,
                "data_fingerprint": self.fingerprint,
                "table": self.table,
                "space": self.space.fingerprint(),
                "threads": torch.get_num_threads(),
                "processes": self.world.size,
            },
        )

    def _summary(self) -> None:
        summary = {
            "data": self.config.data,
            "steps": self.steps,
            "photographs": len(self.dataset),
            "unreadable": [
                {"file": self.dataset.files[index].relative_to(self.config.data).as_posix(), "reason": reason}
                for index, reason in sorted(self.unreadable.items())
            ],
            "seconds": round(self.seconds, 1),
            "data_fingerprint": self.fingerprint,
            "op_table": self.table,
            "space": self.space.fingerprint(),
            "versions": {"qpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
        }
        (self.run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def data_fingerprint(root: Path, files: list[Path]) -> str:
    """sha256 over the sorted relative names and sizes of the photographs."""
    listing = "\n".join(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


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


def _warn_about_sums(state: dict[str, Any]) -> None:
    """Say on resume what makes sums round differently than before."""
    now = {"threads": torch.get_num_threads(), "processes": int(os.environ.get("WORLD_SIZE", "1"))}
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
