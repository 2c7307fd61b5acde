"""Checkpoints that survive a crash: written aside, flushed to disk, then renamed; older ones and the best are kept.

Called by ``qpt.pretraining.engine``; read back by it on resume and by ``qpt.models.load_encoder`` (which checks the
format). A run holds ``checkpoint.pt``, the newest, and in ``checkpoints/`` older ones, ``step-00000500.pt``, and
``best.pt``. At every moment, a power cut included, the newest that was saved is complete.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qpt.data.sources import Source
from qpt.degradations import op_table
from qpt.degradations.space import DegradationSpace
from qpt.errors import InputError
from qpt.io import flush_to_disk, write_whole
from qpt.models.checkpoint_file import CHECKPOINT_FORMAT, read_checkpoint, settings_in
from qpt.pretraining.config import PretrainConfig
from qpt.pretraining.image_list import IMAGE_LIST, image_list_difference
from qpt.runs.first_batch import FIRST_BATCH
from qpt.runs.history import HISTORY
from qpt.runs.log import LOG, last_logged_step
from qpt.runs.observations import OBSERVATIONS

if TYPE_CHECKING:
    from qpt.pretraining.learner import Learner

NAME = "checkpoint.pt"
FOLDER = "checkpoints"
BEST = "best.pt"
LOCK = "run.lock"  # held while a process works on the run
#: What a run began with whose weights come from elsewhere, until its first checkpoint.
INITIAL = "initial.pt"
#: What a run writes before its first checkpoint: a folder that holds nothing else may be started over.
BEFORE_FIRST = frozenset(
    {"config.yaml", "space.yaml", LOG, "tensorboard", OBSERVATIONS, HISTORY, FIRST_BATCH, LOCK, IMAGE_LIST, INITIAL}
)


@dataclass
class SmoothedLoss:
    """Running mean of the training loss over about the last 100 comparable steps, by which ``best.pt`` is chosen.

    Steps are comparable when they have the same number of negatives. The mean is a part of the checkpoint, so an
    interrupted run chooses the same one.
    """

    # While the pool fills, the loss is low because there are few negatives, so counting begins when it is full;
    # otherwise the first step would be the best. A collapse or a divergence raises the loss, so the best precedes it.
    # Which encoder predicts quality best, only scores can say (``qpt evaluate``).

    loss: float = 0.0
    steps: int = 0

    def add(self, loss: float) -> None:
        self.steps = min(self.steps + 1, 100)
        self.loss += (loss - self.loss) / self.steps


def save_checkpoint(run: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Replace ``run/checkpoint.pt`` atomically; after a crash or on a full disk the old one is still complete.

    state: its ``step`` names the file later; its ``smoothed`` (a ``SmoothedLoss`` as a dict), if there is one, is
    compared with that of ``best.pt``.  keep: checkpoints to keep, this one included, the best besides.
    The old one moves to ``checkpoints/`` and the best is another name (a hard link) of a file already there, so nothing
    is written twice; a file system without links gets a copy of the best.  Raises OSError when the disk is full.
    """
    target = run / NAME

    def write(unfinished: Path) -> None:
        _save_tensors(unfinished, {"format": CHECKPOINT_FORMAT, **state})
        if keep > 1:
            flush_to_disk(unfinished)  # before the old checkpoint loses its name
            _demote(run, state["step"])

    write_whole(target, write, durable=True)
    (run / INITIAL).unlink(missing_ok=True)
    _keep_if_best(run, target, state)
    older = _older(run)
    abandoned = [path for path in older if _step_in_name(path) >= state["step"]]  # from before a return to an older one
    for path in [*abandoned, *[path for path in older if path not in abandoned][max(0, keep - 1) :]]:
        path.unlink(missing_ok=True)


def has_checkpoint(run: Path) -> bool:
    """Return True if ``run`` holds a checkpoint, sound or not."""
    return (run / NAME).exists() or bool(_older(run))


