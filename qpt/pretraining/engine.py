"""``pretrain(config)``: the loop from a folder of images to a checkpoint.

Loads regions, draws a degradation program per image, cuts patches, steps the learner, logs and checkpoints. A run is a
function of its config, the images and the op table: interrupted and resumed, it ends in the same bytes. Called by
``qpt pretrain``, the demonstration and Python code; writes only into the run's folder.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qpt.data.regions import Batch, RegionDataset
from qpt.data.sources import Source, open_source
from qpt.degradations import op_table
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError, StalledError
from qpt.io import remedy, shown, write_lines, write_whole
from qpt.pretraining.checkpoint import (
    SmoothedLoss,
    has_checkpoint,
    load_for_resume,
    load_initial,
    restore,
    save_checkpoint,
    save_initial,
)
from qpt.pretraining.compiler import check_compiler, compiler_error
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.failure import StepGuard, StepInput, failed_folder, save_failed_step
from qpt.pretraining.half_scale import draw_half_scale
from qpt.pretraining.image_list import save_image_list
from qpt.pretraining.learner import Learner, StepResult, learning_rate
from qpt.pretraining.loader import BatchLoader
from qpt.pretraining.log import RunLog, RunPage
from qpt.pretraining.notes import note_nothing_left, note_rounding, note_settings
from qpt.pretraining.process_group import ProcessGroup, join_process_group, use_threads
from qpt.pretraining.run_folder import SPACE, as_started, open_run
from qpt.pretraining.signals import SignalFlags, capture_signals
from qpt.pretraining.throughput import StageTimer
from qpt.process import tensors_on_cpu
from qpt.runs.first_batch import FIRST_BATCH, save_first_batch
from qpt.runs.history import note_start
from qpt.runs.observations import observe
from qpt.version import __version__


@dataclass(frozen=True)
class PretrainResult:
    """run: the run directory.  step: steps done.  finished: False when a signal asked the run to stop early."""

    run: Path
    step: int
    finished: bool


@tensors_on_cpu()
@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def pretrain(config: PretrainConfig, *, resume: bool = False) -> PretrainResult:
    """Pre-train an encoder as ``config`` says and leave ``checkpoint.pt``, ``config.yaml``, ``log.csv``,
    ``summary.json``, ``index.html`` and the other files of a run in ``config.out`` (docs/runs.md).

    resume: continue the run in ``config.out`` from its last checkpoint; the result is the same, byte for byte, as if it
    had never stopped (same machine and thread count). A run killed before its first checkpoint starts at step 0.
    SIGTERM or Ctrl-C finish the step, save and return; SIGUSR1 saves and continues.
    Raises InputError for a folder without images, an existing run without ``resume``, a checkpoint of other settings,
    an unwritable ``out``, fewer images than ``batch_images``; files that cannot be read are skipped and listed.
    Started by torchrun, its processes share each batch and end with the same weights; the first one writes the files.
    """
    if config.workers and multiprocessing.current_process().daemon:
        raise InputError(
            f"pretrain: workers must be 0 in a daemonic process, which may not start others, got {config.workers}"
        )
    source = open_source(config.data)
    if len(source) < config.batch_images:
        raise InputError(
            f"pretrain: batch_images must be at most the number of images in data ({len(source)}), "
            f"got {config.batch_images}"
        )
    with join_process_group(config.device) as (processes, device), use_threads(config.threads, processes.local_size):
        config.check_processes(processes.size)
        config.check_device(device.type)
        if config.compile:
            check_compiler(device)
        config, space = as_started(config) if resume else (config, DegradationSpace.named(config.space))
        processes.gather(None)  # wait until all have read the folder
        with ExitStack() as opened:
            processes.on_main(lambda: opened.enter_context(open_run(config, resume)))
            return _pretrain(config, source, space, resume, processes, device)


def _pretrain(
    config: PretrainConfig,
    source: Source,
    space: DegradationSpace,
    resume: bool,
    processes: ProcessGroup,
    device: torch.device,
) -> PretrainResult:
    steps = config.steps or config.epochs * (len(source) // config.batch_images)
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
        cache_mib=config.cache_mib // processes.local_size,
    )
    fingerprints = (source.fingerprint(), op_table.fingerprint(), space.fingerprint())
    run = Path(config.out)
    # All follow the first process, whatever each sees of a shared file system.
    begun = load_initial(run, config) if resume and config.init and processes.main else None
    resume, kept = processes.gather((resume and has_checkpoint(run), begun is not None))[0]
    # What was saved replaces the weights that config.init names, which may be gone.
    learner = Learner(replace(config, init="") if resume or kept else config, device, processes)
    config = replace(config, precision=learner.config.precision)
    state: dict[str, Any] = {}
    if resume:
        state = load_for_resume(run, config, source, fingerprints[0], space)
        restore(learner, state.get("learner"))
    elif kept:
        restore(learner, begun or load_initial(run, config))
    elif config.init:
        weights = learner.state_dict()
        processes.on_main(lambda: save_initial(run, config, weights))
    if processes.main:
        if resume:
            note_rounding(state, processes)
        note_start(run, state.get("step", 0), device, config.data)
        if not resume:
            save_image_list(run, source)
            write_whole(run / SPACE, space.to_yaml)  # the file that config.space names may change
            write_whole(run / "config.yaml", config.save)
        note_settings(config, len(source), device)
        if steps == state.get("step"):
            note_nothing_left(config, steps)
    return _TrainingLoop(config, learner, dataset, space, steps, fingerprints, state).run_all()


class _TrainingLoop:
    """The running state of one call of ``pretrain``.

    fingerprints: of the file list, the op table and the degradation space.  state: the checkpoint to continue from,
    which the learner has loaded; empty for a new run.
    """

    def __init__(
        self,
        config: PretrainConfig,
        learner: Learner,
        dataset: RegionDataset,
        space: DegradationSpace,
        steps: int,
        fingerprints: tuple[str, str, str],
        state: dict[str, Any],
    ) -> None:
        self.config, self.learner, self.dataset, self.space, self.steps = config, learner, dataset, space, steps
        self.data_fingerprint, self.op_table_fingerprint, self.space_fingerprint = fingerprints
        self.processes = learner.processes
        self.run = Path(config.out)
        self.step: int = state.get("step", 0)
        self.unreadable: dict[int, str] = dict(state.get("unreadable", ()))
        self.seconds: float = state.get("seconds", 0.0)
        self.smoothed = SmoothedLoss(**state.get("smoothed", {}))
        self.guard = StepGuard(learner)
        self.timer = StageTimer(learner.device, config.workers, self.processes.size)
        self.page = RunPage(self.run) if config.page and self.processes.main else None
        self.first_batch_saved = (self.run / FIRST_BATCH).is_file()
        self.trained = bool(state)  # a step has changed the weights

    def run_all(self) -> PretrainResult:
        """Run the steps that are left, or those until a signal stops the run."""
        config = self.config
        loader = BatchLoader(
            self.dataset,
            batch_images=config.batch_images,
            seed=config.seed,
            first_step=self.step,
            steps=self.steps,
            share=self.processes.share(config.batch_images),
            workers=config.workers,
            device=self.learner.device,
            stall_seconds=config.stall_seconds,
        )
        started, saved, tried = time.monotonic() - self.seconds, self.step, self.step
        with self._open_log() as log, capture_signals() as flags, loader:
            stop = 0
            while self.step < self.steps and not stop:
                batch = self._next_batch(loader, flags, log)
                if batch is None:
                    break
                self._train_step(batch, log)
                self.seconds = time.monotonic() - started
                if self.step - tried >= config.checkpoint_every:
                    saved, tried = self.step if self._save(log) else saved, self.step
                # Summed, so that all processes act after the same step, whichever of them was signalled.
                stop, save = self.processes.sum(flags.stop, flags.save)
                if save:
                    flags.save, tried = False, self.step
                    saved = self.step if self._save(log) else saved
                if self.page and log and tried == self.step:
                    self.page.update(log.say)
            if self.step == self.steps and not self.trained:
                raise InputError(f"pretrain: data must hold readable images, got too few in {self.steps} steps")
            if saved < self.step:
                self._save(log, last=True)
            if log is not None:
                self._print_end(log)
            if self.step == self.steps and self.processes.main:
                self._write_summary()
                if self.page and log:
                    self.page.update(log.say, finished=True)
        return PretrainResult(self.run, self.step, self.step == self.steps)

    def _next_batch(self, loader: BatchLoader, flags: SignalFlags, log: RunLog | None) -> Batch | None:
        """Return the next batch, or None when a signal came before it. Raises StalledError, saved if possible."""
        # Of several processes none may leave before a step that the others are in, and none can save without them.
        alone = self.processes.size == 1
        try:
            loaded = loader.next(lambda: alone and flags.stop)
        except StalledError as error:
            if not alone or not self.trained:
                raise
            self._save(log, last=True)
            raise StalledError(f"{error}; step {self.step} is saved, continue with --resume") from error
        if loaded is None:
            return None
        batch, times = loaded
        self.timer.add_load(times)
        return batch

    def _train_step(self, batch: Batch, log: RunLog | None) -> None:
        """Take step ``self.step``; a batch with fewer than two readable images is counted and changes nothing."""
        lr = learning_rate(self.config, self.step, self.steps)
        self.unreadable.update(batch.unreadable)
        readable = self.processes.sum(len(batch.images))[0]
        if readable < 2:
            if readable == 0 and len(self._all_unreadable()) == len(self.dataset):
                raise InputError(f"pretrain: data must hold readable images, got none among {len(self.dataset)} files")
            self.step += 1
            return
        step_input, patches = self._degrade(batch, lr)
        self.guard.snapshot()
        try:
            with self.timer.stage("step"):
                further = step_input.further(self.config, patches)
                result = self.learner.step(patches, step_input.groups, step_input.images, lr, **further)
        except (InputError, RuntimeError) as error:
            # A process that notices a failure leaves; the others then fail with a RuntimeError of the connection.
            noticed = self.processes.size > 1 and failed_folder(self.run, self.step + 1).exists()
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise compiler_error(error) from error
            if isinstance(error, RuntimeError) and not noticed:
                raise
            kind = InputError if isinstance(error, InputError) else RuntimeError
            raise kind(f"{error}\n  {self._save_failed_step(step_input, error)}") from error
        self.step += 1
        self.trained = True
        if (pool := self.learner.pool) is None or len(pool) == pool.capacity:
            self.smoothed.add(result.loss)
        if log is not None:
            log.advance(self.step)
            self._observe(log, patches, step_input, result)
        if self.step % self.config.log_every and self.step != self.steps:
            return
        throughput = self.timer.read()
        if log is not None:
            keys = len(self.learner.pool) if self.learner.pool is not None else 0
            log.write({"step": self.step, "lr": lr, **vars(result), "pool_rows": keys, **throughput.log_row()})

    def _degrade(self, batch: Batch, lr: float) -> tuple[StepInput, torch.Tensor]:
        """Draw the batch's programs and ids, and degrade and cut its patches."""
        config, compositions = self.config, self.config.compositions
        rows = len(batch.images) * compositions
        # Ids start where no earlier step and no other process has used them.
        first_image = self.step * self.config.batch_images + self.processes.share(self.config.batch_images).start
        groups = torch.arange(rows, dtype=torch.int64, device=self.learner.device) // self.config.rows_per_group
        groups = first_image * compositions + groups
        images = batch.images.repeat_interleave(compositions)
        with self.timer.stage("degrade"):
            seeds, half_scale = batch.program_seeds, None
            program = self.space.sample_seeded(seeds, views=compositions, siblings=config.siblings)
            if config.half_scale:
                half_scale = draw_half_scale(seeds, compositions, config.patches, config.half_scale)
            step_input = StepInput(batch.regions, batch.boxes.flatten(0, 1), program, groups, images, lr, half_scale)
            return step_input, step_input.patches(config.patch_size, self.learner.device)

    def _observe(self, log: RunLog, patches: torch.Tensor, step_input: StepInput, result: StepResult) -> None:
        """Save the first batch, and measure the embeddings of some steps."""
        if not self.first_batch_saved:
            with log.tolerate_full_disk(self.step):
                save_first_batch(self.run, patches, step_input.images, step_input.program)
            self.first_batch_saved = True
        every = self.config.observe_every
        if every and (self.step % every == 0 or self.step == 1):
            each = self.config.patches - 1  # a query has a row for each of its keys: one is enough
            log.observe(self.step, observe(*(rows[::each] for rows in result.embedded)))

    def _open_log(self) -> AbstractContextManager[RunLog | None]:
        if not self.processes.main:
            return nullcontext()
        return RunLog(self.run, first_step=self.step, steps=self.steps, tensorboard=self.config.tensorboard)

    def _save(self, log: RunLog | None, *, last: bool = False) -> bool:
        """Save a checkpoint; return False when it cannot be written, which is an error if this attempt is the last."""
        if not self.trained:  # the same weights are made again
            return True
        learner, self.unreadable = self.learner.state_dict(), self._all_unreadable()
        failed = remedied = ""
        if log is not None:
            try:
                log.flush()
                save_checkpoint(self.run, self._state(learner), self.config.keep_checkpoints)
            except OSError as error:
                failed = f"the checkpoint of step {self.step} could not be saved, any earlier one is kept: {error}"
                remedied = remedy(error)
        failed, remedied = self.processes.gather((failed, remedied))[0]
        if failed and last:
            raise InputError(f"pretrain: {failed}; {remedied} and continue with --resume")
        if failed and log is not None:
            log.say(f"{failed}; {remedied}; next attempt in {self.config.checkpoint_every} steps")
        return not failed

    def _state(self, learner: dict[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "config": asdict(self.config),
            "step": self.step,
            "learner": learner,
            "encoder": self.learner.saved_encoder(learner),  # where load_encoder looks; the same tensors, stored once
            "unreadable": sorted(self.unreadable.items()),
            "seconds": self.seconds,
            "smoothed": asdict(self.smoothed),
            "data_fingerprint": self.data_fingerprint,
            "table": self.op_table_fingerprint,
            "space": self.space_fingerprint,
            "threads": torch.get_num_threads(),
            "processes": self.processes.size,
        }

    def _save_failed_step(self, step_input: StepInput, error: Exception) -> str:
        """Undo what the failed step has changed and save the step for replay; return a sentence that says where."""
        self.guard.restore()
        state = self._state(self.learner.state_dict(own=True))
        files = [self.dataset.source.name(index) for index in step_input.images[:: self.config.compositions].tolist()]
        try:
            folder = save_failed_step(self.run, state, step_input, self.learner, str(error), files)
        except OSError as full:
            return f"the step could not be kept: {full}"
        return f"the step is kept: qpt pretrain --replay {folder}"

    def _all_unreadable(self) -> dict[int, str]:
        """Return the files that any process could not read, with the reasons."""
        return {index: reason for found in self.processes.gather(self.unreadable) for index, reason in found.items()}

    def _print_end(self, log: RunLog) -> None:
        for index, reason in sorted(self.unreadable.items()):
            log.console.print(
                f"skipped {shown(self.dataset.source.name(index))}: {reason}", highlight=False, markup=False
            )
        self.timer.read()
        if self.timer.total.images:
            log.console.print(self.timer.total.text(), highlight=False)
        if self.step < self.steps:
            log.console.print(f"stopped after step {self.step} of {self.steps}; continue with --resume")

    def _write_summary(self) -> None:
        summary = {
            "data": self.config.data,
            "steps": self.steps,
            "photographs": len(self.dataset),
            "unreadable": [
                {"file": self.dataset.source.name(index), "reason": reason}
                for index, reason in sorted(self.unreadable.items())
            ],
            "seconds": round(self.seconds, 1),
            "throughput": self.timer.total.summary(),
            "data_fingerprint": self.data_fingerprint,
            "op_table": self.op_table_fingerprint,
            "space": self.space_fingerprint,
            "versions": {"qpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": self.processes.size,
        }
        write_lines(self.run / "summary.json", [json.dumps(summary, indent=2) + "\n"])
