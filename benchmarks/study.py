"""The study: arms that differ in one thing, several seeds each, pre-trained and evaluated.

``python -m benchmarks study PHOTOS --table CSV --out DIR``. Arms are data (``recipes/study.yaml``). An arm and seed is
a folder of ``--out`` and a process of its own (``benchmarks.study_task``), ``--jobs`` at a time; each that ends is put
into ``--results`` at once. It may be killed at any moment: the same command goes on where it was, and what the results
hold with the same settings is not run again, even if its folder is gone. Figures and verdicts:
``benchmarks.study_tables``.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks import study_tables, study_task
from benchmarks.harness import RESULTS
from qpt.errors import InputError
from qpt.pretraining.config import PretrainConfig

HELP = "pre-training arms against each other on tables of scores (own options: python -m benchmarks study --help)"
RECIPE = Path(__file__).parent / "recipes" / "study.yaml"
FORMAT = "qpt-study-1"
KINDS = ("pretrained", "untrained", "recalibrated")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Arm:
    """One arm of the recipe. settings: fields of PretrainConfig over the recipe's base; of: what a recalibrated arm
    takes its encoder from."""

    name: str
    about: str
    group: str
    kind: str = "pretrained"
    against: str = "base"
    of: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """base: settings of all arms.  folder: where files that they name are."""

    base: dict[str, Any]
    arms: dict[str, Arm]
    folder: Path

    def config(self, arm: Arm, data: Path, seed: int) -> dict[str, Any]:
        """All settings of an arm with a seed, checked. A space that is a file is given by its absolute path."""
        fields = {**self.base, **arm.settings, "data": str(data), "out": "", "seed": seed}
        if str(fields.get("space", "")).endswith((".yaml", ".yml")):
            fields["space"] = str((self.folder / fields["space"]).resolve())
        PretrainConfig.from_dict(fields)
        return fields


def read_recipe(path: Path, steps: int | None = None) -> Recipe:
    """steps: instead of the base's; arms that have steps of their own keep their ratio to the base.
    Raises InputError for an arm that names another one that is not there, or an unknown kind or field."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    base, arms = content["base"], {}
    ratio = 1.0 if steps is None else steps / base["steps"]
    for name, given in content["arms"].items():
        unknown = sorted(set(given) - set(Arm.__dataclass_fields__))
        if unknown:
            raise InputError(f"study: arm {name} of {path.name} must have known fields, got {', '.join(unknown)}")
        arm = Arm(name, **given)
        if "steps" in arm.settings:
            arm.settings["steps"] = max(1, round(arm.settings["steps"] * ratio))
        arms[name] = arm
    if steps is not None:
        base["steps"] = steps
    for arm in arms.values():
        needs = {"against": arm.against, **({"of": arm.of} if arm.kind == "recalibrated" else {})}
        for key, value in needs.items():
            if value not in arms:
                raise InputError(f"study: {key} of arm {arm.name} must name an arm of {path.name}, got {value!r}")
        if arm.kind not in KINDS:
            raise InputError(f"study: kind of arm {arm.name} must be one of {', '.join(KINDS)}, got {arm.kind!r}")
    return Recipe(base, arms, path.parent)


def choose(recipe: Recipe, names: Sequence[str]) -> list[Arm]:
    """The arms of these names and groups, and what recalibrated ones need; those last, in the order of the recipe."""
    known = {*recipe.arms, *(arm.group for arm in recipe.arms.values())}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"study: arms must be names or groups ({', '.join(sorted(known))}), got {', '.join(unknown)}")
    chosen = {arm.name for arm in recipe.arms.values() if arm.name in names or arm.group in names}
    chosen |= {recipe.arms[name].of for name in chosen if recipe.arms[name].of}
    arms = [arm for arm in recipe.arms.values() if arm.name in chosen]
    return sorted(arms, key=lambda arm: arm.kind == "recalibrated")