def make_resumable(run: Path, config: PretrainConfig) -> None:
    """Leave a sound checkpoint in ``run``, or make sure that the run may begin at step 0; stderr says which was done.

    One process calls this before all call ``load_for_resume``. A damaged checkpoint is set aside as ``*.damaged`` and
    the one before takes its place. Without any, the run starts at step 0.
    Raises InputError if no checkpoint is sound, or if there is none and the folder holds anything but what this run
    writes before its first.
    """
    for path in (*run.glob("*.part"), *run.glob("*/*.part")):
        path.unlink(missing_ok=True)  # unfinished files of a killed process
    if has_checkpoint(run):
        newest_sound(run)
        return
    # A scheduler gives the same command, with --resume, to a job's first start and to all later ones. There is no
    # checkpoint of step 0, because the config makes the same weights again.
    strange = sorted(path.name for path in run.iterdir() if path.name not in BEFORE_FIRST | {FOLDER})
    if (run / FOLDER).is_dir():
        strange += sorted(f"{FOLDER}/{path.name}" for path in (run / FOLDER).iterdir())
    if strange:
        raise InputError(
            f"pretrain: out must hold {NAME} for --resume, or nothing but a run that had not saved one, "
            f"got {run} with {', '.join(strange)}"
        )
    if (run / "config.yaml").is_file():
        started = PretrainConfig.load(run / "config.yaml", data=config.data, out=config.out)
        _refuse(started.differences(config))
    _report(f"{run} holds no checkpoint yet: starting at step 0")


def load_for_resume(
    run: Path, config: PretrainConfig, source: Source, data_fingerprint: str, space: DegradationSpace
) -> dict[str, Any]:
    """Return the last checkpoint of ``run``, after checking that it continues the same computation.

    Raises InputError naming every setting, and each of the file list, op table and degradation space, that differs from
    what the checkpoint was made with.
    """
    state = read_checkpoint(run / NAME)
    changed = PretrainConfig.from_dict(settings_in(state)).differences(config)
    if state["data_fingerprint"] != data_fingerprint:
        how = image_list_difference(run, source)
        changed.append(
            "data: the folder's file list is not the one the run was started on" + (f" ({how})" if how else "")
        )
    if not op_table.accepts(state["table"]):
        changed.append("degradations: the op table is not the one the run was started with")
    # Older checkpoints have presets only, which the op table's fingerprint covers.
    elif state.get("space") not in (None, space.fingerprint(state["table"])):
        changed.append("space: its rules or numbers are not those the run was started with; they are in space.yaml")
    _refuse(changed)
    return state


def restore(learner: Learner, state: Any) -> None:
    """Load what a checkpoint keeps of a learner. Raises InputError for what is not the state of such a learner."""
    try:
        learner.load_state_dict(state)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"pretrain: the checkpoint must hold the state of this network ({type(error).__name__}: {reason}); "
            "it is damaged, or of another version"
        ) from error


def _refuse(changed: list[str]) -> None:
    if changed:
        raise InputError("pretrain: --resume must keep the run's settings, got\n  " + "\n  ".join(changed))


def save_initial(run: Path, config: PretrainConfig, learner: dict[str, Any]) -> None:
    """Keep the state of a learner before its first step, for a start without a checkpoint and the file of ``init``."""
    state = {"format": CHECKPOINT_FORMAT, "config": asdict(config), "learner": learner}
    write_whole(run / INITIAL, lambda unfinished: _save_tensors(unfinished, state), durable=True)


def load_initial(run: Path, config: PretrainConfig) -> Any:
    """Return the state that ``save_initial`` kept of a start with the same settings; None if there is none."""
    try:
        state = read_checkpoint(run / INITIAL)
    except InputError:  # none, or one that a power cut damaged: config.init is asked for once more
        return None
    same = not PretrainConfig.from_dict(settings_in(state)).differences(config)
    return state["learner"] if same else None


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint and compare every entry with its checksum, which ``torch.load`` does not.

    Raises InputError naming what is wrong with it.
    """
    if not path.exists():
        raise InputError(f"{path.name} is missing")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        size = path.stat().st_size
        raise InputError(f"{path.name} is damaged ({size} bytes: {str(error) or type(error).__name__})") from error
    if bad:
        raise InputError(f"{path.name} is damaged ({bad} does not have its checksum)")
    return read_checkpoint(path)


def newest_sound(run: Path) -> dict[str, Any]:
    """Return the newest checkpoint of ``run`` that is complete; it becomes ``checkpoint.pt`` if it was not.

    Raises InputError if there is none.
    """
    faults: list[str] = []
    for path in (run / NAME, *_older(run)):
        try:
            state = verify_checkpoint(path)
        except InputError as error:
            faults.append(str(error))
            continue
        if faults:
            _fall_back(run, path, state, faults)
        return state
    raise InputError(f"pretrain: out must hold a sound checkpoint for --resume, got {run}: {'; '.join(faults)}")


def _fall_back(run: Path, path: Path, state: dict[str, Any], faults: list[str]) -> None:
    """Make ``path`` the newest checkpoint of ``run`` and set aside what is newer and damaged."""
    reached, step = last_logged_step(run), state["step"]
    again = f"{reached - step} steps are" if reached > step else "the steps since are"
    for newer in (run / NAME, *_older(run)):
        if newer == path:
            break
        if newer.exists():
            os.replace(newer, newer.with_name(f"{newer.name}.damaged"))
    os.replace(path, run / NAME)
    _report(
        f"{'; '.join(faults)}. Going on from {path.relative_to(run)}, step {step}: {again} done again; "
        "what was damaged is kept as *.damaged"
    )
    best = run / FOLDER / BEST  # often another name of a damaged one
    try:
        if best.exists():
            verify_checkpoint(best)
    except InputError as error:
        best.unlink()
        for kept in (run / NAME, *_older(run)):
            with suppress(InputError):
                _keep_if_best(run, kept, verify_checkpoint(kept))
        _report(f"{error}: chosen again among those kept")


def _save_tensors(path: Path, state: dict[str, Any]) -> None:
    with open(path, "wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:
            # torch reports an unfinished archive, and hides what interrupted it: a full disk, a signal.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, (OSError, KeyboardInterrupt)):
                cause = cause.__context__
            raise (cause or error) from None


def _demote(run: Path, step: int) -> None:
    """Move the newest checkpoint to the older ones, before that of ``step`` replaces it."""
    newest = run / NAME
    try:
        old = read_checkpoint(newest, mmap=True)["step"]
    except InputError:  # there is none; or it was damaged after it was written, and a sound one is about to replace it
        return
    if old != step:
        (run / FOLDER).mkdir(exist_ok=True)
        kept = run / FOLDER / f"step-{old:08d}.pt"
        if not _link(newest, kept):
            os.replace(newest, kept)  # until the new one has the name, resuming finds this one
        flush_to_disk(run / FOLDER)


def _keep_if_best(run: Path, path: Path, state: dict[str, Any]) -> None:
    smoothed, best = state.get("smoothed", {"steps": 0}), run / FOLDER / BEST
    if not smoothed["steps"]:
        return
    try:
        if read_checkpoint(best, mmap=True)["smoothed"]["loss"] <= smoothed["loss"]:
            return
    except InputError:  # none yet, or damaged since
        best.parent.mkdir(exist_ok=True)
    if not _link(path, best):
        write_whole(best, lambda unfinished: shutil.copyfile(path, unfinished))
    flush_to_disk(best.parent)


def _link(source: Path, target: Path) -> bool:
    """Make ``target`` another name of ``source``, replacing what had it; False where the file system has no links."""
    unfinished = target.with_name(f"{target.name}.part")  # os.link does not replace a file
    unfinished.unlink(missing_ok=True)
    try:
        os.link(source, unfinished)
    except OSError:
        return False
    os.replace(unfinished, target)
    unfinished.unlink(missing_ok=True)  # a rename between two names of one file leaves both
    return True


def _older(run: Path) -> list[Path]:
    """List the kept older checkpoints, newest first."""
    return sorted((run / FOLDER).glob("step-*.pt"), key=_step_in_name, reverse=True)


def _step_in_name(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _report(message: str) -> None:
    print(f"pretrain: {message}", file=sys.stderr)