class Study:
    """The folder of a study and its file of results. Run by one process at a time: the file is that one's."""

    def __init__(self, out: Path, results: Path, recipe: Recipe, photos: Path, options: argparse.Namespace) -> None:
        self.out, self.results, self.recipe, self.photos, self.options = out, results, recipe, photos, options
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False
        self.content = self._read_results()

    def folder(self, arm: str, seed: int) -> Path:
        return self.out / arm / f"seed{seed}"

    def prepare(self, arm: Arm, seed: int) -> Path:
        """Write the folder and task of an arm and seed, if it is not there; ValueError if it is there with others."""
        folder = self.folder(arm.name, seed)
        of = str(self.folder(arm.of, seed) / "run") if arm.kind == "recalibrated" else ""
        task = {
            "arm": arm.name,
            "kind": arm.kind,
            "of": of,
            "config": self.recipe.config(arm, self.photos, seed),
            "tables": [str(csv.resolve()) for csv in self.options.table],
            "crops": self.options.crops,
            "crop_px": self.options.crop_px,
        }
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "task.json"
        if file.is_file():
            there = json.loads(file.read_text())
            changed = [key for key in task if key != "tables" and there[key] != task[key]]
            if changed:
                raise ValueError(
                    f"study: {folder} was begun with other {', '.join(changed)}; give another --out, or remove it"
                )
            task["circumstances"] = there["circumstances"]
        else:
            task["circumstances"] = study_task.describe()
        study_task.write(file, task)
        return folder

    def recorded(self, arm: Arm, seed: int) -> bool:
        """Whether the results have this arm and seed with these settings and tables, from wherever it was run. Not if a
        chosen arm is made from its weights and these are not here."""
        wanted = study_task.without_folders(self.recipe.config(arm, self.photos, seed))
        names = {study_task.read_name(csv) for csv in self.options.table}
        crops = {"crops": self.options.crops, "crop_px": self.options.crop_px}
        held = any(
            (row["arm"], row["seed"], row["config"]) == (arm.name, seed, wanted)
            and names <= row["tables"].keys()
            and all(crops.items() <= row["tables"][name]["features"].items() for name in names)
            for row in self.content["rows"]
        )
        needed = any(other.of == arm.name for other in choose(self.recipe, self.options.arms))
        return held and (not needed or (self.folder(arm.name, seed) / "run").is_dir())

    def run(self, folders: Sequence[Path]) -> bool:
        """Do what is not done, ``jobs`` at a time; True if all ended well. Results are written after each."""
        failed = []
        with ThreadPoolExecutor(self.options.jobs) as pool:
            waiting = {pool.submit(self._one, folder): folder for folder in folders}
            for done in as_completed(waiting):
                folder = waiting[done]
                status = done.result()
                name = f"{folder.parent.name} {folder.name}"
                if status == 0:
                    self.keep(folder)
                    print(f"{name}: done", file=sys.stderr)
                elif not self.stopped:
                    failed.append(name)
                    print(f"{name}: ended with status {status}; see {folder / 'output.txt'}", file=sys.stderr)
        return not failed and not self.stopped

    def _one(self, folder: Path) -> int:
        """The exit status of an arm and seed; 0 at once if it is finished."""
        if self.stopped:
            return study_task.STOPPED
        if study_task.collect(folder) is not None:
            return 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        with open(folder / "output.txt", "ab") as output:
            command = [sys.executable, "-m", "benchmarks.study_task", str(folder)]
            with self._lock:
                if self.stopped:
                    return study_task.STOPPED
                child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
                self._children.add(child)
            status = None
            while status is None:
                try:
                    status = child.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    if self.stopped:  # asked in its last step, a run ends and its evaluation begins
                        child.terminate()
            with self._lock:
                self._children.discard(child)
        return status

    def stop(self, number: int = signal.SIGTERM, frame: object = None) -> None:
        """Ask what is running to save and end; begin nothing more."""
        self.stopped = True
        for child in list(self._children):
            child.terminate()

    def keep(self, folder: Path) -> None:
        """Put a finished arm and seed into the file of results."""
        row = study_task.collect(folder)
        if row is None:
            return
        same = [r for r in self.content["rows"] if (r["arm"], r["seed"]) == (row["arm"], row["seed"])]
        if same == [row]:
            return
        self.content["rows"] = [r for r in self.content["rows"] if r not in same] + [row]
        order = list(self.content["arms"])
        self.content["rows"].sort(key=lambda r: (order.index(r["arm"]), r["seed"]))
        self.results.parent.mkdir(parents=True, exist_ok=True)
        study_task.write(self.results, self.content)

    def add(self, arm: Arm) -> None:
        """Take in an arm that the recipe does not have."""
        self.recipe.arms[arm.name] = arm
        self.content["arms"][arm.name] = self._about(arm)

    def _about(self, arm: Arm) -> dict[str, Any]:
        """What the file of results says of an arm."""
        steps = arm.settings.get("steps", self.recipe.base["steps"])
        named = {key: getattr(arm, key) for key in ("about", "group", "kind", "against", "settings")}
        return {**named, "steps": steps}

    def _read_results(self) -> dict[str, Any]:
        """The file of results with this recipe's arms; ValueError if its runs were made with another base."""
        arms = {arm.name: self._about(arm) for arm in self.recipe.arms.values()}
        empty = {"format": FORMAT, "base": self.recipe.base, "arms": arms, "rows": []}
        if not self.results.is_file():
            return empty
        content: dict[str, Any] = json.loads(self.results.read_text())
        if content.get("format") != FORMAT or content["base"] != self.recipe.base:
            raise ValueError(f"study: {self.results} holds another study; give another --results")
        gone = {row["arm"] for row in content["rows"]} - set(arms)
        return {**content, "arms": {**arms, **{name: content["arms"][name] for name in gone}}}


def best_run(study: Study, minutes: float) -> list[Path]:
    """The folder of the long run: the best arm so far, a seed that no arm had, as many steps as its short runs would
    take in these minutes. Settled once, when first asked for; none if the results have a long run."""
    if any(study.content["arms"][row["arm"]]["group"] == "best" for row in study.content["rows"]):
        return []
    file = study.out / "best.json"
    if not file.is_file():
        name = study_tables.best_arm(study.content)
        rows = [row for row in study.content["rows"] if row["arm"] == name]
        pace = statistics.median(row["seconds"] / row["steps"] for row in rows)  # they may be of several machines
        unused = 1 + max(row["seed"] for row in study.content["rows"])
        chosen = {"arm": name, "steps": max(1, round(minutes * 60 / pace)), "seed": unused}
        study_task.write(file, {**chosen, "minutes": minutes})
    chosen = json.loads(file.read_text())
    arm = study.recipe.arms[chosen["arm"]]
    settings = {**arm.settings, "steps": chosen["steps"]}
    long = Arm(f"{arm.name}-long", f"{arm.name}, the best, for longer", "best", against=arm.name, settings=settings)
    study.add(long)
    return [study.prepare(long, chosen["seed"])]


@contextmanager
def _signals(study: Study) -> Iterator[None]:
    before = {number: signal.signal(number, study.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks study", description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path, help="folder of photographs to pre-train on")
    parser.add_argument(
        "--table", type=Path, action="append", required=True, help="CSV image,mos[,ref]; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="YAML of the arms (default: recipes/study.yaml)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS / "study.json", help="JSON (default: results/study.json)"
    )
    parser.add_argument("--arms", nargs="+", default=["claims"], help="names or groups of arms (default: claims)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--steps", type=int, help="steps of every arm (default: the recipe's)")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, one thread each (default 1)")
    parser.add_argument("--crops", type=int, default=9, help="most crops of a photograph, in evaluation (default 9)")
    parser.add_argument("--crop-px", type=int, default=384, help="side of a crop, in evaluation (default 384)")
    parser.add_argument("--best", type=float, metavar="MINUTES", help="then one run of the best arm, about so long")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all arms are finished, 1 if one failed, 2 for an error of the user's, 130 when stopped."""
    options = _parser().parse_args(arguments)
    try:
        recipe = read_recipe(options.recipe, options.steps)
        arms = choose(recipe, options.arms)
        study = Study(options.out.resolve(), options.results, recipe, options.photos.resolve(), options)
        first = [arm for arm in arms if arm.kind != "recalibrated"]
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        with _signals(study):
            well = True
            for part in (first, arms[len(first) :]):  # what is made from other runs comes after them
                todo = [(arm, seed) for seed in seeds for arm in part if not study.recorded(arm, seed)]
                well &= study.run([study.prepare(arm, seed) for arm, seed in todo])
            if options.best is not None and well:
                well &= study.run(best_run(study, options.best))
    except (ValueError, OSError) as error:
        print(f"benchmarks study: error: {error}", file=sys.stderr)
        return 2
    if study.content["rows"]:
        print(study_tables.markdown(study.content))
    return 130 if study.stopped else 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
